"""The jobs that a worker runs, at most one a slot of its llama-servers. No I/O: whoever receives jobs asks here first.

    take -> Seat --release (its answer is complete)--> leave (nothing more will be sent)
              '----------- cancel ---------------------^

A released seat can be taken by the next job while the last messages of the one before are still on their way: the
router may send a new job the moment it reads `complete`.

A `Station` is one llama-server that is ready, with its slots. With several, a job goes to the one with a free slot
that has most of its prompt in its cache, else to the emptiest. The table is closed while there is none, and once it
has been closed for good; `changed` is set at each change of what the router should know.

Owner: the worker; one table as long as a policy is served.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import attrs
import trio

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.prefixes import NO_CHAIN, Chain, PrefixMap
from auxot.worker.llama.facts import LlamaFacts
from auxot.worker.llama.http import LlamaHttp
from auxot.worker.pulse import Pulse

MAX_NOTICES = 8  # that wait for a connection; older ones are in the log


@attrs.define(eq=False, kw_only=True)
class Station:
    """A llama-server that is ready.

    Attributes:
        name: no other one has it, also not the next start of the same replica: its cache is new.
        http: speaks to it.
        facts: what it serves.
        on_loss: called when it has broken an answer off, before the router is told: the job, and others, would come
            back and fail as often as they may until somebody looks whether it is still there.
        pulse: how long it has been silent.
        seats: its jobs, also those whose last messages are on their way.
    """

    name: str
    http: LlamaHttp
    facts: LlamaFacts
    on_loss: Callable[[], None] = lambda: None
    pulse: Pulse = attrs.field(factory=Pulse)
    seats: set[Seat] = attrs.field(factory=set)
    _idle: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self._idle.set()

    @property
    def n_running(self) -> int:
        """How many jobs hold a slot."""
        return sum(not seat.is_released for seat in self.seats)

    @property
    def n_free(self) -> int:
        """How many slots are free."""
        return self.facts.slots - self.n_running

    def enter(self, seat: Seat) -> None:
        """Take one more job."""
        self.seats.add(seat)
        self._idle = trio.Event() if self._idle.is_set() else self._idle

    def leave(self, seat: Seat) -> None:
        """Forget a job."""
        self.seats.discard(seat)
        if not self.seats:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no job is left; the caller sets the deadline."""
        await self._idle.wait()


@attrs.define(eq=False, kw_only=True)
class Seat:
    """The place of one running job. Cancelling `scope` ends the job without a word."""

    job_id: str
    station: Station
    chain: Chain = NO_CHAIN
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    is_released: bool = False


class Seats:
    """The jobs that run now. Closed at first: every job is refused until a station is added."""

    def __init__(self) -> None:
        self.closed = trio.Event()  # a new one each time the table is opened
        self.closed.set()
        self.changed = trio.Event()  # a new one at each change
        self.is_over = False  # closed for good
        self.has_opened = False  # once, at least
        self.stations: list[Station] = []
        self.reason = "this worker is starting"  # why the table is closed
        self.run_down_by = math.inf  # when the running jobs are not waited for any more, once it is closed
        self.notices: deque[str] = deque(maxlen=MAX_NOTICES)  # for the router, about no job
        self._seats: dict[str, Seat] = {}
        self._prefixes = PrefixMap()

    @property
    def n_slots(self) -> int:
        """How many jobs can run at once."""
        return sum(station.facts.slots for station in self.stations)

    @property
    def has_choice(self) -> bool:
        """Whether it matters what a job's prompt begins with."""
        return len(self.stations) > 1

    def add(self, station: Station) -> None:
        """Take jobs for a llama-server from now on."""
        if self.is_over:
            return
        self.stations.append(station)
        self.has_opened = True
        if self.closed.is_set():
            self.closed = trio.Event()
        self.ring()

    def withdraw(self, station: Station, *, reason: str, grace_s: float) -> None:
        """Take no more jobs for a llama-server; its running ones go on, if they are not cut off with it.

        Args:
            station: may have been withdrawn before.
            reason: is told to the router.
            grace_s: how long the running jobs should be waited for.
        """
        if station not in self.stations:
            return
        self.stations.remove(station)
        if self.stations:
            self.notify(reason)
        else:
            self._close(reason, grace_s)

    def close(self, *, reason: str, grace_s: float) -> None:
        """Take no more jobs, for good; the running ones go on. Arguments as of `withdraw`."""
        self.is_over = True
        self.stations.clear()
        self._close(reason, grace_s)

    def notify(self, notice: str) -> None:
        """Leave a word for the router."""
        self.notices.append(notice)
        self.ring()

    def ring(self) -> None:
        """Wake who waits for a change: what the router should know has become another."""
        self.changed.set()
        self.changed = trio.Event()

    async def wait_change(self) -> None:
        """Wait for the next change."""
        await self.changed.wait()

    async def wait_over(self) -> None:
        """Wait until the table is closed for good."""
        while not self.is_over:
            await self.changed.wait()

    def take(self, job_id: str, chain: Chain = NO_CHAIN) -> Seat:
        """Give a job a seat; `leave` must follow.

        Args:
            job_id: of the job.
            chain: of its prompt.

        Raises:
            RefusedError: UNAVAILABLE: closed, full, or a job with this id is here already.
        """
        if self.closed.is_set():
            raise RefusedError(ErrorCode.UNAVAILABLE, self.reason)
        if job_id in self._seats:
            raise RefusedError(ErrorCode.UNAVAILABLE, "this worker is running a job with this id")
        free = [station for station in self.stations if station.n_free > 0]
        if not free:
            raise RefusedError(ErrorCode.UNAVAILABLE, f"all {self.n_slots} slots of this worker are taken")
        station = self._best(free, chain)
        seat = self._seats[job_id] = Seat(job_id=job_id, station=station, chain=chain)
        self._prefixes.started(chain, station.name)
        station.enter(seat)
        return seat

    def cancel(self, job_id: str) -> bool:
        """End a job without a word; return whether it was here. Its slot is free at once, as the router takes it."""
        seat = self._seats.get(job_id)
        if seat is not None:
            self.release(seat)
            seat.scope.cancel()
        return seat is not None

    def release(self, seat: Seat) -> None:
        """Free the slot: llama-server is done with the job."""
        if not seat.is_released:
            seat.is_released = True
            self._prefixes.ended(seat.chain, seat.station.name)

    def leave(self, seat: Seat) -> None:
        """Forget the job: everything about it has been sent, or will not be."""
        self.release(seat)
        del self._seats[seat.job_id]
        seat.station.leave(seat)
        if not self._seats:
            self.ring()

    async def wait_run_down(self) -> None:
        """Wait until no job is left, or those that are left may not take longer; for a closed table."""
        while self._seats and trio.current_time() < self.run_down_by:
            changed = self.changed
            with trio.CancelScope(deadline=self.run_down_by):
                await changed.wait()

    def _best(self, free: list[Station], chain: Chain) -> Station:
        if len(free) == 1:
            return free[0]
        by_name = {station.name: station for station in free}
        matches = (by_name[match.worker_id] for match in self._prefixes.matches(chain) if match.worker_id in by_name)
        return next(matches, None) or max(free, key=lambda station: station.n_free)

    def _close(self, reason: str, grace_s: float) -> None:
        self.reason = reason
        self.run_down_by = trio.current_time() + grace_s
        self.closed.set()
        self.ring()
