"""A round at a site, from admission to the sum that is opened."""
