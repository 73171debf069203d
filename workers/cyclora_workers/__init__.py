"""The only place with torch: executes clock cycles on one base model."""
