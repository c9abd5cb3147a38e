"""forward_request against a scripted HTTP server on a socket."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import h11
import pytest
import trio

from auxot.core.errors import ErrorCode
from auxot.core.jobs import Failed, Finished, Forward, JobEvent, Payload, PayloadHead
from auxot.worker.llama.forward import forward_request
from auxot.worker.llama.http import LlamaHttp, parse_llama_url

TOKENIZE = Forward(method="POST", path="/tokenize", body='{"content":"h\u00e9"}')
INFILL = Forward(method="POST", path="/infill", body='{"input_prefix":"a","n_predict":3}')
STREAMED_INFILL = attrs.evolve(INFILL, body='{"input_prefix":"a","stream":true}')
SSE = "text/event-stream"
CHUNKS: list[dict[str, Any]] = [
    {"index": 0, "content": "", "stop": False, "prompt_progress": {"total": 1}},
    {"index": 0, "content": "one", "stop": False},
    {"index": 0, "content": " two", "stop": False},
    {"index": 0, "content": "", "stop": True, "tokens": [], "generation_settings": {"stream": True, "seed": 1}},
]


def sse(*chunks: Any) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks)


@attrs.define(eq=False)
class Upstream:
    """Answers one request with `pieces`, then ends, breaks off (`is_cut`) or hangs; keeps what it was asked."""

    pieces: list[bytes] = attrs.field(factory=list)
    status: int = 200
    content_type: str = "application/json; charset=utf-8"
    is_cut: bool = False
    hangs: bool = False
    asked: h11.Request | None = None
    body: bytes = b""
    client_left: trio.Event = attrs.field(factory=trio.Event)

    async def serve(self, stream: trio.SocketStream) -> None:
        server = h11.Connection(h11.SERVER)
        while not isinstance(event := server.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                server.receive_data(await stream.receive_some())
            elif isinstance(event, h11.Request):
                self.asked = event
            elif isinstance(event, h11.Data):
                self.body += bytes(event.data)
        headers = [("transfer-encoding", "chunked"), ("content-type", self.content_type)]
        await stream.send_all(server.send(h11.Response(status_code=self.status, headers=headers)) or b"")
        for piece in self.pieces:
            await stream.send_all(server.send(h11.Data(data=piece)) or b"")
        if self.hangs:
            assert await stream.receive_some() == b""
            self.client_left.set()
        elif not self.is_cut:
            await stream.send_all(server.send(h11.EndOfMessage()) or b"")
        await stream.aclose()


@asynccontextmanager
async def running(upstream: Upstream) -> AsyncGenerator[LlamaHttp, None]:
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, upstream.serve, [listener])
        yield LlamaHttp(parse_llama_url(f"http://127.0.0.1:{listener.socket.getsockname()[1]}"))
        nursery.cancel_scope.cancel()


async def events_of(upstream: Upstream, forward: Forward) -> list[JobEvent]:
    """Return the events of a request; exactly the last one is terminal."""
    events: list[JobEvent] = []

    async def deliver(some: list[JobEvent]) -> None:
        await trio.lowlevel.checkpoint()
        events.extend(some)

    with trio.fail_after(10):
        async with running(upstream) as http:
            await forward_request(http, forward, deliver=deliver)
    assert [event for event in events if isinstance(event, Finished | Failed)] == events[-1:]
    return events


def body_of(events: list[JobEvent]) -> bytes:
    return b"".join(event.body for event in events if isinstance(event, Payload))


def failure(events: list[JobEvent]) -> Failed:
    assert isinstance(events[-1], Failed)
    return events[-1]


async def test_request_and_answer_go_through() -> None:
    """A byte, a status or a type is changed on the way, in either direction."""
    upstream = Upstream([b'{"tokens"', b":[1]}"], status=201)
    events = await events_of(upstream, TOKENIZE)
    assert upstream.asked is not None
    assert (upstream.asked.method, upstream.asked.target) == (b"POST", b"/tokenize")
    assert upstream.body == TOKENIZE.body.encode()
    assert events[0] == PayloadHead(201, "application/json; charset=utf-8")
    assert body_of(events) == b'{"tokens":[1]}'
    assert isinstance(events[-1], Finished)


async def test_upload() -> None:
    """A body that is no text is broken on the way, or loses its boundary."""
    body = bytes(range(256)) * 10
    kind = "multipart/form-data; boundary=x"
    upload = Forward(
        method="POST",
        path="/v1/audio/transcriptions",
        body_base64=base64.b64encode(body).decode(),
        content_type=kind,
    )
    upstream = Upstream([b"{}"])
    await events_of(upstream, upload)
    assert upstream.asked is not None
    assert (upstream.body, dict(upstream.asked.headers)[b"content-type"]) == (body, kind.encode())


async def test_large_answer_comes_in_pieces() -> None:
    """An answer is sent as one message, which the router has to hold whole."""
    large = b"x" * 1_000_000
    events = await events_of(Upstream([large]), TOKENIZE)
    assert body_of(events) == large
    assert max(len(event.body) for event in events if isinstance(event, Payload)) <= 64 * 1024


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/slots/0?action=erase"), ("POST", "/props"), ("GET", "/slots"), ("GET", "/tokenize"), ("POST", "//x")],
)
async def test_other_endpoints_are_out_of_reach(method: str, path: str) -> None:
    """A router that was taken over reads other people's prompts, or changes the llama-server."""
    upstream = Upstream()
    events = await events_of(upstream, Forward(method=method, path=path))
    assert failure(events).code is ErrorCode.NOT_IMPLEMENTED
    assert upstream.asked is None


