"""The client against a scripted HTTP server on a socket: what llama-server rarely does, or does only when it dies."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import h11
import pytest
import trio

from auxot.core.errors import ConfigError, ErrorCode
from auxot.core.jobs import Failed, Finished, JobEvent, TextDelta
from auxot.worker.llama.client import count_tokens, generate
from auxot.worker.llama.http import LlamaHttp, parse_llama_url
from auxot.worker.llama.request import LlamaRequest

STREAM = Path(__file__).with_name("golden").joinpath("answer.sse").read_bytes()
REQUEST = LlamaRequest(body={"stream": True})


@attrs.define(eq=False)
class Upstream:
    """What the scripted server does: sends `body` under `status`, then ends, breaks off (`is_cut`) or hangs."""

    body: bytes
    status: int = 200
    is_cut: bool = False
    hangs: bool = False
    client_left: trio.Event = attrs.field(factory=trio.Event)

    async def serve(self, stream: trio.SocketStream) -> None:
        server = h11.Connection(h11.SERVER)
        while not isinstance(event := server.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                server.receive_data(await stream.receive_some())
        head = h11.Response(status_code=self.status, headers=[("transfer-encoding", "chunked")])
        await stream.send_all(server.send(head) or b"")
        if self.body:
            await stream.send_all(server.send(h11.Data(data=self.body)) or b"")
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
        port = listener.socket.getsockname()[1]
        yield LlamaHttp(parse_llama_url(f"http://127.0.0.1:{port}"))
        nursery.cancel_scope.cancel()


async def events_of(upstream: Upstream) -> list[JobEvent]:
    events: list[JobEvent] = []

    async def deliver(some: list[JobEvent]) -> None:
        await trio.lowlevel.checkpoint()
        events.extend(some)

    with trio.fail_after(10):
        async with running(upstream) as http:
            await generate(http, REQUEST, deliver=deliver)
    assert [event for event in events if isinstance(event, Finished | Failed)] == events[-1:]
    return events


def failure(events: list[JobEvent]) -> Failed:
    assert isinstance(events[-1], Failed)
    return events[-1]


async def test_whole_stream() -> None:
    """An answer does not arrive."""
    events = await events_of(Upstream(STREAM))
    assert isinstance(events[-1], Finished)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)).endswith("winter hills")


@pytest.mark.parametrize("is_cut", [True, False])
async def test_stream_without_its_end(is_cut: bool) -> None:
    """The answer of a llama-server that died passes for a whole one."""
    events = await events_of(Upstream(STREAM[:3000], is_cut=is_cut))
    assert failure(events).code is ErrorCode.WORKER_LOST
    assert any(isinstance(event, TextDelta) for event in events)


async def test_death_before_the_first_token() -> None:
    """A job whose llama-server died at once is not offered to another worker."""
    assert failure(await events_of(Upstream(b"", is_cut=True))).code is ErrorCode.WORKER_LOST


async def test_nobody_listens() -> None:
    """A job that comes while llama-server is gone raises."""
    events: list[JobEvent] = []

    async def deliver(some: list[JobEvent]) -> None:
        await trio.lowlevel.checkpoint()
        events.extend(some)

    with trio.fail_after(10):
        await generate(LlamaHttp(parse_llama_url("http://127.0.0.1:1")), REQUEST, deliver=deliver)
    assert failure(events).code is ErrorCode.WORKER_LOST


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, b'{"error":{"code":400,"message":"bad","type":"invalid_request_error"}}', ErrorCode.INVALID_REQUEST),
        (500, b"<html>oops</html>", ErrorCode.WORKER_FAILED),
        (503, b'{"error":{"message":"Loading model"}}', ErrorCode.UNAVAILABLE),
        (502, b"\xff" * 3_000_000, ErrorCode.WORKER_FAILED),
        (500, b"[1]", ErrorCode.WORKER_FAILED),
    ],
)
async def test_refusal(status: int, body: bytes, code: ErrorCode) -> None:
    """A refusal of llama-server raises, blames the wrong side, or its text has no bound."""
    failed = failure(await events_of(Upstream(body, status=status)))
    assert failed.code is code
    assert len(failed.message) <= 1000


@pytest.mark.parametrize("body", [b"data: {nonsense\n\n", b"data: [1, 2]\n\n", b"data: 3\n\n"])
async def test_garbage(body: bytes) -> None:
    """A chunk that is none raises."""
    assert failure(await events_of(Upstream(body, hangs=True))).code is ErrorCode.WORKER_FAILED


@pytest.mark.parametrize(
    ("upstream", "code"),
    [
        (Upstream(b'{"input_tokens":7}'), None),
        (Upstream(b'{"input_tokens":"7"}'), ErrorCode.WORKER_FAILED),
        (Upstream(b"[]"), ErrorCode.WORKER_FAILED),
        (Upstream(b"seven"), ErrorCode.WORKER_FAILED),
        (Upstream(b"", is_cut=True), ErrorCode.WORKER_LOST),
        (Upstream(b'{"error":{"message":"bad","type":"invalid_request_error"}}', 400), ErrorCode.INVALID_REQUEST),
    ],
)
async def test_count(upstream: Upstream, code: ErrorCode | None) -> None:
    """A count is wrong, raises, or ends twice or never."""
    events: list[JobEvent] = []

    async def deliver(some: list[JobEvent]) -> None:
        await trio.lowlevel.checkpoint()
        events.extend(some)

    with trio.fail_after(10):
        async with running(upstream) as http:
            await count_tokens(http, REQUEST, deliver=deliver)
    [event] = events
    if code is None:
        assert isinstance(event, Finished)
        assert event.usage.prompt_tokens == 7
    else:
        assert failure(events).code is code


async def test_cancel_closes_the_request() -> None:
    """A cancelled job goes on generating."""
    upstream = Upstream(STREAM[:2000], hangs=True)
    got_text = trio.Event()

    async def deliver(some: list[JobEvent]) -> None:
        await trio.lowlevel.checkpoint()
        if any(isinstance(event, TextDelta) for event in some):
            got_text.set()

    with trio.fail_after(10):
        async with running(upstream) as http, trio.open_nursery() as nursery:

            async def stream() -> None:
                await generate(http, REQUEST, deliver=deliver)

            nursery.start_soon(stream)
            await got_text.wait()
            nursery.cancel_scope.cancel()
            with trio.move_on_after(0.25, shield=True):
                await upstream.client_left.wait()
            assert upstream.client_left.is_set()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://gpu:8080", ("gpu", 8080, False, "gpu:8080", "")),
        ("http://gpu/", ("gpu", 80, False, "gpu", "")),
        ("https://h/llama/v1/", ("h", 443, True, "h", "/llama")),
        ("http://[::1]:9/v1", ("::1", 9, False, "[::1]:9", "")),
    ],
)
def test_external_url(url: str, expected: tuple[object, ...]) -> None:
    """An external llama-server behind a prefix, on a default port or on IPv6 is not found."""
    address = parse_llama_url(url)
    assert (address.host, address.port, address.is_tls, address.authority, address.prefix) == expected


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:99999", "gpu:8080"])
def test_bad_external_url(url: str) -> None:
    """A mistyped URL is only found out when the first job fails."""
    with pytest.raises(ConfigError):
        parse_llama_url(url)
