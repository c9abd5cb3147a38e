"""The little of ASGI that the hot endpoints need, without a framework in between.

A short POST costs 500 us of CPU through a quart route and 260 us so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

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
    with trio.move_on_after(BODY_CHUNK_TIMEOUT_S) as limit:
        return await _read_chunks(receive, limit, limit_bytes=limit_bytes)
    raise RefusedError(ErrorCode.REQUEST_TIMEOUT, "the request body did not come in time")


async def _read_chunks(receive: Receive, limit: trio.CancelScope, *, limit_bytes: int) -> bytes:
    """Read to the end; the date of `limit` moves with each chunk, but not beyond BODY_TIMEOUT_S in all."""
    chunks: list[bytes] = []
    n_bytes = 0
    last_at = limit.deadline - BODY_CHUNK_TIMEOUT_S + BODY_TIMEOUT_S
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        if message.get("more_body"):
            limit.deadline = min(trio.current_time() + BODY_CHUNK_TIMEOUT_S, last_at)
        n_bytes += len(message["body"])
        if n_bytes > limit_bytes:
            await discard_body(receive)
            raise _too_large(limit_bytes)
        chunks.append(message["body"])
        if not message.get("more_body"):
            return b"".join(chunks)


async def discard_body(receive: Receive) -> None:
    """Read on for a moment: a client that is still sending would see a reset instead of the answer."""
    with trio.move_on_after(_DISCARD_S):
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            pass


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
