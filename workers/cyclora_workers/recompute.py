"""Decoder layers whose activations are computed again in the backward pass, where a pass says so.

Costs a second forward, and keeps one hidden state per layer in place of everything inside of
it. The same kernels run on the same rows, so no number changes: on CPU not in a single bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cyclora_workers.context import PassContext
from cyclora_workers.multi_adapter_linear import PassHolder


def make_recomputable(layers: Sequence[nn.Module], holder: PassHolder) -> None:
    """Let each of these layers heed ``PassContext.is_recomputed``."""
    for layer in layers:
        layer.forward = partial(_forward, layer.forward, holder)


def _forward(real: Any, holder: PassHolder, *args: Any, **options: Any) -> Any:
    context = holder.context
    if context is None or not context.is_recomputed or not torch.is_grad_enabled():
        return real(*args, **options)
    return checkpoint(
        real,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing in here draws random numbers
        context_fn=lambda: (contextlib.nullcontext(), _during(holder, context)),
        **options,
    )


@contextlib.contextmanager
def _during(holder: PassHolder, context: PassContext) -> Generator[None]:
    """The linear layers see the pass again, which has returned by then."""
    assert holder.context is None, "a pass of this base model is running already"
    holder.context = context
    try:
        yield
    finally:
        holder.context = None
