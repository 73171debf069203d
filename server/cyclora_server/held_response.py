"""A long answer that ends with the API key that it was asked for with."""

from __future__ import annotations

from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from cyclora_core.errors import CycloraError
from cyclora_server.key_watch import KeyWatch


class HeldResponse(Response):
    """Sends what another response sends, piece by piece, as long as the key may be used.

    The status is sent by then, so all that is left is to break off: the client sees fewer bytes
    than were announced.
    """

    def __init__(self, response: Response, key_watch: KeyWatch, key_id: str) -> None:
        super().__init__(status_code=response.status_code)
        self._response = response
        self._key_watch = key_watch
        self._key_id = key_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._key_watch.holding(self._key_id) as hold:

            async def send_held(message: Message) -> None:
                try:
                    hold.check()
                except CycloraError as error:
                    raise ClientDisconnect from error
                await send(message)

            await self._response(scope, receive, send_held)
