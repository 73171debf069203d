"""Bodies and results of every released format are read, and a body samples what it did then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cyclora_core import payload
from cyclora_core.samples import SampleBody, SampleResult
from faults.recorded_log import load_base_model
from workers.sampling.builders import sample, tokens_of

RECORDINGS = sorted((Path(__file__).parent / "recorded").iterdir())
MODELS = Path(__file__).parents[2] / "faults" / "recorded"


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.name)
def test_a_recorded_body_samples_its_recorded_result(recording: Path) -> None:
    body = SampleBody.from_payload(payload.decode((recording / "body.bin").read_bytes()))
    expected = SampleResult.from_payload(payload.decode((recording / "result.bin").read_bytes()))

    result = sample(load_base_model(MODELS / recording.name), body)

    for recorded, sequence in zip(expected.sequences, result.sequences, strict=True):
        assert tokens_of(recorded) == tokens_of(sequence)
        assert recorded.stop_reason is sequence.stop_reason
        np.testing.assert_allclose(sequence.logprobs, recorded.logprobs, rtol=0, atol=1e-5)
    for name in ("prompt_logprobs", "topk_prompt_tokens", "topk_prompt_logprobs"):
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name), atol=1e-5)
    assert expected.alt_tokens is None
    assert expected.targets is None
