"""Where the rows of a matrix lie in memory, for products whose bits must not depend on it.

On CPU the matrix library picks its kernel, and with it the order of a sum, also by the addresses
of what it reads and writes. Measured in fp32 (docs/log.md): a row that does not begin at a multiple
of 16 bytes gets other bits. With a row of 1003 elements, where a tenant's rows begin depends on how
many rows its neighbours have; so every row is laid out at an aligned address.

Legend: T rows, D columns (features in), F features out.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor
from torch.nn import functional

_ALIGNMENT_BYTES = 64
"""A cache line, and the widest vector of any CPU; also how torch aligns what it allocates."""


def aligned_width(num_columns: int, dtype: torch.dtype) -> int:
    """Round columns up, so that every row of a contiguous matrix begins at an aligned address."""
    elements = _ALIGNMENT_BYTES // dtype.itemsize
    return -(-num_columns // elements) * elements


def with_aligned_rows(x_TD: Tensor) -> Tensor:
    """The matrix itself where its rows lie aligned, else a copy with gaps between its rows.

    Usual models never need the copy: their sizes are multiples of 32 elements. Odd vocabularies do.

    Shapes:
        x_TD: [..., D], where the first row of each matrix is aligned when its stride is.
    """
    stride = x_TD.stride(-2)
    if x_TD.stride(-1) == 1 and stride == aligned_width(stride, x_TD.dtype):
        return x_TD
    num_columns = x_TD.shape[-1]
    missing = aligned_width(num_columns, x_TD.dtype) - num_columns
    return functional.pad(x_TD, (0, missing))[..., :num_columns]


def empty_with_aligned_rows(like: Tensor, num_columns: int, dtype: torch.dtype) -> Tensor:
    """A matrix to be written, with rows at aligned addresses and as many as ``like`` has.

    Shapes:
        like: [..., T, C]. Returns [T, num_columns]; what lies between its rows is never read.
    """
    width = aligned_width(num_columns, dtype)
    return like.new_empty(like.shape[-2], width, dtype=dtype)[:, :num_columns]


def linear_with_aligned_rows(x_TD: Tensor, weight_FD: Tensor, bias_F: Tensor | None) -> Tensor:
    """``x W^T + bias`` over all packed rows, read from and written to aligned rows; no autograd.

    Written there, not copied: which rows a thread writes, and so how they lie, depends on T.
    """
    x_TD = with_aligned_rows(x_TD)
    num_features = weight_FD.shape[0]
    if aligned_width(num_features, x_TD.dtype) == num_features:
        return linear(x_TD, weight_FD, bias_F)
    y_TF = empty_with_aligned_rows(x_TD, num_features, x_TD.dtype)
    if bias_F is None:
        return torch.mm(x_TD, weight_FD.t(), out=y_TF)
    return torch.addmm(bias_F, x_TD, weight_FD.t(), out=y_TF)


def linear(x_TD: Tensor, weight_FD: Tensor, bias_F: Tensor | None) -> Tensor:
    """``x W^T + bias``; no autograd.

    In fp32 on an x86 CPU by oneDNN, not by the MKL of torch's own product: on AMD processors more
    than twice as fast, on the same AVX-512 units, and a row's bits depend on its neighbours for a
    single row only (docs/log.md).
    """
    if HAS_ONEDNN and x_TD.dtype == torch.float32 and not x_TD.is_cuda:
        # The form in which torch's own compiler calls oneDNN; the rest says that nothing follows.
        return torch.ops.mkldnn._linear_pointwise.default(x_TD, weight_FD, bias_F, "none", [], "")
    return functional.linear(x_TD, weight_FD, bias_F)


HAS_ONEDNN = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")
