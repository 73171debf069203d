"""Identifiers and the names tenants may choose."""

from __future__ import annotations

import pytest

from cyclora_core import ids
from cyclora_core.errors import UserError
from cyclora_core.ids import CheckpointKind, CheckpointPath

SESSION = "11111111-2222-3333-4444-555555555555"
MODEL = f"{SESSION}:train:0"


def test_a_path_reads_back_as_it_was_written() -> None:
    path = CheckpointPath(MODEL, CheckpointKind.SAMPLER, "step-000002")

    assert str(path) == f"tinker://{MODEL}/sampler_weights/step-000002"
    assert CheckpointPath.parse(str(path)) == path
    assert path.checkpoint_id == "sampler_weights/step-000002"


@pytest.mark.parametrize(
    "text",
    [
        "",
        MODEL,
        f"file://{MODEL}/weights/a",
        f"tinker://{MODEL}/weights",
        f"tinker://{MODEL}/weights/a/b",
        f"tinker://{MODEL}/other/a",
        f"tinker://{MODEL}/weights/..",
        f"tinker://{MODEL}/weights/.hidden",
        "tinker://../weights/a",
        f"tinker://{SESSION}/weights/a",
        f"tinker://{MODEL}/weights/a%2f..",
    ],
)
def test_what_is_not_a_checkpoint_path_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        CheckpointPath.parse(text)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "a\n", "\u00e4", "x" * 129, ".a"])
def test_names_that_could_leave_their_folder_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="not allowed"):
        ids.check_name(name)


def test_a_request_id_depends_on_its_owner_and_number_only() -> None:
    assert ids.request_id(MODEL, 3) == f"{MODEL}:3"
    assert ids.session_of(MODEL) == SESSION


def test_only_canonical_ids_are_recognised() -> None:
    assert ids.is_model_id(MODEL)
    assert not ids.is_model_id(f"{SESSION}:train:01")
    assert not ids.is_model_id(f"{SESSION}:sample:1")
    assert ids.is_sampling_session_id(f"{SESSION}:sample:1")
    assert not ids.is_session_id(SESSION.upper() + "x")
    assert ids.is_session_id(ids.new_session_id())
