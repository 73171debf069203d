"""Decides what runs in each clock cycle."""
