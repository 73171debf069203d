"""The engine on a GPU: training and decoding against what the card can do at most.

Base models have the shapes of Qwen3 and random weights in bfloat16: nothing is downloaded.

- train: one step (forward_backward and optimizer step) of every tenant, all packed; FLOP/s of the
  frozen forward and of the input gradients, as a share of this card's own matrix rate at 8192;
- layers: the decoder layers alone, forward and backward, with adapters and without any: the price
  of the low-rank part;
- peft: transformers + peft, one tenant after another with set_adapter and padding;
- decode: steps from CUDA graphs with logits and greedy choice, against the time that reading the
  weights and the keys and values once takes at this card's own copy rate.

Ways that do the same take turns. On a CPU (``--quick --device cpu``) it only shows that it runs;
decoding is left out there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gpu_decode import DECODE_HEADER, LORA_RANK, Decoding, decode_rows
from machine import Aim, Plot, aims_table, caption, table
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from rounds import Rounds, interleaved
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from cyclora_core.operations import Datum, LoraConfig, OptimStepBody, PassBody
from cyclora_workers.adapter import AdapterLayout, AdapterState
from cyclora_workers.attention import ATTENTION_NAME
from cyclora_workers.base_model import BaseModel
from cyclora_workers.context import PassContext, Segment
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

DATUM_TOKENS = (32, 257)
BYTES_PER_ELEMENT = 18
"""Of an adapter: master, gradient and two moments in fp32, the compute copy in bfloat16."""
TRAIN_HEADER = [
    "tenants",
    "tokens",
    "ours",
    "peft",
    "bound",
    "ours / peft",
    "ours / bound",
    "layers / no adapter",
    "TFLOP/s",
]


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


def finished(step: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """The same, which returns when the device has done it."""

    def way() -> None:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return way


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """Median duration of something that is compared with nothing."""
    return interleaved({"it": finished(step, device)}, 5, num_warm_ups=2).median_s("it")


def matrix_rate(device: torch.device) -> float:
    """FLOP/s of a large bfloat16 product: what this card gives, not what its sheet says."""
    size = 8192 if device.type == "cuda" else 512
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / seconds(lambda: left @ left, device)


def copy_rate(device: torch.device) -> float:
    """Bytes/s read and written by a large copy."""
    size = 2**31 if device.type == "cuda" else 2**24
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), device)


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


def fits(base_model: BaseModel, num_tenants: int, *, has_peft: bool) -> bool:
    """Whether weights and adapters leave a third of the card to activations."""
    if base_model.device.type != "cuda":
        return True
    config = LoraConfig(LORA_RANK, train_unembed=False)
    elements = AdapterLayout(base_model.target_modules, config).num_elements
    num_models = 2 if has_peft else 1
    needed = num_models * (
        num_tenants * elements * BYTES_PER_ELEMENT + 2 * base_model.num_parameters
    )
    return needed < 0.67 * torch.cuda.get_device_properties(0).total_memory


def measure_training(
    shape: str, base_model: BaseModel, num_tenants: int, options: argparse.Namespace
) -> tuple[int, Rounds]:
    """Tokens of a step of all tenants, and every way to do it."""
    device = base_model.device
    config = LoraConfig(LORA_RANK, train_unembed=False)
    states = [AdapterState.create(base_model, config) for _ in range(num_tenants)]
    work = bodies(num_tenants, options.tokens, base_model.vocab_size)
    ways: dict[str, Callable[[], object]] = {
        "ours": train_step(base_model, states, work, options.microbatch_tokens),
        "layers": layers_step(base_model, states, work),
        "bare layers": layers_step(base_model, None, work),
    }
    if num_tenants <= options.peft_tenants and fits(base_model, num_tenants, has_peft=True):
        ways["peft"] = peft_step(shape, work, device)
    timed = {name: finished(way, device) for name, way in ways.items()}
    num_tokens = sum(sum(lengths_of(body)) for body in work)
    description = f"{shape}, {num_tenants} tenants"
    return num_tokens, interleaved(timed, options.rounds, description, num_warm_ups=2)


def train_rows(
    shape: str, base_model: BaseModel, options: argparse.Namespace, peak: float
) -> tuple[list[list[str]], list[Aim]]:
    """One row per number of tenants, and what they say of the aims."""
    rows: list[list[str]] = []
    aims: list[Aim] = []
    speeds: dict[int, float] = {}
    where = f"{shape}, bfloat16, {options.device}"
    for num_tenants in options.tenants:
        if not fits(base_model, num_tenants, has_peft=False):
            rows.append([str(num_tenants), "does not fit", *["-"] * (len(TRAIN_HEADER) - 2)])
            continue
        num_tokens, found = measure_training(shape, base_model, num_tenants, options)
        speed = speeds[num_tenants] = found.per_s("ours", num_tokens)
        flops_per_s = 4 * frozen_weights(base_model) * speed
        has_peft = "peft" in found.seconds
        rows.append(
            [
                str(num_tenants),
                f"{num_tokens:,}",
                f"{speed:,.0f}",
                f"{found.per_s('peft', num_tokens):,.0f}" if has_peft else "-",
                f"{peak / (4 * frozen_weights(base_model)):,.0f}",
                found.speedup_range("ours", "peft") if has_peft else "-",
                f"{flops_per_s / peak:.2f}",
                found.speedup_range("layers", "bare layers"),
                f"{flops_per_s / 1e12:,.1f}",
            ]
        )
        if num_tenants == 16:
            aims.append(
                Aim("16 tenants over the matrix-rate bound", where, 0.5, flops_per_s / peak)
            )
            price = found.speedup("layers", "bare layers")
            aims.append(Aim("16 tenants over no adapter", f"{where}, layers alone", 0.8, price))
            if has_peft:
                ratio = found.speedup("ours", "peft")
                aims.append(Aim("16 tenants over transformers + peft", where, 2.5, ratio))
    if {1, 64} <= speeds.keys():
        same = speeds[64] / speeds[1]
        aims.append(Aim("64 tenants over 1 with the same tokens", where, 0.9, same))
    return rows, aims


def frozen_weights(base_model: BaseModel) -> int:
    """Elements of all frozen matrices; each costs a multiplication and an addition per token."""
    return sum(module.in_features * module.out_features for module in base_model.target_modules)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="the smallest Qwen3, fewer tenants, tokens and rounds"
    )
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
    options = parser.parse_args()
    if options.quick:
        is_gpu = options.device == "cuda"
        options.shapes = ["qwen3-0.6b" if is_gpu else "tiny"]
        options.tenants = [1, 16] if is_gpu else [2]
        options.tokens = 8192 if is_gpu else 256
        options.decode_rows = [8, 128]
        options.rounds = 3
    return options


def main() -> None:
    options = parse()
    device = torch.device(options.device)
    peak, bandwidth = matrix_rate(device), copy_rate(device)
    decoding = Decoding(options.context, options.decode_adapters, bandwidth, options.rounds)
    aims: list[Aim] = []
    for shape in options.shapes:
        base_model = BaseModel(shape, random_model(shape, device, ATTENTION_NAME), device)
        rows, found = train_rows(shape, base_model, options, peak)
        aims += found
        where = f"{shape}, bfloat16, {options.device}"
        what = (
            f"**{where}, training.** Trained tokens/s, random weights, lora_rank {LORA_RANK}, "
            f"about {options.tokens:,} tokens a step; large products at "
            f"{peak / 1e12:,.1f} TFLOP/s; {options.rounds} rounds"
        )
        plot = Plot(f"{where}, training", TRAIN_HEADER[0], TRAIN_HEADER[2:5])
        print(f"{caption(what)}\n\n{table(TRAIN_HEADER, rows, plot)}\n", flush=True)
        if device.type == "cuda":
            rows = decode_rows(base_model, options.decode_rows, decoding)
            what = (
                f"**{where}, decoding.** Tokens/s, {options.context:,} tokens behind each row, "
                f"{options.decode_adapters} adapters; copies at {bandwidth / 1e9:,.0f} GB/s; "
                f"{options.rounds} rounds"
            )
            plot = Plot(f"{where}, decoding", DECODE_HEADER[0], DECODE_HEADER[1:3])
            print(f"{caption(what)}\n\n{table(DECODE_HEADER, rows, plot)}\n", flush=True)
        # Before the next one is made: the largest does not fit beside another.
        del base_model
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if aims:
        print(aims_table(aims))


if __name__ == "__main__":
    main()
