"""Answers on their way to HTTP clients: a stream of server-sent events, or one collected body.

The session that reads a worker's socket calls `feed` for each event and `flush` once a read. With HTTP/1.1 in the
clear the chunks go straight to the client's socket from there; the request's own task only sends the head, watches
over silence, and writes what the kernel did not take. Everything else (HTTP/1.0, HTTP/2) goes through ASGI `send`.

A client that reads too slowly to keep its buffer under MAX_WAITING_BYTES is dropped, alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio

from auxot.core.jobs import Failed, Finished, JobEvent, Transcript
from auxot.router.bell import Bell
from auxot.router.connection import Connection, Outlet, OutletFullError
from auxot.router.dialects.base import StreamEncoder

KEEP_ALIVE_S = 15.0  # load balancers cut connections that are silent for 60 to 100 s
MAX_WAITING_BYTES = 1024 * 1024  # of one client: some 5,000 tokens as chunks

Send = Callable[[Any], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_SSE_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx: do not buffer
]


class StreamingAnswer:
    """One streamed answer. `connection`: the client's, if its chunks can be written directly, else None."""

    def __init__(self, make_encoder: Callable[[], StreamEncoder], connection: Connection | None) -> None:
        self._make_encoder = make_encoder
        self._encoder = make_encoder()
        self._connection = connection
        self._waiting: list[bytes] = []  # events not yet written
        self._n_waiting_bytes = 0
        self._head_sent = False
        self._ended = False
        self._failure: Failed | None = None
        self._outlet: Outlet | None = None  # set once chunks go directly
        self._n_flushed = 0
        self._bell = Bell()
        self._too_slow = trio.CancelScope()

    def feed(self, event: JobEvent) -> None:
        """Take one event; see `relay.Answer`."""
        if isinstance(event, Failed) and not self._head_sent and not self._encoder.begun:
            self._failure = event
            return
        written = self._encoder.feed(event)
        if written:
            self._waiting.append(written)
        if isinstance(event, (Finished, Failed)):
            self._ended = True

    def flush(self) -> None:
        """Write what was fed, or wake the request's task to do it."""
        if self._outlet is None:
            self._count_waiting()
            self._bell.ring()
            return
        if self._waiting:
            chunk = _chunk(b"".join(self._waiting))
            self._waiting.clear()
            self._n_flushed += 1
            try:
                self._outlet.write(chunk)
            except OutletFullError:
                self._drop()
                return
        if self._ended:
            self._outlet.close()

    def restart(self) -> bool:
        """Begin again if the client has seen nothing of an answer; keep-alives do not count."""
        if self._encoder.begun:
            return False
        self._encoder = self._make_encoder()
        return True

    async def run(self, send: Send, headers: Headers) -> Failed | None:
        """Send the answer, all but the last (empty) body message.

        Returns:
            None, or the failure that ended the job before anything was sent: then nothing has been sent.
        """
        with self._too_slow:
            await self._wait_for_first()
            if self._failure is not None:
                return self._failure
            await self._send_first(send, headers)
            if self._outlet is not None:
                await self._drain(self._outlet)
            else:
                await self._send_rest(send)
        return None

    async def _wait_for_first(self) -> None:
        while not self._waiting and self._failure is None:
            with trio.move_on_after(KEEP_ALIVE_S) as silence:
                await self._bell.wait()
            if silence.cancelled_caught:
                self._waiting.append(self._encoder.keep_alive())

    async def _send_first(self, send: Send, headers: Headers) -> None:
        """Send status, headers and the first events, in one packet where we write the socket ourselves."""
        self._head_sent = True
        start = {"type": "http.response.start", "status": 200, "headers": [*_SSE_HEADERS, *headers]}
        if self._connection is None:
            await send(start)
            await send(_body(self._take()))
            return
        self._connection.hold()
        await send(start)
        await send(_body(self._take()))
        await self._connection.release()
        self._outlet = Outlet(self._connection, limit_bytes=MAX_WAITING_BYTES)
        self.flush()  # what came meanwhile

    async def _drain(self, outlet: Outlet) -> None:
        while True:
            n_flushed = self._n_flushed
            with trio.move_on_after(KEEP_ALIVE_S):
                await outlet.drain()
                return
            if n_flushed == self._n_flushed:
                self._waiting.append(self._encoder.keep_alive())
                self.flush()

    async def _send_rest(self, send: Send) -> None:
        while self._waiting or not self._ended:
            if self._waiting:
                await send(_body(self._take()))
                continue
            with trio.move_on_after(KEEP_ALIVE_S) as silence:
                await self._bell.wait()
            if silence.cancelled_caught and not self._waiting:
                self._waiting.append(self._encoder.keep_alive())

    def _take(self) -> bytes:
        taken = b"".join(self._waiting)
        self._waiting.clear()
        self._n_waiting_bytes = 0
        return taken

    def _count_waiting(self) -> None:
        self._n_waiting_bytes = sum(map(len, self._waiting))
        if self._n_waiting_bytes > MAX_WAITING_BYTES:
            self._drop()

    def _drop(self) -> None:
        """Give up a client that does not read; its request ends as if it had hung up."""
        self._waiting.clear()
        self._too_slow.cancel()
        if self._connection is not None:
            self._connection.abort()


@attrs.define(eq=False)
class CollectedAnswer:
    """One blocking answer: nothing is seen before the end, so it can begin again as often as it must."""

    _transcript: Transcript = attrs.field(factory=Transcript)
    _bell: Bell = attrs.field(factory=Bell)

    def feed(self, event: JobEvent) -> None:
        """Take one event; see `relay.Answer`."""
        self._transcript.add(event)

    def flush(self) -> None:
        """Wake the request's task when the end has come."""
        if self._transcript.finished or self._transcript.failed:
            self._bell.ring()

    def restart(self) -> bool:
        """Begin again."""
        self._transcript = Transcript()
        return True

    async def wait(self) -> Transcript:
        """Return the whole answer when it has ended."""
        while not (self._transcript.finished or self._transcript.failed):
            await self._bell.wait()
        return self._transcript


def _chunk(events: bytes) -> bytes:
    """Return events as one chunk of HTTP/1.1's chunked coding (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(events), events)


def _body(events: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": events, "more_body": True}
