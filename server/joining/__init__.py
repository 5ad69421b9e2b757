"""The port at which invited sites ask to join."""
