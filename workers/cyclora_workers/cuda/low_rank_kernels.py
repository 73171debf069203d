"""Triton kernels for the low-rank part of many adapters in one launch, whatever their ranks.

Where a module's A, B and gradients lie is told by addresses, so nothing is copied together and no
rank is padded in memory. ``low_rank.py`` launches them; importing this file needs Triton.

A *tile* is up to BLOCK_M consecutive rows of one segment. ``addresses`` has one address per
segment, ``stride_address`` apart; 0 says that the segment's adapter leaves this module alone.

Legend: T packed tokens, K columns of the wide matrix (features), R lora_rank of a segment,
W columns of ``low`` (the largest R), S segments, P partial sums.
"""

# Triton traces these functions; their values have no Python types.
# pyright: basic, reportMissingImports=false, reportArgumentType=false
# pyright: reportUnknownParameterType=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl

_ADDRESS_ALIGNMENT = tl.constexpr(16)


@triton.jit
def _matrix(addresses, segment, stride_address, like):
    """The matrix of a segment as a pointer, of the element type that ``like`` points to."""
    address = tl.load(addresses + segment * stride_address)
    return tl.multiple_of(address, _ADDRESS_ALIGNMENT).to(like.dtype)


@triton.jit(do_not_specialize=["stride_partial"])
def shrink(
    x_TK,
    low_PTW,
    addresses,
    stops,
    ranks,
    scalings,
    tile_segments,
    tile_starts,
    num_columns,
    stride_x,
    stride_low,
    stride_partial,
    stride_address,
    BY_COLUMN: tl.constexpr,
    IS_SCALED: tl.constexpr,
    NUM_PARTIALS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Project rows down to their segment's lora_rank.

    ::

        low[p, t, r] = sum over the p-th part of the columns k of x[t, k] * w[r, k]

    with w = A [R, K], or w = B^T where B is [K, R] (``BY_COLUMN``); times the segment's scaling if
    ``IS_SCALED``. Grid: tiles, blocks of W, partials.
    """
    tile, partial = tl.program_id(0), tl.program_id(2)
    segment = tl.load(tile_segments + tile)
    if segment < 0:
        return
    rank = tl.load(ranks + segment)
    if (tl.load(addresses + segment * stride_address) == 0) | (tl.program_id(1) * BLOCK_R >= rank):
        return
    w = _matrix(addresses, segment, stride_address, x_TK)
    rows_M = tl.load(tile_starts + tile) + tl.arange(0, BLOCK_M)
    is_row_M = rows_M < tl.load(stops + segment)
    r_R = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    is_r_R = r_R < rank
    part = tl.cdiv(num_columns, NUM_PARTIALS * BLOCK_K) * BLOCK_K
    first = partial * part
    last = tl.minimum(first + part, num_columns)
    sum_MR = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for k in range(first, last, BLOCK_K):
        k_K = k + tl.arange(0, BLOCK_K)
        is_k_K = k_K < last
        x_MK = tl.load(
            x_TK + rows_M.to(tl.int64)[:, None] * stride_x + k_K[None, :],
            mask=is_row_M[:, None] & is_k_K[None, :],
            other=0.0,
        )
        if BY_COLUMN:
            offsets_KR = k_K[:, None] * rank + r_R[None, :]
        else:
            offsets_KR = r_R[None, :] * num_columns + k_K[:, None]
        w_KR = tl.load(w + offsets_KR, mask=is_k_K[:, None] & is_r_R[None, :], other=0.0)
        sum_MR = tl.dot(x_MK, w_KR, sum_MR, input_precision="ieee")
    if IS_SCALED:
        sum_MR *= tl.load(scalings + segment)
    tl.store(
        low_PTW
        + partial.to(tl.int64) * stride_partial
        + rows_M.to(tl.int64)[:, None] * stride_low
        + r_R[None, :],
        sum_MR.to(low_PTW.dtype.element_ty),
        mask=is_row_M[:, None] & is_r_R[None, :],
    )


@triton.jit(do_not_specialize=["stride_partial"])
def expand(
    low_PTW,
    y_TK,
    matrix_like,
    addresses,
    stops,
    ranks,
    scalings,
    tile_segments,
    tile_starts,
    num_columns,
    stride_low,
    stride_partial,
    stride_y,
    stride_address,
    BY_COLUMN: tl.constexpr,
    IS_SCALED: tl.constexpr,
    NUM_PARTIALS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Project rows up from their segment's lora_rank and add to what is there.

    ::

        y[t, k] += sum over r of (sum over p of low[p, t, r]) * w[r, k]

    with w as in ``shrink``, of the type that ``matrix_like`` points to, times the segment's scaling
    if ``IS_SCALED``. Grid: tiles, blocks of K.
    """
    tile = tl.program_id(0)
    segment = tl.load(tile_segments + tile)
    if segment < 0:
        return
    if tl.load(addresses + segment * stride_address) == 0:
        return
    rank = tl.load(ranks + segment)
    w = _matrix(addresses, segment, stride_address, matrix_like)
    rows_M = tl.load(tile_starts + tile) + tl.arange(0, BLOCK_M)
    is_row_M = rows_M < tl.load(stops + segment)
    k_K = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    is_k_K = k_K < num_columns
    sum_MK = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for r in range(0, rank, BLOCK_R):
        r_R = r + tl.arange(0, BLOCK_R)
        is_r_R = r_R < rank
        low_MR = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
        for partial in tl.static_range(NUM_PARTIALS):
            low_MR += tl.load(
                low_PTW
                + partial * stride_partial
                + rows_M.to(tl.int64)[:, None] * stride_low
                + r_R[None, :],
                mask=is_row_M[:, None] & is_r_R[None, :],
                other=0.0,
            ).to(tl.float32)
        if BY_COLUMN:
            offsets_RK = k_K[None, :] * rank + r_R[:, None]
        else:
            offsets_RK = r_R[:, None] * num_columns + k_K[None, :]
        w_RK = tl.load(w + offsets_RK, mask=is_r_R[:, None] & is_k_K[None, :], other=0.0)
        sum_MK = tl.dot(low_MR.to(w_RK.dtype), w_RK, sum_MK, input_precision="ieee")
    if IS_SCALED:
        sum_MK *= tl.load(scalings + segment)
    places_MK = y_TK + rows_M.to(tl.int64)[:, None] * stride_y + k_K[None, :]
    is_place_MK = is_row_M[:, None] & is_k_K[None, :]
    y_MK = tl.load(places_MK, mask=is_place_MK, other=0.0).to(tl.float32)
    tl.store(places_MK, (y_MK + sum_MK).to(y_TK.dtype.element_ty), mask=is_place_MK)


@triton.jit
def accumulate(
    low_TW,
    wide_TK,
    gradient_like,
    addresses,
    starts,
    stops,
    ranks,
    scalings,
    owner_bounds,
    owner_segments,
    num_columns,
    stride_low,
    stride_wide,
    stride_address,
    BY_COLUMN: tl.constexpr,
    IS_SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add each adapter's gradient of one matrix to its fp32 buffer.

    ::

        g[r, k] += sum over the segment's rows t of low[t, r] * wide[t, k]

    in fp32, segment after segment of one adapter: a sum of its own for each, added in their order.
    One program owns an element, so there are no atomic additions and the order is always the same.
    g is A's gradient [R, K], or B's, [K, R], if ``BY_COLUMN``. Grid: adapters, blocks of K,
    blocks of W.
    """
    owner = tl.program_id(0)
    first = tl.load(owner_bounds + owner)
    last = tl.load(owner_bounds + owner + 1)
    some_segment = tl.load(owner_segments + first)
    rank = tl.load(ranks + some_segment)
    is_untouched = tl.load(addresses + some_segment * stride_address) == 0
    if is_untouched | (tl.program_id(2) * BLOCK_R >= rank):
        return
    gradient = _matrix(addresses, some_segment, stride_address, gradient_like)
    k_K = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    is_k_K = k_K < num_columns
    r_R = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    is_r_R = r_R < rank
    if BY_COLUMN:
        places_RK = gradient + k_K[None, :] * rank + r_R[:, None]
    else:
        places_RK = gradient + r_R[:, None] * num_columns + k_K[None, :]
    is_place_RK = is_r_R[:, None] & is_k_K[None, :]
    total_RK = tl.load(places_RK, mask=is_place_RK, other=0.0)
    for index in range(first, last):
        segment = tl.load(owner_segments + index)
        stop = tl.load(stops + segment)
        sum_RK = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
        for row in range(tl.load(starts + segment), stop, BLOCK_M):
            rows_M = row + tl.arange(0, BLOCK_M)
            is_row_M = rows_M < stop
            low_RM = tl.load(
                low_TW + rows_M.to(tl.int64)[None, :] * stride_low + r_R[:, None],
                mask=is_r_R[:, None] & is_row_M[None, :],
                other=0.0,
            )
            wide_MK = tl.load(
                wide_TK + rows_M.to(tl.int64)[:, None] * stride_wide + k_K[None, :],
                mask=is_row_M[:, None] & is_k_K[None, :],
                other=0.0,
            )
            sum_RK = tl.dot(low_RM, wide_MK, sum_RK, input_precision="ieee")
        if IS_SCALED:
            sum_RK *= tl.load(scalings + segment)
        total_RK += sum_RK
    tl.store(places_RK, total_RK, mask=is_place_RK)
