from __future__ import annotations

import json
import math
from typing import Any

import pytest
from peft import LoraConfig

from cyclora_core.errors import UserError
from cyclora_server.uploads.peft_config import read_config
from server.uploads.builders import config

MAX_RANK = 64


def written_by_peft(**options: Any) -> bytes:
    """What ``save_pretrained`` writes: every option with its value, sets as lists."""
    fields = LoraConfig(task_type="CAUSAL_LM", **options).to_dict()
    return json.dumps(
        {k: sorted(v) if isinstance(v, set) else v for k, v in fields.items()}
    ).encode()


def test_what_the_installed_peft_writes_is_understood() -> None:
    found = read_config(written_by_peft(r=8, lora_alpha=16, target_modules=["q_proj"]), MAX_RANK)

    assert (found.lora_rank, found.lora_alpha) == (8, 16.0)


def test_rank_stabilised_scaling_divides_by_the_root_of_the_rank() -> None:
    found = read_config(written_by_peft(r=16, lora_alpha=8, use_rslora=True), MAX_RANK)

    assert found.lora_alpha / found.lora_rank == 8 / math.sqrt(16)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": 1}, "init_lora_weights"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"use_something_new": True}, "use_something_new"),
        ({"something_new": 0}, "something_new"),
    ],
)
def test_an_option_that_changes_the_numbers_is_refused_by_name(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=f"has {named} = .*not supported"):
        read_config(config(**changes), MAX_RANK)


@pytest.mark.parametrize("rank", [None, 0, -1, 65, True, 8.0, "8", 10**400])
def test_a_rank_that_cannot_be_served_is_refused(rank: Any) -> None:
    with pytest.raises(UserError, match=r"r = .*expected 1 to 64"):
        read_config(config(r=rank), MAX_RANK)


@pytest.mark.parametrize("alpha", [None, 0, -8, float("nan"), float("inf"), True, "8", 10**400])
def test_an_alpha_that_is_no_scaling_is_refused(alpha: Any) -> None:
    with pytest.raises(UserError, match="lora_alpha = "):
        read_config(config(lora_alpha=alpha), MAX_RANK)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"null", b"{}"])
def test_what_is_no_config_is_refused(data: bytes) -> None:
    with pytest.raises(UserError, match=r"no JSON object|no peft_type"):
        read_config(data, MAX_RANK)
