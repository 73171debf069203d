from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy as st

from cyclora_core import peft
from cyclora_core.errors import UserError
from cyclora_core.operations import LoraConfig
from cyclora_core.payload import Array
from cyclora_server.uploads import tensors as module
from cyclora_server.uploads.peft_config import PeftConfig
from cyclora_server.uploads.tensors import find_lora, read_header, write_adapter
from server.doubles.builders import MODULES
from server.uploads.builders import RANK, tensors, weights

CONFIG = PeftConfig(RANK, lora_alpha=8.0)


def written(folder: Path, data: bytes) -> Path:
    path = folder / "received"
    path.write_bytes(data)
    return path


def file_of(header: Any, data: bytes = b"", num_header_bytes: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    size = len(text) if num_header_bytes is None else num_header_bytes
    return size.to_bytes(8, "little") + text + data


def entry(dtype: str, shape: Any, start: Any, stop: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def found(folder: Path, data: bytes) -> LoraConfig:
    return find_lora(read_header(written(folder, data)), CONFIG, MODULES)


def converted(folder: Path, data: bytes, modules: Any = None) -> Any:
    source = written(folder, data)
    write_adapter(source, folder / "target", read_header(source), modules or MODULES[:1], RANK)
    return st.load_file(folder / "target")


def test_the_groups_that_have_an_adapter_are_the_flags(tmp_path: Path) -> None:
    assert found(tmp_path, weights(0, 2)) == LoraConfig(RANK, train_unembed=False, lora_alpha=8.0)
    assert found(tmp_path, weights(3)) == LoraConfig(
        RANK, train_attn=False, train_mlp=False, lora_alpha=8.0
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        (2**63).to_bytes(8, "little") + b"{}",
        file_of({}, num_header_bytes=0),
        file_of([]),
        file_of({"a": 1}),
        file_of({"a": entry("F32", [1], 0, "4")}, b"0000"),
        file_of({"a": entry("F32", [1], -4, 0)}, b"0000"),
        file_of({"a": entry("F32", [True], 0, 4)}, b"0000"),
        file_of({"a": entry("F32", [2], 0, 4)}, b"0000"),
        file_of({"a": entry("F32", [1], 0, 4)}, b"00000"),
        file_of({"a": entry("F32", [1], 0, 4)}, b"000"),
        file_of({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, b"0000"),
        file_of({"a": entry("F32", [1], 4, 8)}, b"00000000"),
        file_of({"a": entry("F64", [1], 0, 8)}, b"00000000"),
        file_of({"a": entry("F32", [10**400], 0, 4)}, b"0000"),
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        b"PK\x03\x04 this is a pickle in a zip",
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError):
        read_header(written(tmp_path, data))


@pytest.mark.parametrize(
    "shape",
    [[10**999] * 1000, [9] * 100_000, [10**6, 10**6], [0] * 9],
    ids=["long", "many", "large", "axes"],
)
def test_a_shape_that_takes_long_to_multiply_is_not_multiplied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: list[int]
) -> None:
    """The product of a few thousand long numbers takes minutes, in which nothing else runs."""

    def multiplied(_: object) -> int:
        pytest.fail("it was multiplied")

    monkeypatch.setattr(module.math, "prod", multiplied)

    with pytest.raises(UserError, match="cannot be read"):
        read_header(written(tmp_path, file_of({"a": entry("F32", shape, 0, 0)})))


def test_every_truncation_of_a_whole_file_is_refused(tmp_path: Path) -> None:
    whole = weights()

    for end in range(0, len(whole), 7):
        with pytest.raises(UserError):
            read_header(written(tmp_path, whole[:end]))


def changed(**changes: Array | None) -> bytes:
    """A whole adapter with some tensors replaced, added or (None) left out."""
    every = tensors() | changes
    return st.save({name: value for name, value in every.items() if value is not None})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (peft.lora_A_name(MODULES[0].name), None, r"q_proj.lora_A.weight' is missing"),
        (peft.lora_B_name(MODULES[0].name), np.zeros((6, 3), np.float32), r"\[6, 3\].*\[6, 2\]"),
        ("base_model.model.lm_head.lora_B.bias", np.zeros(2, np.float32), "lm_head.lora_B.bias"),
        (
            "base_model.model.model.embed_tokens.weight",
            np.zeros((2, 2), np.float32),
            "save_embedding_layers=False",
        ),
        ("model.layers.9.q.lora_A.weight", np.zeros((2, 4), np.float32), "1 tensors that are no"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    tmp_path: Path, name: str, value: Array | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        found(tmp_path, changed(**{name: value}))


def test_no_tensors_are_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no tensors"):
        found(tmp_path, st.save({}))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_values_are_kept_and_all_is_fp32(tmp_path: Path, dtype: Any) -> None:
    name_a, name_b = peft.lora_A_name(MODULES[0].name), peft.lora_B_name(MODULES[0].name)
    expected = tensors(0, dtype=dtype)

    ours = converted(tmp_path, weights(0, dtype=dtype))

    assert {each.dtype for each in ours.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(ours[name_a], expected[name_a].astype(np.float32))
    np.testing.assert_array_equal(ours[name_b], expected[name_b].astype(np.float32))


def test_bfloat16_is_read_exactly(tmp_path: Path) -> None:
    values = tensors(0)
    header: dict[str, Any] = {}
    data = b""
    for name, value in values.items():
        half = (value.view("<u4") >> 16).astype("<u2").tobytes()
        header[name] = entry("BF16", list(value.shape), len(data), len(data) + len(half))
        data += half

    ours = converted(tmp_path, file_of(header, data))

    for name, value in values.items():
        expected = (value.view("<u4") & 0xFFFF0000).view("<f4")
        np.testing.assert_array_equal(ours[name], expected)


def test_modules_without_an_adapter_are_zeros(tmp_path: Path) -> None:
    ours = converted(tmp_path, weights(0), modules=MODULES[:2])

    assert ours[peft.lora_A_name(MODULES[1].name)].shape == (RANK, 4)
    assert not any(ours[name].any() for name in ours if "v_proj" in name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    name = peft.lora_B_name(MODULES[0].name)
    data = st.save({**tensors(0), name: np.full((6, RANK), value, np.float32)})

    with pytest.raises(UserError, match=r"q_proj.lora_B.weight' holds values that are not finite"):
        converted(tmp_path, data)
