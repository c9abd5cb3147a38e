"""Connections that nobody closes, nobody speaks on, or that end at the wrong moment: bounded, and nothing is left."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from auxot.core.logs import get_logger
from auxot.router.connection import Connection
from auxot.router.crowd import LOOK_S, MAX_IDLE, Crowd, raise_descriptor_limit
from tests.daemon.harness import chat_body, running_router, scripted_worker, until
from tests.daemon.test_front import request
from tests.daemon.test_handshake import raw_socket
from tests.daemon.test_jobs import raw_request
from tests.faults.harness import n_descriptors, n_tasks


async def test_nothing_is_left_of_clients_that_leave_before_the_answer():
    """The idle timer of a connection that is gone would hold on to it: tasks and memory for 75 s each."""
    async with running_router() as running:
        await running.health()
        await trio.sleep(0.1)
        before = (n_tasks(), n_descriptors())
        for _ in range(50):
            stream = await trio.open_tcp_stream("127.0.0.1", running.port)
            await stream.send_all(request("GET", "/health") * 2)
            stream.socket.close()
        with trio.fail_after(5):
            await until(lambda: n_descriptors() <= before[1])
            await until(lambda: n_tasks() <= before[0])


async def test_a_connection_that_never_reads_nor_is_read_is_noticed_when_its_peer_has_gone():
    """Hypercorn waits for ever for room that nobody makes, with the one task that would see the end of the peer."""
    async with running_router() as running:
        await running.health()
        await trio.sleep(0.1)
        before = (n_tasks(), n_descriptors())
        upgrade = ["connection: upgrade", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__"]
        stream = await trio.open_tcp_stream("127.0.0.1", running.port)
        await stream.send_all(request("CONNECT", "/health", headers=upgrade))
        await trio.sleep(0.1)
        stream.socket.close()
        with trio.fail_after(3 * LOOK_S):
            await until(lambda: n_descriptors() <= before[1] and n_tasks() <= before[0])


async def test_a_client_that_pauses_for_longer_than_the_keep_alive_gets_its_whole_answer():
    """A keep-alive that falls due while a client catches up cuts its stream in the middle of a chunk."""
    pieces = [f"{n} {'x' * 1000}" for n in range(600)]  # more than the kernel holds, less than the router does
    async with running_router(keep_alive_interval_s=0.1) as running, scripted_worker(running) as worker:
        client = await trio.open_tcp_stream("127.0.0.1", running.port)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        await client.send_all(raw_request(stream=True))
        job = await worker.next_job()
        await worker.say(job, *pieces)
        await trio.sleep(0.5)
        await worker.complete(job)
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            more = await client.receive_some()
            assert more, f"cut after {received[-100:]!r}"
            received += more
        await client.aclose()
    assert [piece for piece in pieces if piece.encode() not in received] == []


@pytest.mark.parametrize("fragment", [b"\x00\x80\0\0\0\0", b"\x89\x80\0\0\0\0", b"\x00\x81\0\0\0\0x"])
async def test_a_stranger_who_sends_small_frames_without_end_is_dropped(fragment):
    """Ten seconds of them would take the time and the memory of everybody."""
    async with running_router() as running:
        stream = await raw_socket(running)
        n_sent = 0
        await stream.send_all(b"\x01\x80\0\0\0\0")
        with suppress(trio.BrokenResourceError), trio.fail_after(3):
            while n_sent < 16 * 1024 * 1024:
                await stream.send_all(fragment * 1000)
                n_sent += 1000 * len(fragment)
        assert n_sent < 16 * 1024 * 1024  # the kernel's buffers take some of them
        await stream.aclose()


async def test_two_thousand_silent_connections_keep_nobody_out():
    """Whoever opens connections and asks nothing would use up the router's descriptors."""
    raise_descriptor_limit()
    half_heads = (
        b"",
        b"GET /health HTTP/1.1\r\nhost: x\r\nx-slow: ",
        request("GET", "/health"),
        b"GET /ws HTTP/1.1\r\n",
    )
    async with running_router() as running, scripted_worker(running) as worker, running.client() as client:
        await running.health()
        before = n_descriptors()
        strangers: list[trio.SocketStream] = []
        async with trio.open_nursery() as nursery:
            responses: list[Any] = []

            async def one() -> None:
                responses.append(await client.post("/v1/chat/completions", json=chat_body(stream=True)))

            nursery.start_soon(one)
            job = await worker.next_job()
            for n in range(2 * MAX_IDLE):
                stream = await trio.open_tcp_stream("127.0.0.1", running.port)
                strangers.append(stream)
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(half_heads[n % len(half_heads)])
            await until(lambda: n_descriptors() - before <= len(strangers) + MAX_IDLE + 5)
            assert (await running.health())["status"] == "ok"
            await worker.say(job, "whole")
            await worker.complete(job)
            await until(lambda: bool(responses))
        assert "whole" in responses[0].text
        for stream in strangers:
            stream.socket.close()
        await until(lambda: n_descriptors() <= before + 2)


