"""Answers on their way to HTTP clients: a stream of server-sent events, or one collected body.

The session that reads a worker's socket calls `feed` for each event and `flush` once a read. With HTTP/1.1 in the
clear the chunks go straight to the client's socket from there; the request's own task only sends the head, watches
over silence, and writes what the kernel did not take. Everything else (HTTP/1.0, HTTP/2) goes through ASGI `send`.

A client that reads too slowly to keep its buffer under MAX_WAITING_BYTES is dropped, alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import attrs
import trio

from auxot.core.errors import ErrorCode
from auxot.core.jobs import Failed, Finished, JobEvent, Payload, PromptProgress, Transcript
from auxot.router.asgi import Send
from auxot.router.bell import Bell
from auxot.router.connection import Connection, Outlet, OutletFullError
from auxot.router.dialects.base import StreamEncoder
from auxot.router.headers import Headers
from auxot.router.relay import Answer

MAX_WAITING_BYTES = 8 * 1024 * 1024  # of one client: some 40,000 tokens as chunks
MAX_PAYLOAD_BYTES = 256 * 1024 * 1024  # of one collected answer: 2,000 embeddings of 4,096 numbers as text

MakeHeaders = Callable[[], Headers]  # of the answer's head: made when it is sent, for they tell of the job

_SSE_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx: do not buffer
]
_LAST_BODY = {"type": "http.response.body", "body": b"", "more_body": False}


class ClientAnswer(Answer, Protocol):
    """An answer that writes itself to an HTTP client."""

    async def send_begin(self, send: Send, headers: MakeHeaders) -> Failed | None:
        """Send the answer, all but what ends the response; None if the client was given up.

        Returns:
            None, or the failure that ended the job before anything was sent: then nothing has been sent.
        """

    @property
    def is_given_up(self) -> bool:
        """Whether the client has left, or is dropped: nothing need be sent any more."""

    def give_up(self) -> None:
        """Note that the client has left: `send_begin` returns soon, whatever it was about to send."""

    async def send_end(self, send: Send, headers: MakeHeaders) -> None:
        """Send the rest, once `send_begin` has returned None; nothing of the request listens to the client then."""


@attrs.frozen
class WholeAnswer:
    """A blocking answer as it is sent."""

    body: bytes = attrs.field(repr=False)
    status: int = 200
    content_type: str = "application/json"


class StreamingAnswer:
    """One streamed answer.

    A silence is broken by a keep-alive, counted from the moment of queueing on: load balancers cut connections that
    are silent for 60 to 100 s. It says how far the job is: `queued, 3 ahead`, `prompt 40%`.
    """

    def __init__(
        self,
        make_encoder: Callable[[], StreamEncoder],
        connection: Connection | None,
        *,
        keep_alive_s: float,
        n_ahead: Callable[[], int | None],
    ) -> None:
        """Prepare; sends nothing.

        Args:
            make_encoder: makes the encoder of the answer, and another if the job has to begin again.
            connection: the client's, if its chunks can be written directly, else None.
            keep_alive_s: the longest silence, in seconds.
            n_ahead: tells how many jobs are before this one in the queue; None when it has left it.
        """
        self._keep_alive_s = keep_alive_s
        self._n_ahead = n_ahead
        self._progress: PromptProgress | None = None
        self._written_at = trio.current_time()
        self._make_encoder = make_encoder
        self._encoder = make_encoder()
        self._connection = connection
        self._waiting: list[bytes] = []  # events not yet written
        self._head_sent = False
        self._ended = False
        self._failure: Failed | None = None
        self._outlet: Outlet | None = None  # set once chunks go directly
        self._bell = Bell()
        self._until_given_up = trio.CancelScope()

    def feed(self, event: JobEvent) -> None:
        """Take one event; see `relay.Answer`."""
        if isinstance(event, Failed) and not self._head_sent and not self._encoder.begun:
            self._failure = event
            return
        if isinstance(event, PromptProgress):
            self._progress = event
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
        events = b"".join(self._waiting)
        self._waiting.clear()
        if events:  # an empty chunk would end the response
            chunk = _chunk(events)
            self._written_at = trio.current_time()
            try:
                self._outlet.write(chunk)
            except OutletFullError:
                self._drop()
                return
        if self._ended:
            self._outlet.close()

    @property
    def is_given_up(self) -> bool:
        """Whether the client has left, or is dropped."""
        return self._until_given_up.cancel_called

    def give_up(self) -> None:
        """Stop; see `ClientAnswer`."""
        self._until_given_up.cancel()

    def restart(self) -> bool:
        """Begin again if the client has seen nothing of an answer; keep-alives do not count."""
        if self._encoder.begun:
            return False
        self._encoder = self._make_encoder()
        self._progress = None
        return True

    async def send_begin(self, send: Send, headers: MakeHeaders) -> Failed | None:
        """Send the answer, all but the last (empty) body message; see `ClientAnswer`."""
        with self._until_given_up:
            await self._wait_for_first()
            if self._failure is not None:
                return self._failure
            await self._send_first(send, headers)
            if self._outlet is not None:
                await self._drain(self._outlet)
            else:
                await self._send_rest(send)
        return None

    async def send_end(self, send: Send, headers: MakeHeaders) -> None:  # noqa: ARG002 -- they are sent
        """End the response."""
        await send(_LAST_BODY)

    async def _wait_for_first(self) -> None:
        with trio.move_on_after(self._keep_alive_s):
            while not self._waiting and self._failure is None:
                await self._bell.wait()
        if not self._waiting and self._failure is None:
            self._waiting.append(self._keep_alive())

    async def _send_first(self, send: Send, headers: MakeHeaders) -> None:
        """Send status, headers and the first events, in one packet where we write the socket ourselves."""
        self._head_sent = True
        self._written_at = trio.current_time()
        start = {"type": "http.response.start", "status": 200, "headers": [*_SSE_HEADERS, *headers()]}
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
        """Write what the kernel did not take, and break silences; a write is never given up for a keep-alive."""
        while not outlet.is_done:
            await outlet.write_backlog()
            with trio.move_on_at(self._written_at + self._keep_alive_s):
                await outlet.wait()
                continue
            if self._written_at + self._keep_alive_s <= trio.current_time():
                self._written_at = trio.current_time()
                self._waiting.append(self._keep_alive())
                self.flush()

    async def _send_rest(self, send: Send) -> None:
        while self._waiting or not self._ended:
            if self._waiting:
                await send(_body(self._take()))
                continue
            with trio.move_on_after(self._keep_alive_s):
                while not self._waiting and not self._ended:
                    await self._bell.wait()
            if not self._waiting and not self._ended:
                self._waiting.append(self._keep_alive())

    def _keep_alive(self) -> bytes:
        return self._encoder.keep_alive(self._note())

    def _note(self) -> str:
        """Say how far the job is; nothing once the model writes."""
        n_ahead = self._n_ahead()
        if n_ahead is not None:
            return f"queued, {n_ahead} ahead"
        progress = self._progress
        if progress is None or not progress.total or self._encoder.begun:
            return ""
        return f"prompt {100 * min(progress.processed, progress.total) // progress.total}%"

    def _take(self) -> bytes:
        taken = b"".join(self._waiting)
        self._waiting.clear()
        return taken

    def _count_waiting(self) -> None:
        if sum(map(len, self._waiting[:-1])) >= MAX_WAITING_BYTES:  # the last may be large: see `Outlet.write`
            self._drop()

    def _drop(self) -> None:
        """Give up a client that does not read; its request ends as if it had hung up."""
        self._waiting.clear()
        self._until_given_up.cancel()
        if self._connection is not None:
            self._connection.abort()


@attrs.define(eq=False)
class CollectedAnswer:
    """One blocking answer: nothing is seen before the end, so it can begin again as often as it must.

    Attributes:
        write: makes the response of an answer that did not fail.
        connection: the client's, if head and body can be held back to leave in one packet, else None.
    """

    write: Callable[[Transcript], WholeAnswer]
    connection: Connection | None
    is_given_up: bool = False
    _transcript: Transcript = attrs.field(factory=Transcript)
    _n_payload_bytes: int = 0
    _bell: Bell = attrs.field(factory=Bell)

    def feed(self, event: JobEvent) -> None:
        """Take one event; see `relay.Answer`."""
        if isinstance(event, Payload) and not self._has_room(len(event.body)):
            return
        self._transcript.add(event)

    def flush(self) -> None:
        """Wake the request's task when the end has come."""
        if self._transcript.finished or self._transcript.failed:
            self._bell.ring()

    def give_up(self) -> None:
        """Stop; see `ClientAnswer`."""
        self.is_given_up = True
        self._bell.ring()

    def restart(self) -> bool:
        """Begin again."""
        self._transcript = Transcript()
        self._n_payload_bytes = 0
        return True

    async def send_begin(self, send: Send, headers: MakeHeaders) -> Failed | None:  # noqa: ARG002 -- comes at the end
        """Wait for the whole answer; see `ClientAnswer`."""
        while not (self._transcript.finished or self._transcript.failed or self.is_given_up):
            await self._bell.wait()
        return self._transcript.failed

    async def send_end(self, send: Send, headers: MakeHeaders) -> None:
        """Send the response."""
        if self.connection is not None:
            self.connection.hold()  # head and body in one packet
        await _send_whole(send, self.write(self._transcript), headers())
        if self.connection is not None:
            await self.connection.release()

    def _has_room(self, n_bytes: int) -> bool:
        """Count a piece of payload; an answer beyond the bound fails here, and its job is cancelled."""
        self._n_payload_bytes += n_bytes
        if self._n_payload_bytes <= MAX_PAYLOAD_BYTES:
            return True
        self._transcript = Transcript(
            failed=Failed(ErrorCode.WORKER_FAILED, f"the answer is larger than {MAX_PAYLOAD_BYTES} bytes")
        )
        return False


def _chunk(events: bytes) -> bytes:
    """Return events as one chunk of HTTP/1.1's chunked coding (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(events), events)


def _body(events: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": events, "more_body": True}


async def _send_whole(send: Send, answer: WholeAnswer, headers: Headers) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": answer.status,
            "headers": [
                (b"content-type", answer.content_type.encode("latin-1", "replace")),
                (b"content-length", b"%d" % len(answer.body)),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})
