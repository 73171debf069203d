"""The experts of a mixture: frozen products per expert over all tenants' rows of it.

An expert's two matrices have an adapter each. Everything between the products is per row or per
element, in an order that only the row's own token decides; so a token's numbers do not depend on
who else was sent to its experts.

Legend: T packed tokens, K experts per token, E experts, P rows of all experts (``routing.py``),
D hidden, G gate and up, F features between the products, R rank of an expert's A and B.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cyclora_workers.adapter import ModuleAdapter
from cyclora_workers.architecture import UnsupportedModel
from cyclora_workers.low_rank import SegmentAdapter, add_low_rank_, low_ranks_backward_
from cyclora_workers.multi_adapter_linear import PassHolder
from cyclora_workers.routing import ExpertRun, Routing
from cyclora_workers.rows import empty_with_aligned_rows, with_aligned_rows

_VECTOR_ELEMENTS = 32
_SERIAL_ELEMENTS = 16_384
"""As in ``activation.py``: calls of so many elements are computed by one thread, and those of a
multiple of so few entirely by vectors."""


class ExpertMatrices:
    """One parameter of a model's experts, as [E, F, D] whichever way it is stored."""

    def __init__(self, name: str, weight: Tensor, bias_EF: Tensor | None, *, transposed: bool):
        self.name = name
        self.weight_EFD = weight.transpose(1, 2) if transposed else weight
        self.bias_EF = bias_EF
        self.num_experts, self.out_features, self.in_features = self.weight_EFD.shape

    def product_(self, y_PF: Tensor, x_PD: Tensor, routing: Routing) -> None:
        """Write x W^T + bias of each row's expert into y; both with aligned rows."""
        for rows in routing.experts:
            mine = slice(rows.start, rows.stop)
            weight_DF = self.weight_EFD[rows.expert].t()
            if self.bias_EF is None:
                torch.mm(x_PD[mine], weight_DF, out=y_PF[mine])
            else:
                torch.addmm(self.bias_EF[rows.expert], x_PD[mine], weight_DF, out=y_PF[mine])

    def transposed_product_(self, dx_PD: Tensor, dy_PF: Tensor, routing: Routing) -> None:
        """Write dy W of each row's expert into dx; both with aligned rows."""
        for rows in routing.experts:
            mine = slice(rows.start, rows.stop)
            torch.mm(dy_PF[mine], self.weight_EFD[rows.expert], out=dx_PD[mine])

    def adapters(self, runs: Sequence[ExpertRun]) -> list[SegmentAdapter]:
        """The adapters of the runs whose segments have any on these matrices."""
        found: list[SegmentAdapter] = []
        for run in runs:
            weights = run.segment.adapter
            module = None if weights is None else weights.modules.get(self.name)
            if weights is None or module is None:
                continue
            scaling = weights.scaling * weights.lora_rank / module.lora_A_RD.shape[-2]
            mine = _of_expert(module, run.expert)
            found.append(SegmentAdapter(run.start, run.stop, mine, scaling))
        return found


def _of_expert(module: ModuleAdapter, expert: int) -> ModuleAdapter:
    """The adapter of one expert, of an adapter [E, R, D] and [E, F, R]."""
    gradient_A, gradient_B = module.gradient_A_RD, module.gradient_B_FR
    return ModuleAdapter(
        module.lora_A_RD[expert],
        module.lora_B_FR[expert],
        None if gradient_A is None else gradient_A[expert],
        None if gradient_B is None else gradient_B[expert],
    )


class _ExpertProductFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_PD: Tensor,
        anchor: Tensor | None,
        matrices: ExpertMatrices,
        routing: Routing,
        adapters: Sequence[SegmentAdapter],
    ) -> Tensor:
        x_PD = with_aligned_rows(x_PD)
        y_PF = empty_with_aligned_rows(x_PD, matrices.out_features, x_PD.dtype)
        matrices.product_(y_PF, x_PD, routing)
        ctx.lows = [add_low_rank_(y_PF, x_PD, adapter) for adapter in adapters]
        ctx.others = matrices, routing, adapters
        ctx.save_for_backward(x_PD if anchor is not None else None)
        return y_PF.contiguous()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        dy_PF = with_aligned_rows(grad_outputs[0].contiguous())
        (x_PD,) = ctx.saved_tensors
        matrices, routing, adapters = ctx.others
        dx_PD = None
        if ctx.needs_input_grad[0]:
            dx_PD = empty_with_aligned_rows(dy_PF, matrices.in_features, dy_PF.dtype)
            matrices.transposed_product_(dx_PD, dy_PF, routing)
        low_ranks_backward_(adapters, ctx.lows, dy_PF, x_PD, dx_PD)
        return None if dx_PD is None else dx_PD.contiguous(), None, None, None, None


