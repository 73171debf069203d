from __future__ import annotations

import httpx
import pytest


async def test_a_base_model_with_a_slash_lists_its_files(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/v1/tokenizers/org/tiny")

    assert answer.json() == {"base_model": "org/tiny", "files": ["tokenizer.json"]}


async def test_a_file_is_served_as_it_is(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/v1/tokenizers/org/tiny/files/tokenizer.json")

    assert answer.content == b"contents of tokenizer.json"


@pytest.mark.parametrize(
    "path", ["org/other", "org/tiny/files/secrets.json", "org/tiny/files/..%2f..%2fkeys"]
)
async def test_anything_else_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(f"/api/v1/tokenizers/{path}")).status_code == 404
