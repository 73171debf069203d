"""The sampler on the kernels a GPU gets, run by Triton's interpreter, against the general way.

Graphs are stood in for by calls. What is compared is the whole sampler: prefill beside decode, many
adapters and ranks, known prefixes, rows that lose their memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from cyclora_core.samples import SampleBody, SampleResult
from cyclora_workers.adapter import AdapterWeights
from cyclora_workers.base_model import BaseModel
from cyclora_workers.cuda import decode_graphs, paged_attention, span_table
from cyclora_workers.cuda.decode_graphs import RecordingLimits
from cyclora_workers.cuda.graph import Graph
from cyclora_workers.cuda.grouped_linear import GroupedLinears
from cyclora_workers.cuda.paged_attention import PagedPool
from cyclora_workers.cuda.step_model import KernelStepModel
from cyclora_workers.sampling.kv_pool import KvPool, KvShape
from cyclora_workers.sampling.sampler import Sampler
from cyclora_workers.sampling.step_model import GeneralStepModel, step_model_of
from parity.families import FAMILIES
from workers import builders
from workers.cuda.graphs import CallingGraph, RefusingGraph
from workers.sampling.builders import (
    TinyModel,
    adapter,
    body,
    load,
    random_tokens,
    run_until_idle,
    succeeded,
)

AT_ONCE = RecordingLimits(min_steps=1, min_steps_between=0)
NEVER = RecordingLimits(max_rows=0)
WITHIN = 1e-5
"""What a sampled logprob may differ from another way to compute it, in fp32."""

Requests = Mapping[str, tuple[SampleBody, AdapterWeights | None]]


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch, kernel_device: torch.device) -> None:
    """Parts of 32 keys and contexts of at least 64, so that tiny samples have several parts."""
    if kernel_device.type != "cpu":
        pytest.skip("the base model is on the CPU")
    for module in (span_table, paged_attention):
        monkeypatch.setattr(module, "PART_TOKENS", 32)
    monkeypatch.setattr(decode_graphs, "_SMALLEST_TOKENS", 64)


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Three query heads per key-value head, heads of 8, a sliding window of 20."""
    return load("qwen2", tmp_path_factory.mktemp("qwen2"))


class KernelSampler:
    """A sampler that runs on kernels, and the model behind it."""

    def __init__(
        self,
        base_model: BaseModel,
        limits: RecordingLimits,
        new_graph: Callable[[], Graph] = CallingGraph,
        **options: int,
    ) -> None:
        self.models: list[KernelStepModel] = []

        def new_model(base_model: BaseModel, pool: PagedPool) -> KernelStepModel:
            assert base_model.grouped is not None
            self.models.append(
                KernelStepModel(
                    base_model, base_model.grouped, pool, limits=limits, new_graph=new_graph
                )
            )
            return self.models[0]

        self.sampler = Sampler(
            base_model,
            max_kv_tokens=options.pop("max_kv_tokens", 4096),
            detokenize=None,
            new_step_model=new_model,
            **options,
        )

    @property
    def num_recordings(self) -> int:
        return self.models[0].num_recordings


def run(
    sampler: Sampler, requests: Requests, num_steps_between: int = 1
) -> dict[str, SampleResult]:
    """Requests that arrive one after the other."""
    results: dict[str, SampleResult | Exception] = {}
    for request_id, (request, weights) in requests.items():
        sampler.admit(request_id, request, weights, tenant_id="t")
        for _ in range(num_steps_between):
            results |= {f.request_id: f.result for f in sampler.step()}
    results |= run_until_idle(sampler)
    return {request_id: succeeded(result) for request_id, result in results.items()}


def run_generally(base_model: BaseModel, requests: Requests) -> dict[str, SampleResult]:
    sampler = Sampler(
        base_model, max_kv_tokens=4096, detokenize=None, new_step_model=GeneralStepModel
    )
    return run(sampler, requests)


def use_kernels(monkeypatch: pytest.MonkeyPatch, base_model: BaseModel) -> None:
    grouped = GroupedLinears(base_model.linear_names, base_model.device)
    monkeypatch.setattr(base_model, "grouped", grouped)


