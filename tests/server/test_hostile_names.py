"""Names that no honest client sends, in every place from which a name reaches storage."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from core.test_names import FRAGMENTS
from cyclora_core import ids, payload
from cyclora_core.errors import UserError
from cyclora_core.ids import CheckpointPath
from server.doubles.builders import BASE, MODEL, SESSION, model_record
from server.doubles.store import StoreDouble

RNG = random.Random(7)


def has_grammar(name: str) -> bool:
    try:
        return bool(ids.check_name(name))
    except UserError:
        return False


MIXED = ["".join(RNG.choices(FRAGMENTS, k=RNG.randint(1, 6))) for _ in range(90)]
TRAVERSALS = [
    "../../../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "....//....//etc/passwd",
    "final\0.safetensors",
    "final/../../other",
]
NAMES = [each for each in [*FRAGMENTS, *TRAVERSALS, *MIXED] if not has_grammar(each)]
ONE = f"/api/v1/training_runs/{MODEL}/checkpoints"


def posted(route: str, **body: Any) -> tuple[str, str, Any]:
    return "POST", f"/api/v1/{route}", body


PLACES: dict[str, Callable[[str], tuple[str, str, Any]]] = {
    "save_weights": lambda n: posted("save_weights", model_id=MODEL, seq_id=1, path=n),
    "save_for_sampler": lambda n: posted(
        "save_weights_for_sampler", model_id=MODEL, seq_id=1, path=n
    ),
    "save_external": lambda n: posted("save_weights_external", model_id=MODEL, seq_id=1, path=n),
    "load_weights": lambda n: posted(
        "load_weights", model_id=MODEL, seq_id=1, path=f"tinker://{MODEL}/weights/{n}"
    ),
    "load of a run": lambda n: posted(
        "load_weights", session_id=SESSION, model_seq_id=3, path=f"tinker://{n}/weights/final"
    ),
    "weights_info": lambda n: posted("weights_info", tinker_path=n),
    "copy_weights": lambda n: posted(
        "copy_weights",
        source_path=f"tinker://{MODEL}/weights/{n}",
        destination_project_id="default",
    ),
    "a project": lambda n: posted("create_session", project_id=n),
    "a sampling session": lambda n: posted(
        "create_sampling_session",
        session_id=SESSION,
        sampling_session_seq_id=4,
        model_path=f"tinker://{MODEL}/sampler_weights/{n}",
    ),
    "a model of inference": lambda n: (
        "POST",
        "/v1/completions",
        {"model": f"tinker://{MODEL}/weights/{n}", "prompt": "a"},
    ),
    "an upload": lambda n: (
        "POST",
        f"/api/v1/adapters?base_model={quote(BASE.name)}&name={encoded(n)}",
        None,
    ),
    "a checkpoint to delete": lambda n: ("DELETE", f"{ONE}/weights/{encoded(n)}", None),
    "an archive": lambda n: ("GET", f"{ONE}/weights/{encoded(n)}/archive", None),
    "a tokenizer": lambda n: ("GET", f"/api/v1/tokenizers/{encoded(n)}", None),
    "a tokenizer's file": lambda n: (
        "GET",
        f"/api/v1/tokenizers/{BASE.name}/files/{encoded(n)}",
        None,
    ),
    "a signed file": lambda n: (
        "GET",
        f"/api/v1/files/owned/{MODEL}/weights/final/1/{encoded(n)}?expires=1&signature=x",
        None,
    ),
}


def encoded(name: str) -> str:
    return quote(name.encode(errors="surrogatepass"), safe="")


@pytest.mark.parametrize("place", PLACES)
async def test_no_name_gets_past_its_check(
    client: httpx.AsyncClient, store: StoreDouble, place: str
) -> None:
    """Refused with a 4xx, or as a failed future; what is taken is a path as we write it."""
    store.models.records[MODEL] = model_record()
    for name in NAMES:
        store.operations.submissions.clear()
        store.futures.records.clear()
        method, path, body = PLACES[place](name)
        content = None if body is None else json.dumps(body).encode()

        answer = await client.request(method, path, content=content)

        assert answer.status_code < 500, f"{name!r}: {answer.text}"
        for submission in store.operations.submissions.values():
            if submission.error is None:
                meta = payload.decode(submission.body).meta
                assert str(CheckpointPath.parse(meta["path"])) == meta["path"]
        if answer.status_code == 200 and not store.operations.submissions:
            # A project's name is a label; a dot in a URL is taken out by the client itself.
            assert place in ("a project", "a tokenizer", "a tokenizer's file"), f"{name!r}"
