"""The federated algorithms that ship, a file each: its name is the strategy's, and the class's in small letters."""