def assert_alike(expected: SampleResult, found: SampleResult) -> None:
    """The same tokens, and numbers within the tolerance."""
    theirs, ours = expected.to_payload(), found.to_payload()
    assert theirs.arrays.keys() == ours.arrays.keys()
    for name, array in theirs.arrays.items():
        if np.issubdtype(array.dtype, np.floating):
            np.testing.assert_allclose(array, ours.arrays[name], rtol=0, atol=WITHIN, err_msg=name)
        else:
            np.testing.assert_array_equal(array, ours.arrays[name], err_msg=name)


def mixed_requests(model: TinyModel) -> Requests:
    """Ranks 1 to 18, one adapter without an unembedding, the bare model; one prompt comes twice."""
    weights = [
        adapter(model.base_model, 1, rank=1),
        adapter(model.base_model, 2, rank=18),
        adapter(model.base_model, 3, rank=4, train_unembed=False),
    ]
    long = random_tokens(70, 1)
    return {
        "greedy": (body(random_tokens(3, 2), temperature=0.0, max_tokens=6), weights[0]),
        "long": (body(long, num_samples=2, max_tokens=4, topk_sample_logprobs=3), weights[1]),
        "bare": (body(random_tokens(33, 3), top_p=0.8, prompt_logprobs=True, max_tokens=4), None),
        "other": (body(random_tokens(1, 4), temperature=0.7, max_tokens=4), weights[2]),
        "again": (body(long, max_tokens=3), weights[1]),
    }


@pytest.mark.slow
def test_kernels_and_recordings_sample_what_the_general_way_samples(
    qwen2: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = mixed_requests(qwen2)
    expected = run_generally(qwen2.base_model, requests)
    use_kernels(monkeypatch, qwen2.base_model)
    ours = KernelSampler(qwen2.base_model, AT_ONCE, prefill_chunk_tokens=64)

    found = run(ours.sampler, requests)

    for request_id, result in expected.items():
        assert_alike(result, found[request_id])
    assert ours.num_recordings > 0
    assert found["again"].prompt_cache_hit_tokens == 64


@pytest.mark.slow
def test_rows_that_lose_their_memory_sample_the_same(
    qwen2: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was decoded is prefilled anew, beside rows that decode; nothing is recorded."""
    requests = {
        f"r{seed}": (
            body(random_tokens(13, seed), seed=seed, max_tokens=8),
            adapter(qwen2.base_model, seed, rank=seed),
        )
        for seed in (2, 5)
    }
    expected = run_generally(qwen2.base_model, requests)
    use_kernels(monkeypatch, qwen2.base_model)
    ours = KernelSampler(qwen2.base_model, NEVER, max_kv_tokens=48)

    found = run(ours.sampler, requests)

    for request_id, result in expected.items():
        assert_alike(result, found[request_id])
    assert ours.sampler.num_preemptions > 0
    assert ours.num_recordings == 0


def test_a_mixture_with_sinks_samples_the_same_without_recordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_model = builders.load(FAMILIES["gpt-oss"].make(), tmp_path)
    requests = {
        f"r{seed}": (
            body(random_tokens(9, seed) % 90, seed=seed, max_tokens=3),
            adapter(base_model, seed, rank=seed),
        )
        for seed in (2, 5)
    }
    expected = run_generally(base_model, requests)
    use_kernels(monkeypatch, base_model)
    ours = KernelSampler(base_model, AT_ONCE)

    found = run(ours.sampler, requests)

    for request_id, result in expected.items():
        assert_alike(result, found[request_id])
    assert ours.num_recordings == 0


def test_a_model_that_cannot_be_recorded_samples_the_same(
    qwen2: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = {"r": (body(random_tokens(5, 1), max_tokens=3), adapter(qwen2.base_model, 1))}
    expected = run_generally(qwen2.base_model, requests)
    use_kernels(monkeypatch, qwen2.base_model)
    ours = KernelSampler(qwen2.base_model, AT_ONCE, RefusingGraph)

    assert_alike(expected["r"], run(ours.sampler, requests)["r"])
    assert ours.num_recordings == 0


def test_the_device_decides_what_computes_the_passes(
    qwen2: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_model = qwen2.base_model
    pool = KvPool(KvShape(1, 2, 8, torch.float32, base_model.device), 1)
    monkeypatch.setattr(decode_graphs, "cuda_graphs", lambda: CallingGraph)

    assert isinstance(step_model_of(base_model, pool), GeneralStepModel)
    use_kernels(monkeypatch, base_model)
    assert isinstance(step_model_of(base_model, pool), KernelStepModel)
