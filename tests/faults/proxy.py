"""A TCP proxy with the faults of a network: it delays, cuts, closes one direction, and stands still.

    client <-- pump --> server        one pair of pumps a connection, both end with it

Everything applies to the connections that are open and to those to come. A connection that is cut is closed at both
ends at once, with what is in it; one that is half closed says goodbye in one direction, swallows what still comes that
way, and goes on in the other.
"""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import attrs
import trio

BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
_READ_BYTES = 65536


@attrs.define(eq=False, kw_only=True)
class Proxy:
    """A proxy in front of a port of this machine; other targets override `dial`.

    Attributes:
        delay_s: how long each read waits before it is passed on.
        max_bytes: a connection is cut when a random number of bytes, up to this, has gone through it in one direction:
            in the middle of a command, or between a command and its reply. None: it lives.
        holds: the first words of the server that contain this, and what comes behind them, wait until `move`.
        is_holding: set once they have come.
    """

    port: int
    target_port: int = 0
    rng: random.Random = attrs.field(factory=random.Random)
    delay_s: float = 0.0
    max_bytes: int | None = None
    holds: bytes = b""
    is_holding: trio.Event = attrs.field(factory=trio.Event)
    n_cut: int = 0
    _open: dict[trio.SocketStream, trio.SocketStream] = attrs.field(factory=dict)  # client -> server
    _half_closed: set[trio.SocketStream] = attrs.field(factory=set)  # whoever is there has been told of an end
    _moves: trio.Event = attrs.field(factory=trio.Event)
    _lets_go: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self._moves.set()

    async def dial(self) -> trio.SocketStream:
        """Connect to the target."""
        return await trio.open_tcp_stream("127.0.0.1", self.target_port)

    def cut(self) -> None:
        """Drop every connection now, both ends, with what is in them."""
        for both in self._open.items():
            for stream in both:
                stream.socket.close()
        self.n_cut += bool(self._open)
        self._open.clear()

    def half_close(self, *, towards_server: bool) -> None:
        """Let one side of every connection see an end, while the other one goes on."""
        for client, server in self._open.items():
            sink = server if towards_server else client
            self._half_closed.add(sink)
            with suppress(OSError):
                sink.socket.shutdown(socket.SHUT_WR)

    def stand_still(self) -> None:
        """Pass nothing on until `move`; connections are still accepted, and nobody answers."""
        if self._moves.is_set():
            self._moves = trio.Event()

    def move(self) -> None:
        """Pass on again, what has waited first."""
        self._moves.set()
        self._lets_go.set()

    async def serve(self, client: trio.SocketStream) -> None:
        """Pass bytes between a client and the target until one of them closes."""
        await self._moves.wait()
        try:
            server = await self.dial()
        except OSError:
            await client.aclose()
            return
        self._open[client] = server
        try:
            async with trio.open_nursery() as nursery:
                for source, sink in ((client, server), (server, client)):
                    nursery.start_soon(self._pass_on, source, sink, nursery.cancel_scope)
        finally:
            self._open.pop(client, None)
            self._half_closed -= {client, server}
            client.socket.close()
            server.socket.close()

    async def _pass_on(self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
        n_left = self.rng.randint(1, self.max_bytes) if self.max_bytes else None
        with suppress(*BROKEN):
            while received := await source.receive_some(_READ_BYTES):
                await trio.sleep(self.delay_s)
                if self.holds and self.holds in received and sink in self._open:
                    self.holds = b""
                    self.is_holding.set()
                    await self._lets_go.wait()
                await self._moves.wait()
                if n_left is not None and len(received) >= n_left:
                    await sink.send_all(received[:n_left])
                    self.n_cut += 1
                    break
                n_left = n_left and n_left - len(received)
                if sink not in self._half_closed:
                    await sink.send_all(received)
        scope.cancel()


@asynccontextmanager
async def running(*proxies: Proxy) -> AsyncIterator[None]:
    """Serve at each proxy's port for the length of the block."""
    async with trio.open_nursery() as nursery:
        for proxy in proxies:
            listeners = await trio.open_tcp_listeners(proxy.port, host="127.0.0.1")
            await nursery.start(trio.serve_listeners, proxy.serve, listeners)
        yield
        nursery.cancel_scope.cancel()
