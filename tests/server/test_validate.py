from __future__ import annotations

import pytest

from cyclora_core.errors import UserError
from cyclora_server import validate
from cyclora_server.wire import bodies
from server.doubles.builders import BASE


@pytest.mark.parametrize("rank", [0, -1, 65])
def test_a_rank_that_the_base_model_does_not_take_is_refused(rank: int) -> None:
    with pytest.raises(UserError, match=f"rank is {rank}; org/tiny takes 1 to 64"):
        validate.lora_config(bodies.LoraSettings(rank=rank), BASE, seed=0)


def test_an_adapter_that_trains_nothing_is_refused() -> None:
    nothing = bodies.LoraSettings(train_attn=False, train_mlp=False, train_unembed=False)

    with pytest.raises(UserError, match="trains nothing"):
        validate.lora_config(nothing, BASE, seed=0)


def test_a_seed_is_derived_only_when_none_was_sent() -> None:
    assert validate.lora_config(bodies.LoraSettings(), BASE, seed=5).seed == 5
    assert validate.lora_config(bodies.LoraSettings(seed=0), BASE, seed=5).seed == 0


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_beyond_64_bits_is_refused(seed: int) -> None:
    with pytest.raises(UserError, match=f"seed is {seed}; expected a 64-bit number"):
        validate.lora_config(bodies.LoraSettings(seed=seed), BASE, seed=5)


@pytest.mark.parametrize("ttl_s", [0, 3599, 315360001])
def test_a_ttl_outside_its_range_is_refused(ttl_s: int) -> None:
    with pytest.raises(UserError, match=f"ttl_seconds is {ttl_s}; expected 3600"):
        validate.check_ttl(ttl_s)


@pytest.mark.parametrize("ttl_s", [None, 3600, 315360000])
def test_a_ttl_within_its_range_is_accepted(ttl_s: int | None) -> None:
    validate.check_ttl(ttl_s)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "a b", "x" * 129, "a%2f"])
def test_a_checkpoint_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="is not allowed"):
        validate.checkpoint_name(name, 1)


def test_a_checkpoint_name_like_an_ephemeral_one_is_refused() -> None:
    with pytest.raises(UserError, match="is reserved"):
        validate.checkpoint_name("ephemeral-3", 1)


def test_a_save_without_a_name_gets_one_of_its_own() -> None:
    assert validate.checkpoint_name(None, 12) == "seq-000012"


def test_an_unknown_kind_of_sampler_save_is_refused() -> None:
    with pytest.raises(UserError, match="expected one of snapshot, inflight"):
        validate.check_sampler_kind("live")
