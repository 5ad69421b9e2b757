"""The documents of a run: settings, manifest, plan, roster and policy, signed or checked against signed ones."""
