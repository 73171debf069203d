"""Adapters as flat buffers: one tensor per kind of state, with views per target module.

Flat makes the rest simple: one fused optimizer update, one norm for clipping, one copy to evict
and one to snapshot, for any lora_rank, without padding a rank to its neighbour's.

Legend: R lora_rank, D features in, F features out, P elements of a flat buffer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cyclora_core.errors import UserError
from cyclora_core.operations import LoraConfig
from cyclora_core.optimizers import OptimizerType
from cyclora_core.peft import ModuleGroup, TargetModule

if TYPE_CHECKING:
    from cyclora_workers.base_model import BaseModel

_VIEW_ALIGNMENT = 32
"""Views start at multiples of this many elements (64 bytes or more): the kernel that a matrix
library picks may depend on the alignment of its operands, and the sums with it."""


@dataclass(frozen=True, slots=True, eq=False)
class ModuleAdapter:
    """The part of an adapter on one target module: views into its flat buffers.

    Shapes:
        lora_A_RD, lora_B_FR: compute copies in the base model's dtype; their gradients, where the
        adapter is being trained, are fp32. Of experts each has one dimension more, [E, ...].
    """

    lora_A_RD: Tensor
    lora_B_FR: Tensor
    gradient_A_RD: Tensor | None
    gradient_B_FR: Tensor | None


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class AdapterWeights:
    """What a pass needs to know of an adapter; a frozen copy has no gradients."""

    lora_rank: int
    scaling: float
    flat_P: Tensor
    modules: Mapping[str, ModuleAdapter]


@dataclass(frozen=True, slots=True)
class _Placement:
    """Where one module's A and B lie in every flat buffer."""

    module: TargetModule
    start_A: int
    start_B: int


