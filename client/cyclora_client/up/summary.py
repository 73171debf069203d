"""What there is to know once everything runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cyclora_client.up.bootstrap import Credentials


@dataclass(frozen=True, slots=True)
class Pids:
    """Process ids at the moment everything became ready."""

    server: int | None
    scheduler: int | None
    workers: Sequence[int | None]
    redis: int | None


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """A base model that is served, and the folder its tokenizer can be loaded from."""

    name: str
    tokenizer_path: str | None


@dataclass(frozen=True, slots=True)
class Summary:
    """What a person, or a program that started ``up --json``, needs."""

    base_url: str
    credentials: Credentials
    credentials_file: Path
    base_models: Sequence[ReadyModel]
    pids: Pids

    def to_json_line(self) -> str:
        value = {
            "base_url": self.base_url,
            "api_key": self.credentials.api_key,
            "admin_key": self.credentials.admin_key,
            "base_models": [
                {"name": model.name, "tokenizer_path": model.tokenizer_path}
                for model in self.base_models
            ],
            "pids": {
                "server": self.pids.server,
                "scheduler": self.pids.scheduler,
                "workers": list(self.pids.workers),
                "redis": self.pids.redis,
            },
        }
        return json.dumps(value)

    def snippet(self) -> str:
        """Five lines of Python that reach the server with the official SDK."""
        model = self.base_models[0].name
        return (
            "from cyclora_client.connect import connect\n"
            f'service = connect("{self.base_url}", "{self.credentials.api_key}")\n'
            f'model = service.create_lora_training_client("{model}", rank=16).result()\n'
            "tokenizer = model.get_tokenizer()\n"
            'print(tokenizer.encode("hello"))'
        )
