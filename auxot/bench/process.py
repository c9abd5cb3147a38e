"""The measured processes: a router of our own, and what any process costs (Linux)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL

import attrs
import orjson
import trio

from auxot.core.errors import AuxotError
from auxot.core.keys import CHEAP, Role, generate_key, hash_key

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
_TICKS_S = 1 / os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


class BenchError(AuxotError):
    """The benchmark cannot be run."""


@attrs.frozen(kw_only=True)
class Target:
    """What is measured: where it listens, how to be let in, and its process.

    Attributes:
        host: its address.
        port: its port.
        path: of its chat completions.
        model: the name to ask for.
        api_key: what clients show; may be empty.
        gpu_key: what workers show; None: it is no router of ours, and has the made-up back end behind it.
        backend: where the made-up back end listens that it forwards to, (host, port).
        pid: its process, measured with all of its children; None: unknown.
    """

    host: str
    port: int
    path: str = "/v1/chat/completions"
    model: str = "bench"
    api_key: str
    gpu_key: str | None = None
    backend: tuple[str, int] | None = None
    pid: int | None = None


@asynccontextmanager
async def running_router(folder: Path, environ: Mapping[str, str]) -> AsyncGenerator[Target]:
    """Run a router on a free port for the length of the block.

    Args:
        folder: for its log.
        environ: settings beyond keys and address.

    Raises:
        BenchError: it did not start.
    """
    gpu_key, api_key = generate_key(Role.WORKER), generate_key(Role.API)
    settings = {
        "AUXOT_HOST": "127.0.0.1",
        "AUXOT_PORT": "0",
        "AUXOT_ADMIN_KEY_HASH": hash_key(gpu_key, CHEAP),
        "AUXOT_API_KEY_HASH": hash_key(api_key, CHEAP),
        "AUXOT_SHUTDOWN_GRACE": "0s",
    }
    own = {name: value for name, value in os.environ.items() if not name.startswith("AUXOT_")}
    program = [sys.executable, "-c", "from auxot.cli import auxot_router; auxot_router()"]
    log_path = folder / "router.log"
    with log_path.open("wb") as log:
        process = await trio.lowlevel.open_process(
            program, env={**own, **settings, **environ}, cwd=folder, stdin=DEVNULL, stderr=log
        )
    try:
        port = await _wait_for_port(process, trio.Path(log_path))
        yield Target(host="127.0.0.1", port=port, api_key=api_key, gpu_key=gpu_key, pid=process.pid)
    finally:
        process.terminate()
        with trio.move_on_after(STOP_TIMEOUT_S, shield=True):
            await process.wait()
        if process.returncode is None:
            process.kill()


async def _wait_for_port(process: trio.Process, log_path: trio.Path) -> int:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        for line in (await log_path.read_bytes()).splitlines():
            if b'"router.ready"' in line:
                return int(orjson.loads(line)["addresses"][0].rpartition(":")[2])
        await trio.sleep(0.005)
    said = await log_path.read_text()
    raise BenchError(f"the router did not start:\n{said}")


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process and its children so far, user and system."""
    return sum(_cpu_s(one) for one in _family(pid))


def rss_mib(pid: int) -> float:
    """Return the resident memory of a process and its children."""
    return sum(_rss_mib(one) for one in _family(pid))


def _family(pid: int) -> list[int]:
    family = [pid]
    for one in family:  # grows on the way
        for tasks in _PROC.glob(f"{one}/task/*/children"):
            family += map(int, tasks.read_text().split())
    return family


def _cpu_s(pid: int) -> float:
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICKS_S


def _rss_mib(pid: int) -> float:
    pages = int((_PROC / str(pid) / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
