"""The link against a WebSocket server that behaves like our router, like the original, or badly."""

from __future__ import annotations

import itertools
from functools import partial
from random import Random

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from auxot.core.errors import ConfigError, KeyRefusedError, LinkError
from auxot.core.jobs import Job
from auxot.core.link import (
    MAX_BATCH_CHARS,
    OUTBOX_FRAMES,
    Link,
    LinkSettings,
    backoff_delays,
    normalise_router_url,
    open_link,
)
from auxot.core.messages import Cancel, Error, HeartbeatAck, Hello, HelloAck, RouterMessage, Token
from tests.daemon.worker_harness import ORIGINAL_WELCOME, POLICY, WELCOME, job, stand_in_router

HELLO = Hello(gpu_key="adm_" + "k" * 43, worker_type="gpu")
ORIGINAL_REFUSAL = Error(error="invalid GPU key", details="Authentication failed. Check your admin key.")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("router.example.com", "wss://router.example.com/ws"),
        ("  router.example.com:8443/ ", "wss://router.example.com:8443/ws"),
        ("https://r.example.com", "wss://r.example.com/ws"),
        ("http://127.0.0.1:8080", "ws://127.0.0.1:8080/ws"),
        ("HTTP://R.example.com", "ws://r.example.com/ws"),
        ("ws://r/ws", "ws://r/ws"),
        ("wss://auxot.com/api/gpu/client", "wss://auxot.com/ws"),
        ("wss://r/llm", "wss://r/llm/ws"),
        ("wss://r/llm/ws/", "wss://r/llm/ws"),
        ("wss://r?key=x#y", "wss://r/ws"),
        ("[::1]:8080", "wss://[::1]:8080/ws"),
        ("localhost:8080", "wss://localhost:8080/ws"),
    ],
)
def test_router_url(text: str, url: str) -> None:
    """A worker connects somewhere else than its operator wrote."""
    assert normalise_router_url(text) == url
    assert normalise_router_url(url) == url


@pytest.mark.parametrize("text", ["", "  ", "https://", "ftp://r", "ws://r:99999", "ws://r:x", "ws://[::1", "a b"])
def test_bad_router_url(text: str) -> None:
    """A URL that cannot work is tried for ever."""
    with pytest.raises(ConfigError):
        normalise_router_url(text)


def test_password_in_the_url_is_refused_and_not_shown() -> None:
    """A password in the router URL ends up in the log."""
    with pytest.raises(ConfigError) as caught:
        normalise_router_url("wss://user:hunter2@r")
    assert "hunter2" not in str(caught.value)


@given(first_s=st.floats(0.01, 10), factor=st.floats(1, 100), seed=st.integers())
def test_backoff_stays_in_its_range(first_s: float, factor: float, seed: int) -> None:
    """Workers hammer a router that is down, or wait for hours."""
    delays = list(itertools.islice(backoff_delays(first_s=first_s, max_s=first_s * factor, rng=Random(seed)), 20))
    assert all(first_s <= delay <= first_s * factor for delay in delays)


def test_backoff_spreads_workers() -> None:
    """Workers that lost the same router come back at the same moment."""
    first = {next(backoff_delays(first_s=2, max_s=60, rng=Random(seed))) for seed in range(20)}
    assert len(first) == 20


def settings(url: str, *, heartbeat_interval_s: float = 5.0) -> LinkSettings:
    return LinkSettings(url=url, heartbeat_interval_s=heartbeat_interval_s)


@pytest.mark.parametrize("welcome", [WELCOME, ORIGINAL_WELCOME], ids=["our router", "original router"])
async def test_messages_go_both_ways(welcome: HelloAck) -> None:
    """A worker cannot talk to one of the two kinds of router."""
    with trio.fail_after(10):
        async with stand_in_router(lambda _: welcome) as router, open_link(settings(router.url), HELLO) as link:
            assert link.ack.policy == POLICY
            end = await router.ends.receive()
            assert end.hello.gpu_key == HELLO.gpu_key
            await end.send(job("j"))
            assert isinstance(await link.receive(), Job)
            await link.send(Token(job_id="j", token="é"), Token(job_id="j", token="\n"))
            assert [await end.receive(), await end.receive()] == [
                Token(job_id="j", token="é"),
                Token(job_id="j", token="\n"),
            ]


@pytest.mark.parametrize(("welcome", "n_frames"), [(WELCOME, 2), (ORIGINAL_WELCOME, 100)], ids=["ours", "original"])
async def test_what_waits_together_goes_in_one_frame(welcome: HelloAck, n_frames: int) -> None:
    """Each token costs a frame of its own; or an original router, which knows no batches, gets one."""
    tokens = [Token(job_id="j", token=f"{n}\n") for n in range(100)]
    with trio.fail_after(10):
        async with stand_in_router(lambda _: welcome) as router, open_link(settings(router.url), HELLO) as link:
            end = await router.ends.receive()
            await link.send(*tokens)  # the first wakes the sender; the others are there when it runs
            assert [await end.receive() for _ in tokens] == tokens
            assert end.n_frames <= n_frames
            if welcome is ORIGINAL_WELCOME:
                assert end.n_frames == n_frames


