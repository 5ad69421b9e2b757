"""Noise: random numbers from a cipher, the discrete Gaussian, shared noise."""
