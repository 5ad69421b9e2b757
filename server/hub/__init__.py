"""The port that agents dial, and the messages that wait behind it."""
