"""Privacy accounting: the cost of mechanisms, as an ε at a δ."""
