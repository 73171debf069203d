"""Tokenizer files for clients on machines that have neither the model nor a network."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi.responses import Response

from cyclora_core.errors import NotFound
from cyclora_server import access
from cyclora_server.auth import needs_key
from cyclora_server.services import Json, ServicesDep

router = APIRouter(prefix="/api/v1/tokenizers", tags=["tokenizers"], dependencies=needs_key)


# Declared first: the listing's path parameter takes slashes and would match this one too.
@router.get(
    "/{base_model:path}/files/{name}", summary="One tokenizer file", response_class=Response
)
async def get_file(base_model: str, name: str, services: ServicesDep) -> Response:
    base = await access.served_base_model(services, base_model)
    if name not in base.tokenizer_files:
        files = ", ".join(base.tokenizer_files)
        raise NotFound(f"{base.name} has no tokenizer file {name[:140]!r}; it has: {files}")
    data = await asyncio.to_thread(services.storage.tokenizer_file, base.name, name)
    return Response(data, media_type="application/octet-stream")


@router.get("/{base_model:path}", summary="Names of a base model's tokenizer files")
async def list_files(base_model: str, services: ServicesDep) -> Json:
    base = await access.served_base_model(services, base_model)
    return {"base_model": base.name, "files": list(base.tokenizer_files)}
