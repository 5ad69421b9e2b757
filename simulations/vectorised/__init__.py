"""Many sites' small models trained together: the codec and arithmetic of sites, without keys, ledgers and messages."""
