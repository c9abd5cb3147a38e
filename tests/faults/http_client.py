"""A small HTTP client that can leave in the middle and read slowly, and that knows when it was cut off."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import attrs
import h11
import orjson
import trio

CUT = (OSError, trio.BrokenResourceError, h11.RemoteProtocolError)  # what a connection that ends too early raises
_READ_BYTES = 65536


@attrs.define(eq=False)
class Response:
    """An answer that is being read."""

    _stream: trio.SocketStream
    _http: h11.Connection
    status: int = 0

    async def read(self) -> bytes:
        """Return the next piece of the body, b"" at its end; raises one of CUT when it ends too early."""
        while True:
            event = await self._next()
            if isinstance(event, h11.Data):
                return bytes(event.data)
            if isinstance(event, h11.EndOfMessage):
                return b""

    async def read_head(self) -> None:
        """Read the status."""
        event = await self._next()
        assert isinstance(event, h11.Response)
        self.status = event.status_code

    async def _next(self) -> h11.Event:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._stream.receive_some(_READ_BYTES))
        assert not isinstance(event, type)
        return event


@asynccontextmanager
async def post(port: int, path: str, *, body: object, headers: Mapping[str, str]) -> AsyncIterator[Response]:
    """Send a request on a connection of its own; it is closed with the block, however far the answer is."""
    content = orjson.dumps(body)
    fixed = {"host": "127.0.0.1", "content-type": "application/json", "content-length": str(len(content))}
    http = h11.Connection(h11.CLIENT)
    request = h11.Request(method="POST", target=path, headers=list({**fixed, **headers}.items()))
    sent = [http.send(request), http.send(h11.Data(data=content)), http.send(h11.EndOfMessage())]
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    try:
        await stream.send_all(b"".join(part or b"" for part in sent))
        response = Response(stream, http)
        await response.read_head()
        yield response
    finally:
        stream.socket.close()
