"""Adapters trained elsewhere, on their way in: received, checked, and written as ours."""
