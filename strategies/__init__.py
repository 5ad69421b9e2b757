"""Federated algorithms: a Flower Strategy at the server, pure functions on updates at every site."""