@pytest.mark.parametrize(
    "broken",
    [
        {"body_base64": "%%%"},
        {"content_type": "a\r\nx-evil: 1"},
    ],
)
async def test_bodies_that_cannot_be_sent(broken: dict[str, str]) -> None:
    """A malformed job crashes, or writes headers of its own."""
    upstream = Upstream()
    assert failure(await events_of(upstream, attrs.evolve(TOKENIZE, **broken))).code is ErrorCode.INVALID_REQUEST
    assert upstream.asked is None


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        (400, "bad", ErrorCode.INVALID_REQUEST),
        (500, "[json.exception.type_error.302] type must be string, but is number", ErrorCode.INVALID_REQUEST),
        (500, "vector::_M_range_check: __n (which is 9) >= this->size() (which is 3)", ErrorCode.INVALID_REQUEST),
        (500, "out of memory", ErrorCode.WORKER_FAILED),
        (501, "This server does not support embeddings. Start it with `--embeddings`", ErrorCode.NOT_IMPLEMENTED),
        (503, "Loading model", ErrorCode.UNAVAILABLE),
    ],
)
async def test_refusals(status: int, message: str, code: ErrorCode) -> None:
    """A refusal blames the wrong side, or passes for an answer."""
    body = json.dumps({"error": {"code": status, "message": message}}).encode()
    assert failure(await events_of(Upstream([body], status=status), TOKENIZE)) == Failed(code, message)


@pytest.mark.parametrize("forward", [TOKENIZE, INFILL, STREAMED_INFILL])
async def test_broken_answers(forward: Forward) -> None:
    """An answer that broke off passes for a whole one."""
    kind = SSE if "infill" in forward.path else "application/json"
    upstream = Upstream([sse(*CHUNKS[:2])], content_type=kind, is_cut=True)
    assert failure(await events_of(upstream, forward)).code is ErrorCode.WORKER_LOST


@pytest.mark.parametrize("forward", [INFILL, STREAMED_INFILL])
@pytest.mark.parametrize(
    ("chunks", "code"),
    [
        (sse(*CHUNKS[:3]), ErrorCode.WORKER_LOST),
        (b"", ErrorCode.WORKER_LOST),
        (sse(*CHUNKS[:2], {"error": {"code": 500, "message": "oops"}}), ErrorCode.WORKER_FAILED),
        (b"data: nonsense\n\n", ErrorCode.WORKER_FAILED),
        (b"data: [1]\n\n", ErrorCode.WORKER_FAILED),
    ],
)
async def test_generations_that_fail_midway(forward: Forward, chunks: bytes, code: ErrorCode) -> None:
    """A generation that failed passes for a whole answer."""
    assert failure(await events_of(Upstream([chunks], content_type=SSE), forward)).code is code


async def test_generation_is_always_streamed() -> None:
    """A blocking generation runs on after its client has left, because llama-server writes nothing meanwhile."""
    upstream = Upstream([sse(*CHUNKS)], content_type=SSE)
    events = await events_of(upstream, INFILL)
    assert json.loads(upstream.body) == {**json.loads(INFILL.body), "stream": True, "return_progress": True}
    assert events[0] == PayloadHead(200, "application/json; charset=utf-8")
    assert json.loads(body_of(events)) == {
        **CHUNKS[-1],
        "content": "one two",
        "generation_settings": {"stream": False, "seed": 1},
    }


async def test_streamed_generation() -> None:
    """A client that streams gets progress that it did not ask for, or not all chunks."""
    events = await events_of(Upstream([sse(*CHUNKS)], content_type=SSE), STREAMED_INFILL)
    assert (events[0], body_of(events)) == (PayloadHead(200, SSE), sse(*CHUNKS[1:]))
    progress = attrs.evolve(INFILL, body='{"stream":true,"return_progress":true}')
    assert body_of(await events_of(Upstream([sse(*CHUNKS)], content_type=SSE), progress)) == sse(*CHUNKS)


@pytest.mark.parametrize("forward", [TOKENIZE, INFILL, STREAMED_INFILL])
async def test_cancel_closes_the_request(forward: Forward) -> None:
    """A cancelled request goes on in llama-server."""
    upstream = Upstream([sse(*CHUNKS[:2])], content_type=SSE, hangs=True)

    async def deliver(_: list[JobEvent]) -> None:
        await trio.lowlevel.checkpoint()

    with trio.fail_after(10):
        async with running(upstream) as http, trio.open_nursery() as nursery:

            async def ask() -> None:
                await forward_request(http, forward, deliver=deliver)

            nursery.start_soon(ask)
            while upstream.asked is None:
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
            with trio.move_on_after(0.25, shield=True):
                await upstream.client_left.wait()
            assert upstream.client_left.is_set()
