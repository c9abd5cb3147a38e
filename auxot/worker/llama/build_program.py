"""Run the programs that a build consists of: pip, cmake, ninja.

Each runs in a session of its own, which is ended when the caller is cancelled; what it writes is read all the
time, and the last lines are kept for the report of a failure.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path

import attrs
import trio

from auxot.core.errors import LlamaError

_TAIL_LINES = 50  # with parallel compilers the error stands some lines before the end
_MAX_LINE_BYTES = 65536
_PIP_LIMIT_S = 1800.0
_KILL_GRACE_S = 5.0
_TERM_GRACE_S = 2.0  # for programs to end what they have started


@attrs.define
class LineSplitter:
    """Cut a stream of bytes into lines; of a line without end the last 64 KiB are kept."""

    _rest: bytes = b""

    def feed(self, chunk: bytes | bytearray) -> list[str]:
        """Return the lines that `chunk` completes, without their ends."""
        *lines, rest = (self._rest + chunk).split(b"\n")
        self._rest = rest[-_MAX_LINE_BYTES:]
        return [_text(line) for line in lines]

    def finish(self) -> list[str]:
        """Return the last line if the stream has ended within it."""
        rest, self._rest = self._rest, b""
        return [_text(rest)] if rest else []


async def run_pip(arguments: Sequence[str], *, doing: str, environ: Mapping[str, str]) -> None:
    """Run pip, which the user's own configuration tells where to fetch from; errors as `run_program`."""
    if importlib.util.find_spec("pip") is None:
        raise LlamaError(f"{doing} needs pip: run `{sys.executable} -m ensurepip`")
    command, *rest = arguments
    quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    argv = [sys.executable, "-m", "pip", command, *quiet, *rest]
    await run_program(argv, doing=doing, limit_s=_PIP_LIMIT_S, environ=environ)


def _ignore(_: str) -> None:
    """Take a line and do nothing with it."""


async def run_program(
    argv: Sequence[str],
    *,
    doing: str,
    limit_s: float,
    environ: Mapping[str, str],
    on_line: Callable[[str], None] = _ignore,
) -> str:
    """Run a program to its end.

    Args:
        argv: the program and its arguments.
        doing: what is being done, for errors: "compiling llama.cpp".
        limit_s: seconds after which it counts as stuck.
        environ: all of its environment.
        on_line: is given each line of stdout and stderr as it comes.

    Returns:
        The last lines of what it wrote.

    Raises:
        LlamaError: it cannot be started, fails or is stuck; holds its last lines.
    """
    tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def keep(line: str) -> None:
        tail.append(line)
        on_line(line)

    with trio.move_on_after(limit_s) as scope:
        exit_code = await _run(argv, doing=doing, environ=environ, on_line=keep)
    output = "\n".join(tail)
    if scope.cancelled_caught:
        raise LlamaError(f"{doing} took longer than {limit_s:.0f} s:\n{output}")
    if exit_code != 0:
        raise LlamaError(f"{doing} failed (exit code {exit_code}):\n{output}")
    return output


async def _run(argv: Sequence[str], *, doing: str, environ: Mapping[str, str], on_line: Callable[[str], None]) -> int:
    splitter = LineSplitter()
    async with _process(argv, doing=doing, environ=environ) as process:
        assert process.stdout is not None
        async for chunk in process.stdout:
            for line in splitter.feed(chunk):
                on_line(line)
        for line in splitter.finish():
            on_line(line)
        return await process.wait()


@contextlib.asynccontextmanager
async def _process(argv: Sequence[str], *, doing: str, environ: Mapping[str, str]) -> AsyncGenerator[trio.Process]:
    """Run a program in a process group of its own; it and its children do not outlive the block."""
    try:
        process = await trio.lowlevel.open_process(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
        )
    except OSError as exc:
        raise LlamaError(f"{doing}: {argv[0]} does not run: {exc.strerror}") from exc
    try:
        yield process
    finally:
        with trio.move_on_after(_KILL_GRACE_S, shield=True):
            await _end_session(process)
            if process.stdout is not None:
                await trio.aclose_forcefully(process.stdout)


async def _end_session(process: trio.Process) -> None:
    """End a program that still runs, and what it has started.

    ninja gives each compiler a group of its own, which it ends when it is told to; what is left after that is found by
    its session.
    """
    if process.returncode is not None:
        return
    _signal_group(process.pid, signal.SIGTERM)
    with trio.move_on_after(_TERM_GRACE_S):
        await (_until_ended(process.pid) if sys.platform == "linux" else process.wait())
    if process.poll() is not None:
        return
    _signal_group(process.pid, signal.SIGKILL)
    for pid in _members_of(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    await process.wait()


async def _until_ended(session: int) -> None:
    """Wait until nothing of a session is left but its leader, as a zombie: its number is not given again until then."""
    while [pid for pid in _members_of(session) if pid != session]:  # noqa: ASYNC110 -- nobody tells
        await trio.sleep(0.01)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses a group of zombies
        os.killpg(group, number)


def _members_of(session: int) -> list[int]:
    """Return the processes of a session (Linux); elsewhere those are trusted that TERM has reached."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                members.append(int(stat.parent.name))
    return members


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip()
