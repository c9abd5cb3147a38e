"""A flood of wrong keys, and what it costs those with right ones.

Also a program, for figures:

    python -m tests.faults.flood [LENGTH_S]      without and with a flood of 200 keys/s, in turns, as JSON
    python -m tests.faults.flood attack PORT LENGTH_S

Everything is open-loop: who asks does not wait for the answer before. The flood has a process and an address of its
own. It is measured against a router that has seen each hash's key, and against one that has not.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import orjson
import trio

from auxot.core.keys import STANDARD, Role, generate_key, hash_key
from tests.live.processes import API_KEY, House, running_router

WRONG_KEYS_PER_S = 200
RIGHT_KEYS_PER_S = 50
N_ROUNDS = 7
ATTACKER_START_S = 2.0  # its imports are not the router's fault
STRANGER = "127.0.0.2"  # all of 127/8 is this machine on Linux


def resident_bytes(pid: int) -> int:
    """Return what a process has in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@attrs.define
class Peak:
    """The most memory that a process had."""

    pid: int
    n_bytes: int = 0

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            self.n_bytes = max(self.n_bytes, resident_bytes(self.pid))
            await trio.sleep(0.02)


async def ask_models(port: int, key: str, *, address: str = "127.0.0.1") -> int:
    """Return the status of a request from that address, on a connection of its own."""
    async with await trio.open_tcp_stream("127.0.0.1", port, local_address=address) as stream:
        head = f"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n"
        await stream.send_all(head.encode())
        received = b""
        while more := await stream.receive_some():
            received += more
    return int(received.split()[1])


async def attack(port: int, statuses: list[int], *, length_s: float) -> None:
    """Show wrong keys for that long; `statuses` tells how they were answered, in that order."""

    async def ask() -> None:
        statuses.append(await ask_models(port, generate_key(Role.API), address=STRANGER))

    async with trio.open_nursery() as nursery:
        async for _ in _ticks(WRONG_KEYS_PER_S, length_s):
            nursery.start_soon(ask)


async def _ticks(n_per_s: float, length_s: float) -> AsyncIterator[int]:
    """Yield at that rate; late ones follow at once."""
    began = trio.current_time()
    for n in range(round(n_per_s * length_s)):
        await trio.sleep_until(began + n / n_per_s)
        yield n


async def _measure(house: House, length_s: float) -> dict[str, float]:
    """Ask with the right key for that long; return times in milliseconds, and what the router needs meanwhile."""
    took_ms: list[float] = []
    peak, cpu_before_s = Peak(house.router.pid), cpu_s(house.router.pid)

    async def ask() -> None:
        began = trio.current_time()
        assert await ask_models(house.port, API_KEY) == 200
        took_ms.append((trio.current_time() - began) * 1000)

    async with trio.open_nursery() as watching:
        watching.start_soon(peak.watch)
        async with trio.open_nursery() as nursery:
            async for _ in _ticks(RIGHT_KEYS_PER_S, length_s):
                nursery.start_soon(ask)
        watching.cancel_scope.cancel()
    hundredths = statistics.quantiles(took_ms, n=100)
    return {
        "p50_ms": round(hundredths[49], 1),
        "p99_ms": round(hundredths[98], 1),
        "cpu_percent": round((cpu_s(house.router.pid) - cpu_before_s) / length_s * 100, 1),
        "peak_mib": round(peak.n_bytes / 2**20, 1),
    }


@contextmanager
def _attacked(house: House, length_s: float) -> Iterator[None]:
    argv = [sys.executable, "-m", __spec__.name, "attack", str(house.port), str(length_s + ATTACKER_START_S)]
    with subprocess.Popen(argv, stdout=sys.stderr) as attacker:
        try:
            yield
        finally:
            attacker.wait()


def _figures(length_s: float, *, is_known: bool) -> Mapping[str, Any]:
    """Measure a fresh router before and in the flood."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"AUXOT_API_KEY_HASH": hash_key(API_KEY, STANDARD)}
        if not is_known:
            never_shown = hash_key(generate_key(Role.API), STANDARD)
            Path(folder, "keys.toml").write_text(f'[[key]]\nname = "other"\nhash = "{never_shown}"\n')
            settings["AUXOT_API_KEYS_FILE"] = "keys.toml"
        with running_router(Path(folder), **settings) as house:
            trio.run(ask_models, house.port, API_KEY)
            rounds = [_measure_round(house, length_s) for _ in range(N_ROUNDS)]
    return {"quiet": _median([quiet for quiet, _ in rounds]), "flood": _median([flood for _, flood in rounds])}


def _measure_round(house: House, length_s: float) -> tuple[dict[str, float], dict[str, float]]:
    """Measure without a flood, then in one."""
    quiet = trio.run(_measure, house, length_s)
    with _attacked(house, length_s):
        trio.run(trio.sleep, ATTACKER_START_S)
        return quiet, trio.run(_measure, house, length_s)


def _median(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure: whatever else the machine does disturbs some rounds more than others."""
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def main(arguments: list[str]) -> Any:
    """Be the program."""
    if arguments[:1] == ["attack"]:
        statuses: list[int] = []
        trio.run(partial(attack, int(arguments[1]), statuses, length_s=float(arguments[2])))
        return {"wrong keys answered": {str(status): statuses.count(status) for status in set(statuses)}}
    length_s = float(arguments[0]) if arguments else 4.0
    return {
        "each hash has met its key": _figures(length_s, is_known=True),
        "one has not": _figures(length_s, is_known=False),
    }


if __name__ == "__main__":
    print(orjson.dumps(main(sys.argv[1:]), option=orjson.OPT_INDENT_2).decode())  # noqa: T201
