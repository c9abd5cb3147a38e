"""llama-server as a context manager: `llama_server` starts one, `external_llama` uses one that runs elsewhere.

    starting --wait_ready()--> ready --> died
        '--------------------------------^

The block is the server's life: a process of ours ends with it (see `process`). `died` is set when the server has gone
by itself. Requests go through `http`.

Our process listens on a UNIX socket in a folder that only this user can enter: no port to race for, and nobody else
on the machine can reach it.

llama-server's HTTP interface: tools/server/README.md of llama.cpp.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import attrs
import orjson
import trio

from auxot.core.background import background
from auxot.core.errors import LlamaError
from auxot.core.forwarded import PROBE_BODY, PROBES
from auxot.core.logs import get_logger
from auxot.core.models.rows import part_paths
from auxot.worker.llama.argv import LlamaSettings, llama_argv, llama_environment
from auxot.worker.llama.dial import want_of_memory
from auxot.worker.llama.facts import LlamaFacts, read_facts
from auxot.worker.llama.http import BrokenExchangeError, LlamaAddress, LlamaHttp
from auxot.worker.llama.process import Child, run_child
from auxot.worker.llama.socket_folder import socket_in_folder
from auxot.worker.process_memory import oom_kills, resident_bytes
from auxot.worker.progress import Loading

REQUEST_TIMEOUT_S = 10.0  # for the small requests: a busy llama-server answers /props between two batches
_HEALTH_TIMEOUT_S = 2.0
_READY_POLL_S = 0.2
_EXTERNAL_POLL_S = 5.0
_EXTERNAL_FAILURES = 3  # so many unanswered polls in a row and an external server counts as gone
_CANNOT = (HTTPStatus.NOT_FOUND, HTTPStatus.NOT_IMPLEMENTED)
_TROUBLE = re.compile(r"error|fatal|abort|crash|failed|library not loaded|dyld", re.IGNORECASE)

_log = get_logger()


class NoRoomError(LlamaError):
    """llama-server ended because it got no memory for its slots and their context: a smaller shape may have room."""


@attrs.define(kw_only=True)
class LlamaServer:
    """A llama-server. `http` speaks to it; `died` is set once it has gone; `child` is None for an external one."""

    http: LlamaHttp
    died: trio.Event = attrs.field(factory=trio.Event)
    child: Child | None = None
    start_step: str = "waiting for the external llama-server"  # for people who watch it
    model_bytes: int = 0  # of the model's files; to compare with what has been loaded
    _n_oom_kills: int = attrs.field(factory=oom_kills)  # of the machine, when this one was started
    _kill_reason: str = ""
    _doubted: trio.Event = attrs.field(factory=trio.Event)

    @property
    def pid(self) -> int | None:
        """The process id; None for an external one."""
        return self.child.pid if self.child is not None else None

    def kill(self, reason: str) -> None:
        """End our process at once, for a reason that `last_words` will tell; an external one is left alone."""
        self._kill_reason = reason
        if self.child is not None:
            self.child.kill()

    def doubt(self) -> None:
        """Have an external server looked at now: it has broken off an answer. Ours is watched by the system."""
        self._doubted.set()

    async def wait_doubted(self) -> None:
        """Wait for the next `doubt`."""
        await self._doubted.wait()
        self._doubted = trio.Event()

    async def wait_ready(self) -> None:
        """Wait until it answers that its model is loaded; the caller sets the deadline.

        Raises:
            LlamaError: it ended before; says why, as far as it told.
        """
        with Loading(step=self.start_step, model_bytes=self.model_bytes) as loading:
            while not await is_healthy(self.http):
                with trio.move_on_after(_READY_POLL_S):
                    await self.died.wait()
                if self.died.is_set():
                    raise self._unready()
                loading.tell_loaded(self._resident_bytes)

    def _resident_bytes(self) -> int:
        return resident_bytes(self.child.pid) if self.child is not None else 0

    def _unready(self) -> LlamaError:
        reason = self._no_room()
        if reason:
            return NoRoomError(f"llama-server got no memory: {reason}")
        return LlamaError(f"llama-server ended before it was ready: {self.last_words()}")

    def _no_room(self) -> str:
        """Return how it ended for want of memory: it said so, or the kernel killed it for that; "" if it did not."""
        if self.child is None or self._kill_reason:
            return ""
        if self.child.exit_status == signal.SIGKILL.name and oom_kills() > self._n_oom_kills:
            return "the kernel killed it for that"
        return want_of_memory(self.child.tail)

    async def facts(self) -> LlamaFacts:
        """Ask what it serves.

        Raises:
            LlamaError: no proper answer.
        """
        props, models = await self._get("/props"), await self._get("/v1/models")
        abilities = [word for word, path in PROBES.items() if await self._has(path)]
        return read_facts(props, models, abilities=abilities)

    def last_words(self) -> str:
        """Return how it ended and the line of its output that most likely says why."""
        if self._kill_reason:
            return self._kill_reason
        return last_words(self.child) if self.child is not None else "the external llama-server does not answer"

    async def _has(self, path: str) -> bool:
        """Tell whether an endpoint would do its work, without having any done."""
        try:
            with trio.fail_after(REQUEST_TIMEOUT_S):
                status, _ = await self.http.post(path, PROBE_BODY)
        except (trio.TooSlowError, BrokenExchangeError) as exc:
            raise LlamaError(f"llama-server gave no proper answer to POST {path}: {type(exc).__name__}") from exc
        return status not in _CANNOT

    async def _get(self, path: str) -> dict[str, Any]:
        try:
            with trio.fail_after(REQUEST_TIMEOUT_S):
                status, body = await self.http.get(path)
            answer = orjson.loads(body)
        except (trio.TooSlowError, BrokenExchangeError, orjson.JSONDecodeError) as exc:
            raise LlamaError(f"llama-server gave no proper answer to GET {path}: {type(exc).__name__}") from exc
        if status != HTTPStatus.OK or not isinstance(answer, dict):
            raise LlamaError(f"llama-server answered GET {path} with status {status}")
        return answer


@asynccontextmanager
async def llama_server(settings: LlamaSettings) -> AsyncGenerator[LlamaServer, None]:
    """Start a llama-server, which lives as long as the block; it is not ready yet.

    Args:
        settings: what to serve.

    Raises:
        LlamaError: it cannot be started.
    """
    with socket_in_folder() as socket:
        argv = llama_argv(settings, socket)
        on_line = _log_line if settings.shows_output else _log_trouble
        _log.info("llama.starting", argv=argv)
        async with (
            run_child(argv, environ=llama_environment(os.environ), on_line=on_line) as child,
            background() as server_nursery,
        ):
            http = LlamaHttp(LlamaAddress(socket=socket))
            model = settings.model
            server = LlamaServer(http=http, child=child, start_step=f"loading {model.name}", model_bytes=_size(model))
            server_nursery.start_soon(_report_exit, child, server)
            yield server


@asynccontextmanager
async def external_llama(address: LlamaAddress) -> AsyncGenerator[LlamaServer, None]:
    """Use a llama-server that somebody else runs. It counts as died when it stops answering its health check.

    Args:
        address: where it listens.
    """
    async with background() as server_nursery:
        server = LlamaServer(http=LlamaHttp(address))
        server_nursery.start_soon(_watch_health, server)
        yield server


def open_llama(start: LlamaSettings | LlamaAddress) -> AbstractAsyncContextManager[LlamaServer]:
    """Start a llama-server of ours, or use one that runs elsewhere."""
    return external_llama(start) if isinstance(start, LlamaAddress) else llama_server(start)


async def is_healthy(http: LlamaHttp) -> bool:
    """Tell whether a llama-server answers that its model is loaded; takes at most some seconds."""
    with trio.move_on_after(_HEALTH_TIMEOUT_S):
        try:
            status, _ = await http.get("/health")
        except BrokenExchangeError:
            return False
        return status == HTTPStatus.OK  # 503 while it loads
    return False


def last_words(child: Child) -> str:
    """Return how a child ended and the last line that tells of trouble, else its last line."""
    lines: Sequence[str] = [line for line in child.tail if line.strip()]
    telling = [line for line in lines if _TROUBLE.search(line)] or lines
    return f"{child.exit_status}: {telling[-1].strip()}" if telling else child.exit_status


async def _report_exit(child: Child, server: LlamaServer) -> None:
    await child.exited.wait()
    _log.error("llama.died", pid=child.pid, exit_status=child.exit_status, tail=list(child.tail)[-20:])
    server.died.set()


async def _watch_health(server: LlamaServer) -> None:
    """Set `died` when an external server that has once answered stops doing so; at once if it is doubted, too."""
    n_failures = 0
    has_answered = is_doubted = False
    while n_failures < _EXTERNAL_FAILURES:
        if await is_healthy(server.http):
            has_answered, n_failures = True, 0
        elif has_answered:
            n_failures += 1
            if is_doubted:
                break
        with trio.move_on_after(_EXTERNAL_POLL_S) as pause:
            await server.wait_doubted()
        is_doubted = not pause.cancelled_caught
    _log.error("llama.died", reason=server.last_words())
    server.died.set()


def _size(path: Path) -> int:
    """Return the bytes of a model's files, given the first."""
    try:
        return sum(part.stat().st_size for part in part_paths(path))
    except (OSError, ValueError):  # llama-server will say so
        return 0


def _log_trouble(line: str) -> None:
    if _TROUBLE.search(line):
        _log.warning("llama.output", line=line)


def _log_line(line: str) -> None:
    if _TROUBLE.search(line):
        _log.warning("llama.output", line=line)
    else:
        _log.debug("llama.output", line=line)
