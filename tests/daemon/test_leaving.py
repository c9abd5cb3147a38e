"""A router that leaves: what becomes of connections that are open, and of requests that are on their way."""

from __future__ import annotations

import socket
from functools import partial

import pytest
import trio

from auxot.router.idle_timer import LINGER_S
from tests.daemon.harness import RunningRouter, running_router, scripted_worker, until
from tests.daemon.test_front import chat, connect, everything, request

MODELS = request("GET", "/v1/models")
BIG_BODY = chat(messages=[{"role": "user", "content": "x" * 12_000_000}])  # more than the kernels hold between them


async def asked_once(running: RunningRouter) -> trio.SocketStream:
    """Return a connection that has had an answer, and was not told that it ends."""
    stream = await connect(running)
    await stream.send_all(MODELS)
    answer = await stream.receive_some()
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" not in answer.lower()
    return stream


async def is_deaf(running: RunningRouter) -> bool:
    """Whether the router has closed its listeners."""
    try:
        await (await connect(running)).aclose()
    except OSError:
        await trio.sleep(LINGER_S / 6)  # whoever is to be closed at once is closed now
        return True
    return False


@pytest.mark.parametrize("body", [None, chat(), BIG_BODY], ids=["no body", "small body", "big body"])
async def test_who_asks_once_more_is_told_that_the_connection_ends(body):
    """A client that uses its connection all the time has a request reset when the router is told to stop."""
    async with running_router() as running, await asked_once(running) as client:
        running.phases.quiet.set()
        await until(partial(is_deaf, running))
        await client.send_all(request(body=body) if body else MODELS)
        answer = await everything(client)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"connection: close" in answer.lower()
    assert b"the router is shutting down" in answer


async def test_who_asks_after_an_answer_that_outlived_the_listeners_is_told_too():
    """The next request is reset, because the connection closes right behind an answer that did not say so."""
    async with running_router() as running, scripted_worker(running) as worker, await connect(running) as client:
        await client.send_all(request(body=chat(stream=True)))
        job = await worker.next_job()
        await worker.say(job, "Hello")
        running.phases.quiet.set()
        await until(partial(is_deaf, running))
        await worker.complete(job)
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += await client.receive_some()
        await client.send_all(MODELS)
        assert (await everything(client)).startswith(b"HTTP/1.1 503")


async def test_who_asks_nothing_is_told_by_an_end_and_holds_nobody():
    """A router that stops waits for clients with idle connections, or they see a reset."""
    async with running_router() as running, await asked_once(running) as client:
        running.phases.quiet.set()
        assert await everything(client) == b""
        began = trio.current_time()
        await client.send_all(MODELS)  # it has not noticed
        assert await everything(client) == b""
        assert trio.current_time() - began < 20 * LINGER_S


async def test_who_has_connected_before_the_listeners_close_is_answered():
    """Connections that the kernel has accepted and the router has not are reset."""
    async with running_router() as running:
        sockets = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(10)]
        for one in sockets:
            one.sendall(MODELS)
        running.phases.quiet.set()
        for one in sockets:
            one.setblocking(False)
            async with trio.SocketStream(trio.socket.from_stdlib_socket(one)) as client:
                assert (await everything(client))[:12] in (b"HTTP/1.1 200", b"HTTP/1.1 503")
