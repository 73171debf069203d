"""Whatever text comes from outside: a name either has its grammar, or is refused."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclora_core import ids
from cyclora_core.errors import NotFound, UserError
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.storage import Storage, is_base_model_name

MODEL = ids.model_id("00000000-0000-4000-8000-000000000001", 0)

FRAGMENTS = [
    *("..", ".", "/", "\\", "//", "...", "~", "%2e%2e", "%2f", "%00", "\0", "\n", "\r", "\t", " "),
    # Look-alikes of dot and slash, joiners, overrides, digits of other scripts.
    *(
        "\uff0e\uff0e",
        "\uff0f",
        "\u2024",
        "\u2215",
        "\u202e",
        "\u200d",
        "\ufeff",
        "\u0661",
        "\u0131",
    ),
    *("\ud800", "\U0001f600", "e\u0301", "-", "_", ":", "*", "$(id)", "`id`", "CON", "a", "A", "0"),
    *("etc", "passwd", "weights", "tinker://", MODEL, "x" * 127, "x" * 5000),
]
hostile = st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join) | st.text(max_size=300)


def is_inside(folder: Path, root: Path) -> bool:
    return folder.resolve().is_relative_to(root.resolve()) and folder.resolve() != root.resolve()


@given(hostile)
def test_a_name_that_is_taken_is_one_short_part_of_a_path_and_a_url(name: str) -> None:
    try:
        assert ids.check_name(name) == name
    except UserError:
        return
    assert name.isascii()
    assert 0 < len(name) <= 128
    assert Path(name).parts == (name,)
    assert not set(name) & set("/\\%?#:\0 \n")
    assert not name.startswith(".")


@given(hostile, st.sampled_from(list(CheckpointKind)), hostile)
def test_a_path_that_is_taken_lies_in_storage_and_is_written_in_one_way(
    run: str, kind: CheckpointKind, name: str
) -> None:
    for text in (f"tinker://{run}/{kind}/{name}", f"tinker://{MODEL}/{kind}/{name}", run + name):
        try:
            path = CheckpointPath.parse(text)
        except UserError:
            continue
        assert str(path) == text
        root = Path("/storage")
        folder = Storage(root).checkpoint_dir(path, "1")
        assert folder == root / "checkpoints" / path.model_id / kind / path.name / "1"
        assert is_inside(folder, root)


@given(hostile)
def test_an_id_that_is_taken_is_one_part_of_a_key(text: str) -> None:
    checks = (ids.is_session_id, ids.is_model_id, ids.is_sampling_session_id, ids.is_loss_id)
    if any(check(text) for check in checks):
        assert text.isascii()
        assert len(text) < 60
        assert not set(text) - set("0123456789abcdef-:trainsmpleo")


@given(hostile, hostile)
def test_no_name_of_a_base_model_or_file_leads_out_of_the_tokenizers(base: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "storage"
        (root / "tokenizers").mkdir(parents=True)
        (Path(folder) / "passwd").write_bytes(b"secret")
        (root / "passwd").write_bytes(b"secret")
        for base_model in (base, f"../{base}", "..", "../.."):
            with pytest.raises(NotFound):
                Storage(root).tokenizer_file(base_model, name)


@given(hostile)
def test_a_base_models_name_is_made_of_safe_parts(name: str) -> None:
    if is_base_model_name(name):
        assert name.isascii()
        assert all(part not in ("", ".", "..") for part in name.split("/"))


@given(hostile)
def test_what_is_no_number_is_no_revision(revision: str) -> None:
    path = CheckpointPath(MODEL, CheckpointKind.TRAINING, "a")
    try:
        folder = Storage(Path("/storage")).checkpoint_dir(path, revision)
    except ValueError:
        return
    assert folder.name == revision
    assert revision.isdecimal()
