"""One shared connection against a peer in this process, on Trio's test clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing

from auxot.core.errors import StoreError, StoreLostError
from auxot.router.store_connection import KEEPALIVE_S, MAX_WAITERS, REPLY_DEADLINE_S, Connection, new_reader, pack

PING = pack(("PING",))


@attrs.define
class Peer:
    """The server's end; the test says what it answers."""

    stream: trio.abc.Stream
    connection: Connection
    messages: list[bytes]
    reasons: list[str]  # why the connection was lost

    async def receive(self, n_bytes: int) -> bytes:
        received = b""
        while len(received) < n_bytes:
            received += await self.stream.receive_some()
        return received


@asynccontextmanager
async def peer() -> AsyncIterator[Peer]:
    ours, theirs = trio.testing.memory_stream_pair()
    messages: list[bytes] = []
    reasons: list[str] = []
    connection = Connection(stream=ours, reader=new_reader(), label="redis://peer", on_message=messages.append)

    async def run() -> None:
        reasons.append(await connection.run())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield Peer(theirs, connection, messages, reasons)
        nursery.cancel_scope.cancel()


async def test_messages_and_replies_are_told_apart() -> None:
    """A published message is taken for the reply of a command."""
    async with peer() as server, trio.open_nursery() as nursery:
        results: list[object] = []

        async def ask() -> None:
            results.extend(await server.connection.call((("SUBSCRIBE", "c"), ("GET", "x"), ("BAD",))))

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        message = b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n"
        confirmation = b">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"
        replies = message + confirmation + message + b"#f\r\n" + message + b"-ERR bad\r\n"
        for index in range(len(replies)):  # cut anywhere
            await server.stream.send_all(replies[index : index + 1])
        await trio.testing.wait_all_tasks_blocked()
        assert results[:2] == [[b"subscribe", b"c", 1], False]
        assert isinstance(results[2], StoreError)
        assert server.messages == [b"c"] * 3


async def test_calls_of_one_turn_go_out_in_one_piece() -> None:
    """Every command costs a system call of its own."""
    async with peer() as server, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(server.connection.call, (("PING",),))
        assert await server.stream.receive_some() == PING * 3
        await server.stream.send_all(b"+PONG\r\n" * 3)


async def test_a_cancelled_caller_leaves_its_place_empty() -> None:
    """The reply of a cancelled caller goes to the next one in the line."""
    async with peer() as server, trio.open_nursery() as nursery:
        results: list[object] = []
        async with trio.open_nursery() as cancelled_nursery:
            cancelled_nursery.start_soon(server.connection.call, (("GET", "a"),))
            await trio.testing.wait_all_tasks_blocked()
            cancelled_nursery.cancel_scope.cancel()

        async def ask() -> None:
            results.extend(await server.connection.call((("GET", "b"),)))

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        await server.stream.send_all(b"$1\r\na\r\n$1\r\nb\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert results == [b"b"]


async def test_an_idle_connection_is_asked_whether_it_lives(autojump_clock: trio.testing.MockClock) -> None:
    """A peer that vanished in silence is noticed only by the next request."""
    assert autojump_clock.autojump_threshold == 0
    async with peer() as server:
        for _ in range(2):
            start = trio.current_time()
            assert await server.receive(len(PING)) == PING
            assert KEEPALIVE_S <= trio.current_time() - start <= KEEPALIVE_S + 2
            await server.stream.send_all(b"+PONG\r\n")
        await server.receive(len(PING))
        await trio.sleep(REPLY_DEADLINE_S + 2)
        assert server.reasons == [f"no reply for {REPLY_DEADLINE_S} s"]


async def test_a_slow_large_reply_is_not_taken_for_silence(autojump_clock: trio.testing.MockClock) -> None:
    """A large job over a slow line loses the connection although bytes keep coming."""
    assert autojump_clock.autojump_threshold == 0
    async with peer() as server, trio.open_nursery() as nursery:
        nursery.start_soon(server.connection.call, (("GET", "large"),))
        await server.stream.send_all(b"$40\r\n")
        for _ in range(40):
            await trio.sleep(REPLY_DEADLINE_S - 2)
            await server.stream.send_all(b"x")
        await server.stream.send_all(b"\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert server.reasons == []


async def test_a_reply_that_nobody_waits_for_ends_the_connection() -> None:
    """A server that answers out of turn shifts all replies from then on."""
    async with peer() as server:
        await server.stream.send_all(b"+OK\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert server.reasons == ["a reply that nobody waits for"]
        with pytest.raises(StoreLostError, match="redis://peer is lost: a reply"):
            await server.connection.call((("PING",),))


async def test_what_is_not_resp_ends_the_connection() -> None:
    """Garbage from the server crashes the router."""
    async with peer() as server:
        await server.stream.send_all(b"HTTP/1.1 400 Bad Request\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert len(server.reasons) == 1


async def test_a_store_that_does_not_keep_up_refuses() -> None:
    """Commands pile up without a bound while the server stands still."""
    async with peer() as server, trio.open_nursery() as nursery:
        for _ in range(MAX_WAITERS):
            nursery.start_soon(server.connection.call, (("PING",),))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(StoreLostError, match=f"does not keep up: {MAX_WAITERS} callers wait"):
            await server.connection.call((("PING",),))
        nursery.cancel_scope.cancel()


async def test_a_command_that_cannot_be_packed_changes_nothing() -> None:
    """A mistake of one caller shifts the replies of the others."""
    async with peer() as server, trio.open_nursery() as nursery:
        with pytest.raises(TypeError):
            await server.connection.call((("PING",), ("SET", "key", None)))  # type: ignore[arg-type]
        nursery.start_soon(server.connection.call, (("PING",),))
        assert await server.stream.receive_some() == PING
        await server.stream.send_all(b"+PONG\r\n")