async def test_a_batch_is_bounded() -> None:
    """What has waited behind a slow write becomes one frame that is larger than the router takes."""
    long_tokens = [Token(job_id="j", token=str(n) * (MAX_BATCH_CHARS // 3)) for n in range(9)]
    tokens = [*long_tokens, Token(job_id="j", token="x" * MAX_BATCH_CHARS), Token(job_id="j", token="end")]
    with trio.fail_after(10):
        async with stand_in_router() as router, open_link(settings(router.url), HELLO) as link:
            end = await router.ends.receive()
            await link.send(*tokens)
            assert [await end.receive() for _ in tokens] == tokens
            assert end.n_frames >= 6


async def test_all_that_was_sent_arrives_before_the_close() -> None:
    """The last tokens of a job are lost when the worker stops."""
    n_tokens = OUTBOX_FRAMES - 1
    with trio.fail_after(10):
        async with stand_in_router() as router:
            async with open_link(settings(router.url), HELLO) as link:
                await link.send(*(Token(job_id="j", token=str(n)) for n in range(n_tokens)))
            end = await router.ends.receive()
            assert [await end.receive() for _ in range(n_tokens)] == [
                Token(job_id="j", token=str(n)) for n in range(n_tokens)
            ]
            await end.closed.wait()
            assert end.socket.closed is not None
            assert end.socket.closed.code == 1000


@pytest.mark.parametrize(
    "refusal",
    [HelloAck(success=False, error="authentication failed: bad key"), HelloAck(success=False), ORIGINAL_REFUSAL],
)
async def test_refused_key_is_final(refusal: RouterMessage) -> None:
    """A worker with a wrong key tries again for ever."""
    with trio.fail_after(10):
        async with stand_in_router(lambda _: refusal) as router:
            with pytest.raises(KeyRefusedError) as caught:
                await enter(settings(router.url))
    assert HELLO.gpu_key not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        HelloAck(success=False, error="too many keys to verify"),
        Error(error="tools workers not enabled"),
        HeartbeatAck(),
    ],
)
async def test_other_refusals_are_worth_another_try(answer: RouterMessage) -> None:
    """A busy router makes its workers give up."""
    with trio.fail_after(10):
        async with stand_in_router(lambda _: answer) as router:
            with pytest.raises(LinkError):
                await enter(settings(router.url))


async def test_no_router() -> None:
    """A router that is down raises something that nobody expects."""
    with trio.fail_after(10), pytest.raises(LinkError):
        await enter(settings("ws://127.0.0.1:1/ws"))


async def test_something_else_listens() -> None:
    """A web server in the router's place raises something that nobody expects."""

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
            with pytest.raises(LinkError, match="404"):
                await enter(settings(f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/ws"))
            nursery.cancel_scope.cancel()


async def test_silent_router_is_given_up() -> None:
    """A worker whose router hangs, or whose network is cut, stays with it."""
    with trio.fail_after(10):
        async with stand_in_router(is_mute=True) as router:
            with pytest.raises(LinkError, match="nothing heard"):
                await receive_one(settings(router.url, heartbeat_interval_s=0.1))


async def test_heartbeats_keep_an_idle_link() -> None:
    """An idle worker reconnects again and again."""
    with trio.fail_after(10):
        async with (
            stand_in_router() as router,
            open_link(settings(router.url, heartbeat_interval_s=0.1), HELLO) as link,
        ):
            with trio.move_on_after(1) as waiting:
                await link.receive()
            assert waiting.cancelled_caught
            assert router.n_connections == 1


async def test_dropped_connection() -> None:
    """A worker does not notice that its router has crashed."""
    with trio.fail_after(10):
        async with stand_in_router() as router, trio.open_nursery() as nursery:

            async def drop() -> None:
                end = await router.ends.receive()
                await end.drop()

            nursery.start_soon(drop)
            with pytest.raises(LinkError, match="1006"):
                await receive_one(settings(router.url))


async def test_unknown_messages_are_passed_over() -> None:
    """A newer router ends the connection by saying something new."""
    with trio.fail_after(10):
        async with stand_in_router() as router, open_link(settings(router.url), HELLO) as link:
            end = await router.ends.receive()
            for frame in ('{"type":"new"}', "garbage", '{"type":"job"}'):
                await end.socket.send_message(frame)
            await end.send(Cancel(job_id="j"))
            assert await link.receive() == Cancel(job_id="j")


async def test_large_job_arrives() -> None:
    """A job with images ends the connection."""
    with trio.fail_after(20):
        async with stand_in_router() as router, open_link(settings(router.url), HELLO) as link:
            end = await router.ends.receive()
            await end.send(job("j", "x" * 20_000_000))
            message = await link.receive()
            assert isinstance(message, Job)
            assert len(message.messages[0].content) == 20_000_000


async def enter(link_settings: LinkSettings) -> None:
    async with open_link(link_settings, HELLO):
        pass


async def receive_one(link_settings: LinkSettings) -> None:
    link: Link
    async with open_link(link_settings, HELLO) as link:
        await link.receive()
