"""Continuous batching: samples of many tenants on many adapters share every pass."""
