"""The sampler on a GPU: replayed steps, many adapters, and how often the host waits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cyclora_core.samples import SampleBody, SampleResult, SamplingParams
from cyclora_workers.adapter import AdapterWeights
from cyclora_workers.base_model import BaseModel
from cyclora_workers.cuda.decode_graphs import RecordingLimits
from cyclora_workers.cuda.paged_attention import PagedPool
from cyclora_workers.cuda.step_model import KernelStepModel
from cyclora_workers.sampling.sampler import Sampler
from gpu.conftest import Pair
from workers.builders import random_adapter

pytestmark = pytest.mark.gpu

NUM_TOKENS = 12
AT_ONCE = RecordingLimits(min_steps=1, min_steps_between=0)
NEVER = RecordingLimits(max_rows=0)


def sampler(base_model: BaseModel, limits: RecordingLimits) -> tuple[Sampler, KernelStepModel]:
    models: list[KernelStepModel] = []

    def new_model(base_model: BaseModel, pool: PagedPool) -> KernelStepModel:
        assert base_model.grouped is not None, "no kernels for this device"
        models.append(KernelStepModel(base_model, base_model.grouped, pool, limits=limits))
        return models[0]

    made = Sampler(base_model, max_kv_tokens=4096, detokenize=None, new_step_model=new_model)
    return made, models[0]


def admit(made: Sampler, adapters: list[AdapterWeights]) -> None:
    """Greedy and drawn samples of prompts of 3 to 40 tokens."""
    for index, weights in enumerate(adapters):
        rng = np.random.default_rng(index)
        prompt = rng.integers(4, 90, 3 + index * 12).astype(np.int32)
        params = SamplingParams(
            max_tokens=NUM_TOKENS, seed=index, temperature=float(index % 2), stop_on_eos=False
        )
        made.admit(str(index), SampleBody(prompt, 1, params), weights)


def finished(made: Sampler) -> dict[str, SampleResult]:
    results: dict[str, SampleResult] = {}
    while not made.is_idle:
        for each in made.step():
            assert isinstance(each.result, SampleResult), each.result
            results[each.request_id] = each.result
    return results


def frozen(base_model: BaseModel) -> list[AdapterWeights]:
    return [random_adapter(base_model, rank, rank).snapshot_weights() for rank in (1, 8, 18)]


def test_replayed_steps_sample_what_queued_ones_sample(pair: Pair) -> None:
    adapters = frozen(pair.gpu)
    queued, _ = sampler(pair.gpu, NEVER)
    replayed, model = sampler(pair.gpu, AT_ONCE)
    admit(queued, adapters)
    admit(replayed, adapters)

    expected, found = finished(queued), finished(replayed)

    assert model.num_recordings > 0
    for request_id, result in expected.items():
        theirs, ours = result.sequences[0], found[request_id].sequences[0]
        assert theirs.tokens.tolist() == ours.tokens.tolist()
        np.testing.assert_allclose(theirs.logprobs, ours.logprobs, atol=1e-2)


@pytest.mark.parametrize("limits", [AT_ONCE, NEVER], ids=["replayed", "queued"])
def test_a_decode_step_makes_the_host_wait_at_its_end_only(
    pair: Pair, limits: RecordingLimits
) -> None:
    """Waiting for the drawn tokens is asked for; what torch reports are waits that are not."""
    made, _ = sampler(pair.gpu, limits)
    admit(made, frozen(pair.gpu))
    for _ in range(4):
        made.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        made.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
