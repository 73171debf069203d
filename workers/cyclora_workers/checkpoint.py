"""Checkpoints: PEFT's files (``cyclora_core.peft``), fp32, and no pickle.

Training checkpoints have a further file, ``optimizer.safetensors``, with moments and step count.
The files of an export may be encrypted; they are never loaded again.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from cyclora_core import age, peft
from cyclora_core.errors import NotFound, UserError
from cyclora_core.optimizers import OptimizerType
from cyclora_core.peft import COMPLETE_FILE, CONFIG_FILE, OPTIMIZER_FILE, WEIGHTS_FILE
from cyclora_workers import durable
from cyclora_workers.adapter import AdapterLayout, AdapterState, FrozenWeights
from cyclora_workers.base_model import BaseModel

_NUM_STEPS = "num_steps"
_MOMENTS: Mapping[OptimizerType, Mapping[str, str]] = {
    OptimizerType.ADAMW: {"first_moment.": "first_moment_P", "second_moment.": "second_moment_P"},
    OptimizerType.DIMUON: {"momentum.": "first_moment_P"},
}
"""Prefix of the names in the optimizer's file, and the buffer of the state that it holds."""


def save_checkpoint(
    state: AdapterState,
    base_model: BaseModel,
    folder: Path,
    *,
    with_optimizer: bool,
    age_recipients: Sequence[str] = (),
) -> int:
    """Write a checkpoint that exists whole or not at all; returns its size in bytes.

    It is written beside its place, brought to disk, and renamed; one that was there is replaced,
    so doing it twice has the same effect. Accumulated gradients are no part of it. With recipients
    every file is encrypted to them, and named accordingly.
    """
    files = _adapter_files(state.layout, base_model, state.master_P)
    if with_optimizer:
        moments = {_NUM_STEPS: torch.tensor(state.num_steps)}
        for prefix, name in _MOMENTS[state.optimizer_type].items():
            moments |= _by_peft_name(state.layout, getattr(state, name), prefix)
        files[OPTIMIZER_FILE] = _named_bytes(moments)
    if age_recipients:
        files = {
            name + age.SUFFIX: age.encrypt(data, age_recipients) for name, data in files.items()
        }
    return _write(files, folder)


def save_frozen(frozen: FrozenWeights, base_model: BaseModel, folder: Path) -> int:
    """Write a sampler checkpoint of frozen weights as ``save_checkpoint`` does; returns its size.

    They are the compute copy: to sample from them gives the same numbers to the bit, in whatever
    precision the base model computes.
    """
    return _write(_adapter_files(frozen.layout, base_model, frozen.weights.flat_P), folder)


def _adapter_files(
    layout: AdapterLayout, base_model: BaseModel, weights_P: Tensor
) -> dict[str, bytes]:
    config = peft.adapter_config(
        base_model.name,
        layout.lora_rank,
        layout.lora_alpha,
        layout.modules,
        base_model.target_modules,
    )
    return {
        CONFIG_FILE: json.dumps(config, indent=2).encode(),
        WEIGHTS_FILE: _named_bytes(_by_peft_name(layout, weights_P.float())),
    }


