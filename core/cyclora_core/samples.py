"""Body and result of the operation ``sample``.

Both are read by later versions: a body that waited through an update, a result that was not
fetched. So fields are only ever added, each with the default that earlier versions meant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import numpy as np

from cyclora_core.payload import Array, Payload
from cyclora_core.ragged import get_ragged, put_ragged

NO_TOPK_LOGPROB = -99999.0
"""Fills the rows of a top-k table where nothing was predicted or asked, beside token 0."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to draw tokens.

    ``max_tokens`` None means up to the context limit. ``stop_on_eos`` is the default when the
    client sends no ``stop``; an explicit empty list switches every stop off, EOS included.
    ``top_k`` 0 and ``top_p`` 1.0 mean no truncation; ``temperature`` 0 is greedy.
    """

    max_tokens: int | None = None
    seed: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop_on_eos: bool = True
    stop_token_ids: Sequence[int] = ()
    stop_strings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Cells:
    """Where values stand in a [num_rows, num_columns] table, without the values themselves.

    Dense when ``crow`` is None: all cells, row by row. Else compressed sparse rows.

    Shapes:
        crow: [num_rows + 1] int64; col: [num_cells] int64.
    """

    num_rows: int
    num_columns: int
    crow: Array | None = None
    col: Array | None = None

    def rows(self) -> Array:
        """The row of each cell, never falling."""
        if self.crow is None:
            return np.repeat(np.arange(self.num_rows), self.num_columns)
        return np.repeat(np.arange(self.num_rows), np.diff(self.crow))

    def put(self, meta: dict[str, Any], arrays: dict[str, Array]) -> None:
        meta["target_shape"] = [self.num_rows, self.num_columns]
        if self.crow is not None and self.col is not None:
            arrays["target_crow"], arrays["target_col"] = self.crow, self.col

    @classmethod
    def get(cls, meta: Mapping[str, Any], arrays: Mapping[str, Array]) -> Cells:
        num_rows, num_columns = meta["target_shape"]
        return cls(num_rows, num_columns, arrays.get("target_crow"), arrays.get("target_col"))


@dataclass(frozen=True, slots=True)
class PromptTargets:
    """Tokens whose logprobs at prompt positions are asked: row i belongs to position i + 1.

    Shapes:
        tokens: [num_cells] int64, -1 where nothing is asked.
    """

    cells: Cells
    tokens: Array


@dataclass(frozen=True, slots=True)
class TargetLogprobs:
    """The answer to ``PromptTargets``, in the same cells; 0.0 where nothing was asked.

    Shapes:
        logprobs: [num_cells] float32.
    """

    cells: Cells
    logprobs: Array


@dataclass(frozen=True, slots=True)
class SampleBody:
    """Body of ``sample``: ``weights_path`` None samples the base model itself.

    ``prompt_logprobs_last_n`` None reports on the whole prompt; a number blanks the logprobs and
    the top-k of all positions before the last n, and leaves targets and alternatives alone.
    ``is_streamed`` has the worker show tokens as they are decoded; the result is the same.

    Shapes:
        prompt_tokens: [N] int32.
    """

    prompt_tokens: Array
    num_samples: int
    params: SamplingParams
    weights_path: str | None = None
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    prompt_alt_tokens_k: int = 0
    prompt_logprobs_last_n: int | None = None
    targets: PromptTargets | None = None
    is_streamed: bool = False

    def to_payload(self) -> Payload:
        meta: dict[str, Any] = {
            "num_samples": self.num_samples,
            "params": dataclasses.asdict(self.params),
            "weights_path": self.weights_path,
            "prompt_logprobs": self.prompt_logprobs,
            "topk_prompt_logprobs": self.topk_prompt_logprobs,
            "topk_sample_logprobs": self.topk_sample_logprobs,
            "prompt_alt_tokens_k": self.prompt_alt_tokens_k,
            "prompt_logprobs_last_n": self.prompt_logprobs_last_n,
            "is_streamed": self.is_streamed,
        }
        arrays = {"prompt_tokens": self.prompt_tokens}
        if self.targets is not None:
            self.targets.cells.put(meta, arrays)
            arrays["target_tokens"] = self.targets.tokens
        return Payload(meta, arrays)

    @classmethod
    def from_payload(cls, payload: Payload) -> Self:
        meta, arrays = dict(payload.meta), payload.arrays
        params = SamplingParams(**meta.pop("params"))
        targets = None
        if "target_shape" in meta:
            targets = PromptTargets(Cells.get(meta, arrays), arrays["target_tokens"])
            del meta["target_shape"]
        return cls(prompt_tokens=arrays["prompt_tokens"], params=params, targets=targets, **meta)


class StopReason(StrEnum):
    """Why sampling ended; the values are the wire strings."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class TopkTable:
    """The k most probable tokens at each position, most probable first.

    Shapes:
        tokens: [n, k] int32; logprobs: [n, k] float32. A row without an answer holds token 0 and
        ``NO_TOPK_LOGPROB``.
    """

    tokens: Array
    logprobs: Array


