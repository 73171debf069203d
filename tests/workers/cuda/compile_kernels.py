"""Compile every kernel for Hopper in bfloat16, which needs no GPU.

A program of its own, run with TRITON_INTERPRET=0: Triton reads that once per process.
"""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from cyclora_workers.cuda import low_rank_kernels, paged_kernels

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {
    "addresses": "*i64",
    "starts": "*i32",
    "stops": "*i32",
    "ranks": "*i32",
    "scalings": "*fp32",
    "tile_segments": "*i32",
    "tile_starts": "*i32",
    "matrix_like": "*bf16",
    "owner_bounds": "*i32",
    "owner_segments": "*i32",
    "gradient_like": "*fp32",
    "slots_T": "*i64",
    "lse_PYN": "*fp32",
    "part_PYNH": "*fp32",
    "block_tables_SB": "*i32",
    "tile_sequences": "*i32",
    "tile_rows": "*i32",
    "tile_counts": "*i32",
    "tile_positions": "*i32",
}
SIZES = {
    "BLOCK_M": 64,
    "BLOCK_R": 32,
    "BLOCK_K": 64,
    "BLOCK_TOKENS": 16,
    "BLOCK_Q": 64,
    "BLOCK_L": 64,
    "BLOCK_H": 128,
    "HEADS": 4,
}


def compiled(kernel: Any, pointers: Mapping[str, str] = POINTERS, /, **fixed: Any) -> Any:
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    for name in kernel.arg_names:
        if name in fixed or name in SIZES:
            constants[name] = fixed.get(name, SIZES.get(name))
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = pointers[name]
        elif name.split("_")[-1].isupper() or name.endswith("_pool"):
            signature[name] = "*bf16"
        else:
            signature[name] = "fp32" if name == "scaling" else "i32"
    return compile(ASTSource(kernel, signature, constants), target=HOPPER)


def main() -> None:
    for by_column, partials in ((True, 1), (False, 8)):
        options = {"BY_COLUMN": by_column, "IS_SCALED": by_column}
        for kernel in (low_rank_kernels.shrink, low_rank_kernels.expand):
            compiled(kernel, NUM_PARTIALS=partials, **options)
        compiled(low_rank_kernels.accumulate, **options)
    logits = {**POINTERS, "y_TK": "*fp32"}
    compiled(low_rank_kernels.expand, logits, NUM_PARTIALS=8, BY_COLUMN=True, IS_SCALED=True)
    compiled(paged_kernels.write)
    for is_joined in (True, False):
        compiled(paged_kernels.attend, IS_JOINED=is_joined)
        compiled(paged_kernels.join, HAS_SINKS=is_joined)


if __name__ == "__main__":
    main()
