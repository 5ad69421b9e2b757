"""What a site keeps on disk from one round to the next."""
