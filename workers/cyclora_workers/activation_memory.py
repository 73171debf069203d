"""How many tokens may go through the model together: measured once, from what a token keeps.

Legend: T packed tokens, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cyclora_core.operations import LoraConfig
from cyclora_workers.adapter import AdapterState
from cyclora_workers.attention import PackedAttention
from cyclora_workers.base_model import BaseModel
from cyclora_workers.context import PassContext, Segment
from cyclora_workers.head import HEAD_CHUNK_ROWS

_PROBE_TOKENS = 64
_PROBE_RANK = 8
"""Of any rank the low-rank part is small beside what the frozen layers keep."""
_MEMORY_SHARE = 0.5
"""Of what is free at the start: KV cache, adapters and snapshots on their way take the rest."""
_SURPLUS = 2.0
"""Gradients on the way back and what lives inside of one operator, over what the graph keeps."""
_HEAD_TENSORS = 3
"""Tensors of one chunk's rows times the vocabulary that the head holds."""
_MAX_TOKENS = {"cpu": 4096, "cuda": 32_768}
"""More make no pass faster, and let samples wait longer between two microbatches."""


@dataclass(frozen=True, slots=True)
class ActivationMemory:
    """What one token of a forward and backward keeps until the backward pass has used it."""

    bytes_per_token: float
    recomputed_bytes_per_token: float
    """The same where layers are computed again."""
    available_bytes: float
    """For activations; the head's chunk is taken off."""

    @property
    def max_tokens(self) -> int:
        """Tokens that fit with all activations kept."""
        return int(self.available_bytes / self.bytes_per_token)

    def microbatch_tokens(self, device: torch.device) -> int:
        """A microbatch that fits and is no larger than pays; at least a token."""
        return max(1, min(self.max_tokens, _MAX_TOKENS[device.type]))


def measure_activation_memory(base_model: BaseModel) -> ActivationMemory:
    """Count the bytes that a small pass with an adapter on every module keeps."""
    state = AdapterState.create(base_model, LoraConfig(_PROBE_RANK))
    kept, recomputed = (
        _kept_bytes(base_model, state, is_recomputed=each) / _PROBE_TOKENS for each in (False, True)
    )
    head_bytes = 4.0 * _HEAD_TENSORS * HEAD_CHUNK_ROWS * base_model.vocab_size
    free_bytes = _MEMORY_SHARE * available_bytes(base_model.device)
    return ActivationMemory(
        _SURPLUS * kept, _SURPLUS * recomputed, max(free_bytes - head_bytes, 0.0)
    )


def _kept_bytes(base_model: BaseModel, state: AdapterState, *, is_recomputed: bool) -> int:
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that no other gets its address
        return tensor

    device = base_model.device
    tokens_T = torch.zeros(_PROBE_TOKENS, dtype=torch.int64, device=device)
    context = PassContext(
        [Segment(0, _PROBE_TOKENS, state.weights)],
        PackedAttention([0, _PROBE_TOKENS]),
        is_recomputed=is_recomputed,
    )
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
        hidden_TD = base_model.hidden(tokens_T, torch.arange(_PROBE_TOKENS, device=device), context)
    del hidden_TD
    frozen = {each.untyped_storage().data_ptr() for each in base_model.frozen}
    return sum(storage.nbytes() for address, storage in kept.items() if address not in frozen)


def available_bytes(device: torch.device) -> float:
    """Memory that this process could still take on a device."""
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free_bytes + cached
    return min(free_in_machine(), free_in_group())


def free_in_machine() -> int:
    """What the kernel could give without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/meminfo does not say what is available")


def free_in_group(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """What a container's bound leaves; infinite without one."""
    try:
        bound, used = (
            (folder / name).read_text().strip() for name in ("memory.max", "memory.current")
        )
    except FileNotFoundError:
        return float("inf")
    return float("inf") if bound == "max" else max(int(bound) - int(used), 0)
