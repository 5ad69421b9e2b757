"""Show runs in TensorBoard and MLflow, which the server and each site may do for themselves."""
