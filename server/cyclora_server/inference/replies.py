"""One request from its samples to its reply: a JSON object, or a stream of chunks."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from cyclora_core.errors import ServerError
from cyclora_core.operations import SampleResult
from cyclora_server.inference import answers
from cyclora_server.inference.answers import CompletionForm, Form
from cyclora_server.inference.errors import describe
from cyclora_server.inference.prompts import Prompt
from cyclora_server.inference.requests import Request
from cyclora_server.inference.sampling import News, Samples, stop_strings
from cyclora_server.inference.text import Piece, SequenceText
from cyclora_server.inference.tokenizer import TextTokenizer
from cyclora_server.services import Json


@dataclass(frozen=True, slots=True)
class Reply:
    """What a reply is made with."""

    request: Request
    tokenizer: TextTokenizer
    form: Form
    prompts: Sequence[Prompt]
    created_s: int
    is_echo: bool = False

    def whole(self, results: Sequence[SampleResult]) -> Json:
        """The reply to a request that is not streamed."""
        choices: list[Json] = []
        for prompt, result in zip(self.prompts, results, strict=True):
            for sequence in result.sequences:
                text = SequenceText(self.tokenizer, stop_strings(self.request))
                tokens = zip(sequence.tokens.tolist(), sequence.logprobs.tolist(), strict=True)
                pieces = [text.add(token, logprob) for token, logprob in tokens]
                piece = _joined([*pieces, text.finish()])
                reason = answers.finish_reason(text, sequence.stop_reason)
                index = len(choices)
                choices.append(
                    self.form.echo(index, prompt, result, piece, reason)
                    if self.is_echo and isinstance(self.form, CompletionForm)
                    else self.form.choice(index, piece, reason)
                )
        num_tokens = sum(len(s.tokens) for result in results for s in result.sequences)
        num_cached_tokens = sum(result.prompt_cache_hit_tokens for result in results)
        return {
            "id": self._new_id(),
            "object": self.form.whole_object,
            "created": self.created_s,
            "model": self.request.model,
            "choices": choices,
            "usage": answers.usage(self.prompts, num_tokens, num_cached_tokens),
        }

    async def events(self, samples: Samples) -> AsyncGenerator[bytes, None]:
        """The reply to a request that is streamed, as server-sent events.

        An error that comes after the beginning is the last event, since the status is sent by then.
        """
        try:
            async with aclosing(self._chunks(samples)) as chunks:
                async for chunk in chunks:
                    yield _event(chunk) if chunk else b": waiting\n\n"
        except Exception as error:  # noqa: BLE001 - the request boundary, once it has begun
            _, body, _ = describe(error)
            yield _event(body)
            return
        yield b"data: [DONE]\n\n"

    async def _chunks(self, samples: Samples) -> AsyncGenerator[Json | None, None]:
        """Chunks; None is nothing for a while."""
        n, stops = self.request.n, stop_strings(self.request)
        rows = [
            _Row(index, SequenceText(self.tokenizer, stops), [])
            for index in range(n * len(self.prompts))
        ]
        head: Json = {
            "id": self._new_id(),
            "object": self.form.chunk_object,
            "created": self.created_s,
            "model": self.request.model,
        }
        if self.request.includes_usage:
            head["usage"] = None
        for row in rows:
            opening = self._opening(row.index)
            if opening is not None:
                yield head | {"choices": [opening]}
        num_cached_tokens = 0
        async with aclosing(samples.news()) as news:
            async for each in news:
                if each.result is not None:
                    num_cached_tokens += each.result.prompt_cache_hit_tokens
                mine = rows[each.prompt * n : (each.prompt + 1) * n]
                for choice in self._deltas(mine, each):
                    yield head | {"choices": [choice]}
                if not each.tokens and each.result is None:
                    yield None
        if self.request.includes_usage:
            num_tokens = sum(len(row.tokens) for row in rows)
            usage = answers.usage(self.prompts, num_tokens, num_cached_tokens)
            yield head | {"choices": [], "usage": usage}

    def _opening(self, index: int) -> Json | None:
        if self.is_echo:
            prompt = self.prompts[index // self.request.n]
            return self.form.delta(index, Piece(prompt.text, []), None)
        return self.form.opening(index)

    def _deltas(self, rows: Sequence[_Row], news: News) -> list[Json]:
        pieces: dict[int, list[Piece]] = {}
        for token in news.tokens:
            row = rows[token.sample_index]
            pieces.setdefault(token.sample_index, []).append(row.add(token.token, token.logprob))
        joined = [(rows[index], _joined(parts)) for index, parts in pieces.items()]
        deltas = [
            self.form.delta(row.index, piece, None)
            for row, piece in joined
            if piece.text or piece.tokens
        ]
        if news.result is not None:
            deltas += self._ends(rows, news.result)
        return deltas

    def _ends(self, rows: Sequence[_Row], result: SampleResult) -> list[Json]:
        """The rest of every sequence, with the reason why it ended."""
        ends: list[Json] = []
        for row, sequence in zip(rows, result.sequences, strict=True):
            tokens: list[int] = sequence.tokens.tolist()
            num_known = len(row.tokens)
            if tokens[:num_known] != row.tokens:
                # Begun anew after a crash, on a device whose numbers depend on the batch.
                raise ServerError("a streamed sample came out differently after a restart")
            rest = zip(tokens[num_known:], sequence.logprobs.tolist()[num_known:], strict=True)
            piece = _joined([*(row.add(*each) for each in rest), row.text.finish()])
            reason = answers.finish_reason(row.text, sequence.stop_reason)
            ends.append(self.form.delta(row.index, piece, reason))
        return ends

    def _new_id(self) -> str:
        return self.form.id_prefix + secrets.token_hex(12)


@dataclass(slots=True)
class _Row:
    """One choice while it is streamed."""

    index: int
    text: SequenceText
    tokens: list[int]

    def add(self, token: int, logprob: float) -> Piece:
        self.tokens.append(token)
        return self.text.add(token, logprob)


def _joined(pieces: Sequence[Piece]) -> Piece:
    tokens = [token for piece in pieces for token in piece.tokens]
    return Piece("".join(piece.text for piece in pieces), tokens)


def _event(value: Json) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()
