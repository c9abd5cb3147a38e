"""One request to llama-server, as JobEvents: a generation, or the count of a prompt. What is forwarded: `forward`.

    POST /v1/chat/completions, /v1/completions --> 200, SSE --> chunks --> JobEvents
    POST /v1/chat/completions/input_tokens ------> 200, JSON ------------> Finished
                                             '---> anything else --------> Failed

Everything that can go wrong with llama-server becomes a `Failed`; only cancellation and what the consumer raises leave
this module as exceptions. Cancelling closes the connection at once, and llama-server stops generating at its next
write (while the prompt is processed: at its next batch).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus

import orjson

from auxot.core.errors import ErrorCode, SseError
from auxot.core.forwarded import INPUT_TOKENS_PATH
from auxot.core.jobs import Failed, Finish, Finished, FinishReason, JobEvent, Usage
from auxot.core.sse import SseDecoder, SseEvent
from auxot.worker.llama.chunks import MAX_ERROR_CHARS, ChunkReader, failure_of
from auxot.worker.llama.http import BrokenExchangeError, Exchange, LlamaHttp
from auxot.worker.llama.request import LlamaRequest

# The largest event repeats the prompt as text (`verbose`); a prompt of a million tokens has some 5 MB.
MAX_EVENT_BYTES = 64 * 1024 * 1024
_MAX_ERROR_BYTES = 1024 * 1024
_DONE = b"[DONE]"
LOST = Failed(ErrorCode.WORKER_LOST, "llama-server went away before the answer was complete")

Deliver = Callable[[list[JobEvent]], Awaitable[None]]


async def generate(
    http: LlamaHttp, request: LlamaRequest, *, deliver: Deliver, slot_ctx_tokens: int | None = None
) -> None:
    """Run one generation and deliver its events, those of one read of the socket together.

    Exactly one terminal event is delivered, as the last event. Cancel-safe: the request is closed and llama-server
    stops; the caller sets the deadline.

    Args:
        http: a running llama-server.
        request: what to ask.
        deliver: takes the events; while it waits nothing is read, which holds llama-server back.
        slot_ctx_tokens: context of one slot, to tell a full context from a reached limit.
    """
    reader = ChunkReader(
        prefill=request.prefill,
        max_tokens=request.max_tokens,
        slot_ctx_tokens=slot_ctx_tokens,
        n_choices=request.n_choices,
    )
    try:
        async with http.open("POST", request.path, orjson.dumps(request.body)) as exchange:
            if exchange.status == HTTPStatus.OK:
                await _relay(exchange, reader, deliver)
            else:
                await deliver(reader.fail(await failure_in(exchange)))
    except BrokenExchangeError:
        await deliver(reader.lost())
    except SseError as exc:
        await deliver(reader.fail(Failed(ErrorCode.WORKER_FAILED, f"llama-server's answer cannot be read: {exc}")))


async def count_tokens(http: LlamaHttp, request: LlamaRequest, *, deliver: Deliver) -> None:
    """Count the tokens of a chat's prompt, template and tools included, and deliver one terminal event.

    Args:
        http: a running llama-server.
        request: the chat; nothing of it is generated.
        deliver: takes the event.
    """
    try:
        async with http.open("POST", INPUT_TOKENS_PATH, orjson.dumps(request.body)) as exchange:
            if exchange.status == HTTPStatus.OK:
                event: JobEvent = _count(await exchange.read_all(_MAX_ERROR_BYTES))
            else:
                event = await failure_in(exchange)
    except BrokenExchangeError:
        event = LOST
    await deliver([event])


def _count(body: bytes) -> Finished | Failed:
    try:
        n_tokens = orjson.loads(body)["input_tokens"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        n_tokens = None
    if type(n_tokens) is not int or n_tokens < 0:
        return Failed(ErrorCode.WORKER_FAILED, "llama-server's count cannot be read")
    return Finished((Finish(FinishReason.STOP),), Usage(prompt_tokens=n_tokens))


async def _relay(exchange: Exchange, reader: ChunkReader, deliver: Deliver) -> None:
    decoder = SseDecoder(max_event_bytes=MAX_EVENT_BYTES)
    while not reader.is_ended:
        piece = await exchange.read()
        if piece:
            events = [event for sse_event in decoder.feed(piece) for event in _events(sse_event, reader)]
        else:
            events = reader.lost()
        if events:
            await deliver(events)


def _events(sse_event: SseEvent, reader: ChunkReader) -> list[JobEvent]:
    if sse_event.data == _DONE:
        return reader.end()
    try:
        chunk = orjson.loads(sse_event.data)
    except orjson.JSONDecodeError:
        return reader.fail(Failed(ErrorCode.WORKER_FAILED, "llama-server sent a chunk that is not JSON"))
    return reader.read(chunk)


async def failure_in(exchange: Exchange) -> Failed:
    """Read a refusal: an error object, or a text for a message."""
    body = await exchange.read_all(_MAX_ERROR_BYTES)
    try:
        error = orjson.loads(body)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        text = body[:MAX_ERROR_CHARS].decode(errors="replace").strip()
        error = {"message": f"llama-server answered with status {exchange.status}: {text}"}
    return failure_of(error, status=exchange.status)