@pytest.mark.skipif(sys.platform != "linux", reason="what the kernel does with a connection stands in /proc")
async def test_peers_that_vanish_without_a_word_are_looked_for():
    """A client whose machine was switched off would keep its place, and its job its slot, until its time is up."""
    async with running_router() as running:
        stream = await trio.open_tcp_stream("127.0.0.1", running.port)
        async with stream:
            await stream.send_all(b"GET /health HTTP/1.1\r\nhost: x\r\n")
            await until(lambda: _has_keepalive_timer(running.port, stream.socket.getsockname()[1]))


def _has_keepalive_timer(local: int, remote: int) -> bool:
    """Whether the kernel has a timer for one end of a connection, other than of sending (`tr` in proc(5))."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{local:04X}") and fields[2].endswith(f":{remote:04X}"):
            return fields[5].startswith("02:")
    return False


async def test_a_keep_alive_connection_that_asks_again_and_again_is_not_taken_for_an_old_one():
    """The client that has been there for longest would be thrown out by newcomers, in the middle of its work."""
    async with trio.open_nursery() as nursery:
        crowd = Crowd(get_logger(), max_open=10, max_idle=2)
        ended: list[int] = []
        connections = [Connection(await _loopback(nursery)) for _ in range(4)]

        async def stay(n: int) -> None:
            with crowd.admit(connections[n]) as has_room:
                await trio.sleep(1000 if has_room else 0)
            ended.append(n)

        for n in range(2):
            nursery.start_soon(stay, n)
            await trio.testing.wait_all_tasks_blocked()
        crowd.engage(connections[0])
        crowd.disengage(connections[0])
        nursery.start_soon(stay, 2)
        await trio.testing.wait_all_tasks_blocked()
        assert ended == [1]
        crowd.engage(connections[0])
        nursery.start_soon(stay, 3)
        await trio.testing.wait_all_tasks_blocked()
        assert ended == [1]
        nursery.cancel_scope.cancel()
    for connection in connections:
        connection.abort()


async def test_with_no_idle_connection_left_the_newcomer_is_turned_away():
    """The router would accept until it has no descriptor left, and then none of its parts could open a file."""
    async with trio.open_nursery() as nursery:
        crowd = Crowd(get_logger(), max_open=1, max_idle=1)
        first, second = [Connection(await _loopback(nursery)) for _ in range(2)]
        with crowd.admit(first) as is_admitted:
            crowd.engage(first)
            with crowd.admit(second) as is_second_admitted:
                assert (is_admitted, is_second_admitted) == (True, False)
        with crowd.admit(second) as is_admitted:
            assert is_admitted
        nursery.cancel_scope.cancel()
    for connection in (first, second):
        connection.abort()


async def _loopback(nursery: trio.Nursery) -> trio.SocketStream:
    """Return one end of a connection whose other end nobody touches."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        other = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
        nursery.start_soon(_hold, other)
        return await listener.accept()


async def _hold(stream: trio.SocketStream) -> None:
    async with stream:
        await trio.sleep_forever()
