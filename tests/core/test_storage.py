"""Paths in storage come from checked names only."""

from __future__ import annotations

from pathlib import Path

import pytest

from cyclora_core.errors import NotFound
from cyclora_core.ids import CheckpointKind, CheckpointPath
from cyclora_core.storage import Storage, StoredFile, is_base_model_name

MODEL = "11111111-2222-3333-4444-555555555555:train:0"


def test_tokenizer_files_are_copied_and_read_by_name(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "model.safetensors").write_text("large")
    storage = Storage(tmp_path / "storage")

    assert storage.put_tokenizer("org/name", source) == ["tokenizer.json"]
    assert storage.tokenizer_file("org/name", "tokenizer.json") == b"{}"


@pytest.mark.parametrize(
    ("base_model", "name"),
    [
        ("org/name", "missing.json"),
        ("org/name", "../tokenizer.json"),
        ("org/name", ".hidden"),
        ("../org", "tokenizer.json"),
        ("org/..", "tokenizer.json"),
        ("/etc", "passwd"),
    ],
)
def test_no_other_file_can_be_read(tmp_path: Path, base_model: str, name: str) -> None:
    with pytest.raises(NotFound):
        Storage(tmp_path).tokenizer_file(base_model, name)


def test_the_files_of_a_revision_are_listed_by_name_and_none_of_one_that_is_gone(
    tmp_path: Path,
) -> None:
    storage = Storage(tmp_path)
    path = CheckpointPath(MODEL, CheckpointKind.EXTERNAL, "hf")
    folder = storage.checkpoint_dir(path, "3")
    folder.mkdir(parents=True)
    for name in ("b", "a"):
        (folder / name).write_text(name * 5)

    files = storage.checkpoint_files(path, "3")

    assert files == [StoredFile(folder / "a", 5), StoredFile(folder / "b", 5)]
    assert storage.checkpoint_files(path, "4") == []


