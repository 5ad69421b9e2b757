"""Sites of a planned run: real agents, with records that are made up, whose training is timed."""
