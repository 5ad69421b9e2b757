"""Noise and where it comes from: a cipher's random numbers, the discrete Gaussian, shared noise."""
