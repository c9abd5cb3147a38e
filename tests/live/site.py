"""A router and workers at the ends of wires that can be cut, and what can happen to such a worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from tests.live.processes import Daemon, House, children_of, running_router, running_worker
from tests.live.wire import Wire, wire_to


@attrs.define(eq=False)
class Place:
    """Where a worker runs, at the end of a wire; another one comes when it is gone."""

    wire: Wire
    start: Callable[[], Daemon]
    worker: Daemon

    def kill_worker(self) -> None:
        self.worker.send(signal.SIGKILL)
        self.wire.cut()

    def kill_llama(self) -> None:
        for pid in children_of(self.worker.pid):
            os.kill(pid, signal.SIGKILL)

    def freeze_worker(self) -> None:
        self.worker.send(signal.SIGSTOP)

    def freeze_host(self) -> None:
        for pid in children_of(self.worker.pid):
            os.kill(pid, signal.SIGSTOP)
        self.freeze_worker()

    def thaw(self) -> None:
        for pid in (*children_of(self.worker.pid), self.worker.pid):
            os.kill(pid, signal.SIGCONT)

    def mend(self) -> None:
        if self.worker.process.poll() is not None:
            self.worker = self.start()


@attrs.define(eq=False)
class Site:
    """A router and two workers."""

    house: House
    places: list[Place]

    def mend(self) -> None:
        """Start anew what was killed, and wait for it."""
        for place in self.places:
            place.mend()
        self.house.wait_health(workers=len(self.places), active_jobs=0)

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Return the router's log lines of an event."""
        return [line for line in self.house.router.log() if line["event"] == event]

    def bytes_of(self, run: Callable[[], Any]) -> int:
        """Return how many bytes the first worker sends meanwhile."""
        wire = self.places[0].wire
        before = wire.n_bytes
        run()
        return wire.n_bytes - before


@contextmanager
def running_site(folder: Path, *, llama: Path, model: Path, n_workers: int = 2, **settings: str) -> Iterator[Site]:
    """Run a router and workers of four slots for the length of the block; `settings` are the router's."""
    settings = {"AUXOT_MAX_PARALLEL": "4", "AUXOT_CTX_SIZE": "4096", **settings}
    variables = {
        "AUXOT_LLAMA_BINARY": str(llama),
        "AUXOT_MODEL_FILE": str(model),
        "AUXOT_HEARTBEAT_INTERVAL": "300ms",
        "AUXOT_RECONNECT_MAX_DELAY": "200ms",
    }
    with running_router(folder, **settings) as house, ExitStack() as stack:

        def start(url: str) -> Daemon:
            name = f"worker{len(list(folder.glob('worker*.log')))}"
            return stack.enter_context(running_worker(house, name=name, url=url, **variables))

        def place() -> Place:
            wire = stack.enter_context(wire_to(house.port))
            begin = partial(start, f"ws://127.0.0.1:{wire.port}")
            return Place(wire, begin, begin())

        site = Site(house, [place() for _ in range(n_workers)])
        site.mend()
        yield site
