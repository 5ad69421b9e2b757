"""Sites of a planned run: real agents, with records that are made up, whose training is timed."""

TRAINING = "training-seconds"
"""The file in a site's folder with a line for each round: its number, and the processor seconds of its training."""