class _DispatchFunction(torch.autograd.Function):
    """Rows of tokens to rows of experts.

    Back, the gradients of a token's rows are summed in the order of the router's ranking.
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, routing: Routing) -> Tensor:
        ctx.routing = routing
        return x_TD.index_select(0, routing.token_of_row_P)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        routing: Routing = ctx.routing
        (dx_PD,) = grad_outputs
        num_tokens = routing.row_of_token_TK.shape[0]
        dx_TD = dx_PD.new_zeros(num_tokens, dx_PD.shape[1], dtype=torch.float32)
        for row_of_token_T in routing.row_of_token_TK.unbind(1):
            dx_TD += dx_PD.index_select(0, row_of_token_T)
        dx_TD[routing.num_planned :] = 0.0
        return dx_TD.to(dx_PD.dtype), None


class _CombineFunction(torch.autograd.Function):
    """Sum of a token's rows, each times its score, in the order of the router's ranking."""

    @staticmethod
    def forward(ctx: Any, y_PD: Tensor, scores_TK: Tensor, routing: Routing) -> Tensor:
        ctx.routing = routing
        ctx.save_for_backward(y_PD, scores_TK)
        num_tokens, top_k = scores_TK.shape
        out_TD = y_PD.new_zeros(num_tokens, y_PD.shape[1], dtype=torch.float32)
        for place in range(top_k):
            rows_TD = y_PD.index_select(0, routing.row_of_token_TK[:, place])
            out_TD += rows_TD.float() * scores_TK[:, place, None]
        out_TD[routing.num_planned :] = 0.0
        return out_TD.to(y_PD.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        y_PD, scores_TK = ctx.saved_tensors
        routing: Routing = ctx.routing
        dout_TD = grad_outputs[0].float()
        dy_PD = torch.zeros_like(y_PD)
        dscores_TK = torch.empty_like(scores_TK)
        planned = slice(0, routing.num_planned)
        for place in range(scores_TK.shape[1]):
            rows_T = routing.row_of_token_TK[:, place]
            products_TD = dout_TD * y_PD.index_select(0, rows_T).float()
            dscores_TK[:, place] = products_TD.sum(-1)
            scaled_TD = (dout_TD * scores_TK[:, place, None]).to(dy_PD.dtype)
            dy_PD.index_copy_(0, rows_T[planned], scaled_TD[planned])
        dscores_TK[routing.num_planned :] = 0.0
        return dy_PD, dscores_TK, None


class _GateFunction(torch.autograd.Function):
    """What is between the products, by calls of whole rows that leave no odd element over."""

    @staticmethod
    def forward(ctx: Any, x_PG: Tensor, gate: Callable[[Tensor], Tensor], width: int) -> Tensor:
        ctx.gate, ctx.step = gate, _rows_per_call(width)
        ctx.save_for_backward(x_PG)
        return torch.cat([gate(part) for part in x_PG.split(ctx.step)])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (x_PG,) = ctx.saved_tensors
        dx_PG = torch.empty_like(x_PG)
        parts = zip(x_PG.split(ctx.step), grad_outputs[0].split(ctx.step), strict=True)
        for index, (part, dy) in enumerate(parts):
            with torch.enable_grad():
                leaf = part.detach().requires_grad_()
                y = ctx.gate(leaf)
            (dx,) = torch.autograd.grad(y, leaf, dy)
            dx_PG[index * ctx.step :][: part.shape[0]] = dx
        return dx_PG, None, None


def _rows_per_call(width: int) -> int:
    """How many rows of ``width`` elements are whole vectors, and few enough for one thread.

    The fewest that are whole vectors divide ``ROW_ALIGNMENT``: so do those of the last call.
    """
    step = _VECTOR_ELEMENTS // math.gcd(width, _VECTOR_ELEMENTS)
    return max(_SERIAL_ELEMENTS // width // step, 1) * step


class MultiAdapterExperts(nn.Module):
    """Stands in for the experts module of a mixture."""

    def __init__(self, name: str, experts: Any, holder: PassHolder) -> None:
        super().__init__()
        self.num_experts: int = experts.num_experts
        transposed: bool = experts.is_transposed
        self.gate_up, self.down = (
            ExpertMatrices(
                f"{name}.{parameter}",
                getattr(experts, parameter),
                getattr(experts, f"{parameter}_bias", None),
                transposed=transposed,
            )
            for parameter in ("gate_up_proj", "down_proj")
        )
        width = self.down.in_features
        if _rows_per_call(width) * width > _SERIAL_ELEMENTS:
            raise UnsupportedModel(f"experts have {width} features; need a multiple of 32")
        self._gate: Callable[[Tensor], Tensor] = experts._apply_gate
        self._holder = holder

    def forward(self, x_TD: Tensor, indices_TK: Tensor, scores_TK: Tensor) -> Tensor:
        """Shapes: x_TD has aligned rows; scores_TK fp32. Returns [T, D]."""
        context = self._holder.context
        assert context is not None, "the base model is only called through BaseModel"
        routing = Routing.of(indices_TK, self.num_experts, context.segments)
        x_PD: Tensor = _DispatchFunction.apply(x_TD, routing)  # type: ignore[no-untyped-call]
        gate_up_PG = self._product(self.gate_up, x_PD, routing)
        between_PF: Tensor = _GateFunction.apply(  # type: ignore[no-untyped-call]
            gate_up_PG, self._gate, self.down.in_features
        )
        y_PD = self._product(self.down, between_PF, routing)
        out_TD: Tensor = _CombineFunction.apply(  # type: ignore[no-untyped-call]
            y_PD, scores_TK, routing
        )
        return out_TD

    def _product(self, matrices: ExpertMatrices, x_PD: Tensor, routing: Routing) -> Tensor:
        adapters = matrices.adapters(routing.runs)
        wants_gradient = torch.is_grad_enabled() and any(
            each.adapter.gradient_A_RD is not None for each in adapters
        )
        anchor = self._holder.gradient_anchor if wants_gradient else None
        y_PF: Tensor = _ExpertProductFunction.apply(  # type: ignore[no-untyped-call]
            x_PD, anchor, matrices, routing, adapters
        )
        return y_PF