def test_a_revision_is_begun_once_and_finished_with_its_size(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    path = CheckpointPath(MODEL, CheckpointKind.TRAINING, "uploaded")
    folder = storage.begin_revision(path, "12")
    (folder / "a").write_bytes(b"12345")

    assert storage.finish_revision(path, "12") == 5
    assert folder == storage.checkpoint_dir(path, "12")
    with pytest.raises(FileExistsError):
        storage.begin_revision(path, "12")


def test_older_snapshots_are_deleted_and_newer_ones_kept(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    for seq_id, epoch in ((1, 1), (5, 2), (9, 1), (9, 2), (9, 3), (12, 1)):
        storage.snapshot_dir(MODEL, seq_id, epoch).mkdir(parents=True)
    folder = storage.snapshot_dir(MODEL, 9, 2)
    for half_written in (".5-1.part", ".12-3.part"):
        (folder.parent / half_written).mkdir()

    storage.delete_snapshots_before(MODEL, 9, 2)

    kept = sorted(child.name for child in folder.parent.iterdir())
    assert kept == [".12-3.part", "12-1", "9-2", "9-3"]


def test_deleting_a_checkpoint_removes_its_folder_only(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    kept = CheckpointPath(MODEL, CheckpointKind.TRAINING, "kept")
    gone = CheckpointPath(MODEL, CheckpointKind.TRAINING, "gone")
    for path in (kept, gone):
        storage.checkpoint_dir(path, "3").mkdir(parents=True)

    storage.delete_checkpoint(gone)
    storage.delete_checkpoint(gone)

    assert storage.checkpoint_dir(kept, "3").is_dir()
    assert not storage.checkpoint_dir(gone, "3").exists()


def test_the_last_checkpoint_of_a_model_leaves_no_empty_folders(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    path = CheckpointPath(MODEL, CheckpointKind.TRAINING, "only")
    storage.checkpoint_dir(path, "3").mkdir(parents=True)

    storage.delete_checkpoint(path)

    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_revision_is_a_number() -> None:
    path = CheckpointPath(MODEL, CheckpointKind.TRAINING, "kept")
    with pytest.raises(ValueError, match="revision"):
        Storage(Path("x")).checkpoint_dir(path, "../3")


def test_base_model_names_look_like_hugging_face_ids() -> None:
    assert is_base_model_name("Qwen/Qwen3-0.6B")
    assert not is_base_model_name("a//b")
    assert not is_base_model_name("a/../b")


def test_deleting_a_revision_spares_the_one_that_replaced_it(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    path = CheckpointPath(MODEL, CheckpointKind.TRAINING, "again")
    for revision in ("3", "7"):
        storage.checkpoint_dir(path, revision).mkdir(parents=True)

    assert storage.delete_revision(path, "3")

    assert storage.checkpoint_dir(path, "7").is_dir()
    assert storage.delete_revision(path, "7")
    assert storage.delete_revision(path, "7")
    assert list((tmp_path / "checkpoints").iterdir()) == []


SOURCE = CheckpointPath(MODEL, CheckpointKind.TRAINING, "source")
TARGET = CheckpointPath(MODEL.replace("1", "2"), CheckpointKind.TRAINING, "source")


def saved(storage: Storage) -> Path:
    folder = storage.checkpoint_dir(SOURCE, "3")
    folder.mkdir(parents=True)
    (folder / "weights").write_text("numbers")
    return folder


def test_a_copy_shares_bytes_with_its_source_and_outlives_it(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    folder = saved(storage)

    storage.copy_revision(SOURCE, "3", TARGET, "77")
    copy = storage.checkpoint_dir(TARGET, "77")
    assert (copy / "weights").stat().st_ino == (folder / "weights").stat().st_ino
    storage.delete_revision(SOURCE, "3")

    assert (copy / "weights").read_text() == "numbers"


def test_a_copy_is_made_where_files_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path)
    folder = saved(storage)

    def no_links(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", no_links)
    storage.copy_revision(SOURCE, "3", TARGET, "77")

    copy = storage.checkpoint_dir(TARGET, "77") / "weights"
    assert copy.read_text() == "numbers"
    assert copy.stat().st_ino != (folder / "weights").stat().st_ino


def test_a_copy_of_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Storage(tmp_path).copy_revision(SOURCE, "3", TARGET, "77")

    assert list(tmp_path.iterdir()) == []


def test_a_copy_that_finds_no_room_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path)
    saved(storage)

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.link", no_room)
    monkeypatch.setattr("shutil.copyfile", no_room)
    with pytest.raises(OSError, match="No space"):
        storage.copy_revision(SOURCE, "3", TARGET, "77")

    assert not storage.checkpoint_dir(TARGET, "77").exists()


def test_nothing_is_left_to_delete_of_a_checkpoint_that_is_gone(tmp_path: Path) -> None:
    Storage(tmp_path).delete_other_revisions(SOURCE, "3")

    assert list(tmp_path.iterdir()) == []


def test_what_lies_in_storage_is_told_and_nothing_that_is_not_ours(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    path = CheckpointPath(MODEL, CheckpointKind.TRAINING, "a")
    for folder in (storage.checkpoint_dir(path, "3"), storage.snapshot_dir(MODEL, 7, 2)):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"12345")
    for stray in ("checkpoints/x/y/z/1", f"checkpoints/{MODEL}/weights/a/b", "snapshots/x/1-1"):
        (tmp_path / stray).mkdir(parents=True)
    (tmp_path / "checkpoints" / "file").write_text("")

    [revision] = storage.revisions()
    [snapshot] = storage.snapshots()

    assert (revision.path, revision.revision, revision.num_bytes) == (path, "3", 5)
    assert revision.changed_at_ms > 0
    assert (snapshot.model_id, snapshot.name, snapshot.place) == (MODEL, "7-2", (7, 2))
    assert storage.delete_snapshot(MODEL, "7-2")
    assert list(storage.snapshots()) == []


def test_storage_that_nobody_has_written_to_holds_nothing(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "new")

    assert [*storage.revisions(), *storage.snapshots()] == []
    with pytest.raises(ValueError, match="not a snapshot"):
        storage.delete_snapshot(MODEL, "../..")
