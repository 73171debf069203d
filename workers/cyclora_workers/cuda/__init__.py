"""What stands behind the workers' interfaces on a CUDA device; imported only where one is used."""
