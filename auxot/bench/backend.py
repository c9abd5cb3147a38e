"""A made-up OpenAI back end, for gateways that forward to one: it answers as the made-up workers do."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import attrs
import h11
import orjson
import trio

from auxot.bench.load import Load, asked_at_us, now_us, token, tokens_asked_for

_READ_BYTES = 64 * 1024
_USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


@asynccontextmanager
async def backend(host: str, port: int, load: Load, dispatch_us: list[int]) -> AsyncGenerator[None]:
    """Serve `/v1/chat/completions` for the length of the block.

    Args:
        host: the address to listen on.
        port: its port.
        load: how it answers.
        dispatch_us: gets the time from the client to here of each request.
    """
    async with trio.open_nursery() as nursery:
        serve = partial(_serve, load=load, dispatch_us=dispatch_us)
        await nursery.start(partial(trio.serve_tcp, serve, port, host=host))
        yield
        nursery.cancel_scope.cancel()


async def _serve(stream: trio.SocketStream, *, load: Load, dispatch_us: list[int]) -> None:
    connection = _Connection(stream, load)
    try:
        while (body := await connection.read_request()) is not None:
            dispatch_us.append(now_us() - asked_at_us(body))
            await connection.answer(
                n_tokens=tokens_asked_for(body, load.tokens), is_stream=bool(orjson.loads(body or b"{}").get("stream"))
            )
    except (OSError, trio.BrokenResourceError, h11.ProtocolError):
        pass  # a gateway may hang up as it likes; what is missing is seen by the client


@attrs.define(eq=False)
class _Connection:
    stream: trio.SocketStream
    load: Load
    _http: h11.Connection = attrs.field(factory=lambda: h11.Connection(h11.SERVER))

    async def read_request(self) -> bytes | None:
        """Return the body of the next request; None when there is no more."""
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self.stream.receive_some(_READ_BYTES))
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body)
            elif not isinstance(event, h11.Request):
                return None

    async def answer(self, *, n_tokens: int, is_stream: bool) -> None:
        """Answer a request as the load says, and get ready for the next."""
        if is_stream:
            await self._answer_in_pieces(n_tokens)
        else:
            message = {"role": "assistant", "content": "".join(map(token, range(n_tokens)))}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            await self._answer_whole(orjson.dumps(_head("chat.completion") | {"choices": [choice], "usage": _USAGE}))
        self._http.start_next_cycle()

    async def _answer_whole(self, body: bytes) -> None:
        headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
        await self._send(h11.Response(status_code=200, headers=headers), h11.Data(data=body), h11.EndOfMessage())

    async def _answer_in_pieces(self, n_tokens: int) -> None:
        headers = [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")]
        await self._send(h11.Response(status_code=200, headers=headers))
        began = trio.current_time()
        head = _head("chat.completion.chunk")
        for number in range(n_tokens):
            if self.load.rate:
                await trio.sleep_until(began + number / self.load.rate)
            await self._send(h11.Data(data=_event(head, {"content": token(number)}, None)))
        end = _event(head, {}, "stop") + b"data: [DONE]\n\n"
        await self._send(h11.Data(data=end), h11.EndOfMessage())

    async def _send(self, *events: h11.Event) -> None:
        await self.stream.send_all(b"".join(self._http.send(event) or b"" for event in events))


def _head(kind: str) -> dict[str, object]:
    return {"id": "chatcmpl-bench", "object": kind, "created": 1, "model": "bench"}


def _event(head: dict[str, object], delta: dict[str, str], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + orjson.dumps(head | {"choices": [choice]}) + b"\n\n"
