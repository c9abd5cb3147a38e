"""What a token and a request cost the router, in CPU time, as a multiple of what a fixed piece of work costs here.

The piece is of the same kind as the router's work (calls, JSON, small writes and reads of a socket) and is done by
this process right before and after the load, so how fast the machine is, and how busy, drops out. The bounds are twice
what was measured (Python 3.11): a change that doubles the cost of a token fails, an unlucky day does not.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

import attrs
import orjson
import pytest
import trio

from auxot.bench.clients import run_clients
from auxot.bench.far_end import far_end
from auxot.bench.load import Load, Samples
from auxot.bench.process import running_router

TIMEOUT_S = 120
N_PIECES = 10_000
N_CALLS = 20  # of a Python function, in one piece

PACED = Load(name="paced", title="", clients=32, workers=32, requests=32, tokens=120, rate=50)
FULL = Load(name="full", title="", clients=16, workers=16, requests=16, tokens=4000)
BLOCKING = Load(name="blocking", title="", clients=16, workers=16, requests=1500, tokens=1, is_blocking=True)


@pytest.mark.parametrize(
    ("load", "most_pieces"), [(PACED, 25.0), (FULL, 5.0), (BLOCKING, 235.0)], ids=lambda one: getattr(one, "name", "")
)
async def test_a_token_and_a_request_cost_no_more_than_they_did(load: Load, most_pieces: float, tmp_path: Path) -> None:
    """A change makes every token, or every request, twice as expensive, and nobody notices."""
    samples = Samples()
    with trio.fail_after(TIMEOUT_S):
        async with running_router(tmp_path, {}) as target, far_end(target, load, samples.far):
            assert target.pid is not None
            await run_clients(target, load.warm_up(), Samples())
            piece_us, cpu_us = _piece_us(), _cpu_us(target.pid)
            await run_clients(target, load, samples)
            cpu_us = _cpu_us(target.pid) - cpu_us
            piece_us = (piece_us + _piece_us()) / 2
    assert (samples.n_wrong, samples.n_failed) == (0, 0)
    each_us = cpu_us / (load.requests if load.is_blocking else load.n_tokens)
    assert each_us / piece_us < most_pieces, f"{each_us:.1f} us each, where a piece of work takes {piece_us:.1f} us"


def _cpu_us(pid: int) -> float:
    """Return the CPU time of a process so far, to the nanosecond (Linux; proc(5))."""
    return sum(int(one.read_text().split()[0]) for one in Path("/proc", str(pid)).glob("task/*/schedstat")) / 1000


def _piece_us() -> float:
    """Return what a piece of work costs this process, in CPU time."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        began = time.thread_time()
        for number in range(N_PIECES):
            _work(ours, theirs, number)
        return (time.thread_time() - began) * 1e6 / N_PIECES


@attrs.define
class _Count:
    n: int = 0

    def add(self, more: int) -> None:
        self.n += more


def _work(ours: socket.socket, theirs: socket.socket, number: int) -> None:
    count = _Count()
    for _ in range(N_CALLS):
        count.add(number)
    ours.send(orjson.dumps({"type": "token", "job_id": "job", "token": str(count.n)}))
    assert orjson.loads(theirs.recv(1024))["token"] == str(count.n)
