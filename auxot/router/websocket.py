"""The router's end of a worker's WebSocket (RFC 6455), on the sans-I/O server of the `websockets` package.

Its parser costs 40 us of CPU a message where hypercorn's costs 74, because there is no task switch in it: one read of
the socket gives every message in it; plain messages go past it, see `frames`. Writes are tried at once; see
`connection`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import Event, State
from websockets.server import ServerProtocol

from auxot.router.connection import Connection, Outlet, OutletFullError
from auxot.router.frames import FrameCutter, read_text, text_frame

HELLO_BYTES = 64 * 1024  # until the key is verified nobody may send more in a message
STRANGER_BYTES = 2 * HELLO_BYTES  # and no more than this in all
CLOSE_GOING_AWAY = 1001
CLOSE_POLICY_VIOLATION = 1008
CLOSE_TRY_AGAIN_LATER = 1013
_CLOSE_TIMEOUT_S = 1.0
_HEAD_END = b"\r\n\r\n"

_SILENT = logging.getLogger("auxot.websocket")  # the library logs garbage from strangers; we log what matters
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False


class SocketClosedError(Exception):
    """The worker's connection is over: closed by either side, broken, or against the protocol."""


class WorkerSocket:
    """One accepted WebSocket. One task calls `receive`, one runs `drain`; anybody may `send`."""

    def __init__(self, connection: Connection, protocol: ServerProtocol, early: bytes) -> None:
        self._connection = connection
        self._protocol = protocol
        self._outlet = Outlet(connection, limit_bytes=HELLO_BYTES)
        self._fragments: bytearray | None = None  # of the message that is not whole; many may be empty
        self._cutter = FrameCutter(HELLO_BYTES)
        self._early = early  # what came behind the handshake in the same read
        self._n_bytes_left: int | None = STRANGER_BYTES
        self.on_trusted: Callable[[], None] = _nothing

    @property
    def address(self) -> str:
        """The address of the other end, "" if that is unknown."""
        return self._connection.address

    def trust(self, *, max_message_bytes: int, max_outgoing_bytes: int) -> None:
        """Lift the limits that hold for strangers."""
        self._n_bytes_left = None
        self.on_trusted()
        self._protocol.max_message_size = self._cutter.max_bytes = max_message_bytes
        self._outlet.limit_bytes = max_outgoing_bytes

    async def receive(self) -> list[bytes]:
        """Return the payloads of all messages of the next read, in order; may be empty.

        Raises:
            SocketClosedError: nothing more will come.
        """
        if self._early:
            early, self._early = self._early, b""
            await trio.lowlevel.checkpoint()
            return self._read(early)
        if self._protocol.state is not State.OPEN:
            raise SocketClosedError
        try:
            received = await self._connection.receive_some()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise SocketClosedError from exc
        if not received:
            self._protocol.receive_eof()
            return self._read_events()
        self._count(len(received))
        return self._read(received)

    def send(self, payload: bytes) -> None:
        """Send one text message without blocking; a worker that does not read is dropped."""
        if self._protocol.state is State.OPEN:
            self._write(text_frame(payload))

    async def drain(self) -> None:
        """Write what the kernel did not take; runs as long as the connection."""
        await self._outlet.drain()

    async def close(self, code: int, reason: str) -> None:
        """Send a close frame and what waits, for a second at most. Safe to call in any state."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason)
            self._flush()
            self._outlet.close()
            with trio.move_on_after(_CLOSE_TIMEOUT_S, shield=True):
                await self._outlet.drain()

    def abort(self) -> None:
        """Drop the connection now."""
        self._connection.abort()

    def _read(self, received: bytes) -> list[bytes]:
        """Return the messages of some bytes of the stream: plain ones are read here, of all else the library knows."""
        messages: list[bytes] = []
        for frame in self._cutter.cut(received):
            is_between = self._fragments is None and self._protocol.state is State.OPEN
            text = read_text(frame) if is_between else None
            if text is not None:
                messages.append(text)
            else:
                self._protocol.receive_data(frame)
                messages += self._read_events()
        return messages

    def _read_events(self) -> list[bytes]:
        messages = self._messages(self._protocol.events_received())
        self._flush()  # a pong, or the answer to a close frame
        return messages

    def _messages(self, frames: list[Event]) -> list[bytes]:
        """Return the messages of the frames that were parsed, fragments put together."""
        messages: list[bytes] = []
        for frame in frames:
            if not isinstance(frame, Frame) or frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                continue
            if frame.fin and self._fragments is None:
                messages.append(bytes(frame.data))
                continue
            if self._fragments is None:
                self._fragments = bytearray()
            self._fragments += frame.data
            if frame.fin:
                messages.append(bytes(self._fragments))
                self._fragments = None
        return messages

    def _count(self, n_bytes: int) -> None:
        """Drop a stranger who talks on: each small frame costs more to read than to send."""
        if self._n_bytes_left is not None:
            self._n_bytes_left -= n_bytes
            if self._n_bytes_left < 0:
                self._connection.abort()
                raise SocketClosedError

    def _flush(self) -> None:
        outgoing = b"".join(self._protocol.data_to_send())
        if outgoing:
            self._write(outgoing)

    def _write(self, outgoing: bytes) -> None:
        try:
            self._outlet.write(outgoing)
        except OutletFullError:
            self._connection.abort()


def _nothing() -> None:
    """Do nothing."""


async def accept_worker(connection: Connection) -> WorkerSocket | None:
    """Answer the handshake of RFC 6455; None when it was refused or the peer left.

    The caller owns the deadline. Any Origin is accepted: workers are no browsers, and the key is in `hello`.
    """
    protocol = ServerProtocol(max_size=HELLO_BYTES, logger=_SILENT)
    events: list[Event] = []
    head, early = b"", b""  # what comes behind the head is not for the protocol's parser alone
    while not events:
        received = await connection.receive_some()
        if not received:
            return None
        head += received
        _, _, early = head.partition(_HEAD_END)
        protocol.receive_data(received[: len(received) - len(early)])
        if protocol.handshake_exc is not None:
            return None
        events = protocol.events_received()
    request = events[0]
    if not isinstance(request, Request):
        return None
    protocol.send_response(protocol.accept(request))
    await connection.write(b"".join(protocol.data_to_send()))
    if protocol.state is not State.OPEN:
        return None
    return WorkerSocket(connection, protocol, early)
