"""Federated algorithms: a Flower Strategy at the server, pure functions of updates at every site."""
