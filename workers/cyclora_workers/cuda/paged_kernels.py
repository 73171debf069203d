"""Triton kernels for attention to a paged KV cache; ``paged_attention.py`` launches them.

Keys and values of a layer lie in pools [blocks, tokens of a block, G, H]; a sequence's block table
says in which blocks its tokens are, in order.

A *tile* is up to BLOCK_Q consecutive tokens of one sequence. Its queries are the heads of those
tokens that share a key-value head, BLOCK_Q times HEADS of them, so that each key is read once.

Legend: T packed tokens, S sequences, B blocks of a sequence, N query heads, G key-value heads,
H head size, Q queries of a tile, L keys of one round, P parts of a sequence's keys, Y places for
tokens in all tiles.
"""

# Triton traces these functions; their values have no Python types.
# pyright: basic, reportMissingImports=false, reportArgumentType=false
# pyright: reportUnknownParameterType=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def write(
    key_TGH,
    value_TGH,
    key_pool,
    value_pool,
    slots_T,
    stride_key_t,
    stride_key_g,
    stride_value_t,
    stride_value_g,
    stride_pool_block,
    stride_pool_token,
    stride_pool_g,
    head_size,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Put each token's key and value into its slot; slot -1 is none. Grid: T, G.

    ::

        pool[slot // BLOCK_TOKENS, slot % BLOCK_TOKENS, g] = key[t, g]
    """
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    slot = tl.load(slots_T + row)
    if slot < 0:
        return
    h_H = tl.arange(0, BLOCK_H)
    is_h_H = h_H < head_size
    place = (
        (slot // BLOCK_TOKENS) * stride_pool_block
        + (slot % BLOCK_TOKENS) * stride_pool_token
        + group * stride_pool_g
    )
    key_H = tl.load(key_TGH + row * stride_key_t + group * stride_key_g + h_H, mask=is_h_H)
    value_H = tl.load(value_TGH + row * stride_value_t + group * stride_value_g + h_H, mask=is_h_H)
    tl.store(key_pool + place + h_H, key_H, mask=is_h_H)
    tl.store(value_pool + place + h_H, value_H, mask=is_h_H)


@triton.jit(do_not_specialize=["stride_table", "window", "part_tokens"])
def attend(
    query_TNH,
    key_pool,
    value_pool,
    out_TNH,
    lse_PYN,
    block_tables_SB,
    tile_sequences,
    tile_rows,
    tile_counts,
    tile_positions,
    scaling,
    window,
    part_tokens,
    tokens_per_tile,
    stride_table,
    stride_query_t,
    stride_query_n,
    stride_pool_block,
    stride_pool_token,
    stride_pool_g,
    head_size,
    HEADS: tl.constexpr,
    IS_JOINED: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Causal attention of each tile to the ``part_tokens`` keys of its part, normalised there.

    A query at position p sees keys max(0, p - window + 1) to p. Parts are cut at fixed positions,
    so no sum depends on what else is in the batch; a part that a query sees nothing of leaves a
    log-sum-exp of -inf and zeros.

    If ``IS_JOINED``, ``out`` is [P, Y, N, H] and ``join`` follows; else there is one part, which
    goes where the tokens are. Grid: tiles, G, P.
    """
    tile, group, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count = tl.load(tile_counts + tile)
    if count == 0:
        return
    sequence = tl.load(tile_sequences + tile)
    position = tl.load(tile_positions + tile)
    q_Q = tl.arange(0, BLOCK_Q)
    token_Q = q_Q // HEADS
    head_Q = group * HEADS + q_Q % HEADS
    is_q_Q = token_Q < count
    row_Q = (tl.load(tile_rows + tile) + token_Q).to(tl.int64)
    position_Q = position + token_Q
    h_H = tl.arange(0, BLOCK_H)
    is_h_H = h_H < head_size
    is_qh_QH = is_q_Q[:, None] & is_h_H[None, :]
    query_QH = tl.load(
        query_TNH + row_Q[:, None] * stride_query_t + head_Q[:, None] * stride_query_n + h_H[None],
        mask=is_qh_QH,
        other=0.0,
    )
    first = tl.maximum(part * part_tokens, tl.maximum(position - window + 1, 0))
    first = first // BLOCK_L * BLOCK_L
    last = tl.minimum((part + 1) * part_tokens, position + count)
    most_Q = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total_Q = tl.full((BLOCK_Q,), 0.0, tl.float32)
    sum_QH = tl.full((BLOCK_Q, BLOCK_H), 0.0, tl.float32)
    for start in range(first, last, BLOCK_L):
        l_L = start + tl.arange(0, BLOCK_L)
        is_l_L = l_L < last
        block_L = tl.load(
            block_tables_SB + sequence.to(tl.int64) * stride_table + l_L // BLOCK_TOKENS,
            mask=is_l_L,
            other=0,
        )
        place_L = (
            block_L.to(tl.int64) * stride_pool_block
            + (l_L % BLOCK_TOKENS) * stride_pool_token
            + group * stride_pool_g
        )
        key_HL = tl.load(
            key_pool + place_L[None, :] + h_H[:, None],
            mask=is_l_L[None, :] & is_h_H[:, None],
            other=0.0,
        )
        score_QL = tl.dot(query_QH, key_HL, input_precision="ieee") * scaling
        distance_QL = position_Q[:, None] - l_L[None, :]
        is_seen_QL = (distance_QL >= 0) & (distance_QL < window) & is_l_L[None, :]
        # Also keeps a part's first round from seeing what belongs to the part before.
        is_seen_QL = is_seen_QL & (l_L >= part * part_tokens)[None, :]
        score_QL = tl.where(is_seen_QL, score_QL, float("-inf"))
        new_most_Q = tl.maximum(most_Q, tl.max(score_QL, 1))
        # Where nothing was seen yet, -inf - -inf would be NaN.
        base_Q = tl.where(new_most_Q == float("-inf"), 0.0, new_most_Q)
        weight_QL = tl.exp(score_QL - base_Q[:, None])
        shrink_Q = tl.exp(most_Q - base_Q)
        value_LH = tl.load(
            value_pool + place_L[:, None] + h_H[None, :],
            mask=is_l_L[:, None] & is_h_H[None, :],
            other=0.0,
        )
        sum_QH = sum_QH * shrink_Q[:, None]
        sum_QH = tl.dot(weight_QL.to(value_LH.dtype), value_LH, sum_QH, input_precision="ieee")
        total_Q = total_Q * shrink_Q + tl.sum(weight_QL, 1)
        most_Q = new_most_Q
    is_empty_Q = total_Q == 0.0
    whole_Q = tl.where(is_empty_Q, 1.0, total_Q)
    out_QH = sum_QH / whole_Q[:, None]
    num_heads = tl.num_programs(1) * HEADS
    if IS_JOINED:
        first_place = (part * tl.num_programs(0) + tile).to(tl.int64) * tokens_per_tile
        place_Q = (first_place + token_Q) * num_heads + head_Q
        lse_Q = tl.where(is_empty_Q, float("-inf"), most_Q + tl.log(whole_Q))
        tl.store(lse_PYN + place_Q, lse_Q, mask=is_q_Q)
    else:
        place_Q = row_Q * num_heads + head_Q
    tl.store(
        out_TNH + place_Q[:, None] * head_size + h_H[None, :],
        out_QH.to(out_TNH.dtype.element_ty),
        mask=is_qh_QH,
    )


@triton.jit(do_not_specialize=["num_parts", "stride_lse"])
def join(
    part_PYNH,
    lse_PYN,
    sinks_N,
    out_TNH,
    tile_rows,
    tile_counts,
    tokens_per_tile,
    num_parts,
    stride_lse,
    head_size,
    HAS_SINKS: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Join the parts of each query's attention, of which a sink is one of value zero. Grid: Y, N.

    ::

        out = sum_p w_p part_p,   w = softmax(lse)
    """
    place, head = tl.program_id(0), tl.program_id(1)
    tile, token = place // tokens_per_tile, place % tokens_per_tile
    if token >= tl.load(tile_counts + tile):
        return
    num_heads = tl.num_programs(1)
    query = place.to(tl.int64) * num_heads + head
    h_H = tl.arange(0, BLOCK_H)
    is_h_H = h_H < head_size
    most = tl.load(lse_PYN + query)
    for part in range(1, num_parts):
        most = tl.maximum(most, tl.load(lse_PYN + part * stride_lse + query))
    if HAS_SINKS:
        sink = tl.load(sinks_N + head).to(tl.float32)
        most = tl.maximum(most, sink)
    base = tl.where(most == float("-inf"), 0.0, most)
    total = 0.0
    if HAS_SINKS:
        total = tl.exp(sink - base)
    sum_H = tl.full((BLOCK_H,), 0.0, tl.float32)
    for part in range(num_parts):
        in_part = query + part * stride_lse
        weight = tl.exp(tl.load(lse_PYN + in_part) - base)
        part_H = tl.load(part_PYNH + in_part * head_size + h_H, mask=is_h_H, other=0.0)
        sum_H += weight * part_H
        total += weight
    out_H = sum_H / tl.where(total == 0.0, 1.0, total)
    row = (tl.load(tile_rows + tile) + token).to(tl.int64)
    tl.store(
        out_TNH + (row * num_heads + head) * head_size + h_H,
        out_H.to(out_TNH.dtype.element_ty),
        mask=is_h_H,
    )
