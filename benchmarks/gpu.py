"""The engine on a GPU: training and decoding against what the card can do at most.

Base models have the shapes of Qwen3 and random weights in bfloat16: nothing is downloaded.

- train: one step (forward_backward and optimizer step) of every tenant, all packed; FLOP/s of the
  frozen forward and of the input gradients, as a share of this card's own matrix rate at 8192;
- layers: the decoder layers alone, forward and backward, with adapters and without any: the price
  of the low-rank part;
- peft: transformers + peft, one tenant after another with set_adapter and padding;
- decode: steps from CUDA graphs with logits and greedy choice, against the time that reading the
  weights and the keys and values once takes at this card's own copy rate.

On a CPU (``--device cpu --shapes tiny --tenants 2 --tokens 256``) it only shows that it runs;
decoding is left out there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from machine import caption, table
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from cyclora_core.operations import Datum, LoraConfig, OptimStepBody, PassBody
from cyclora_workers.adapter import AdapterLayout, AdapterState
from cyclora_workers.attention import ATTENTION_NAME
from cyclora_workers.base_model import BaseModel
from cyclora_workers.context import PassContext, Segment
from cyclora_workers.cuda.decode_graphs import DecodeGraphs
from cyclora_workers.cuda.paged_attention import PagedSpan
from cyclora_workers.cuda.segment_table import AddressBook
from cyclora_workers.optimizer import optimizer_step
from cyclora_workers.packed_plan import packed_attention
from cyclora_workers.pass_blocks import PassItem
from cyclora_workers.passes import PackedPasses

SHAPES = {
    "tiny": (64, 128, 2, 4, 2, 16, 512),
    "qwen3-0.6b": (1024, 3072, 28, 16, 8, 128, 151_936),
    "qwen3-4b": (2560, 9728, 36, 32, 8, 128, 151_936),
    "qwen3-8b": (4096, 12_288, 36, 32, 8, 128, 151_936),
}
"""Hidden, intermediate, layers, query heads, key-value heads, head size, vocabulary."""

LORA_RANK = 8
DATUM_TOKENS = (32, 257)
BLOCK_TOKENS = 16
BYTES_PER_ELEMENT = 18
"""Of an adapter: master, gradient and two moments in fp32, the compute copy in bfloat16."""


def config_of(shape: str) -> Qwen3Config:
    hidden, intermediate, layers, heads, kv_heads, head_size, vocabulary = SHAPES[shape]
    return Qwen3Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_size,
        vocab_size=vocabulary,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
    )


def random_model(shape: str, device: torch.device, attention: str) -> Any:
    """Made on the device: random numbers for billions of weights take a CPU minutes."""
    with device:
        return AutoModelForCausalLM.from_config(
            config_of(shape), dtype=torch.bfloat16, attn_implementation=attention
        )


def seconds(step: Callable[[], object], rounds: int, device: torch.device) -> float:
    """Median duration, after two calls that compile and allocate."""
    taken: list[float] = []
    for _ in range(rounds + 2):
        _wait(device)
        started = time.perf_counter()
        step()
        _wait(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[2:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device: torch.device) -> float:
    """FLOP/s of a large bfloat16 product: what this card gives, not what its sheet says."""
    size = 8192 if device.type == "cuda" else 512
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / seconds(lambda: left @ left, 5, device)


def copy_rate(device: torch.device) -> float:
    """Bytes/s read and written by a large copy."""
    size = 2**31 if device.type == "cuda" else 2**24
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), 5, device)


def bodies(num_tenants: int, num_tokens: int, vocab_size: int) -> list[PassBody]:
    """Ragged data, at least one for each tenant, of about ``num_tokens`` in all."""
    rng = np.random.default_rng(num_tenants)
    made: list[PassBody] = []
    for _ in range(num_tenants):
        data: list[Datum] = []
        left = max(num_tokens // num_tenants, 1)
        while left > 0:
            length = min(int(rng.integers(*DATUM_TOKENS)), left)
            ids = rng.integers(0, vocab_size, length + 1)
            inputs = {"target_tokens": ids[1:], "weights": np.ones(length, np.float32)}
            data.append(Datum(ids[:-1].astype(np.int32), inputs))
            left -= length
        made.append(PassBody("cross_entropy", {}, data))
    return made


def lengths_of(body: PassBody) -> list[int]:
    return [len(datum.tokens) for datum in body.data]


def train_step(
    base_model: BaseModel, states: list[AdapterState], work: list[PassBody], max_tokens: int
) -> Callable[[], None]:
    items = [
        PassItem(f"r{i}", state, body, True)
        for i, (state, body) in enumerate(zip(states, work, strict=True))
    ]

    def step() -> None:
        for _ in PackedPasses(base_model, items, max_tokens_per_microbatch=max_tokens):
            pass
        for state in states:
            optimizer_step(state, OptimStepBody())

    return step


def layers_step(
    base_model: BaseModel, states: list[AdapterState] | None, work: list[PassBody]
) -> Callable[[], None]:
    """Forward and backward of the layers; without adapters the gradient flows to the embedding."""
    lengths = [length for body in work for length in lengths_of(body)]
    bounds = [0, *np.cumsum(lengths).tolist()]
    tokens_T = torch.cat([torch.from_numpy(d.tokens).long() for body in work for d in body.data])
    tokens_T = tokens_T.to(base_model.device)
    positions_T = torch.cat([torch.arange(length) for length in lengths]).to(base_model.device)
    stops = np.cumsum([sum(lengths_of(body)) for body in work]).tolist()
    starts = [0, *stops[:-1]]
    weights = [None] * len(work) if states is None else [state.weights for state in states]
    segments = [Segment(*each) for each in zip(starts, stops, weights, strict=True)]
    embedding = base_model.embedding

    def watched(_module: object, _inputs: object, output: Tensor) -> Tensor:
        return output.detach().requires_grad_()

    def step() -> None:
        handle = embedding.register_forward_hook(watched)
        plan = packed_attention(
            bounds,
            device=base_model.device,
            dtype=base_model.dtype,
            head_size=base_model.head_size,
        )
        hidden_TD = base_model.hidden(tokens_T, positions_T, PassContext(segments, plan))
        hidden_TD.backward(torch.ones_like(hidden_TD))
        handle.remove()

    return step


def peft_step(shape: str, work: list[PassBody], device: torch.device) -> Callable[[], None]:
    model: Any = random_model(shape, device, "sdpa")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = PeftConfig(r=LORA_RANK, lora_alpha=32, target_modules=targets)
    model = get_peft_model(model, config, adapter_name="t0")
    for i in range(1, len(work)):
        model.add_adapter(f"t{i}", config)
    tenants: list[tuple[Tensor, Tensor, torch.optim.Optimizer]] = []
    for i, body in enumerate(work):
        model.set_adapter(f"t{i}")
        trained = [p for p in model.parameters() if p.requires_grad]
        size = (len(body.data), max(lengths_of(body)))
        tokens, labels = torch.zeros(size, dtype=torch.int64), torch.full(size, -100)
        for row, datum in enumerate(body.data):
            length = len(datum.tokens)
            tokens[row, :length] = torch.from_numpy(datum.tokens.astype(np.int64))
            labels[row, :length] = torch.from_numpy(datum.loss_fn_inputs["target_tokens"])
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=device.type == "cuda")
        tenants.append((tokens.to(device), labels.to(device), optimizer))

    def step() -> None:
        for i, (tokens, labels, optimizer) in enumerate(tenants):
            model.set_adapter(f"t{i}")
            logits = model(input_ids=tokens, attention_mask=(labels != -100).long()).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), reduction="sum"
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return step


def train_rows(
    shape: str, base_model: BaseModel, options: argparse.Namespace, peak: float
) -> list[list[str]]:
    """One row per number of tenants that fits."""
    rows: list[list[str]] = []
    device, frozen = base_model.device, frozen_weights(base_model)
    config = LoraConfig(LORA_RANK, train_unembed=False)
    elements = AdapterLayout(base_model.target_modules, config).num_elements
    for num_tenants in options.tenants:
        needed = num_tenants * elements * BYTES_PER_ELEMENT + 2 * base_model.num_parameters
        if (
            device.type == "cuda"
            and needed > 0.7 * torch.cuda.get_device_properties(0).total_memory
        ):
            rows.append([shape, str(num_tenants), "does not fit", *["-"] * 4])
            continue
        states = [AdapterState.create(base_model, config) for _ in range(num_tenants)]
        work = bodies(num_tenants, options.tokens, base_model.vocab_size)
        num_tokens = sum(sum(lengths_of(body)) for body in work)
        step = train_step(base_model, states, work, options.microbatch_tokens)
        speed = num_tokens / seconds(step, options.rounds, device)
        layers = seconds(layers_step(base_model, states, work), options.rounds, device)
        bare = seconds(layers_step(base_model, None, work), options.rounds, device)
        del states, step
        against = "-"
        if num_tenants <= options.peft_tenants:
            theirs = num_tokens / seconds(peft_step(shape, work, device), options.rounds, device)
            against = f"{speed / theirs:.2f}"
        rows.append(
            [
                shape,
                str(num_tenants),
                f"{speed:,.0f}",
                f"{4 * frozen * speed / 1e12:,.1f}",
                f"{4 * frozen * speed / peak:.2f}",
                f"{bare / layers:.2f}",
                against,
            ]
        )
    return rows


def frozen_weights(base_model: BaseModel) -> int:
    """Elements of all frozen matrices; each costs a multiplication and an addition per token."""
    return sum(module.in_features * module.out_features for module in base_model.target_modules)


class Pool:
    """Blocks of random keys and values."""

    def __init__(self, base_model: BaseModel, num_blocks: int) -> None:
        self.block_tokens = BLOCK_TOKENS
        size = (2, num_blocks, BLOCK_TOKENS, base_model.num_kv_heads, base_model.head_size)
        self._layers = [
            torch.randn(size, dtype=base_model.dtype, device=base_model.device)
            for _ in range(base_model.num_layers)
        ]

    def layer(self, layer_index: int) -> tuple[Tensor, Tensor]:
        keys, values = self._layers[layer_index]
        return keys, values


def decode_step(
    base_model: BaseModel, graphs: DecodeGraphs, spans: list[PagedSpan], segments: list[Segment]
) -> Callable[[], None]:
    tokens = np.zeros(len(spans), np.int64)
    places = np.asarray([span.first for span in spans])

    def step() -> None:
        hidden_TD = graphs.hidden(tokens, places, spans, segments)
        assert hidden_TD is not None, "the step cannot be recorded"
        with torch.inference_mode():
            base_model.logits(hidden_TD, segments).argmax(-1).tolist()

    return step


def decode_rows(
    shape: str, base_model: BaseModel, options: argparse.Namespace, bandwidth: float
) -> list[list[str]]:
    """One row per number of rows that decode together, all with contexts of one length."""
    rows: list[list[str]] = []
    blocks_each = options.context // BLOCK_TOKENS + 1
    config = LoraConfig(LORA_RANK, train_unembed=False)
    states = [AdapterState.create(base_model, config) for _ in range(options.decode_adapters)]
    book = AddressBook([module.name for module in base_model.target_modules])
    frozen_bytes = 2 * frozen_weights(base_model)
    for num_rows in options.decode_rows:
        pool = Pool(base_model, num_rows * blocks_each)
        graphs = DecodeGraphs(base_model, book, pool, max_rows=num_rows + 32)
        blocks = np.random.default_rng(0).permutation(num_rows * blocks_each)
        spans = [
            PagedSpan(row, row + 1, options.context - 1, each)
            for row, each in enumerate(blocks.reshape(num_rows, -1).tolist())
        ]
        owners = [state.weights for state in states]
        segments = [Segment(r, r + 1, owners[r * len(owners) // num_rows]) for r in range(num_rows)]
        step = decode_step(base_model, graphs, spans, segments)
        speed = num_rows / seconds(step, options.rounds, base_model.device)
        cached = 4 * base_model.num_layers * base_model.num_kv_heads * base_model.head_size
        bound = num_rows * bandwidth / (frozen_bytes + num_rows * options.context * cached)
        rows.append([shape, str(num_rows), f"{speed:,.0f}", f"{speed / bound:.2f}"])
        del step, graphs, pool
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shapes", choices=list(SHAPES), nargs="+", default=list(SHAPES)[1:])
    parser.add_argument("--tenants", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--tokens", type=int, default=32_768, help="of one step, all tenants")
    parser.add_argument("--microbatch-tokens", type=int, default=8192)
    parser.add_argument("--peft-tenants", type=int, default=16, help="most to compare with peft")
    parser.add_argument("--context", type=int, default=1024, help="tokens behind each decoded one")
    parser.add_argument("--decode-rows", type=int, nargs="+", default=[1, 8, 32, 128, 256])
    parser.add_argument("--decode-adapters", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    options = parse()
    device = torch.device(options.device)
    peak, bandwidth = matrix_rate(device), copy_rate(device)
    trained: list[list[str]] = []
    decoded: list[list[str]] = []
    for shape in options.shapes:
        base_model = BaseModel(shape, random_model(shape, device, ATTENTION_NAME), device)
        trained += train_rows(shape, base_model, options, peak)
        if device.type == "cuda":
            decoded += decode_rows(shape, base_model, options, bandwidth)
        del base_model
        if device.type == "cuda":
            torch.cuda.empty_cache()
    what = (
        f"Random weights in bfloat16, lora_rank {LORA_RANK}, about {options.tokens} tokens a step; "
        f"measured: {peak / 1e12:,.1f} TFLOP/s, {bandwidth / 1e9:,.0f} GB/s"
    )
    print(caption(what))
    header = ["shape", "tenants", "tokens/s", "TFLOP/s", "of matrix rate", "of no adapter", "peft"]
    print(table(header, trained))
    if decoded:
        print(f"\nDecoding, {options.context} tokens behind each row:\n")
        print(table(["shape", "rows", "tokens/s", "of bandwidth bound"], decoded))


if __name__ == "__main__":
    main()
