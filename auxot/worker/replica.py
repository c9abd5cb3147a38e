"""One llama-server of a worker, started again and again.

    start --> canary --> station --> [ its jobs ] --> the end: died, silent or grown
      ^  |                                               |
      |  '-- no memory: a smaller shape, at once         | grown: its jobs may finish first
      '------- a pause, longer from time to time --------'
                     '-- too many deaths: quarantine, and the router is told why

A llama-server that is silent while jobs wait (see `pulse`) is killed: the router gives its jobs to others. One whose
memory has grown too far is replaced when its jobs have finished. Both are only seen of processes of ours: an external
llama-server is another's to look after.

The very first start is not tried again, for that would hide why it fails: `on_unstartable` says so, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager

import attrs
import trio

from auxot.core.background import background
from auxot.core.errors import LlamaError
from auxot.core.link import backoff_delays
from auxot.core.logs import get_logger
from auxot.worker.llama.argv import LlamaSettings
from auxot.worker.llama.canary import generate_one_token
from auxot.worker.llama.dial import dialled_down
from auxot.worker.llama.facts import LlamaFacts
from auxot.worker.llama.http import LlamaAddress
from auxot.worker.llama.server import LlamaServer, NoRoomError
from auxot.worker.process_memory import gpu_bytes, own_bytes
from auxot.worker.restarts import DeathLog, RestartPolicy
from auxot.worker.seats import Seats, Station

DEATH_GRACE_S = 2.0  # how long the jobs of a dead llama-server may take to say so
READY_TIMEOUT_S = 600.0  # the original's; a large model on a slow disk takes minutes
WEDGE_TIMEOUT_S = 300.0  # a batch of 512 tokens of a large model takes minutes on a slow processor
SECOND_LOOK_S = 1.0  # after it was silent for too long
MAX_GROWTH_BYTES = 12 * 10**9  # llama-server keeps up to 8 GiB of prompts by default

Start = LlamaSettings | LlamaAddress
OpenLlama = Callable[[Start], AbstractAsyncContextManager[LlamaServer]]


@attrs.frozen(kw_only=True)
class Care:
    """How a llama-server is looked after; times in seconds.

    Attributes:
        restarts: how often it may die.
        ready_timeout_s: how long it may take to load its model.
        wedge_timeout_s: how long it may be silent while jobs wait.
        max_growth_bytes: how much its memory, or that on its GPUs, may grow after it was ready; 0: as it likes.
        growth_check_s: how often that is looked at.
        recycle_grace_s: how long its jobs may go on before it is replaced for that.
    """

    restarts: RestartPolicy = attrs.field(factory=RestartPolicy)
    ready_timeout_s: float = READY_TIMEOUT_S
    wedge_timeout_s: float = WEDGE_TIMEOUT_S
    max_growth_bytes: int = MAX_GROWTH_BYTES
    growth_check_s: float = 15.0
    recycle_grace_s: float = 1800.0


@attrs.frozen
class Death:
    """The end of a llama-server that nobody wanted."""

    reason: str


@attrs.frozen
class Recycled:
    """The end of a llama-server that was replaced in order."""


class Replica:
    """One of a worker's llama-servers; `run` is its life.

    Args:
        name: its number among the worker's.
        start: what it is started with.
        open_llama: starts it.
        care: how it is looked after.
        seats: where its slots are offered, and the router told.
        on_unstartable: called with its name and the reason when it fails to start and never has.
    """

    def __init__(
        self,
        *,
        name: str,
        start: Start,
        open_llama: OpenLlama,
        care: Care,
        seats: Seats,
        on_unstartable: Callable[[str, LlamaError], None],
    ) -> None:
        self.quarantined_for = ""  # why, while it is in quarantine
        self._name = name
        self._start = start
        self._open_llama = open_llama
        self._care = care
        self._seats = seats
        self._on_unstartable = on_unstartable
        self._n_starts = 0
        self._log = get_logger(replica=name)

    @property
    def _is_external(self) -> bool:
        return isinstance(self._start, LlamaAddress)

    async def run(self) -> None:
        """Keep a llama-server running, for ever."""
        deaths, delays = DeathLog(self._care.restarts), self._restart_delays()
        while True:
            end = await self._live()
            if isinstance(end, Recycled):
                continue
            now = trio.current_time()
            if deaths.note(now) and not self._is_external:
                await self._stay_in_quarantine(end.reason)
                deaths, delays = DeathLog(self._care.restarts), self._restart_delays()
                continue
            if deaths.is_alone(now):
                delays = self._restart_delays()
            await trio.sleep(next(delays))

    async def _live(self) -> Death | Recycled:
        """Run one llama-server from start to end, in the largest shape that there is memory for."""
        while True:
            try:
                return await self._live_as(self._start)
            except NoRoomError as exc:
                smaller = dialled_down(self._start) if isinstance(self._start, LlamaSettings) else None
                if smaller is None:
                    return self._unready(exc)
                self._dial_down(smaller, exc)
            except LlamaError as exc:
                return self._unready(exc)

    async def _live_as(self, start: Start) -> Death | Recycled:
        async with self._open_llama(start) as server:
            facts = await self._become_ready(server)
            self._n_starts += 1
            station = Station(
                name=f"{self._name}.{self._n_starts}", http=server.http, facts=facts, on_loss=server.doubt
            )
            self._log.info("llama.ready", pid=server.pid, **attrs.asdict(facts))
            self._seats.add(station)
            try:
                return await self._end_of(server, station)
            finally:
                self._withdraw(station, "llama-server was stopped", grace_s=DEATH_GRACE_S)

    async def _become_ready(self, server: LlamaServer) -> LlamaFacts:
        """Wait until it has loaded its model and written a token."""
        limit_s = self._care.ready_timeout_s
        try:
            with trio.fail_after(limit_s):
                await server.wait_ready()
        except trio.TooSlowError as exc:
            raise LlamaError(f"llama-server was not ready after {limit_s:g} s") from exc
        if not self._is_external:  # another's may be busy with another's jobs
            await generate_one_token(server.http)
        return await server.facts()

    async def _end_of(self, server: LlamaServer, station: Station) -> Death | Recycled:
        """Wait for the end of a llama-server that serves, and see to it that its jobs end as they should."""
        async with background() as watch_nursery:
            if server.pid is not None:
                watch_nursery.start_soon(self._kill_when_silent, server, station)
                watch_nursery.start_soon(self._end_when_grown, server.pid, station, watch_nursery.cancel_scope)
            await server.died.wait()
        if not server.died.is_set():
            return Recycled()
        reason = server.last_words()
        self._withdraw(station, f"llama-server died and is being restarted: {reason}", grace_s=DEATH_GRACE_S)
        with trio.move_on_after(DEATH_GRACE_S):
            await station.wait_idle()
        return Death(reason)

    async def _end_when_grown(self, pid: int, station: Station, scope: trio.CancelScope) -> None:
        """Cancel `scope` once the memory has grown too far and the jobs have finished, or may not take longer."""
        grown_bytes = await self._wait_growth(pid)
        grace_s = self._care.recycle_grace_s
        self._withdraw(
            station,
            f"llama-server is being replaced: its memory has grown by {grown_bytes} bytes since it was ready",
            grace_s=grace_s,
        )
        with trio.move_on_after(grace_s):
            await station.wait_idle()
        scope.cancel()

    async def _wait_growth(self, pid: int) -> int:
        """Return by how many bytes the memory has grown, once that is too much."""
        limit_bytes = self._care.max_growth_bytes or math.inf
        first = await _memory_of(pid)
        while True:
            await trio.sleep(self._care.growth_check_s)
            now = await _memory_of(pid)
            grown = {name: now[name] - first[name] for name in now}
            if max(grown.values()) > limit_bytes:
                self._log.warning("llama.grown", pid=pid, **grown, max_growth_bytes=limit_bytes)
                return max(grown.values())

    async def _kill_when_silent(self, server: LlamaServer, station: Station) -> None:
        await self._wait_silence(station)
        limit_s = self._care.wedge_timeout_s
        reason = f"it wrote nothing for {limit_s:g} s while jobs waited"
        self._log.error("llama.wedged", pid=server.pid, n_jobs=station.n_running, wedge_timeout_s=limit_s)
        server.kill(reason)

    async def _wait_silence(self, station: Station) -> None:
        """Return once it has been silent for too long.

        Looked at twice: if both of us stood still (a frozen container, a machine that slept), the clock has gone on,
        and what it wrote has not been read yet, or it had no time to write.
        """

        def left_s() -> float:
            return self._care.wedge_timeout_s - station.pulse.silent_s(trio.current_time())

        while left_s() > 0:
            while (pause_s := left_s()) > 0:  # noqa: ASYNC110 - no polling
                await trio.sleep(pause_s)  # it cannot have been silent for too long before
            await trio.sleep(SECOND_LOOK_S)

    def _unready(self, exc: LlamaError) -> Death:
        self._log.error("llama.unready", reason=str(exc))
        if not self._n_starts and not self._is_external:
            self._on_unstartable(self._name, exc)
        return Death(str(exc))

    def _dial_down(self, smaller: LlamaSettings, exc: LlamaError) -> None:
        self._start = smaller
        figures = {"slots": smaller.slots, "slot_ctx_tokens": smaller.slot_ctx_tokens}
        self._log.warning("llama.dialled_down", reason=str(exc), **figures)
        self._seats.notify(
            f"llama-server has no memory for more: trying {smaller.slots} slots of {smaller.slot_ctx_tokens} tokens"
        )

    def _withdraw(self, station: Station, reason: str, *, grace_s: float) -> None:
        self._seats.withdraw(station, reason=reason, grace_s=grace_s)

    async def _stay_in_quarantine(self, reason: str) -> None:
        restarts = self._care.restarts
        self.quarantined_for = f"llama-server died {restarts.max_deaths} times in a row, at last with: {reason}"
        self._log.error("llama.quarantined", reason=reason, quarantine_ms=round(restarts.quarantine_s * 1000))
        self._seats.notify(f"{self.quarantined_for}; next try in {restarts.quarantine_s:g} s")
        await trio.sleep(restarts.quarantine_s)
        self.quarantined_for = ""

    def _restart_delays(self) -> Iterator[float]:
        restarts = self._care.restarts
        return backoff_delays(first_s=restarts.first_delay_s, max_s=restarts.max_delay_s)


async def _memory_of(pid: int) -> dict[str, int]:
    """Return what a process holds; a thread that a GPU's driver holds up is left to itself."""
    return await trio.to_thread.run_sync(
        lambda: {"grown_bytes": own_bytes(pid), "grown_gpu_bytes": gpu_bytes(pid)}, abandon_on_cancel=True
    )
