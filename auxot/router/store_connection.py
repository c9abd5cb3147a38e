"""One connection to Redis that many tasks share, from the end of its handshake until it is lost.

    callers -> line of waiters + outgoing bytes -> writer task -> socket
    callers <- first waiter of the line <- reader task <- socket            pushes -> on_message

Redis answers in the order of the commands, so the n-th reply belongs to the n-th command: a reply needs no name, and
what is written by many tasks in one turn goes out in one piece. A caller that is cancelled leaves its place in the
line empty; its reply is read and dropped.

Invariants: the line holds at most MAX_WAITERS callers and the outgoing bytes are at most MAX_OUT_BYTES and one more
call; beyond that calls are refused. When the connection is lost every waiter is told, and later calls are refused at
once. A third task watches: commands wait and neither byte goes nor comes for REPLY_DEADLINE_S: lost; nothing happens
for KEEPALIVE_S: PING, so that a dead peer is noticed also when nobody asks.

Protocol: https://github.com/redis/redis-specifications/blob/master/protocol/RESP3.md
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import hiredis
import outcome
import trio

from auxot.core.errors import StoreError, StoreLostError
from auxot.router.store import Command

MAX_WAITERS = 20_000  # tasks, not commands; each is a request of this router, which has its own bounds below that
MAX_OUT_BYTES = 256 * 1024 * 1024  # several of the largest jobs
REPLY_DEADLINE_S = 5
KEEPALIVE_S = 15
_TICK_S = 1.0  # how often the watch looks; the two above are counted in it
_READ_BYTES = 64 * 1024
_WRITE_BYTES = 256 * 1024  # written at once: each piece counts as a sign of life

NOT_YET = object()  # what a reader of `new_reader` returns while a reply is incomplete
PUSH = hiredis.PushNotification


def new_reader() -> hiredis.Reader:
    """Return a parser of replies. Error replies become StoreError values; `False` can be a reply, NOT_YET is none."""
    return hiredis.Reader(replyError=StoreError, protocolError=BrokenProtocolError, notEnoughData=NOT_YET)


def pack(command: Command) -> bytes:
    """Return the bytes of a command."""
    packed: bytes = hiredis.pack_command(tuple(command))  # type: ignore[arg-type]  # its stub says: one argument
    return packed


def raise_error_reply(replies: Sequence[Any]) -> None:
    """Raise the first error among replies, without the values of commands that an old server quotes."""
    for reply in replies:
        if isinstance(reply, StoreError):
            raise StoreError(str(reply).split(", with args", 1)[0])


class BrokenProtocolError(Exception):
    """The server sent what is not RESP, or a reply that nobody waits for."""


class _Waiter:
    """A place in the line. `task` is None when its caller has left."""

    __slots__ = ("n_missing", "replies", "task")

    def __init__(self, *, task: trio.lowlevel.Task | None, n_missing: int) -> None:
        self.task = task
        self.n_missing = n_missing
        self.replies: list[Any] = []


class Connection:
    """One connection, shared. `run` must be running for calls to be answered.

    Args:
        stream: connected and logged in; owned from here on, closed when `run` ends.
        reader: of `new_reader`; may hold bytes that came with the handshake's replies.
        label: the server's address for error texts, without a password.
        on_message: called with the channel of each published message; must not raise or block.
    """

    def __init__(
        self, *, stream: trio.abc.Stream, reader: hiredis.Reader, label: str, on_message: Callable[[bytes], None]
    ) -> None:
        self._stream = stream
        self._reader = reader
        self._label = label
        self._on_message = on_message
        self._line: deque[_Waiter] = deque()
        self._out: list[bytes] = []
        self._n_out_bytes = 0
        self._writer_lot = trio.lowlevel.ParkingLot()
        self._n_signs_of_life = 0
        self._lost_because: str | None = None

    async def call(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one piece and return their replies, error replies as StoreError values.

        Cancelled before it has begun: nothing is sent. Cancelled later: the commands run, the replies are dropped.

        Raises:
            StoreLostError: the connection is lost, or too much waits already.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if not commands:
            return []
        self._refuse_if_lost_or_full()
        waiter = _Waiter(task=trio.lowlevel.current_task(), n_missing=len(commands))
        self._post(waiter, commands)

        def leave(_: object) -> trio.lowlevel.Abort:
            waiter.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        replies: list[Any] = await trio.lowlevel.wait_task_rescheduled(leave)
        return replies

    async def run(self) -> str:
        """Carry calls and replies until the connection is lost; return why. Always closes the stream."""
        try:
            async with trio.open_nursery() as nursery:
                for part in (self._write, self._read, self._watch):
                    nursery.start_soon(self._until_lost, part, nursery.cancel_scope)
        finally:
            self._lose("closed")
            await trio.aclose_forcefully(self._stream)
        return self._lost_because or ""

    async def _until_lost(self, part: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        try:
            await part()
        except (OSError, trio.BrokenResourceError, BrokenProtocolError) as exc:
            self._lose(str(exc) or type(exc).__name__)
            scope.cancel()

    def _lose(self, reason: str) -> None:
        if self._lost_because is None:
            self._lost_because = reason
        self._out.clear()
        while self._line:
            _wake(self._line.popleft(), outcome.Error(self._lost_error()))

    def _lost_error(self) -> StoreLostError:
        return StoreLostError(f"the connection to Redis at {self._label} is lost: {self._lost_because}")

    def _refuse_if_lost_or_full(self) -> None:
        if self._lost_because is not None:
            raise self._lost_error()
        if len(self._line) >= MAX_WAITERS or self._n_out_bytes >= MAX_OUT_BYTES:
            raise StoreLostError(f"Redis at {self._label} does not keep up: {len(self._line)} callers wait")

    def _post(self, waiter: _Waiter, commands: Sequence[Command]) -> None:
        packed = [pack(command) for command in commands]
        self._line.append(waiter)
        if not self._out:  # else the writer knows
            self._writer_lot.unpark()
        self._out += packed
        self._n_out_bytes += sum(map(len, packed))

    async def _write(self) -> None:
        while True:
            if not self._out:
                await self._writer_lot.park()
            out, self._out = self._out, []
            with memoryview(b"".join(out)) as view:
                del out  # a large job is in memory once while it goes out, not twice
                for start in range(0, len(view), _WRITE_BYTES):
                    piece = view[start : start + _WRITE_BYTES]
                    await self._stream.send_all(piece)
                    self._n_out_bytes -= len(piece)
                    self._n_signs_of_life += 1

    async def _read(self) -> None:
        while True:
            self._take_replies()
            received = await self._stream.receive_some(_READ_BYTES)
            if not received:
                raise trio.BrokenResourceError("closed by the server")
            self._n_signs_of_life += 1
            self._reader.feed(bytes(received))

    def _take_replies(self) -> None:
        line, gets = self._line, self._reader.gets
        while (reply := gets()) is not NOT_YET:
            if type(reply) is PUSH and reply[0] != b"subscribe":  # that one is the reply to SUBSCRIBE
                if reply[0] == b"message":
                    self._on_message(reply[1])
                continue
            if not line:
                raise BrokenProtocolError("a reply that nobody waits for")
            waiter = line[0]
            waiter.replies.append(reply)
            waiter.n_missing -= 1
            if not waiter.n_missing:
                line.popleft()
                _wake(waiter, outcome.Value(waiter.replies))

    async def _watch(self) -> None:
        n_seen = n_idle = n_stalled = 0
        while True:
            await trio.sleep(_TICK_S)
            is_quiet = self._n_signs_of_life == n_seen
            n_seen = self._n_signs_of_life
            n_idle = n_idle + 1 if is_quiet and not self._line else 0
            n_stalled = n_stalled + 1 if is_quiet and self._line else 0
            if n_stalled * _TICK_S >= REPLY_DEADLINE_S:
                raise trio.BrokenResourceError(f"no reply for {REPLY_DEADLINE_S} s")
            if n_idle * _TICK_S >= KEEPALIVE_S:
                self._post(_Waiter(task=None, n_missing=1), (("PING",),))


def _wake(waiter: _Waiter, result: outcome.Outcome[Any]) -> None:
    if waiter.task is not None:
        task, waiter.task = waiter.task, None
        trio.lowlevel.reschedule(task, result)
