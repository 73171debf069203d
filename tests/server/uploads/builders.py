"""Adapters as PEFT's files, and as the tar in which they are uploaded."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy as st

from cyclora_core import peft
from cyclora_core.payload import Array
from server.doubles.builders import MODULES

RANK = 2


def config(**changes: Any) -> bytes:
    """Such a config as PEFT writes for r = 2 and lora_alpha = 8."""
    plain = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "/home/somebody/model",
        "r": RANK,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "bias": "none",
        "target_modules": ["q_proj", "up_proj"],
        "alpha_pattern": {},
        "rank_pattern": {},
        "modules_to_save": None,
        "use_dora": False,
        "megatron_core": "megatron.core",
        "init_lora_weights": True,
    }
    return json.dumps(plain | changes).encode()


def tensors(*module_indices: int, dtype: Any = np.float32) -> dict[str, Array]:
    """A and B of these of the double's modules."""
    rng = np.random.default_rng(0)
    found: dict[str, Array] = {}
    for module in (MODULES[index] for index in module_indices or (0, 2)):
        a, b = (RANK, module.in_features), (module.out_features, RANK)
        found[peft.lora_A_name(module.name)] = rng.normal(size=a).astype(dtype)
        found[peft.lora_B_name(module.name)] = rng.normal(size=b).astype(dtype)
    return found


def weights(*module_indices: int, **kwargs: Any) -> bytes:
    return st.save(tensors(*module_indices, **kwargs))


def tar(files: Mapping[str, bytes] | None = None, **tar_options: Any) -> bytes:
    """What a client sends."""
    default = {"adapter_config.json": config(), "adapter_model.safetensors": weights()}
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", **tar_options) as opened:
        for name, data in (default if files is None else files).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mtime = 1_700_000_000.25  # type: ignore[assignment]  # as tar.add does
            opened.addfile(entry, io.BytesIO(data))
    return target.getvalue()