class AdapterLayout:
    """Which target modules an adapter has, and where each lies in its flat buffers.

    A function of the base model and the LoraConfig alone. Gaps between views hold zeros for ever:
    their gradient is zero, and every optimizer leaves a zero at zero.
    """

    def __init__(self, target_modules: Sequence[TargetModule], config: LoraConfig) -> None:
        """Lay out the modules that ``config`` switches on.

        Raises:
            UserError: the lora_rank is not positive, or no module would be trained.
        """
        if config.lora_rank < 1:
            raise UserError(f"lora_rank is {config.lora_rank}; it must be at least 1")
        flags = {
            ModuleGroup.ATTN: config.train_attn,
            ModuleGroup.MLP: config.train_mlp,
            ModuleGroup.UNEMBED: config.train_unembed,
        }
        self.lora_rank = config.lora_rank
        self.lora_alpha = config.lora_alpha
        self.modules = [module for module in target_modules if flags[module.group]]
        if not self.modules:
            raise UserError(
                "the adapter would have no modules; at least one of train_attn, train_mlp and "
                "train_unembed must be true"
            )
        self._placements: list[_Placement] = []
        end = 0
        for module in self.modules:
            width = max(1, module.num_experts) * module.rank(self.lora_rank)
            start_B = _aligned(end + width * module.in_features)
            self._placements.append(_Placement(module, end, start_B))
            end = _aligned(start_B + width * module.out_features)
        self.num_elements = end

    def views(self, flat_P: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """A [R, D] and B [F, R] of each module, as views of a flat buffer of this layout.

        Of experts, whose R is their own, [E, R, D] and [E, F, R].
        """
        views: dict[str, tuple[Tensor, Tensor]] = {}
        for place in self._placements:
            module = place.module
            rank = module.rank(self.lora_rank)
            shape_A, shape_B = (rank, module.in_features), (module.out_features, rank)
            if module.num_experts:
                shape_A, shape_B = (module.num_experts, *shape_A), (module.num_experts, *shape_B)
            views[module.name] = (
                flat_P[place.start_A : place.start_A + math.prod(shape_A)].view(shape_A),
                flat_P[place.start_B : place.start_B + math.prod(shape_B)].view(shape_B),
            )
        return views

    def weights(self, flat_P: Tensor, gradient_P: Tensor | None) -> AdapterWeights:
        """Adapter weights over a compute copy and, for training, a gradient buffer."""
        gradients = {} if gradient_P is None else self.views(gradient_P)
        modules = {
            name: ModuleAdapter(lora_A, lora_B, *gradients.get(name, (None, None)))
            for name, (lora_A, lora_B) in self.views(flat_P).items()
        }
        return AdapterWeights(self.lora_rank, self.lora_alpha / self.lora_rank, flat_P, modules)


@dataclass(frozen=True, slots=True, eq=False)
class FrozenWeights:
    """Adapter weights that no training changes any more, with where each module lies in them."""

    layout: AdapterLayout
    weights: AdapterWeights


@dataclass(frozen=True, slots=True, eq=False)
class GradientMark:
    """The accumulated gradient at one moment; ``gradient_P`` None stands for all zeros."""

    gradient_P: Tensor | None
    num_accumulated_passes: int


class AdapterState:
    """Everything one adapter consists of while it is trained.

    Shapes:
        master_P, gradient_P, first_moment_P, second_moment_P: fp32, the last of size 0 where the
        optimizer has none; the compute copy inside ``weights`` has the base model's dtype.
    """

    def __init__(
        self,
        config: LoraConfig,
        layout: AdapterLayout,
        dtype: torch.dtype,
        device: torch.device,
        optimizer_type: OptimizerType = OptimizerType.ADAMW,
    ) -> None:
        def zeros(dtype: torch.dtype) -> Tensor:
            return torch.zeros(layout.num_elements, dtype=dtype, device=device)

        self.config = config
        self.layout = layout
        self.optimizer_type = optimizer_type
        self.master_P = zeros(torch.float32)
        self.gradient_P = zeros(torch.float32)
        self.first_moment_P = zeros(torch.float32)
        self.second_moment_P = zeros(torch.float32)
        if optimizer_type is OptimizerType.DIMUON:
            self.second_moment_P = self.second_moment_P.new_zeros(0)
        self.num_steps = 0
        self.num_accumulated_passes = 0
        """Passes since the last optimizer step; 0 means that the gradient is zero."""
        self.weights = layout.weights(zeros(dtype), self.gradient_P)
        self._is_frozen = False
        """Whether somebody samples from the present compute copy, so that it must stay."""

    @classmethod
    def empty(
        cls,
        base_model: BaseModel,
        config: LoraConfig,
        optimizer_type: OptimizerType = OptimizerType.ADAMW,
    ) -> AdapterState:
        """All zeros, to be filled from a checkpoint or a snapshot."""
        layout = AdapterLayout(base_model.target_modules, config)
        return cls(config, layout, base_model.dtype, base_model.device, optimizer_type)

    @classmethod
    def create(
        cls,
        base_model: BaseModel,
        config: LoraConfig,
        optimizer_type: OptimizerType = OptimizerType.ADAMW,
    ) -> AdapterState:
        """A fresh adapter: A Kaiming-uniform from the seed, B zero, so that it changes nothing yet.

        ::

            A ~ U(-1 / sqrt(in_features), 1 / sqrt(in_features))

        which is Kaiming-uniform with a = sqrt(5), as PEFT initialises. Drawn on the CPU, module
        after module, so the seed gives the same adapter on every device.
        """
        state = cls.empty(base_model, config, optimizer_type)
        generator = torch.Generator().manual_seed(config.seed & (2**64 - 1))
        for module in state.layout.modules:
            bound = 1.0 / math.sqrt(module.in_features)
            lora_A_RD = state.layout.views(state.master_P)[module.name][0]
            drawn_RD = torch.empty(lora_A_RD.shape).uniform_(-bound, bound, generator=generator)
            lora_A_RD.copy_(drawn_RD)
        state.refresh_weights()
        return state

    @property
    def num_bytes(self) -> int:
        """Memory of the flat buffers and the compute copy."""
        flat = [getattr(self, name) for name in _FLAT_BUFFERS]
        return sum(buffer.nbytes for buffer in (*flat, self.weights.flat_P))

    def refresh_weights(self) -> None:
        """Bring the compute copy up to date with the fp32 master.

        A frozen one stays as it is, for those who sample from it, and another takes its place.
        """
        if self._is_frozen:
            self.weights = self.layout.weights(
                torch.empty_like(self.weights.flat_P), self.gradient_P
            )
            self._is_frozen = False
        self.weights.flat_P.copy_(self.master_P)

    def snapshot_weights(self) -> AdapterWeights:
        """Frozen weights for sampling, which further training leaves as they are.

        Nothing is copied: the next step writes its weights somewhere else.
        """
        self._is_frozen = True
        return self.layout.weights(self.weights.flat_P, None)

    def mark_gradient(self) -> GradientMark:
        """Remember the gradient, so that a pass which fails part-way can be undone."""
        passes = self.num_accumulated_passes
        return GradientMark(self.gradient_P.clone() if passes else None, passes)

    def restore_gradient(self, mark: GradientMark) -> None:
        """Undo everything accumulated since the mark."""
        if mark.gradient_P is None:
            self.gradient_P.zero_()
        else:
            self.gradient_P.copy_(mark.gradient_P)
        self.num_accumulated_passes = mark.num_accumulated_passes

    def export_tensors(self) -> dict[str, Tensor]:
        """Complete state as independent tensors: what a snapshot needs to go on bit for bit."""
        exported = {name: getattr(self, name).clone() for name in _FLAT_BUFFERS}
        for name in _COUNTERS:
            exported[name] = torch.tensor(getattr(self, name), dtype=torch.int64)
        return exported

    def import_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of ``export_tensors``, into a state of the same layout.

        Raises:
            UserError: a tensor is missing or has another size, as another optimizer's moments
                have; nothing was changed then.
        """
        for name in (*_FLAT_BUFFERS, *_COUNTERS):
            expected = tuple(getattr(self, name).shape) if name in _FLAT_BUFFERS else ()
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            if found != expected:
                raise UserError(
                    f"adapter state has {found} for {name}; this adapter needs {expected}"
                )
        for name in _FLAT_BUFFERS:
            getattr(self, name).copy_(tensors[name])
        for name in _COUNTERS:
            setattr(self, name, int(tensors[name].item()))
        self.refresh_weights()


_FLAT_BUFFERS = ("master_P", "gradient_P", "first_moment_P", "second_moment_P")
_COUNTERS = ("num_steps", "num_accumulated_passes")


def _aligned(offset: int) -> int:
    return -(-offset // _VIEW_ALIGNMENT) * _VIEW_ALIGNMENT