@dataclass(frozen=True, slots=True)
class SampledSequence:
    """Sampled tokens with the logprobs of the distribution they were drawn from.

    ``topk`` belongs to the same temperature-scaled distribution; None if it was not asked for.

    Shapes:
        tokens: [n] int32; the stop token is included. logprobs: [n] float32.
    """

    tokens: Array
    logprobs: Array
    stop_reason: StopReason
    topk: TopkTable | None = None


@dataclass(frozen=True, slots=True)
class SampleResult:
    """One sequence per sample, and what was asked about the prompt, at temperature 1.

    Shapes:
        prompt_logprobs: [N] float32, NaN at entry 0 and where nothing was asked.
        topk_prompt_tokens, topk_prompt_logprobs: [N, k] int32 and float32, row 0 is padding.
        alt_tokens, alt_logprobs: [N - 1, k] int32 and float32; row i belongs to position i + 1.

    ``prompt_cache_hit_tokens`` of the prompt were found computed by an earlier request.
    """

    sequences: Sequence[SampledSequence]
    prompt_logprobs: Array | None = None
    topk_prompt_tokens: Array | None = None
    topk_prompt_logprobs: Array | None = None
    alt_tokens: Array | None = None
    alt_logprobs: Array | None = None
    targets: TargetLogprobs | None = None
    prompt_cache_hit_tokens: int = 0

    def to_payload(self) -> Payload:
        arrays: dict[str, Array] = {}
        meta: dict[str, Any] = {
            "stop_reasons": [s.stop_reason for s in self.sequences],
            "prompt_cache_hit_tokens": self.prompt_cache_hit_tokens,
        }
        put_ragged(arrays, "tokens", [sequence.tokens for sequence in self.sequences])
        put_ragged(arrays, "logprobs", [sequence.logprobs for sequence in self.sequences])
        tables = [sequence.topk for sequence in self.sequences if sequence.topk is not None]
        if tables:
            put_ragged(arrays, "topk_tokens", [table.tokens for table in tables])
            put_ragged(arrays, "topk_logprobs", [table.logprobs for table in tables])
        for name in _PROMPT_ARRAYS:
            value = getattr(self, name)
            if value is not None:
                arrays[name] = value
        if self.targets is not None:
            self.targets.cells.put(meta, arrays)
            arrays["target_logprobs"] = self.targets.logprobs
        return Payload(meta, arrays)

    @classmethod
    def from_payload(cls, payload: Payload) -> Self:
        meta, arrays = payload.meta, payload.arrays
        rows = zip(
            get_ragged(arrays, "tokens"),
            get_ragged(arrays, "logprobs"),
            meta["stop_reasons"],
            _get_topk(arrays, len(meta["stop_reasons"])),
            strict=True,
        )
        targets = None
        if "target_shape" in meta:
            targets = TargetLogprobs(Cells.get(meta, arrays), arrays["target_logprobs"])
        return cls(
            [SampledSequence(t, lp, StopReason(reason), topk) for t, lp, reason, topk in rows],
            targets=targets,
            prompt_cache_hit_tokens=meta.get("prompt_cache_hit_tokens", 0),
            **{name: arrays.get(name) for name in _PROMPT_ARRAYS},
        )


_PROMPT_ARRAYS = (
    "prompt_logprobs",
    "topk_prompt_tokens",
    "topk_prompt_logprobs",
    "alt_tokens",
    "alt_logprobs",
)


def _get_topk(arrays: Mapping[str, Array], num_sequences: int) -> Sequence[TopkTable | None]:
    if "topk_tokens.flat" not in arrays:
        return [None] * num_sequences
    pairs = zip(get_ragged(arrays, "topk_tokens"), get_ragged(arrays, "topk_logprobs"), strict=True)
    return [TopkTable(tokens, logprobs) for tokens, logprobs in pairs]
