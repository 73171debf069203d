"""A TCP proxy whose connections can go silent, as when a machine loses power: no FIN, no RST."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import TracebackType

_CHUNK_BYTES = 65536


@dataclass(eq=False)
class _Link:
    """One client's connection, in both directions."""

    upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    client: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    drops_requests: asyncio.Event = field(default_factory=asyncio.Event)
    drops_answers: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(_pump(self.client[0], self.upstream[1], self.drops_requests))
            group.create_task(_pump(self.upstream[0], self.client[1], self.drops_answers))

    def close(self) -> None:
        for _, writer in (self.client, self.upstream):
            writer.close()


class Proxy:
    """Listens on a TCP port of its own, in front of a store on a unix socket."""

    def __init__(self, redis_url: str) -> None:
        self._upstream = redis_url.removeprefix("unix://")
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.num_accepted = 0
        self.is_silent = False
        """Whether new connections go silent at once too."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    def freeze(self, *, answers_only: bool = False) -> int:
        """Silence the present connections without closing them; returns how many.

        With ``answers_only`` what the clients send still arrives, so that commands are executed
        whose answers are lost.
        """
        for link in self._links:
            link.drops_answers.set()
            if not answers_only:
                link.drops_requests.set()
        return len(self._links)

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.num_accepted += 1
        link = _Link(await asyncio.open_unix_connection(self._upstream), (reader, writer))
        self._links.add(link)
        if self.is_silent:
            link.drops_requests.set()
        try:
            await link.run()
        except* (OSError, EOFError):
            pass
        except* asyncio.CancelledError:
            pass
        finally:
            self._links.discard(link)
            self._tasks.discard(task)
            link.close()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drops: asyncio.Event
) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        if drops.is_set():
            continue
        writer.write(data)
        await writer.drain()
    raise EOFError
