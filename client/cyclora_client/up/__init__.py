"""Everything on one machine: the supervisor behind ``cyclora up``."""
