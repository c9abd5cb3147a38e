"""`auxot-router --processes N`: the parent of N routers that share one port and one Redis.

    parent
    |- a listening socket for each child, of one SO_REUSEPORT group: the kernel spreads connections over them
    |- what the children share, to hand each other the connections that another can serve better, see `siblings`
    |- a task for each child: start -> ready -> (died: again, after a pause) -> stopped
    |- a task for what it says: each child takes the parent for its service manager (ready, alive)
    '- signals: TERM and INT stop the children, HUP is passed on

A Python process computes on one core; so many processes use so many. Each is a whole router with its own workers, and
new clients are handed to one that has a slot for them. Where that has changed since (a client stays where it is), jobs
and answers go between the processes through Redis, as between routers on several hosts.

The sockets stay open in the parent: while a child is started again, connections that the kernel or its siblings give
to it wait, and none is refused. The first child is started alone, so that a setting that cannot work is told once.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL

import attrs
import trio

from auxot.core.errors import BindError
from auxot.core.link import backoff_delays
from auxot.core.logs import Logger, get_logger
from auxot.core.notify import Notifier, take_notifier
from auxot.router.activation import BACKLOG, take_sockets
from auxot.router.heritage import with_heritage
from auxot.router.siblings import Family, found_family
from auxot.router.stopping import Terminal

START_TIMEOUT_S = 60.0
WATCHDOG_S = 30.0
KILL_AFTER_S = 10.0  # from the end of that, or from the watchdog's abort
FIRST_PAUSE_S = 0.2  # before a child that died is started again
MAX_PAUSE_S = 10.0
STEADY_S = 60.0  # a child that has lived so long begins anew with the short pauses
_MAX_DATAGRAM = 4096


@attrs.frozen(kw_only=True)
class ProcessPlan:
    """What to run.

    Attributes:
        n_processes: how many routers.
        program: the command line of each.
        host: the address to listen on.
        port: its port; 0: a free one, the same for all.
        patience_s: how long they may take once they are told to stop, before they are killed.
        watchdog_s: of silence, and one counts as stuck.
    """

    n_processes: int
    program: Sequence[str]
    host: str
    port: int
    patience_s: float
    watchdog_s: float = WATCHDOG_S


@attrs.define(eq=False, kw_only=True)
class _Child:
    """One router process, again and again."""

    number: int
    sockets: Sequence[socket.socket]
    ear: trio.socket.SocketType  # what it says to its service manager comes here
    ear_path: Path
    process: trio.Process | None = None
    is_ready: bool = False
    has_been_ready: trio.Event = attrs.field(factory=trio.Event)

    def send(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)


async def run_processes(plan: ProcessPlan) -> int:
    """Run the routers until TERM or INT has come and all of them have stopped.

    Returns:
        the exit code: 0, or that of a first router that could not start.

    Raises:
        BindError: the address cannot be listened on.
        ConfigError: a service manager handed over what is no listening socket.
    """
    notifier, given = take_notifier(os.environ), take_sockets(os.environ)
    lifeline, our_end = os.pipe()
    family = found_family(plan.n_processes)
    try:
        with (
            trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals,
            _children(plan, given) as children,
        ):
            parent = _Parent(
                plan=plan, children=children, lifeline=lifeline, family=family, notifier=notifier, keeps=bool(given)
            )
            return await parent.run(signals)
    finally:
        family.close()
        os.close(our_end)
        os.close(lifeline)


@contextmanager
def _children(plan: ProcessPlan, given: Sequence[socket.socket]) -> Iterator[list[_Child]]:
    """Make the sockets of all children, and close them at the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="auxot-router-"))  # of mode 0700
    groups = [list(given)] * plan.n_processes if given else bind_groups(plan.host, plan.port, plan.n_processes)
    children: list[_Child] = []
    try:
        for number, group in enumerate(groups):
            path = folder / f"{number}.sock"
            ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            ear.bind(str(path))
            children.append(
                _Child(number=number, sockets=group, ear=trio.socket.from_stdlib_socket(ear), ear_path=path)
            )
        yield children
    finally:
        for child in children:
            child.ear.close()
        for one in {one for group in groups for one in group}:
            one.close()
        shutil.rmtree(folder, ignore_errors=True)


