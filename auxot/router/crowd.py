"""The open connections, and which of them must go: when there are too many, and when a peer has left unnoticed.

    admitted -> idle <-> engaged (a request is being answered, or it is a worker whose key is good) -> gone

Idle is whoever has not asked yet: a keep-alive connection between two requests, a stranger who sends headers byte by
byte, a socket that was opened and forgotten. Beyond `max_idle` of them the one that has been idle for longest is
dropped. An honest client is idle for a moment, and one whose keep-alive connection is closed opens another; so nobody
is kept out by thousands of connections that ask nothing. Beyond `max_open` in all, which the process has descriptors
for, the same happens, and with nobody idle the newcomer is turned away.

A connection whose peer has closed is normally ended by whoever reads from it. Where the reader waits for something
else (HTTP/2 without a window, a pipelined request), nobody would notice: those are looked for every LOOK_S.
"""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from auxot.core.logs import Logger
    from auxot.router.connection import Connection

MAX_IDLE = 1000  # each may hold 32 KiB of headers
MAX_DESCRIPTORS = 65_536
RESERVED_DESCRIPTORS = 64  # for Redis, signals, listeners, log files
LOOK_S = 5.0
VANISHED_S = 60  # a peer that has acknowledged nothing for so long is gone
_TCP_ESTABLISHED = 1  # linux/tcp_states.h; the first byte of TCP_INFO


def raise_descriptor_limit() -> None:
    """Let this process have as many descriptors as it may, up to MAX_DESCRIPTORS: the usual limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # macOS has another limit beside
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def look_for_vanished_peers(listener: trio.socket.SocketType) -> None:
    """Have the kernel ask silent peers whether they are there, and give up those that take nothing (Linux).

    A machine that was switched off says no good-bye. What is set on a listener holds for all that it accepts.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": VANISHED_S // 2, "TCP_KEEPINTVL": VANISHED_S // 6, "TCP_KEEPCNT": 3}
    for name, setting in {**options, "TCP_USER_TIMEOUT": VANISHED_S * 1000}.items():
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), setting)


def open_limit() -> int:
    """Return how many connections this process has descriptors for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, MAX_DESCRIPTORS)
    return max(RESERVED_DESCRIPTORS, limit - RESERVED_DESCRIPTORS)


@attrs.define(eq=False)
class _Place:
    """One connection's place in the crowd."""

    connection: Connection
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    n_engagements: int = 0
    seems_gone: bool = False


@attrs.define(eq=False)
class Crowd:
    """All connections of one front. Owned by the router's event loop."""

    log: Logger
    max_open: int
    max_idle: int
    n_dropped: int = 0
    _places: dict[Connection, _Place] = attrs.field(factory=dict)
    _idle: dict[Connection, None] = attrs.field(factory=dict)  # the longest idle first

    @contextmanager
    def admit(self, connection: Connection) -> Iterator[bool]:
        """Count a connection for the length of the block, which is cancelled when the connection must go.

        Yields:
            Whether there is room for it.
        """
        if len(self._places) >= self.max_open and not self._drop_longest_idle():
            yield False
            return
        place = self._places[connection] = _Place(connection)
        self._be_idle(place)
        try:
            with place.scope:
                yield True
        finally:
            del self._places[connection]
            self._idle.pop(connection, None)

    def engage(self, connection: Connection) -> None:
        """Keep a connection, whatever else comes, until `disengage` was called as often."""
        place = self._places.get(connection)
        if place is not None:
            place.n_engagements += 1
            self._idle.pop(connection, None)

    def disengage(self, connection: Connection) -> None:
        """Take back one `engage`."""
        place = self._places.get(connection)
        if place is not None:
            place.n_engagements -= 1
            if not place.n_engagements:
                self._be_idle(place)

    def is_engaged(self, connection: Connection) -> bool:
        """Whether a connection is engaged."""
        place = self._places.get(connection)
        return place is not None and place.n_engagements > 0

    async def watch(self) -> None:
        """Drop connections whose peers have closed them, for ever."""
        while True:
            await trio.sleep(LOOK_S)
            for place in list(self._places.values()):
                is_gone = _is_closed_by_peer(place.connection.socket)
                if is_gone and place.seems_gone:  # whoever reads has had LOOK_S to notice
                    self._drop(place)
                place.seems_gone = is_gone

    def _be_idle(self, place: _Place) -> None:
        self._idle[place.connection] = None
        if len(self._idle) > self.max_idle:
            self._drop_longest_idle()

    def _drop_longest_idle(self) -> bool:
        for connection in self._idle:
            self._drop(self._places[connection])
            return True
        return False

    def _drop(self, place: _Place) -> None:
        self._idle.pop(place.connection, None)
        place.connection.abort()
        place.scope.cancel()
        self.n_dropped += 1
        if self.n_dropped & (self.n_dropped - 1) == 0:  # the first, second, fourth, ...: a flood must not fill the log
            self.log.warning("connection.dropped", n_dropped=self.n_dropped, n_open=len(self._places))


def _is_closed_by_peer(sock: trio.socket.SocketType) -> bool:
    """Whether the peer has closed its side, also when bytes before that are unread; False where nothing tells."""
    tcp_info = getattr(socket, "TCP_INFO", None)
    if tcp_info is None:
        return False
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, tcp_info, 1)[0] != _TCP_ESTABLISHED
    except OSError:
        return True
