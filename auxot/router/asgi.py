"""The little of ASGI that the hot endpoints need, without a framework in between.

A short POST costs 500 us of CPU through a quart route and 260 us so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
import trio

from auxot.core.errors import ErrorCode, RefusedError
from auxot.router.headers import Headers

BODY_CHUNK_TIMEOUT_S = 30.0  # a client that sends nothing for so long is refused
BODY_TIMEOUT_S = 300.0
_DISCARD_S = 5.0

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

REQUEST_ID = "auxot.request_id"  # in the ASGI scope of every HTTP request; see `headers`
TAKE_NOW = "auxot.take_now"  # there too: returns the next message if it is here, else None


class ClientGoneError(Exception):
    """The client left before its request was whole."""


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return the first header of that (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def address_of(scope: Scope) -> str:
    """Return the client's address, "" if the server does not know it."""
    client = scope.get("client")
    return str(client[0]) if client else ""


async def read_body(scope: Scope, receive: Receive, *, limit_bytes: int) -> bytes:
    """Return the whole body.

    Raises:
        RefusedError: larger than the limit (413), compressed (415), or too slow (408).
        ClientGoneError: the client left.
    """
    if (header(scope, b"content-encoding") or b"identity").strip().lower() not in (b"", b"identity"):
        await discard_body(receive)
        raise RefusedError(  # a few kilobytes may become gigabytes
            ErrorCode.UNSUPPORTED_CODING,
            "compressed request bodies are not supported: send it without Content-Encoding",
        )
    declared = header(scope, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit_bytes:
        await discard_body(receive)
        raise _too_large(limit_bytes)
    body = _Body(limit_bytes)
    try:
        take_now = scope.get(TAKE_NOW, _nothing)
        while (message := take_now()) is not None:  # most bodies are here as a whole, and need no time limit
            if body.add(message):
                return body.whole()
        return await _read_rest(body, receive)
    except RefusedError as exc:
        refusal = exc
    if refusal.code is ErrorCode.TOO_LARGE:
        await discard_body(receive)
    raise refusal


@attrs.define
class _Body:
    """A body as far as it has been read."""

    limit_bytes: int
    n_bytes: int = 0
    chunks: list[bytes] = attrs.field(factory=list)

    def add(self, message: Any) -> bool:
        """Take the next message; return whether it was the last."""
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        self.n_bytes += len(message["body"])
        if self.n_bytes > self.limit_bytes:
            raise _too_large(self.limit_bytes)
        self.chunks.append(message["body"])
        return not message.get("more_body")

    def whole(self) -> bytes:
        return b"".join(self.chunks)


async def _read_rest(body: _Body, receive: Receive) -> bytes:
    """Read to the end; the time limit begins anew with each chunk, but not beyond BODY_TIMEOUT_S in all."""
    with trio.move_on_after(BODY_CHUNK_TIMEOUT_S) as limit:
        last_at = limit.deadline - BODY_CHUNK_TIMEOUT_S + BODY_TIMEOUT_S
        while not body.add(await receive()):
            limit.deadline = min(trio.current_time() + BODY_CHUNK_TIMEOUT_S, last_at)
        return body.whole()
    raise RefusedError(ErrorCode.REQUEST_TIMEOUT, "the request body did not come in time")


async def discard_body(receive: Receive) -> None:
    """Read on for a moment: a client that is still sending would see a reset instead of the answer."""
    with trio.move_on_after(_DISCARD_S):
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            pass


def _nothing() -> None:
    """Return that no message is here."""


def _too_large(limit_bytes: int) -> RefusedError:
    return RefusedError(ErrorCode.TOO_LARGE, f"the request body is larger than {limit_bytes} bytes")


def with_headers(send: Send, headers: Headers) -> Send:
    """Return `send`, with more headers on the response."""

    async def send_with_headers(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return send_with_headers


async def send_no_content(send: Send, *, headers: Headers) -> None:
    """Send a whole response without a body."""
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def send_json(send: Send, *, status: int, body: bytes, headers: Headers) -> None:
    """Send a whole JSON response."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})
