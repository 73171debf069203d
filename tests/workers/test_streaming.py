"""A streamed sample, as a reader sees it while a worker decodes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from cyclora_core import ids, payload
from cyclora_core.operations import OperationKind
from cyclora_core.partials import Partial, PartialToken
from cyclora_core.samples import SampleBody, SampleResult, SamplingParams
from workers.harness import SESSION_ID, Harness

NUM_SAMPLES = 3


def sample_body(*, is_streamed: bool = True) -> SampleBody:
    params = SamplingParams(max_tokens=12, seed=11, stop_on_eos=False)
    prompt = np.array([5, 6, 7], np.int32)
    return SampleBody(prompt, NUM_SAMPLES, params, is_streamed=is_streamed)


async def submit_sample(harness: Harness, body: SampleBody) -> str:
    owner = ids.sampling_session_id(SESSION_ID, 0)
    return await harness.submit(OperationKind.SAMPLE, body, owner_id=owner)


async def sampled(harness: Harness, request_id: str) -> list[list[int]]:
    future = await harness.future(request_id)
    assert future.result is not None, future.error
    result = SampleResult.from_payload(payload.decode(future.result))
    return [sequence.tokens.tolist() for sequence in result.sequences]


class Reader:
    """Reads a streamed sample each time something of it is shown, as a server does."""

    def __init__(self, harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[PartialToken] = []
        self.num_shown = 0
        self.dies_at = -1
        self.request_id = ""
        self._store = harness.store
        self._show = harness.store.operations.show_partials
        monkeypatch.setattr(harness.store.operations, "show_partials", self._shown)

    async def _shown(self, worker_id: str, samples: Sequence[Partial]) -> None:
        await self._show(worker_id, samples)
        if not samples:
            return
        self.num_shown += 1
        self.seen += (await self._store.futures.progress(self.request_id, len(self.seen))).tokens
        if self.num_shown == self.dies_at:
            raise Killed

    @property
    def rows(self) -> list[list[int]]:
        return [[t.token for t in self.seen if t.sample_index == row] for row in range(NUM_SAMPLES)]


class Killed(Exception):
    """The worker's end at this point."""


async def test_a_streamed_sample_is_seen_while_it_is_decoded(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(harness, monkeypatch)
    reader.request_id = await submit_sample(harness, sample_body())

    await harness.run_until_idle()

    final = await sampled(harness, reader.request_id)
    assert reader.num_shown >= 5
    assert [final[row][: len(seen)] for row, seen in enumerate(reader.rows)] == reader.rows
    assert min(len(seen) for seen in reader.rows) >= 8


async def test_streaming_changes_no_token(harness: Harness) -> None:
    plain = await submit_sample(harness, sample_body(is_streamed=False))
    streamed = await submit_sample(harness, sample_body())

    await harness.run_until_idle()

    assert await sampled(harness, plain) == await sampled(harness, streamed)


async def test_after_a_crash_a_reader_sees_each_token_once(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next worker begins anew and writes the same tokens into the same places."""
    reader = Reader(harness, monkeypatch)
    reader.dies_at = 3
    reader.request_id = await submit_sample(harness, sample_body())
    with pytest.raises(Killed):
        await harness.run_until_idle()
    num_seen = len(reader.seen)
    assert num_seen > 0
    await harness.start_worker()

    await harness.run_until_idle()

    final = await sampled(harness, reader.request_id)
    assert len(reader.seen) > num_seen
    assert [final[row][: len(seen)] for row, seen in enumerate(reader.rows)] == reader.rows
