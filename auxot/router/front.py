"""The accept loop: worker WebSockets are peeled off before hypercorn, everything else goes to it.

    accepted socket -> (handed to a sibling, or from one) -> first line read (5 s)
        -> `GET /ws`: handshake, then `serve_worker(WorkerSocket)`
        '> anything else: hypercorn (`http_server`), the bytes read replayed

Why not hypercorn alone: a task switch costs more than all else that happens to a token, and its WebSocket and send
paths take eight of them; and its `send_all` is shielded without a deadline, so one client that stops reading outlives
every cancellation. Here every write is tried at once, without blocking; what the kernel does not take waits in a
bounded buffer for one writer task. HTTP parsing, keep-alive, HTTP/1.0 and HTTP/2 stay hypercorn's.

One of several processes looks at the first bytes of a connection, without reading them, and hands it to a sibling that
can serve it better, once; see `siblings`.

hypercorn 0.18's WorkerContext and Lifespan are used although they are not documented: the version is
pinned, and tests/daemon/test_front.py says what must still hold when it moves.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import wrap_app

from auxot.router.activation import BACKLOG
from auxot.router.connection import Connection
from auxot.router.crowd import MAX_IDLE, Crowd, look_for_vanished_peers, open_limit
from auxot.router.http_server import HttpServer
from auxot.router.idle_timer import IDLE_TIMEOUT_S
from auxot.router.websocket import WorkerSocket, accept_worker

if TYPE_CHECKING:
    from auxot.core.logs import Logger
    from auxot.router.siblings import Siblings

HEAD_TIMEOUT_S = 5.0  # for the first line of a connection, and for a WebSocket handshake
MAX_HEADERS_BYTES = 32 * 1024
CLOSE_TIMEOUT_S = 3.0  # for the last bytes, when everything ends
_WORKER_LINES = (b"GET /ws ", b"GET /ws?")

ServeWorker = Callable[[WorkerSocket], Awaitable[None]]


@attrs.frozen(kw_only=True)
class FrontPhases:
    """How far the shutdown is.

    Attributes:
        draining: requests are still served, but whoever sends them is asked to go elsewhere.
        quiet: the listeners are closed.
        refusing: requests on open connections are refused. That is with `quiet`, unless somebody else keeps the sockets
            open for the next router: then nobody who has got in is turned away.
        closing: every connection that is left ends.
    """

    draining: trio.Event = attrs.field(factory=trio.Event)
    quiet: trio.Event = attrs.field(factory=trio.Event)
    refusing: trio.Event = attrs.field(factory=trio.Event)
    closing: trio.Event = attrs.field(factory=trio.Event)


@attrs.frozen(kw_only=True)
class Site:
    """Where connections come from.

    Attributes:
        host: the address to listen on.
        port: its port; 0 for any free one.
        sockets: listens already, in place of host and port; closed by the front like its own.
        siblings: processes that connections are handed to and come from.
    """

    host: str
    port: int
    sockets: Sequence[socket.socket] = ()
    siblings: Siblings | None = None


@attrs.define
class _Front:
    app: Any
    config: Config
    context: WorkerContext
    state: dict[str, Any]
    serve_worker: ServeWorker
    leaving: trio.Event
    log: Logger
    crowd: Crowd
    siblings: Siblings | None

    async def serve_connection(self, stream: trio.SocketStream) -> None:
        """Serve a connection until it ends or a sibling has it; nothing that a peer does gets out of here."""
        connection = Connection(stream)
        await self._serve(stream, connection, may_move=True)

    async def serve_adopted(self, stream: trio.SocketStream, *, is_worker: bool) -> None:
        """Serve a connection that a sibling has accepted."""
        connection = Connection(stream)
        if self.siblings is not None:
            self.siblings.keep(connection, is_worker=is_worker)
        await self._serve(stream, connection, may_move=False)

    async def _serve(self, stream: trio.SocketStream, connection: Connection, *, may_move: bool) -> None:
        try:
            with self.crowd.admit(connection) as has_room:
                if has_room:
                    await self._serve_behind_wall(stream, connection, may_move=may_move)
        finally:
            connection.abort()
            if self.siblings is not None:
                self.siblings.forget(connection)

    async def _serve_behind_wall(self, stream: trio.SocketStream, connection: Connection, *, may_move: bool) -> None:
        try:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line = b""
            with trio.move_on_after(HEAD_TIMEOUT_S):
                if may_move and await self._is_moved(connection):
                    return
                line = await connection.peek_line()
            if line:
                await self._serve_first_line(connection, line)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except Exception:  # the wall of one connection: a fault in it must not end the others
            self.log.exception("connection.failed")

    async def _is_moved(self, connection: Connection) -> bool:
        """Hand a connection to the sibling that it is for, if there is one; else it is counted as ours."""
        if self.siblings is None:
            return False
        first = await connection.glimpse(len(_WORKER_LINES[0]))
        return self.siblings.place(connection, connection.socket, is_worker=first in _WORKER_LINES)

    async def _serve_first_line(self, connection: Connection, line: bytes) -> None:
        if line.startswith(_WORKER_LINES):
            worker_socket = None
            with trio.move_on_after(HEAD_TIMEOUT_S):
                worker_socket = await accept_worker(connection)
            if worker_socket is not None:
                worker_socket.on_trusted = partial(self.crowd.engage, connection)
                await self.serve_worker(worker_socket)
        else:
            server = HttpServer(self.app, self.config, self.context, self.state, connection, leaving=self.leaving)
            await server.run()


async def serve_front(
    *,
    app: Any,
    serve_worker: ServeWorker,
    site: Site,
    phases: FrontPhases,
    log: Logger,
    task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept and serve connections until `phases.quiet`, keep the open ones until `phases.closing`.

    Args:
        app: the ASGI application.
        serve_worker: serves a worker's WebSocket until it is over.
        site: where they come from.
        phases: moved on by the caller.
        log: where a connection's crash is told.
        task_status: started with the bound (address, port) pairs: the front is ready.

    Raises:
        OSError: the address cannot be bound.
    """
    config = _hypercorn_config()
    max_open = open_limit()
    crowd = Crowd(log, max_open=max_open, max_idle=min(MAX_IDLE, max_open // 2))
    wrapped = wrap_app(_engaging(app, crowd, site.siblings), config.wsgi_max_body_size, "asgi")
    context = WorkerContext(None)
    state: dict[str, Any] = {}
    lifespan = Lifespan(wrapped, config, state)
    front = _Front(wrapped, config, context, state, serve_worker, phases.quiet, log, crowd, site.siblings)
    async with trio.open_nursery() as lifespan_nursery:
        await lifespan_nursery.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        lifespan_nursery.start_soon(crowd.watch)
        listeners = _inherited(site.sockets) or await trio.open_tcp_listeners(
            site.port, host=site.host, backlog=BACKLOG
        )
        await _accept(front, listeners, phases=phases, are_ours=not site.sockets, task_status=task_status)
        await lifespan.wait_for_shutdown()
        lifespan_nursery.cancel_scope.cancel()


async def _accept(
    front: _Front,
    listeners: list[trio.SocketListener],
    *,
    phases: FrontPhases,
    are_ours: bool,
    task_status: trio.TaskStatus[list[tuple[str, int]]],
) -> None:
    """Run the listeners inside the block of their connections: these end later."""
    for listener in listeners:
        look_for_vanished_peers(listener.socket)
    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as adopting:
            if front.siblings is not None:
                front.siblings.open()
                adopting.start_soon(_adopt, front, front.siblings, connections)
                adopting.start_soon(_leave_in_time, front.siblings, phases)
            async with trio.open_nursery() as accepting:
                serve = partial(trio.serve_listeners, front.serve_connection, listeners, handler_nursery=connections)
                accepting.start_soon(serve)
                task_status.started([listener.socket.getsockname()[:2] for listener in listeners])
                await phases.quiet.wait()
                # Trio closes what it listens on; who has connected already is served, unless the next router does it.
                ours = [trio.SocketListener(listener.socket.dup()) for listener in listeners if are_ours]
                accepting.cancel_scope.cancel()
            for listener in ours:
                await _accept_waiting(front, listener, connections)
            await phases.closing.wait()
            adopting.cancel_scope.cancel()
        connections.cancel_scope.deadline = trio.current_time() + CLOSE_TIMEOUT_S


async def _accept_waiting(front: _Front, listener: trio.SocketListener, connections: trio.Nursery) -> None:
    """Accept who has connected, then close the listener: that resets all others, perhaps with a request under way."""
    poll = select.poll()
    poll.register(listener.socket.fileno(), select.POLLIN)
    with suppress(OSError), trio.move_on_after(CLOSE_TIMEOUT_S):
        while poll.poll(0):
            connections.start_soon(front.serve_connection, await listener.accept())
    await listener.aclose()


async def _adopt(front: _Front, siblings: Siblings, connections: trio.Nursery) -> None:
    """Serve what siblings hand over, for ever."""
    while True:
        for sock, is_worker in await siblings.take():
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            connections.start_soon(partial(front.serve_adopted, stream, is_worker=is_worker))


async def _leave_in_time(siblings: Siblings, phases: FrontPhases) -> None:
    """Take part no more from the moment that this process is told to stop."""
    await phases.draining.wait()
    siblings.leave()


def _inherited(sockets: Sequence[socket.socket]) -> list[trio.SocketListener]:
    return [trio.SocketListener(trio.socket.from_stdlib_socket(one)) for one in sockets]


def _engaging(app: Any, crowd: Crowd, siblings: Siblings | None) -> Any:
    """Return the application; a connection counts as engaged while it answers a request of it."""
    begin, end = (crowd.engage, crowd.disengage) if siblings is None else _told(siblings, crowd)

    async def engaging(scope: Any, receive: Any, send: Any) -> None:
        connection = scope["state"].get("connection") if "state" in scope else None  # none in the lifespan's
        if connection is None:
            await app(scope, receive, send)
            return
        begin(connection)
        try:
            await app(scope, receive, send)
        finally:
            end(connection)

    return engaging


def _told(siblings: Siblings, crowd: Crowd) -> tuple[Callable[[Connection], None], Callable[[Connection], None]]:
    """Return what engages and disengages a connection where siblings are to know."""

    def begin(connection: Connection) -> None:
        crowd.engage(connection)
        siblings.keep(connection, is_worker=False)

    def end(connection: Connection) -> None:
        crowd.disengage(connection)
        if not crowd.is_engaged(connection):
            siblings.forget(connection)

    return begin, end


def _hypercorn_config() -> Config:
    config = Config()
    config.keep_alive_timeout = IDLE_TIMEOUT_S
    config.keep_alive_max_requests = 1_000_000  # the default closes a busy client's connection every 1,000
    config.h11_max_incomplete_size = MAX_HEADERS_BYTES
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    return config
