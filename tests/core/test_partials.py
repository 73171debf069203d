from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.builders import add_worker, sample, submit
from core.test_store_cycles import dispatch_samples, settle_sample
from cyclora_core import ids, partials
from cyclora_core.partials import RECORD_BYTES, Partial, PartialToken, Progress
from cyclora_core.records import SamplingSession
from cyclora_core.store import Store

REQUEST = f"{sample(1).owner_id}:1"
TOKENS = [PartialToken(0, 5, -0.5), PartialToken(1, 9, -1.5), PartialToken(0, 7, -0.25)]

some_tokens = st.lists(
    st.builds(
        PartialToken,
        st.integers(0, 1023),
        st.integers(0, 2**31 - 1),
        st.floats(-1e4, 0.0, width=32),
    )
)


@given(some_tokens)
def test_tokens_survive_encoding_each_in_a_place_of_its_own(tokens: list[PartialToken]) -> None:
    data = partials.encode(tokens)

    assert partials.decode(data) == tokens
    assert partials.decode(data[RECORD_BYTES:]) == tokens[1:]


async def running_sample(store: Store) -> None:
    await add_worker(store)
    await submit(store, sample(1))
    await dispatch_samples(store)


async def test_a_reader_gets_what_it_has_not_seen(store: Store) -> None:
    await running_sample(store)

    await store.operations.show_partials("worker-1", [Partial(REQUEST, 0, TOKENS[:2])])
    await store.operations.show_partials("worker-1", [Partial(REQUEST, 2, TOKENS[2:])])

    assert await store.futures.progress(REQUEST, 0) == Progress(TOKENS, is_final=False)
    assert await store.futures.progress(REQUEST, 2) == Progress(TOKENS[2:], is_final=False)
    assert await store.futures.progress(REQUEST, 3) == Progress([], is_final=False)


async def test_showing_the_same_again_changes_nothing(store: Store) -> None:
    await running_sample(store)
    await store.operations.show_partials("worker-1", [Partial(REQUEST, 0, TOKENS)])

    await store.operations.show_partials("worker-1", [Partial(REQUEST, 0, TOKENS[:1])])

    assert await store.futures.progress(REQUEST, 0) == Progress(TOKENS, is_final=False)


async def test_a_worker_that_does_not_hold_the_sample_shows_nothing(store: Store) -> None:
    await running_sample(store)

    await store.operations.show_partials("worker-2", [Partial(REQUEST, 0, TOKENS)])

    assert await store.futures.progress(REQUEST, 0) == Progress([], is_final=False)


async def test_nothing_is_kept_of_a_sample_that_has_ended(store: Store) -> None:
    await running_sample(store)
    await store.operations.show_partials("worker-1", [Partial(REQUEST, 0, TOKENS)])
    await settle_sample(store, "worker-1")

    await store.operations.show_partials("worker-1", [Partial(REQUEST, 3, TOKENS)])

    assert await store.futures.progress(REQUEST, 0) == Progress([], is_final=True)


async def test_an_unknown_sample_counts_as_ended(store: Store) -> None:
    assert await store.futures.progress("nothing:1", 0) == Progress([], is_final=True)


async def test_new_tokens_are_announced_for_each_sample(store: Store) -> None:
    await add_worker(store)
    await submit(store, sample(1), sample(2))
    await dispatch_samples(store)
    other = f"{sample(2).owner_id}:2"
    shown = [Partial(REQUEST, 0, TOKENS), Partial(other, 0, TOKENS)]

    async with store.futures.subscribe() as announcements:
        assert await anext(announcements) == ""
        await store.operations.show_partials("worker-1", shown)

        assert [await anext(announcements) for _ in shown] == [REQUEST, other]


def internal(created_at_ms: int) -> SamplingSession:
    session_id = ids.session_of(REQUEST)
    return SamplingSession(
        ids.sampling_session_id(session_id, 0), "t", session_id, "b", None, None, created_at_ms
    )


async def test_no_two_requests_of_an_internal_session_get_the_same_number(store: Store) -> None:
    first = await store.sampling.number(internal(1000), 2, 3600)
    second = await store.sampling.number(internal(5000), 1, 3600)

    assert (first, second) == (1000, 1002)
    assert await store.sampling.get(internal(0).sampling_session_id) == internal(1000)
    assert await store.sampling.of_session(internal(0).session_id) == []
