"""Play the protocol under seeded schedules of faults, in virtual time, and check its promises after every step."""
