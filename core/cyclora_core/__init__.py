"""What every cyclora process agrees on: records, ids, errors, payloads, storage and the store."""

__version__ = "0.1.0"
