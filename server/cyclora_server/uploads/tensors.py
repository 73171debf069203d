"""An uploaded ``adapter_model.safetensors``: checked by its header, and written as one of ours."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cyclora_core import peft
from cyclora_core.errors import UserError
from cyclora_core.operations import LoraConfig
from cyclora_core.payload import Array
from cyclora_core.peft import WEIGHTS_FILE, ModuleGroup, TargetModule
from cyclora_server.uploads.peft_config import PeftConfig

_MAX_HEADER_BYTES = 16 * 1024 * 1024
_MAX_AXES = 8
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_ZEROS = bytes(1024 * 1024)
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies in a file, and how."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file; none of their contents is read.

    Raises:
        UserError: the file is damaged, or has a dtype other than F32, F16 and BF16.
    """
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, num_bytes - 8):
            raise UserError(f"{WEIGHTS_FILE} is no safetensors file, or incomplete")
        raw = file.read(header_bytes)
    try:
        header: Any = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = {
            str(name): _stored(value, 8 + header_bytes, num_bytes) for name, value in header.items()
        }
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise UserError(f"the header of {WEIGHTS_FILE} cannot be read") from None
    end = 8 + header_bytes
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.dtype not in _ITEM_BYTES:
            raise UserError(
                f"{name[:200]!r} is {tensor.dtype[:20]}; expected {', '.join(_ITEM_BYTES)}"
            )
        size = math.prod(tensor.shape) * _ITEM_BYTES[tensor.dtype]
        if tensor.start != end or tensor.stop - tensor.start != size:
            raise UserError(f"{WEIGHTS_FILE} is damaged at {name[:200]!r}")
        end = tensor.stop
    if end != num_bytes:
        raise UserError(f"{WEIGHTS_FILE} has {num_bytes} bytes; its header accounts for {end}")
    return tensors


def _stored(value: Mapping[str, Any], offset: int, num_bytes: int) -> StoredTensor:
    """One entry of the header of a file of ``num_bytes``; no number in it can be larger.

    Bounded here, because the product of a few thousand long numbers takes minutes.
    """
    if len(value["shape"]) > _MAX_AXES:
        raise ValueError(f"a tensor has more than {_MAX_AXES} axes")
    shape = tuple(_natural(each, num_bytes) for each in value["shape"])
    start, stop = (_natural(each, num_bytes) + offset for each in value["data_offsets"])
    return StoredTensor(str(value["dtype"]), shape, start, stop)


def _natural(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError("a number of the header is out of range")
    return value


def find_lora(
    tensors: Mapping[str, StoredTensor], config: PeftConfig, modules: Sequence[TargetModule]
) -> LoraConfig:
    """The shape of the adapter that these tensors are.

    Its flags name every group of modules that has an adapter on one of its modules.

    Raises:
        UserError: a tensor is not of a target module, is without its other half, or does not fit.
    """
    rank = config.lora_rank
    shapes = {
        name: shape
        for module in modules
        for name, shape in (
            (peft.lora_A_name(module.name), (rank, module.in_features)),
            (peft.lora_B_name(module.name), (module.out_features, rank)),
        )
    }
    if surplus := sorted(tensors.keys() - shapes.keys()):
        raise UserError(_surplus_message(surplus))
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise UserError(
                f"{name!r} has shape {list(tensor.shape)}; the base model needs "
                f"{list(shapes[name])}"
            )
    groups: set[ModuleGroup] = set()
    for module in modules:
        pair = (peft.lora_A_name(module.name), peft.lora_B_name(module.name))
        missing = [name for name in pair if name not in tensors]
        if len(missing) == 1:
            raise UserError(f"{missing[0]!r} is missing; A and B belong together")
        if not missing:
            groups.add(module.group)
    if not groups:
        raise UserError(f"{WEIGHTS_FILE} holds no tensors")
    return LoraConfig(
        lora_rank=rank,
        lora_alpha=config.lora_alpha,
        train_attn=ModuleGroup.ATTN in groups,
        train_mlp=ModuleGroup.MLP in groups,
        train_unembed=ModuleGroup.UNEMBED in groups,
    )


def _surplus_message(surplus: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:200]) for name in surplus[:_NAMES_SHOWN])
    message = (
        f"{WEIGHTS_FILE} has {len(surplus)} tensors that are no lora_A or lora_B of a linear layer "
        f"of the base model, such as {shown}"
    )
    if any("embed" in name or "base_layer" in name for name in surplus):
        message += (
            "; copies of embeddings, which PEFT adds for an adapter on lm_head, stay out with "
            "save_pretrained(..., save_embedding_layers=False)"
        )
    return message


def write_adapter(
    source: Path,
    target: Path,
    tensors: Mapping[str, StoredTensor],
    modules: Sequence[TargetModule],
    lora_rank: int,
) -> None:
    """Write ``modules``' A and B in fp32, one tensor in memory at a time.

    Modules without an adapter get A and B of zeros: they add nothing, and since the gradient of
    each is a product with the other, training leaves them at zero, as PEFT would leave them out.

    Raises:
        UserError: a tensor holds what is not finite.
        OSError: storage does not take it.
    """
    shapes: dict[str, tuple[int, int]] = {}
    for module in modules:
        shapes[peft.lora_A_name(module.name)] = (lora_rank, module.in_features)
        shapes[peft.lora_B_name(module.name)] = (module.out_features, lora_rank)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with source.open("rb") as read, target.open("wb") as write:
        write.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            if name not in tensors:
                _write_zeros(write, 4 * math.prod(shape))
                continue
            write.write(_read(read, name, tensors[name]).tobytes())


def _read(file: BinaryIO, name: str, tensor: StoredTensor) -> Array:
    file.seek(tensor.start)
    raw = file.read(tensor.stop - tensor.start)
    if tensor.dtype == "BF16":  # the upper half of an fp32
        values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    else:
        values = np.frombuffer(raw, "<f2" if tensor.dtype == "F16" else "<f4").astype("<f4")
    if not np.isfinite(values).all():
        raise UserError(f"{name!r} holds values that are not finite")
    return values


def _write_zeros(file: BinaryIO, num_bytes: int) -> None:
    while num_bytes:
        written = min(num_bytes, len(_ZEROS))
        file.write(_ZEROS[:written])
        num_bytes -= written
