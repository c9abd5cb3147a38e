"""A child process as a context manager: it lives no longer than its block, nor than this process.

At the end of the block the child gets TERM, and KILL when it has not gone STOP_GRACE_S later; this is shielded from
cancellation. On Linux the kernel kills it when this process dies in any other way (see `launch`).

The child stands in a session of its own: a Ctrl-C in the terminal reaches the worker alone, which then stops its
child in order. Its output (stdout and stderr together) is always drained; the last lines are kept for reports.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from auxot.core.background import background
from auxot.core.errors import LlamaError

STOP_GRACE_S = 10.0
_KILL_GRACE_S = 2.0  # the kernel is quick, unless the process hangs in a driver: then we leave it behind
_STOP_TIMEOUT_S = STOP_GRACE_S + _KILL_GRACE_S + 1.0
_DRAIN_GRACE_S = 0.5  # how long output may follow the end of the process (a grandchild may hold the pipe for ever)

TAIL_LINES = 50
MAX_LINE_CHARS = 2000
_READ_BYTES = 16 * 1024
_LAUNCHER = Path(__file__).with_name("launch.py")


class LineSplitter:
    """Cut a byte stream into lines of at most MAX_LINE_CHARS; the rest of a longer line is dropped. Pure."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[str]:
        """Return the lines that these bytes complete, without line ends, undecodable bytes replaced."""
        *lines, rest = (self._rest + piece).split(b"\n")
        self._rest = rest[:MAX_LINE_CHARS]
        return [_decoded(line) for line in lines]

    def end(self) -> list[str]:
        """Return what stands after the last line end."""
        rest, self._rest = self._rest, b""
        return [_decoded(rest)] if rest else []


def _decoded(line: bytes) -> str:
    return line[:MAX_LINE_CHARS].decode(errors="replace").rstrip("\r")


class Child:
    """A running child process. `exited` is set when it has gone and its output has been read."""

    def __init__(self, popen: subprocess.Popen[bytes], on_line: Callable[[str], None]) -> None:
        self.exited = trio.Event()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._popen = popen
        self._on_line = on_line
        self._attending = trio.CancelScope(shield=True)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def exit_status(self) -> str:
        """How it ended, in words: "exit code 1", "SIGKILL"; "running" before that."""
        code = self._popen.returncode
        if code is None:
            return "running"
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name

    def kill(self) -> None:
        """Have it killed now, also if it is stopped or hangs; `exited` tells when it has gone."""
        self._popen.kill()

    async def attend(self) -> None:
        """Read its output and wait for its end. Shielded: it ends because `stop` ends the process."""
        with self._attending:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._drain)
                await _wait(self._popen)
                nursery.cancel_scope.deadline = trio.current_time() + _DRAIN_GRACE_S
        self.exited.set()

    async def stop(self) -> None:
        """End it: TERM, then KILL STOP_GRACE_S later; takes no longer than _STOP_TIMEOUT_S."""
        for sign, grace_s in ((signal.SIGTERM, STOP_GRACE_S), (signal.SIGKILL, _KILL_GRACE_S)):
            if self.exited.is_set():
                break
            self._popen.send_signal(sign)
            with trio.move_on_after(grace_s):
                await self.exited.wait()
        self._attending.cancel()

    async def _drain(self) -> None:
        assert self._popen.stdout is not None
        splitter = LineSplitter()
        async with trio.lowlevel.FdStream(os.dup(self._popen.stdout.fileno())) as stream:
            while piece := await stream.receive_some(_READ_BYTES):
                self._take(splitter.feed(piece))
        self._take(splitter.end())

    def _take(self, lines: list[str]) -> None:
        for line in lines:
            self.tail.append(line)
            self._on_line(line)


@asynccontextmanager
async def run_child(
    argv: Sequence[str], *, environ: Mapping[str, str], on_line: Callable[[str], None]
) -> AsyncGenerator[Child, None]:
    """Start a program and end it with the block.

    Args:
        argv: the program's path and its arguments.
        environ: its whole environment.
        on_line: called with each line of its output; must not wait.

    Raises:
        LlamaError: it cannot be started.
    """
    popen = _spawn(argv, environ)
    child = Child(popen, on_line)
    assert popen.stdout is not None
    with popen.stdout:  # not `with popen`, which would wait for the process without a bound
        async with background() as child_nursery:
            child_nursery.start_soon(child.attend)
            try:
                yield child
            finally:
                with trio.move_on_after(_STOP_TIMEOUT_S, shield=True):
                    await child.stop()


def _spawn(argv: Sequence[str], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the process.

    From this very thread, which blocks it for some milliseconds: the kernel takes the death of the *thread* that
    forked for the death of the parent, and a worker thread (where `trio.lowlevel.open_process` forks) is gone soon.
    """
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid())] if _has_parent_death_signal() else []
    try:
        return subprocess.Popen(
            [*launcher, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environ),
            start_new_session=True,
        )
    except OSError as exc:
        raise LlamaError(f"cannot run {argv[0]}: {exc.strerror or exc}") from exc


def _has_parent_death_signal() -> bool:
    return sys.platform == "linux" and bool(sys.executable)


async def _wait(popen: subprocess.Popen[bytes]) -> None:
    """Wait until the process has ended, and collect it."""
    pidfd = _pidfd(popen.pid)
    if pidfd is None:
        await trio.to_thread.run_sync(popen.wait, abandon_on_cancel=True)
        return
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
    popen.wait()  # returns at once


def _pidfd(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the process ends; None where the kernel has no such thing."""
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # before Linux 5.3, or forbidden in a container
        return None
