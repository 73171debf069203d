"""Where a base model's files are: the built-in one, a folder, or the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from cyclora_core.errors import UserError
from cyclora_workers import tiny_chat

_WANTED = ["*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt"]


def model_folder(path_or_id: str) -> Path:
    """The folder with weights and tokenizer, downloaded first if need be.

    Only safetensors weights are taken: loading a pickle would run what is in it.

    Raises:
        UserError: it is neither a folder with a model nor a Hugging Face id.
    """
    if path_or_id == tiny_chat.MODEL_NAME:
        return tiny_chat.model_dir().resolve()
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{path_or_id!r} has no config.json; expected a model's folder")
        return folder.resolve()
    if path_or_id.startswith(("/", ".", "~")) or path_or_id.count("/") != 1:
        raise UserError(f"{path_or_id!r} is neither a folder nor a Hugging Face id (org/name)")
    return Path(snapshot_download(path_or_id, allow_patterns=_WANTED)).resolve()