def _write(files: dict[str, bytes], folder: Path) -> int:
    files[COMPLETE_FILE] = b""
    fresh = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    durable.make_folder(fresh)
    try:
        for name, data in files.items():
            durable.write_file(fresh / name, data)
        durable.sync_folder(fresh)
        if folder.exists():
            # A folder with files in it cannot be renamed over.
            old = fresh.with_name(fresh.name + ".old")
            folder.rename(old)
            fresh.rename(folder)
            shutil.rmtree(old)
        else:
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    durable.sync_folder(folder.parent)
    return sum(len(data) for data in files.values())


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint is there, with all of its files."""
    return (folder / COMPLETE_FILE).exists()


def load_checkpoint(state: AdapterState, folder: Path, *, with_optimizer: bool) -> None:
    """Fill a state from a checkpoint; its optimizer starts anew unless it is loaded as well.

    Raises:
        NotFound: there is no complete checkpoint.
        UserError: it does not fit the state, or holds no state of its optimizer. The state is
            unchanged.
    """
    if not is_complete(folder):
        raise NotFound(f"there is no checkpoint {folder.name!r}")
    _check_config(_read_config(folder), state.layout)
    weights = _read_tensors(folder / WEIGHTS_FILE)
    loaded: dict[str, Tensor] = {"master_P": _flattened(state.layout, weights)}
    num_steps = torch.tensor(0)
    if with_optimizer:
        if not (folder / OPTIMIZER_FILE).exists():
            raise UserError("the checkpoint has no optimizer state; load it without the optimizer")
        moments = _read_tensors(folder / OPTIMIZER_FILE)
        num_steps = moments.pop(_NUM_STEPS, num_steps)
        _check_optimizer(moments, state.optimizer_type)
        for prefix, name in _MOMENTS[state.optimizer_type].items():
            mine = {k.removeprefix(prefix): v for k, v in moments.items() if k.startswith(prefix)}
            loaded[name] = _flattened(state.layout, mine)
    state.import_tensors(
        {
            "first_moment_P": torch.zeros(state.first_moment_P.shape),
            "second_moment_P": torch.zeros(state.second_moment_P.shape),
            **loaded,
            "gradient_P": torch.zeros(state.layout.num_elements),
            "num_steps": num_steps,
            "num_accumulated_passes": torch.tensor(0),
        }
    )


def _by_peft_name(layout: AdapterLayout, flat_P: Tensor, prefix: str = "") -> dict[str, Tensor]:
    """The parts of a flat buffer under the names and in the shapes that PEFT gives them.

    Of experts, A is [E * R, D], expert by expert; B is [F, R * E], in turn one column of each.
    """
    tensors: dict[str, Tensor] = {}
    for name, (lora_A, lora_B) in layout.views(flat_P).items():
        if lora_A.ndim == 3:
            lora_A, lora_B = lora_A.flatten(0, 1), lora_B.permute(1, 2, 0).flatten(1)
        tensors[prefix + peft.lora_A_name(name)] = lora_A
        tensors[prefix + peft.lora_B_name(name)] = lora_B
    return tensors


def _named_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    # Safetensors refuses views that share storage.
    own = {k: v.cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    return save_safetensors(own, {"format": "pt"})


def _flattened(layout: AdapterLayout, tensors: Mapping[str, Tensor]) -> Tensor:
    """Named tensors as one flat buffer; all must be there, fit, and be used."""
    flat_P = torch.zeros(layout.num_elements)
    expected = _by_peft_name(layout, flat_P)
    if missing := expected.keys() - tensors.keys():
        raise UserError(
            f"the checkpoint lacks {len(missing)} tensors that the model has, "
            f"such as {min(missing)}; create the model with the same train_ flags and base model"
        )
    if surplus := tensors.keys() - expected.keys():
        raise UserError(
            f"the checkpoint has {len(surplus)} tensors that the model lacks, "
            f"such as {min(surplus)}; create the model with the same train_ flags and base model"
        )
    for name, like in expected.items():
        if tensors[name].shape != like.shape:
            raise UserError(
                f"{name} of the checkpoint has shape {tuple(tensors[name].shape)}; "
                f"the model needs {tuple(like.shape)}"
            )
    for name, (lora_A, lora_B) in layout.views(flat_P).items():
        stored_A, stored_B = tensors[peft.lora_A_name(name)], tensors[peft.lora_B_name(name)]
        if lora_A.ndim == 3:
            num_experts, rank, _ = lora_A.shape
            stored_A = stored_A.unflatten(0, (num_experts, rank))
            stored_B = stored_B.unflatten(1, (rank, num_experts)).permute(2, 0, 1)
        lora_A.copy_(stored_A)
        lora_B.copy_(stored_B)
    return flat_P


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_safetensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path.name} of the checkpoint is missing or damaged") from error


def _read_config(folder: Path) -> Mapping[str, Any]:
    try:
        return json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{CONFIG_FILE} of the checkpoint is missing or damaged") from error


def _check_config(config: Mapping[str, Any], layout: AdapterLayout) -> None:
    for name, needed in (("r", layout.lora_rank), ("lora_alpha", layout.lora_alpha)):
        if config.get(name) != needed:
            called = "lora_rank" if name == "r" else name
            raise UserError(
                f"the checkpoint has {called} {config.get(name)}; the model has {needed:g}"
            )


def _check_optimizer(moments: Mapping[str, Tensor], wanted: OptimizerType) -> None:
    for found, prefixes in _MOMENTS.items():
        if found is not wanted and any(name.startswith(tuple(prefixes)) for name in moments):
            raise UserError(
                f"the checkpoint's optimizer state is of {found}; the model has {wanted}: load it "
                "without the optimizer"
            )
