"""Where checkpoints, snapshots and tokenizer files lie; every path is made here.

::

    {root}/checkpoints/{model_id}/{weights|sampler_weights|external_weights}/{name}/{revision}/
    {root}/snapshots/{model_id}/{seq_id}-{epoch}/
    {root}/tokenizers/{base model with "/" as "--"}/

Nothing a tenant sends becomes a path before its grammar was checked.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cyclora_core.errors import NotFound, UserError
from cyclora_core.ids import CheckpointPath, is_model_id

_BASE_MODEL_RE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*){0,3}")
_SNAPSHOT_RE = re.compile(r"\.?(\d+)-(\d+)(?:\.part)?")
_REVISION_RE = re.compile(r"\d{1,20}")
_FILE_RE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
"""What clients on other machines need to load a tokenizer."""


def is_base_model_name(name: str) -> bool:
    """Whether a name is like a Hugging Face id, which also makes it safe as a folder name."""
    return _BASE_MODEL_RE.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a checkpoint, never written to again."""

    path: Path
    num_bytes: int

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """The files of one revision of a checkpoint, as they lie there."""

    path: CheckpointPath
    revision: str
    num_bytes: int
    changed_at_ms: int
    """By the clock of the file system."""


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """One snapshot, as it lies there."""

    model_id: str
    name: str
    place: tuple[int, int]
    """Its seq_id and epoch."""
    num_bytes: int
    changed_at_ms: int


