"""The aggregation server: a hub that agents dial, and a Flower app that adds updates that it cannot read."""
