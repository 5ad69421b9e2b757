"""Privacy accounting: what mechanisms cost, as an ε at a δ."""