class Storage:
    """A folder shared by all processes of one deployment."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def checkpoint_dir(self, path: CheckpointPath, revision: str) -> Path:
        """Where one revision's files lie; the checkpoint's record says which one is meant."""
        if not _REVISION_RE.fullmatch(revision):
            raise ValueError(f"{revision!r} is not a revision")
        return self._checkpoint(path) / revision

    def checkpoint_files(self, path: CheckpointPath, revision: str) -> list[StoredFile]:
        """The files of one revision by name; none of a revision that is gone."""
        folder = self.checkpoint_dir(path, revision)
        found: list[StoredFile] = []
        with contextlib.suppress(FileNotFoundError):  # deleted, perhaps this very moment
            found = [StoredFile(each, each.stat().st_size) for each in sorted(folder.iterdir())]
        return found

    def delete_checkpoint(self, path: CheckpointPath) -> None:
        """Delete all revisions, and the folders above them once nothing is left there."""
        folder = self._checkpoint(path)
        shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(folder.parent, folder.parent.parent)

    def delete_revision(self, path: CheckpointPath, revision: str) -> bool:
        """Delete one revision's files; true when they are gone, however that came.

        Another revision, of a save under the same name, stays.
        """
        folder = self.checkpoint_dir(path, revision)
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            return False
        _remove_empty(*list(folder.parents)[:3])
        return True

    def begin_revision(self, path: CheckpointPath, revision: str) -> Path:
        """An empty folder for a revision that nobody else writes.

        Raises:
            OSError: there is no room.
        """
        folder = self.checkpoint_dir(path, revision)
        folder.mkdir(parents=True)
        return folder

    def finish_revision(self, path: CheckpointPath, revision: str) -> int:
        """Bring all that was written of a revision to disk; returns its size in bytes.

        Raises:
            OSError: storage does not take it.
        """
        folder = self.checkpoint_dir(path, revision)
        files = list(folder.iterdir())
        for made in (*files, folder, *list(folder.parents)[:4]):
            _sync(made)
        return total_bytes(files)

    def copy_revision(
        self,
        source: CheckpointPath,
        source_revision: str,
        target: CheckpointPath,
        target_revision: str,
    ) -> None:
        """Make one revision's files exist a second time, as a revision that nobody else writes.

        They share their bytes where the file system can (they are never written to again), and each
        can be deleted without the other. Whatever is there of the source is copied: whether that
        was all of it, its record says if it is the same afterwards.

        Raises:
            FileNotFoundError: the source is gone.
            OSError: there is no room. No file is left of the copy.
        """
        files = list(self.checkpoint_dir(source, source_revision).iterdir())
        folder = self.checkpoint_dir(target, target_revision)
        folder.mkdir(parents=True)
        try:
            for file in files:
                _link_or_copy(file, folder / file.name)
            for made in (folder, *list(folder.parents)[:4]):
                _sync(made)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def delete_other_revisions(self, path: CheckpointPath, revision: str) -> None:
        """Delete what a revision that its record names has replaced, or what was cut off."""
        folder = self._checkpoint(path)
        # Its owner may have deleted the checkpoint as soon as it was recorded.
        for child in folder.iterdir() if folder.is_dir() else ():
            if child.name != revision:
                shutil.rmtree(child, ignore_errors=True)

    def _checkpoint(self, path: CheckpointPath) -> Path:
        return self._root / "checkpoints" / path.model_id / path.kind / path.name

    def snapshot_dir(self, model_id: str, seq_id: int, epoch: int) -> Path:
        """Where the state after ``seq_id`` lies that was written under ``epoch``.

        The epoch keeps a worker that was declared dead from replacing what its successor wrote.
        """
        return self._snapshots(model_id) / f"{seq_id}-{epoch}"

    def delete_snapshots_before(self, model_id: str, seq_id: int, epoch: int) -> None:
        """Delete what this snapshot replaces, with what a dead worker left half-written.

        A newer one, of whoever holds the model now, stays.
        """
        folder = self._snapshots(model_id)
        if not folder.is_dir():
            return
        for child in folder.iterdir():
            match = _SNAPSHOT_RE.fullmatch(child.name)
            if match and (int(match[1]), int(match[2])) < (seq_id, epoch):
                shutil.rmtree(child, ignore_errors=True)

    def delete_snapshots(self, model_id: str) -> None:
        """Delete every snapshot of a model that has ended."""
        shutil.rmtree(self._snapshots(model_id), ignore_errors=True)

    def _snapshots(self, model_id: str) -> Path:
        if not is_model_id(model_id):
            raise ValueError(f"{model_id!r} is not a model id")
        return self._root / "snapshots" / model_id

    def revisions(self) -> Iterator[StoredRevision]:
        """Everything below ``checkpoints`` that is a revision, whoever it belongs to."""
        for folder in _folders(self._root / "checkpoints", depth=4):
            model_id, kind, name, revision = folder.parts[-4:]
            with contextlib.suppress(UserError, FileNotFoundError):
                path = CheckpointPath.parse(f"tinker://{model_id}/{kind}/{name}")
                if _REVISION_RE.fullmatch(revision):
                    yield StoredRevision(path, revision, *_size_and_age(folder))

    def snapshots(self) -> Iterator[StoredSnapshot]:
        """Everything below ``snapshots`` that is one, half-written ones included."""
        for folder in _folders(self._root / "snapshots", depth=2):
            model_id, match = folder.parent.name, _SNAPSHOT_RE.fullmatch(folder.name)
            with contextlib.suppress(FileNotFoundError):
                if match and is_model_id(model_id):
                    place = (int(match[1]), int(match[2]))
                    yield StoredSnapshot(model_id, folder.name, place, *_size_and_age(folder))

    def delete_snapshot(self, model_id: str, name: str) -> bool:
        """Delete one snapshot by the name of its folder; true when it is gone."""
        if not _SNAPSHOT_RE.fullmatch(name):
            raise ValueError(f"{name!r} is not a snapshot")
        folder = self._snapshots(model_id) / name
        shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(folder.parent)
        return not folder.exists()

    def put_tokenizer(self, base_model: str, source: Path) -> list[str]:
        """Copy the tokenizer's files of a model folder; returns their names."""
        names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
        target = self._tokenizer_dir(base_model)
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            # Replaced in one step: a client may be reading while a second worker starts.
            part = target / f".{name}.part"
            shutil.copyfile(source / name, part)
            part.replace(target / name)
        return names

    def tokenizer_file(self, base_model: str, name: str) -> bytes:
        """One tokenizer file.

        Raises:
            NotFound: no such base model or file.
        """
        file = self._tokenizer_dir(base_model) / name
        if not _FILE_RE.fullmatch(name) or not file.is_file():
            raise NotFound(f"base model {base_model!r} has no tokenizer file {name[:140]!r}")
        return file.read_bytes()

    def _tokenizer_dir(self, base_model: str) -> Path:
        if not is_base_model_name(base_model):
            raise NotFound(f"base model {base_model[:140]!r} does not exist")
        return self._root / "tokenizers" / base_model.replace("/", "--")


def total_bytes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())


def _folders(root: Path, depth: int) -> Iterator[Path]:
    """The folders so many levels below, in order."""
    if depth == 0:
        yield root
        return
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # deleted this very moment
        for child in sorted(root.iterdir()):
            if child.is_dir():
                yield from _folders(child, depth - 1)


def _size_and_age(folder: Path) -> tuple[int, int]:
    """Bytes, and when folder or files were changed last: links keep the time of their source."""
    stats = [each.stat() for each in (folder, *folder.iterdir())]
    return sum(each.st_size for each in stats[1:]), round(
        max(each.st_mtime for each in stats) * 1000
    )


def _remove_empty(*folders: Path) -> None:
    """Remove folders from the innermost on, as far as nothing is in them."""
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty, or gone already
            folder.rmdir()


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # not every file system has links, nor do they reach into another
        shutil.copyfile(source, target)
        _sync(target)


def _sync(path: Path) -> None:
    """Bring a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
