"""``python -m cyclora_client`` is the ``cyclora`` command."""

from __future__ import annotations

from cyclora_client.cli import main

if __name__ == "__main__":
    main()
