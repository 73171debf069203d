"""The tokenizer of a base model in the server: text to tokens and back, and its chat template."""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from cyclora_core.errors import NotFound, UserError
from cyclora_core.types import BaseModelInfo
from cyclora_server.inference.template import ChatTemplate
from cyclora_server.ports import StoragePort

_MAX_LOADED = 16
"""Tokenizers kept in memory, tens of MB each; others are read again."""

_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
_TEMPLATE_FILE = "chat_template.jinja"

_BYTE_PIECE_RE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TextTokenizer:
    """Text to tokens and back; safe to use from several threads."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate | None, eos_token_ids: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self.template = template
        added = tokenizer.get_added_tokens_decoder()
        special = {token for token, each in added.items() if each.special}
        self.hidden = frozenset(special | set(eos_token_ids))
        """Tokens that are no text for whoever reads the answer."""
        decoder = json.dumps(json.loads(tokenizer.to_str()).get("decoder"))
        self._byte_of = _byte_alphabet() if '"ByteLevel"' in decoder else None
        self._added = frozenset(added)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Tokens of a text; a chat template has put its special tokens there itself."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, as it is read; half a character becomes U+FFFD."""
        shown = [token for token in tokens if token not in self.hidden]
        return self._tokenizer.decode(shown, skip_special_tokens=False)

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to a text, which may be a part of a character."""
        piece: str | None = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if token in self._added:
            return piece.encode()
        if self._byte_of is not None:
            return bytes(self._byte_of[char] for char in piece if char in self._byte_of)
        match = _BYTE_PIECE_RE.fullmatch(piece)
        return bytes([int(match[1], 16)]) if match else piece.replace("\u2581", " ").encode()


class Tokenizers:
    """Tokenizers by base model, read from storage when they are first needed."""

    def __init__(self, storage: StoragePort) -> None:
        self._storage = storage
        self._loaded: OrderedDict[str, TextTokenizer] = OrderedDict()
        self._loading = asyncio.Lock()

    async def of(self, base: BaseModelInfo) -> TextTokenizer:
        """The tokenizer of a base model.

        Raises:
            UserError: it has none that can be used here.
        """
        async with self._loading:
            if base.name not in self._loaded:
                self._loaded[base.name] = await asyncio.to_thread(self._load, base)
                while len(self._loaded) > _MAX_LOADED:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(base.name)
            return self._loaded[base.name]

    def _load(self, base: BaseModelInfo) -> TextTokenizer:
        data = self._read(base, _FILE)
        if data is None:
            raise UserError(
                f"base model {base.name!r} has no {_FILE}, so the server cannot turn text into its "
                "tokens; sample it through the Tinker API"
            )
        config: dict[str, Any] = json.loads(self._read(base, _CONFIG_FILE) or b"{}")
        template_file = self._read(base, _TEMPLATE_FILE)
        template = ChatTemplate.of(config, template_file.decode() if template_file else None)
        return TextTokenizer(Tokenizer.from_str(data.decode()), template, base.eos_token_ids)

    def _read(self, base: BaseModelInfo, name: str) -> bytes | None:
        if name not in base.tokenizer_files:
            return None
        try:
            return self._storage.tokenizer_file(base.name, name)
        except NotFound:
            return None


def _byte_alphabet() -> dict[str, int]:
    """The byte behind each character of a byte-level vocabulary.

    Printable bytes stand for themselves, the others for the characters from 256 on, in order.
    Source: ``bytes_to_unicode`` of GPT-2.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + number): byte for number, byte in enumerate(others)}
