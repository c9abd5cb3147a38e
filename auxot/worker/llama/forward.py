"""A request that is passed on to llama-server as it is, and its answer as it comes.

    2xx  --> PayloadHead, Payload ..., Finished
    else --> Failed: what llama-server's error means, in the inner language

Only the endpoints of the shared table are asked for, whatever the router says: others change the llama-server, or tell
of other people's prompts. Cancelling closes the connection, and llama-server stops; so that it does, generations are
asked for in another way than the client did (see `native`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any

import orjson

from auxot.core.errors import ErrorCode, LlamaError, SseError
from auxot.core.forwarded import FORWARDED
from auxot.core.jobs import Failed, Finish, Finished, FinishReason, Forward, JobEvent, Payload, PayloadHead, Usage
from auxot.core.sse import SseDecoder, SseEvent, encode_event
from auxot.worker.llama.chunks import failure_of
from auxot.worker.llama.client import LOST, MAX_EVENT_BYTES, Deliver, failure_in
from auxot.worker.llama.http import BrokenExchangeError, Exchange, LlamaHttp
from auxot.worker.llama.native import NativeAnswer, NativeRequest, read_native_request

_ROWS = {(row.method, row.path): row for row in FORWARDED}
_DEFAULT_TYPE = "application/octet-stream"  # of an answer that does not say what it is (RFC 9110, 8.3)
_EVENT_STREAM = "text/event-stream"
_JSON = "application/json; charset=utf-8"
_PIECE_BYTES = 64 * 1024
_FINISHED = Finished((Finish(FinishReason.STOP),), Usage())


async def forward_request(http: LlamaHttp, forward: Forward, *, deliver: Deliver) -> None:
    """Pass a request on and deliver its answer piece by piece.

    Exactly one terminal event is delivered, as the last event. Cancel-safe: the request is closed; the caller sets the
    deadline.

    Args:
        http: a running llama-server.
        forward: the request.
        deliver: takes the events; while it waits nothing is read, which holds llama-server back.
    """
    row = _ROWS.get((forward.method, forward.path))
    if row is None:
        await deliver([Failed(ErrorCode.NOT_IMPLEMENTED, "this worker does not pass such requests on")])
        return
    native = read_native_request(forward.body) if row.streams and not row.is_upload else None
    try:
        await _ask(http, forward, native=native, deliver=deliver)
    except BrokenExchangeError:
        await deliver([LOST])
    except LlamaError as exc:
        await deliver([Failed(exc.code, str(exc), exc.n_prompt_tokens, exc.n_ctx)])
    except SseError as exc:
        await deliver([Failed(ErrorCode.WORKER_FAILED, f"llama-server's answer cannot be read: {exc}")])


async def _ask(http: LlamaHttp, forward: Forward, *, native: NativeRequest | None, deliver: Deliver) -> None:
    """Send the request and deliver an answer that is one; LlamaError if it is not."""
    body = native.body() if native is not None else _body(forward)
    async with http.open(forward.method, forward.path, body, content_type=forward.content_type) as exchange:
        if not HTTPStatus.OK <= exchange.status < HTTPStatus.MULTIPLE_CHOICES:
            raise await _refusal(exchange)
        if native is not None and exchange.content_type.startswith(_EVENT_STREAM):
            await _relay_native(exchange, native, deliver)
        else:
            await _relay(exchange, deliver)


def _body(forward: Forward) -> bytes:
    if not forward.content_type.isprintable() or not forward.content_type.isascii():
        raise LlamaError("the content type cannot be read", code=ErrorCode.INVALID_REQUEST)
    if not forward.body_base64:
        return forward.body.encode()
    try:
        return base64.b64decode(forward.body_base64, validate=True)
    except binascii.Error as exc:
        raise LlamaError("the body cannot be read", code=ErrorCode.INVALID_REQUEST) from exc


async def _relay(exchange: Exchange, deliver: Deliver) -> None:
    events: list[JobEvent] = [PayloadHead(exchange.status, exchange.content_type or _DEFAULT_TYPE)]
    while piece := await exchange.read():
        await deliver([*events, Payload(piece)])
        events.clear()
    await deliver([*events, _FINISHED])


async def _relay_native(exchange: Exchange, request: NativeRequest, deliver: Deliver) -> None:
    """Pass a generation on as it was asked for: its chunks, or what they come to."""
    decoder = SseDecoder(max_event_bytes=MAX_EVENT_BYTES)
    answer = NativeAnswer(request)
    if request.is_stream:
        await deliver([PayloadHead(exchange.status, exchange.content_type)])
    while piece := await exchange.read():
        written = b"".join(_native_chunks(decoder.feed(piece), request, answer))
        if written:
            await deliver(_payload(written))
    if not answer.has_ended:
        raise BrokenExchangeError("llama-server ended the stream before the answer was complete")
    if request.is_stream:
        await deliver([_FINISHED])
    else:
        await deliver([PayloadHead(exchange.status, _JSON), *_payload(answer.body()), _FINISHED])


def _native_chunks(events: Iterable[SseEvent], request: NativeRequest, answer: NativeAnswer) -> Iterator[bytes]:
    """Yield what is passed on of some events; nothing while they are being collected."""
    for event in events:
        chunk = _chunk(event.data)
        answer.add(chunk)
        if request.is_stream and (request.wants_progress or "prompt_progress" not in chunk):
            yield encode_event(event.data)


def _chunk(data: bytes) -> dict[str, Any]:
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        raise LlamaError("llama-server sent a chunk that is not JSON") from exc
    if not isinstance(chunk, dict):
        raise LlamaError("llama-server sent a chunk of an unknown form")
    if "error" in chunk:
        raise _error(failure_of(chunk["error"]))
    return chunk


def _payload(body: bytes) -> list[JobEvent]:
    return [Payload(body[at : at + _PIECE_BYTES]) for at in range(0, len(body), _PIECE_BYTES)]


async def _refusal(exchange: Exchange) -> LlamaError:
    error = _error(await failure_in(exchange))
    if exchange.status == HTTPStatus.NOT_IMPLEMENTED:  # it was not started for this, or its model cannot do it
        error.code = ErrorCode.NOT_IMPLEMENTED
    return error


def _error(failure: Failed) -> LlamaError:
    return LlamaError(failure.message, code=failure.code, n_prompt_tokens=failure.n_prompt_tokens, n_ctx=failure.n_ctx)
