"""The far end of the measured program, in a process of its own: made-up workers, or a made-up back end.

It is told what to do by one JSON object on standard input, says `ready`, runs until standard input ends, and then
writes what it has seen. Keys are in neither arguments nor environment.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from subprocess import PIPE
from typing import Any

import attrs
import orjson
import trio

from auxot.bench.backend import backend
from auxot.bench.load import FarTimes, Load
from auxot.bench.process import BenchError, Target
from auxot.bench.workers import workers

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
_READY = b"ready\n"
_MAX_LINE = 64 * 1024 * 1024
_PROGRAM = [sys.executable, "-c", "from auxot.bench.far_end import main; main()"]


@asynccontextmanager
async def far_end(target: Target, load: Load, times: FarTimes) -> AsyncGenerator[None]:
    """Run the far end for the length of the block; then `times` has what it saw.

    Raises:
        BenchError: it did not come up.
    """
    task = {
        "url": f"ws://{target.host}:{target.port}/ws",
        "gpu_key": target.gpu_key,
        "backend": target.backend,
        "load": attrs.asdict(load),
    }
    process = await trio.lowlevel.open_process(_PROGRAM, stdin=PIPE, stdout=PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        await process.stdin.send_all(orjson.dumps(task) + b"\n")
        is_ready = False
        with trio.move_on_after(START_TIMEOUT_S):
            is_ready = await process.stdout.receive_some(len(_READY)) == _READY
        if not is_ready:
            raise BenchError("the made-up workers did not come up; what they said is above")
        yield
        await process.stdin.aclose()
        seen = orjson.loads(b"".join([piece async for piece in process.stdout]))
        times.dispatch_us += seen["dispatch_us"]
        times.freed_us += seen["freed_us"]
    finally:
        process.kill()
        with trio.move_on_after(STOP_TIMEOUT_S, shield=True):
            await process.wait()


def main() -> None:
    """Be the far end."""
    task = orjson.loads(sys.stdin.buffer.readline(_MAX_LINE))
    times = FarTimes()
    trio.run(_run, task, times)
    sys.stdout.buffer.write(orjson.dumps(attrs.asdict(times)))


async def _run(task: dict[str, Any], times: FarTimes) -> None:
    load = Load(**task["load"])
    if task["gpu_key"]:
        end = workers(task["url"], task["gpu_key"], load, times)
    else:
        host, port = task["backend"]
        end = backend(host, port, load, times.dispatch_us)
    async with end:
        sys.stdout.buffer.write(_READY)
        sys.stdout.buffer.flush()
        await trio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)