def bind_groups(host: str, port: int, n_groups: int) -> list[list[socket.socket]]:
    """Return listening sockets on every address of a host, once for each group; port 0 is the same free one for all.

    Raises:
        BindError: the address cannot be listened on.
    """
    groups: list[list[socket.socket]] = []
    try:
        for _ in range(n_groups):
            groups.append([])
            for family, kind, protocol, _, address in socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                one = socket.socket(family, kind, protocol)
                groups[-1].append(one)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                one.bind((address[0], port, *address[2:]))
                one.listen(BACKLOG)
                port = port or one.getsockname()[1]
    except OSError as exc:
        for one in (one for group in groups for one in group):
            one.close()
        raise BindError(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc
    return groups


@attrs.define(eq=False, kw_only=True)
class _Parent:
    plan: ProcessPlan
    children: list[_Child]
    lifeline: int
    family: Family
    notifier: Notifier
    keeps: bool  # the sockets are a service manager's, for the next parent
    exit_code: int = 0
    _stopping: trio.Event = attrs.field(factory=trio.Event)
    _log: Logger = attrs.field(factory=get_logger)

    async def run(self, signals: AsyncIterator[int]) -> int:
        """Run all children until they have been stopped; return the exit code."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._obey, signals)
            nursery.start_soon(self.notifier.run, self._status)
            async with trio.open_nursery() as running:
                running.start_soon(self._stop_in_time, running.cancel_scope)
                await self._start(running)
                await self._stopping.wait()
            nursery.cancel_scope.cancel()
        self._log.info("processes.stopped")
        return self.exit_code

    async def _start(self, running: trio.Nursery) -> None:
        """Start the first child, and when it is ready the others; say so when all are."""
        for group in (self.children[:1], self.children[1:]):
            for child in group:
                running.start_soon(self._keep, child)
            for child in group:
                await self._ready_or_stopping(child)
        if not self._stopping.is_set():
            self._log.info("processes.ready", n_processes=len(self.children))
            self.notifier.ready(self._status())

    async def _ready_or_stopping(self, child: _Child) -> None:
        async with trio.open_nursery() as waiting:
            for event in (child.has_been_ready, self._stopping):
                waiting.start_soon(_wait_then_cancel, event, waiting.cancel_scope)

    async def _keep(self, child: _Child) -> None:
        """Run a child for ever; one that could never start ends everything."""
        delays = _pauses()
        while not self._stopping.is_set():
            began = trio.current_time()
            code = await self._run_once(child)
            if self._stopping.is_set():
                return
            self._log.warning("process.died", number=child.number, exit_code=code)
            if not child.has_been_ready.is_set():
                self.exit_code = abs(code) or 1
                self._stop()
                return
            if trio.current_time() - began > STEADY_S:
                delays = _pauses()
            with trio.move_on_after(next(delays)):
                await self._stopping.wait()

    async def _run_once(self, child: _Child) -> int:
        """Run a child process until it ends; return its exit code."""
        environ = with_heritage(
            os.environ, sockets=child.sockets, lifeline=self.lifeline, family=self.family, number=child.number
        )
        environ |= {"NOTIFY_SOCKET": str(child.ear_path), "WATCHDOG_USEC": str(round(self.plan.watchdog_s * 1e6))}
        process = child.process = await trio.lowlevel.open_process(
            list(self.plan.program),
            env=environ,
            stdin=DEVNULL,
            pass_fds=[
                self.lifeline,
                *(one.fileno() for one in child.sockets),
                *self.family.descriptors(child.number),
            ],
            start_new_session=True,  # a terminal's Ctrl-C is for the parent, which tells its children
        )
        self._log.info("process.started", number=child.number, pid=process.pid)
        if self._stopping.is_set():  # while it was being started
            process.terminate()
        try:
            async with trio.open_nursery() as listening:
                listening.start_soon(self._listen, child)
                code = await process.wait()
                listening.cancel_scope.cancel()
            return code
        finally:
            child.is_ready = False
            if process.returncode is None:
                process.kill()
                with trio.move_on_after(KILL_AFTER_S, shield=True):
                    await process.wait()
            self.family.board.clear(child.number)

    async def _listen(self, child: _Child) -> None:
        """Hear what a child says; end one that has fallen silent."""
        while True:
            with trio.move_on_after(self.plan.watchdog_s if child.is_ready else START_TIMEOUT_S) as silence:
                said = await child.ear.recv(_MAX_DATAGRAM)
            if silence.cancelled_caught:
                self._log.error("process.stuck", number=child.number)
                child.send(signal.SIGABRT)  # tells where it stands
                await trio.sleep(KILL_AFTER_S)
                child.send(signal.SIGKILL)
            elif b"READY=1" in said.split(b"\n"):
                child.is_ready = True
                child.has_been_ready.set()

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        terminal = Terminal()
        async for number in signals:
            if terminal.asks_for_reload(number):
                for child in self.children:
                    child.send(signal.SIGHUP)
            else:
                self._stop()

    def _stop(self) -> None:
        """Tell the children to stop; told twice, they do so at once."""
        if not self._stopping.is_set():
            self._log.info("processes.stopping")
            self.notifier.stopping("answers in progress may end")
        self._stopping.set()
        for child in self.children:
            child.send(signal.SIGTERM)
            if not self.keeps:  # else nobody would be refused, nor served
                for one in child.sockets:
                    one.close()

    async def _stop_in_time(self, scope: trio.CancelScope) -> None:
        """Set the children's last deadline once they are told to stop."""
        await self._stopping.wait()
        scope.deadline = trio.current_time() + self.plan.patience_s + KILL_AFTER_S

    def _status(self) -> str:
        return f"{sum(child.is_ready for child in self.children)} of {len(self.children)} processes serve"


def _pauses() -> Iterator[float]:
    return backoff_delays(first_s=FIRST_PAUSE_S, max_s=MAX_PAUSE_S)


async def _wait_then_cancel(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
