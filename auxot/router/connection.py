"""One accepted TCP connection, and the bytes that wait for its peer.

`Connection.write_nowait` is the hot path of the whole router: a worker's reader task writes a client's socket with it,
one system call and no task switch. What the kernel does not take goes through an `Outlet`, which holds a bounded
number of bytes for one writer task; a peer beyond the bound is dropped, alone.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from contextlib import suppress

import trio

from auxot.router.bell import Bell

WRITE_TIMEOUT_S = 60.0  # a peer that has taken nothing by then is gone; a zero window is probed every 51 s at last
PIECE_BYTES = 64 * 1024  # of a write: a peer that takes one in time is slow, not gone
MAX_FIRST_LINE_BYTES = 16 * 1024
RECEIVE_BYTES = 65536


class Connection:
    """One accepted TCP connection, with the bytes already read replayed to the next reader.

    Writes never interleave: `write_nowait` takes nothing while a `write` is under way.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._replay = b""
        self._writing = trio.Lock()
        self._held: list[bytes] | None = None
        self._closed = False
        self._has_left = False
        self._on_left: Callable[[], None] | None = None
        self.socket = stream.socket  # hypercorn reads the addresses from it

    @property
    def address(self) -> str:
        """The peer's address, "" if it has left already."""
        try:
            return str(self.socket.getpeername()[0])
        except OSError:
            return ""

    async def glimpse(self, n_bytes: int) -> bytes:
        """Return the first bytes that have come, at most so many, without reading them; b"" if the peer has left."""
        return await self.socket.recv(n_bytes, socket.MSG_PEEK)

    async def peek_line(self) -> bytes:
        """Return the first line received so far, to be replayed; empty if the peer left or the line is too long."""
        head = b""
        while b"\n" not in head:
            more = await self._stream.receive_some(RECEIVE_BYTES)
            if not more or len(head) > MAX_FIRST_LINE_BYTES:
                return b""
            head += more
        self._replay = head
        return head[: head.index(b"\n")]

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next bytes; b"" at the end of the stream.

        Where a stream of Trio's tries to read and then waits, this waits and then reads: that first try is in vain
        when messages come one by one.

        Raises:
            BrokenResourceError, ClosedResourceError: as a stream of Trio's.
        """
        if self._replay:
            head, self._replay = self._replay, b""
            return head
        if self._closed:
            raise trio.ClosedResourceError
        while True:
            await trio.lowlevel.wait_readable(self.socket)
            try:
                return os.read(self.socket.fileno(), max_bytes or RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError as exc:
                raise trio.BrokenResourceError(str(exc)) from exc

    def write_nowait(self, chunk: bytes) -> int:
        """Write what the kernel takes at once; return how many bytes. Raises OSError when the peer is gone."""
        if self._closed:
            raise BrokenPipeError
        if self._writing.locked():
            return 0
        try:
            return os.write(self.socket.fileno(), chunk)
        except BlockingIOError:
            return 0

    async def write(self, chunk: bytes) -> None:
        """Write all of it. A peer that is gone, or takes nothing for WRITE_TIMEOUT_S, gets its connection aborted.

        Cancelled in the middle, the connection is aborted too: half a chunk cannot be taken back.
        """
        try:
            sent = self.write_nowait(chunk)
            if sent == len(chunk):
                return
            async with self._writing:
                for start in range(sent, len(chunk), PIECE_BYTES):
                    with trio.fail_after(WRITE_TIMEOUT_S):
                        await self._stream.send_all(memoryview(chunk)[start : start + PIECE_BYTES])
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            self.abort()
        except BaseException:
            self.abort()
            raise

    send_all = write  # hypercorn's name for it

    def peer_has_left(self) -> None:
        """Note that nothing more will come: whoever reads has seen the end."""
        self._has_left = True
        if self._on_left is not None:
            self._on_left()

    def when_peer_leaves(self, call: Callable[[], None] | None) -> None:
        """Have a function called when the peer leaves, or now if it has left; None: no longer. One at a time."""
        self._on_left = call
        if self._has_left and call is not None:
            call()

    def hold(self) -> None:
        """Keep what hypercorn writes until `release`, so that head and first event leave in one packet."""
        self._held = []

    def keep(self, chunk: bytes) -> bool:
        """Take a chunk into the held ones; False when nothing is being held."""
        if self._held is None:
            return False
        self._held.append(chunk)
        return True

    async def release(self) -> None:
        """Write what was held."""
        held, self._held = self._held, None
        if held:
            await self.write(b"".join(held))

    def has_input(self) -> bool:
        """Whether the kernel has something for us that nobody has read yet, be it the end."""
        if self._closed:
            return False
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def end_writing(self) -> None:
        """Tell the peer that nothing more will come, without waiting; what it sends can still be read."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    async def send_eof(self) -> None:
        """Tell the peer that nothing more will come."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the connection."""
        self._closed = True
        await self._stream.aclose()

    def abort(self) -> None:
        """Drop the connection now; its reader wakes with ClosedResourceError."""
        self._closed = True
        self.socket.close()


class OutletFullError(Exception):
    """The peer reads too slowly: its buffer is full. The owner drops the peer."""


class Outlet:
    """Bytes on their way to one peer: written at once, or held up to a bound until `drain` gets them out."""

    def __init__(self, connection: Connection, *, limit_bytes: int) -> None:
        self._connection = connection
        self.limit_bytes = limit_bytes
        self._backlog: list[bytes] = []
        self._held_bytes = 0
        self._closed = False
        self._bell = Bell()

    def write(self, chunk: bytes) -> None:
        """Write without blocking. A peer that is gone is left for its reader to notice.

        The bound is on what waits already: one large write, such as the end of a long answer, is taken by a peer that
        has kept up.

        Raises:
            OutletFullError: `limit_bytes` or more wait.
        """
        if not self._held_bytes:
            try:
                sent = self._connection.write_nowait(chunk)
            except OSError:
                return
            if sent == len(chunk):
                return
            chunk = chunk[sent:]
        if self._held_bytes >= self.limit_bytes:
            raise OutletFullError
        self._backlog.append(chunk)
        self._held_bytes += len(chunk)
        self._bell.ring()

    def close(self) -> None:
        """Say that nothing more will be written: `drain` returns when all is out."""
        self._closed = True
        self._bell.ring()

    @property
    def is_done(self) -> bool:
        """Whether `close` was called and everything is out."""
        return self._closed and not self._backlog

    async def wait(self) -> None:
        """Wait until something waits to be written, or `close` was called; cancel-safe."""
        while not self._backlog and not self._closed:
            await self._bell.wait()

    async def write_backlog(self) -> None:
        """Write what waits. Cancelled in the middle of it, the connection is aborted, see `Connection.write`."""
        while self._backlog:
            chunk = b"".join(self._backlog)
            self._backlog.clear()
            await self._connection.write(chunk)
            self._held_bytes -= len(chunk)

    async def drain(self) -> None:
        """Write what waits, until `close` was called and nothing is left. The only writer beside `write`."""
        while not self.is_done:
            await self.wait()
            await self.write_backlog()
