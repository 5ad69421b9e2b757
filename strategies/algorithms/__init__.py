"""The built-in federated algorithms, one per file. The file is named after the strategy: the lower-case class name."""
