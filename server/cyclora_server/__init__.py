"""HTTP in, futures out; never computes."""
