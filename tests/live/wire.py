"""A TCP wire between a worker and its router that does what wires do: it is cut, or it goes dead without a word.

A trap springs when a number of bytes has come from the worker. Nothing behind them reaches the router before the trap
has done its work: whatever the machine's load, the answers that were under way then are not over.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import attrs

_PIECE_BYTES = 4096  # small: a trap springs between two of them


@attrs.define(eq=False)
class _Link:
    """One connection through the wire: the worker's end and the router's."""

    worker: socket.socket
    router: socket.socket
    is_dead: bool = False  # what is written goes nowhere, and the end of one side is not told to the other

    def cut(self) -> None:
        for end in (self.worker, self.router):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@attrs.define(eq=False)
class Wire:
    """The wire; `port` is where the worker connects to. `n_bytes` have come from the worker so far."""

    router_port: int
    port: int = 0
    n_bytes: int = 0
    has_sprung: bool = False
    _trap_at: int | None = None
    _spring: Callable[[], None] = lambda: None
    _links: list[_Link] = attrs.field(factory=list)
    _threads: list[threading.Thread] = attrs.field(factory=list)
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    def set_trap(self, *, after_bytes: int, spring: Callable[[], None]) -> None:
        """Call `spring` once so many more bytes have come from the worker."""
        with self._lock:
            self._trap_at, self._spring, self.has_sprung = self.n_bytes + after_bytes, spring, False

    def remove_trap(self) -> None:
        """Let a trap that has not sprung never spring."""
        with self._lock:
            self._trap_at = None

    def cut(self) -> None:
        """Close every connection, with what is in it."""
        for link in self._links:
            link.cut()

    def go_dead(self) -> None:
        """Lose everything that is written to the connections of now; both sides take them for open."""
        for link in self._links:
            link.is_dead = True

    def accept_all(self, listener: socket.socket) -> None:
        """Serve connections until the listener is shut down."""
        while True:
            try:
                worker, _ = listener.accept()
            except OSError:
                return
            try:
                router = socket.create_connection(("127.0.0.1", self.router_port))
            except OSError:
                worker.close()
                continue
            link = _Link(worker, router)
            self._links.append(link)
            self._start(partial(self._pass_on, link))

    def _start(self, run: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def _pass_on(self, link: _Link) -> None:
        with link.worker, link.router:
            back = threading.Thread(target=_copy, args=(link, link.router, link.worker.sendall))
            back.start()
            _copy(link, link.worker, partial(self._to_router, link))
            back.join()
        self._links.remove(link)

    def _to_router(self, link: _Link, piece: bytes) -> None:
        with self._lock:
            room = None if self._trap_at is None else self._trap_at - self.n_bytes
            self.n_bytes += len(piece)
            if room is not None and len(piece) >= room:
                link.router.sendall(piece[:room])
                piece, self._trap_at, self.has_sprung = piece[room:], None, True
                self._spring()
        if not link.is_dead:
            link.router.sendall(piece)

    def join(self) -> None:
        """Wait for all connections to end."""
        for thread in self._threads:
            thread.join()


def _copy(link: _Link, source: socket.socket, write: Callable[[bytes], None]) -> None:
    """Pass on what comes, until either side is closed; then cut the other, unless the wire is dead."""
    with suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            if not link.is_dead:
                write(piece)
    if not link.is_dead:
        link.cut()


@contextmanager
def wire_to(router_port: int) -> Iterator[Wire]:
    """Lay a wire to a router for the length of the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wire = Wire(router_port, listener.getsockname()[1])
        accepting = threading.Thread(target=wire.accept_all, args=(listener,))
        accepting.start()
        try:
            yield wire
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            wire.cut()
            wire.join()
