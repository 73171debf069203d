"""Uploaded losses: what they may do and how one is run."""
