"""A round at a site, from admission to opening the sum."""
