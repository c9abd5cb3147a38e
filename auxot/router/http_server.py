"""hypercorn's side of one HTTP connection, at a lower price: no task switch that is not needed.

    socket -> HttpServer._read_data -> hypercorn (h11, h2) -> Messages -> application
    socket <- Connection.write      <- hypercorn           <-----------------'

hypercorn 0.18 passes the parts of a request to the application through a Trio channel, each of whose sends and
receives is a turn of the event loop, 10 us of CPU; and writes under a shield without a deadline, so that one client
that stops reading would outlive every cancellation. What is replaced here are TCPServer's and TaskGroup's methods of
that version, which are not documented: it is pinned, and tests/daemon/test_front.py says what must still hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.trio.task_group import TaskGroup, _handle
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from auxot.router.asgi import TAKE_NOW
from auxot.router.idle_timer import LINGER_S, IdleTimer

if TYPE_CHECKING:
    from hypercorn.config import Config
    from hypercorn.trio.worker_context import WorkerContext

    from auxot.router.connection import Connection

FAREWELL_S = 1.0  # after the last answer, for its client to take it and to close
MAX_MESSAGES = 10  # that wait for the application, each at most what one read gave: then the client must wait


class HttpServer(TCPServer):
    """One connection; `run` serves it until it is over.

        open -> our side is closed: after the last answer, or when the connection is idle and no request is on its way
             -> what the peer still sends is dropped, until it closes its side or the idle timer rings once more

    Closed at once, with bytes of the peer unread or on their way, the kernel would send a reset, and a reset destroys
    what the peer has not read yet of the last answer.
    """

    stream: Any  # a Connection
    idle_task: Any  # an IdleTimer
    protocol: Any  # a ProtocolWrapper, until the end

    def __init__(
        self,
        app: Any,
        config: Config,
        context: WorkerContext,
        state: dict[str, Any],
        connection: Connection,
        *,
        leaving: trio.Event,
    ) -> None:
        shared = ConnectionState({**state, "connection": connection})
        super().__init__(app, config, context, shared, connection)  # type: ignore[arg-type]
        self.idle_task = IdleTimer(leaving)
        self._is_over = False  # our side is closed
        self._was_spared = False

    async def run(self) -> None:
        """Serve the connection, as hypercorn does in the clear."""
        sock = self.stream.socket
        try:
            client, server = (parse_socket_addr(sock.family, name) for name in (sock.getpeername(), sock.getsockname()))
            async with _Requests() as requests:
                self._task_group = requests
                self.protocol = ProtocolWrapper(
                    self.app,
                    self.config,
                    self.context,
                    requests,
                    ConnectionState(self.state),
                    False,
                    client,
                    server,
                    self.protocol_send,
                    "http/1.1",
                )
                await self.protocol.initiate()
                await self.idle_task.restart(requests, self._idle_timeout)
                await self._read_data()
        except OSError:
            pass
        finally:
            await self._close()  # noqa: ASYNC102 -- nothing in it waits; it yields once, when all is closed
            self.protocol = None  # they refer to each other: only the garbage collector would free them

    async def protocol_send(self, event: Event) -> None:
        """Write at once what the kernel takes; a write ends when it is cancelled."""
        connection: Connection = self.stream
        if isinstance(event, RawData):
            if event.data and not connection.keep(event.data):
                await connection.write(event.data)
            return
        await connection.release()
        if isinstance(event, Closed):
            await self._leave(FAREWELL_S)
        elif isinstance(event, Updated) and not self._is_over:
            await super().protocol_send(event)

    async def _read_data(self) -> None:
        """Read to the end, as hypercorn does but for its time limit on each read, which costs a cancel scope.

        The idle timer ends here too: hypercorn 0.18 would hold a closed connection until it rings.
        """
        connection: Connection = self.stream
        with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            while received := await connection.receive_some():
                if not self._is_over:
                    await self.protocol.handle(RawData(received))
            if not self._is_over:
                await self.protocol.handle(RawData(b""))
        await self.protocol.handle(Closed())
        connection.peer_has_left()
        self.idle_task.end()

    async def _idle_timeout(self) -> None:
        """Go one step towards the end: what the idle timer calls.

        A request that has just come in is left to the reader; once, or bytes that are none would do it for ever.
        """
        connection: Connection = self.stream
        if self._is_over:
            await connection.aclose()
        elif connection.has_input() and not self._was_spared:
            self._was_spared = True
        else:
            await self._leave(LINGER_S)

    async def _leave(self, farewell_s: float) -> None:
        """Close our side, and the rest when the idle timer rings."""
        if not self._is_over:
            self._is_over = True
            connection: Connection = self.stream
            connection.end_writing()
            self.idle_task.ring_in(farewell_s)
        await self.protocol.handle(Closed())


class _Requests(TaskGroup):
    """The tasks of a connection's requests."""

    async def spawn_app(self, app: Any, config: Config, scope: Any, send: Any) -> Callable[[Any], Awaitable[None]]:
        """Start the application with one request; return what takes the request's messages."""
        messages = Messages()
        scope[TAKE_NOW] = messages.take_now
        to_thread, from_thread = trio.to_thread.run_sync, trio.from_thread.run
        nursery: Any = self._nursery
        nursery.start_soon(_handle, app, config, scope, messages.receive, send, to_thread, from_thread)
        return messages.put


class Messages:
    """ASGI messages on their way to one application: at most MAX_MESSAGES, and the one that says that all is over."""

    def __init__(self) -> None:
        self._waiting: deque[Any] = deque()
        self._is_over = False
        self._arrived = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()

    async def put(self, message: Any) -> None:
        """Hand a message on; waits only while too many wait. Once all is over messages are dropped."""
        if message["type"].endswith("disconnect"):
            self._is_over = True
            self._room.unpark_all()
        else:
            while len(self._waiting) >= MAX_MESSAGES and not self._is_over:
                await self._room.park()
            if self._is_over:
                return
        self._waiting.append(message)
        self._arrived.unpark()

    async def receive(self) -> Any:
        """Return the next message; waits only while there is none."""
        while not self._waiting:
            await self._arrived.park()
        return self.take_now()

    def take_now(self) -> Any | None:
        """Return the next message, or None if there is none."""
        if not self._waiting:
            return None
        self._room.unpark()
        return self._waiting.popleft()
