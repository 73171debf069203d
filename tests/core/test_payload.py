"""Payloads and the bodies and results that travel in them."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard

from cyclora_core import payload
from cyclora_core.errors import PayloadTooLarge
from cyclora_core.operations import (
    BODY_TYPES,
    CreateModelBody,
    Datum,
    DimuonStepBody,
    LoadWeightsBody,
    LoraConfig,
    OperationKind,
    OptimStepBody,
    PassBody,
    PassResult,
    SaveWeightsBody,
)
from cyclora_core.payload import Payload
from cyclora_core.samples import (
    Cells,
    PromptTargets,
    SampleBody,
    SampledSequence,
    SampleResult,
    SamplingParams,
    StopReason,
    TargetLogprobs,
    TopkTable,
)


def floats(*values: float) -> payload.Array:
    return np.asarray(values, np.float32)


def through_bytes(value: Payload) -> Payload:
    return payload.decode(payload.encode(value))


def test_the_same_payload_gives_the_same_bytes() -> None:
    first = Payload({"b": 1, "a": 2}, {"y": floats(1), "x": floats(2)})
    second = Payload({"a": 2, "b": 1}, {"x": floats(2), "y": floats(1)})

    assert payload.encode(first) == payload.encode(second)


@pytest.mark.parametrize(
    "body",
    [
        CreateModelBody("a/b", LoraConfig(8, seed=3, train_mlp=False)),
        LoadWeightsBody("tinker://x", True, "a/b", LoraConfig(4)),
        OptimStepBody(learning_rate=0.5),
        DimuonStepBody(learning_rate=0.5, beta1=0.0),
        SaveWeightsBody("tinker://x", ttl_s=3600, user_metadata={"k": "v"}),
    ],
)
def test_a_body_of_plain_values_survives_the_way(
    body: CreateModelBody | LoadWeightsBody | OptimStepBody | DimuonStepBody | SaveWeightsBody,
) -> None:
    assert type(body).from_payload(through_bytes(body.to_payload())) == body


@pytest.mark.parametrize("body", [OptimStepBody(beta1=0.5), DimuonStepBody(0.1)])
def test_a_step_is_told_from_those_of_other_optimizers(
    body: OptimStepBody | DimuonStepBody,
) -> None:
    read = BODY_TYPES[OperationKind.OPTIM_STEP].from_payload(through_bytes(body.to_payload()))

    assert read == body
    assert type(read) is type(body)


def test_a_pass_keeps_ragged_data_and_knows_which_datum_lacks_an_input() -> None:
    data = [
        Datum(np.arange(3, dtype=np.int32), {"target_tokens": np.arange(3), "w": floats(1, 2, 3)}),
        Datum(np.arange(1, dtype=np.int32), {"target_tokens": np.ones((1, 4), np.int64)}),
    ]

    body = PassBody.from_payload(through_bytes(PassBody("ppo", {"beta": 0.5}, data).to_payload()))

    assert (body.loss_fn, body.loss_fn_config) == ("ppo", {"beta": 0.5})
    for sent, got in zip(data, body.data, strict=True):
        np.testing.assert_array_equal(sent.tokens, got.tokens)
        assert sorted(sent.loss_fn_inputs) == sorted(got.loss_fn_inputs)
        for key, value in sent.loss_fn_inputs.items():
            np.testing.assert_array_equal(value, got.loss_fn_inputs[key])


def test_a_pass_result_keeps_the_shape_of_each_datum() -> None:
    result = PassResult([floats(1, 2), np.zeros((2, 3), np.float32)], {"loss:sum": 1.5})

    again = PassResult.from_payload(through_bytes(result.to_payload()))

    assert [array.shape for array in again.logprobs] == [(2,), (2, 3)]
    assert again.metrics == {"loss:sum": 1.5}


def test_a_sample_and_its_result_survive_the_way() -> None:
    params = SamplingParams(max_tokens=5, seed=2**63, stop_strings=("a", "b"), stop_on_eos=False)
    body = SampleBody(np.arange(4, dtype=np.int32), 2, params, "tinker://x", True, 3, True)
    sequences = [SampledSequence(np.arange(2, dtype=np.int32), floats(-1, -2), StopReason.STOP)]
    result = SampleResult(sequences, prompt_logprobs=floats(float("nan"), -1))

    got_body = SampleBody.from_payload(through_bytes(body.to_payload()))
    got = SampleResult.from_payload(through_bytes(result.to_payload()))

    assert got_body.params.seed == 2**63
    assert list(got_body.params.stop_strings) == ["a", "b"]
    assert (got_body.num_samples, got_body.weights_path) == (2, "tinker://x")
    assert got.sequences[0].stop_reason is StopReason.STOP
    np.testing.assert_array_equal(got.prompt_logprobs, floats(float("nan"), -1))
    assert got.topk_prompt_tokens is None


def test_what_a_sample_reports_beside_its_tokens_survives_the_way() -> None:
    sparse = Cells(3, 7, np.asarray([0, 1, 1, 2]), np.asarray([4, 6]))
    targets = PromptTargets(sparse, np.asarray([5, -1]))
    body = SampleBody(
        np.arange(4, dtype=np.int32),
        1,
        SamplingParams(),
        topk_sample_logprobs=2,
        prompt_alt_tokens_k=3,
        prompt_logprobs_last_n=1,
        targets=targets,
    )
    topk = TopkTable(np.asarray([[1, 2]], np.int32), np.asarray([[-1, -2]], np.float32))
    result = SampleResult(
        [SampledSequence(np.asarray([1], np.int32), floats(-1), StopReason.STOP, topk)],
        alt_tokens=np.ones((3, 2), np.int32),
        alt_logprobs=np.zeros((3, 2), np.float32),
        targets=TargetLogprobs(Cells(3, 2), np.arange(6, dtype=np.float32)),
    )

    got_body = SampleBody.from_payload(through_bytes(body.to_payload()))
    got = SampleResult.from_payload(through_bytes(result.to_payload()))

    assert (got_body.topk_sample_logprobs, got_body.prompt_alt_tokens_k) == (2, 3)
    assert got_body.prompt_logprobs_last_n == 1
    assert got_body.targets is not None
    assert got_body.targets.cells.rows().tolist() == [0, 2]
    assert got_body.targets.tokens.tolist() == [5, -1]
    assert got.sequences[0].topk is not None
    assert got.sequences[0].topk.tokens.tolist() == [[1, 2]]
    assert got.alt_tokens is not None
    assert got.alt_tokens.shape == (3, 2)
    assert got.targets is not None
    assert got.targets.cells == Cells(3, 2)
    assert got.targets.logprobs.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_bomb_with_a_declared_size_is_refused_before_it_inflates() -> None:
    bomb = zstandard.compress(b"\0" * 10_000_000)

    with pytest.raises(PayloadTooLarge, match="at most 1000"):
        payload.decompress(bomb, 1000)


def test_a_bomb_that_declares_nothing_is_refused_while_it_inflates() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    bomb = compressor.compress(b"\0" * 10_000_000) + compressor.flush()

    with pytest.raises(PayloadTooLarge, match="more than"):
        payload.decompress(bomb, 1000)


def test_a_truncated_frame_is_an_error() -> None:
    with pytest.raises(zstandard.ZstdError):
        payload.decompress(zstandard.compress(b"abc" * 100)[:-4], 10_000)
