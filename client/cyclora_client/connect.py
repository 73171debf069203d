"""A service client of the official SDK for one cyclora server, with tokenizers that work.

``get_tokenizer()`` of the SDK's training and sampling clients asks
``AutoTokenizer.from_pretrained(<base model name>)``, which looks on the Hugging Face hub. A name
that only our server knows fails there, also when the files already lie in the machine's Hugging
Face cache: the hub's "no such repository" wins over the cache, and without a network the
lookup retries for most of a minute first. Writing into that cache would, besides, put files of ours
under names that are not ours.

So the lookup is answered before it starts. Both SDK modules load tokenizers through one function
that takes an optional ``tokenizer_id``; ``connect`` wraps it so that a base model served by a
connected server is loaded from the folder its files were fetched to (see
``cyclora_client.tokenizers``), with no question to the hub, online or offline. Every other name
takes the SDK's own way, and the machine's Hugging Face cache is neither read nor written for ours.
The files are fetched at the first ``get_tokenizer()``; connecting itself sends nothing and needs no
transformers.

The wrapper lives in this process: in a freshly spawned process call ``connect`` again. When several
connected servers serve the same base model, the one connected to last answers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tinker
from tinker.lib.public_interfaces import sampling_client, training_client

from cyclora_client.tokenizers import TokenizerSource

_LOADER = "_load_tokenizer_from_model_info"

# The wrapped function is a global of the SDK, so what it consults is one per process too.
_sources: list[TokenizerSource] = []
_lock = threading.Lock()


def connect(
    base_url: str | None = None,
    api_key: str | None = None,
    *,
    tokenizer_cache: Path | None = None,
    **kwargs: Any,
) -> tinker.ServiceClient:
    """A ``tinker.ServiceClient`` of the server at ``base_url``.

    What is not given is taken from ``TINKER_BASE_URL`` and ``TINKER_API_KEY``, as the SDK does;
    without either it is the SDK's own client and nothing else. ``tokenizer_cache`` is where
    tokenizer files are kept; by default a folder of ours below the user's cache folder. All other
    keyword arguments go to ``tinker.ServiceClient``.
    """
    base_url = base_url or os.environ.get("TINKER_BASE_URL")
    api_key = api_key or os.environ.get("TINKER_API_KEY")
    if base_url is None or api_key is None:
        return tinker.ServiceClient(base_url=base_url, api_key=api_key, **kwargs)
    source = TokenizerSource(base_url, api_key, tokenizer_cache)
    with _lock:
        _sources[:] = [source, *(known for known in _sources if known.base_url != source.base_url)]
        for module in (sampling_client, training_client):
            _wrap_loader(module)
    return tinker.ServiceClient(base_url=base_url, api_key=api_key, **kwargs)


def served_tokenizer_folder(base_model: str) -> Path | None:
    """The folder with the tokenizer of a base model that a connected server serves."""
    with _lock:
        sources = list(_sources)
    for source in sources:
        folder = source.folder(base_model)
        if folder is not None:
            return folder
    return None


def _wrap_loader(module: Any) -> None:
    original: Callable[..., Any] = getattr(module, _LOADER)
    if getattr(original, "is_cyclora_wrapper", False):
        return

    def load(model_name: str, tokenizer_id: str | None = None) -> Any:
        folder = served_tokenizer_folder(model_name.split(":")[0])
        return original(model_name, str(folder) if folder else tokenizer_id)

    load.is_cyclora_wrapper = True  # type: ignore[attr-defined]
    setattr(module, _LOADER, load)
