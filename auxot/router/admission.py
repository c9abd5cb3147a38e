"""Who may wait here, and whose job goes into the queue next.

    key's own limits --beyond--> 429
      |
    room in line? (jobs, bytes) --no--> 429 (Anthropic: 529), with the time that the line takes to drain
      |
    in line, by key and class --window opens--> in the queue --> a worker has it

The queue that all routers share is first come, first served, so fairness is made before it: of this router's jobs
only as many stand in it as it has slots (the window), the others wait here, where the next one can be chosen. Another
key's single job is then at most one turn of the slots away, however many wait.

Bounds, all of them this router's own: at most `max_jobs` requests and `max_bytes` of their bodies wait, counted from
the moment the key is known until a worker has the job. In memory a waiting job is its encoded message, what was read
of it, and for those in the window the queue's copy: three times its bytes at most, and some 60 KiB of connection
and tasks. Where there are several keys, one of them leaves a tenth of either bound to the others.

Owned by the router's event loop; nothing here awaits. `bell` is rung when a job may be let into the queue.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Self

import attrs
import trio

from auxot.core.errors import ErrorCode, RefusedError
from auxot.router.bell import Bell
from auxot.router.fair_queue import FairQueue
from auxot.router.keyring import Principal
from auxot.router.quotas import DrainRate, Quotas

if TYPE_CHECKING:
    from auxot.router.relay import OpenJob

MAX_COUNTED = 1000  # jobs before one in the queue
FREE_SHARE = 9  # a key may wait with nine times what is left free: alone with nine tenths
WINDOW_TTL_S = 0.25  # the slots of a thousand workers are not counted for every request
MIN_SHARED_WINDOW = 4  # on a Redis with other routers, whose workers take our jobs too

_FULL = "too many requests are waiting: try again later"


@attrs.define
class _Load:
    """What waits."""

    n_jobs: int = 0
    n_bytes: int = 0

    def add(self, n_jobs: int, n_bytes: int) -> None:
        self.n_jobs += n_jobs
        self.n_bytes += n_bytes


@attrs.define(eq=False, kw_only=True)
class Place:
    """One request's place, held from before its body is read until a worker has its job or it ends.

    A context manager: leaving the block gives it back. (One made of a generator would cost three times as much.)
    """

    admission: Admission
    principal: Principal
    n_bytes: int
    job_id: str | None = None  # once it is one
    waits: bool = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.admission.leave(self)


@attrs.define(eq=False, kw_only=True)
class Admission:
    """The door to one pool.

    Attributes:
        max_jobs: requests that wait.
        max_bytes: of their bodies, then of their encoded jobs. One that waits alone may be larger.
        n_slots: tells how many slots our workers have.
        min_window: jobs that stand in the queue when there are fewer slots.
    """

    max_jobs: int
    max_bytes: int
    n_slots: Callable[[], int]
    min_window: int = 1
    clock: Callable[[], float] = trio.current_time
    bell: Bell = attrs.field(factory=Bell)
    quotas: Quotas = attrs.field(factory=Quotas)
    drain: DrainRate = attrs.field(init=False)
    has_several_keys: bool = False
    waiting: _Load = attrs.field(factory=_Load)
    by_key: dict[str, _Load] = attrs.field(factory=dict)  # only of keys that wait
    _line: FairQueue[OpenJob] = attrs.field(factory=FairQueue)
    _in_queue: dict[str, None] = attrs.field(factory=dict)  # let in, and no worker has it yet
    _window: int = 0
    _window_until: float = float("-inf")

    def __attrs_post_init__(self) -> None:
        self.drain = DrainRate(self.clock())

    def know_keys(self, names: Iterable[str]) -> None:
        """Take note of which keys there are, the one without a file not counted."""
        known = set(names)
        self.has_several_keys = bool(known)
        self.quotas.keep_only(known)

    def enter(self, principal: Principal, *, n_bytes: int) -> Place:
        """Return a place for one request, to be entered at once: it is held until that block is left.

        Args:
            principal: whose it is.
            n_bytes: the size of its body as far as it is known.

        Raises:
            RefusedError: RATE_LIMITED: the key's own limits. OVERLOADED: there is no room.
        """
        self.quotas.enter(principal, now=self.clock())
        try:
            self._check_room(principal, n_jobs=1, n_bytes=n_bytes)
        except RefusedError:
            self.quotas.leave(principal)
            raise
        place = Place(admission=self, principal=principal, n_bytes=n_bytes)
        self._add(place, 1, n_bytes)
        return place

    def leave(self, place: Place) -> None:
        """Give back a place, and what its request took of its key's limits: what leaving its block does."""
        self._stop_waiting(place)
        self.quotas.leave(place.principal)

    def resize(self, place: Place, n_bytes: int) -> None:
        """Note how large a job has become; OVERLOADED if there is no room for that."""
        more = n_bytes - place.n_bytes
        if more > 0:
            self._check_room(place.principal, n_jobs=0, n_bytes=more)
        self._add(place, 0, more)
        place.n_bytes = n_bytes

    def on_started(self, place: Place) -> None:
        """Note that a worker has the job: its place is free."""
        if place.waits:
            self.drain.note(now=self.clock())
            self._stop_waiting(place)

    def pass_now(self, place: Place, job_id: str) -> bool:
        """Let a job into the queue past the line, if nobody is in it and the window is open."""
        place.job_id = job_id
        if len(self._line) or not self._is_open():
            return False
        self._in_queue[job_id] = None
        return True

    def line_up(self, place: Place, open_job: OpenJob) -> None:
        """Put a job into the line."""
        self._line.push(open_job.record.job_id, open_job, place.principal)

    def next_job(self) -> OpenJob | None:
        """Return the job to put into the queue now, and count it as being there; None if none may or none waits."""
        while len(self._line) and self._is_open():
            open_job = self._line.pop()
            if not open_job.ended:
                self._in_queue[open_job.record.job_id] = None
                return open_job
        return None

    def left_queue(self, job_id: str) -> None:
        """Note that a job stands in the queue no more: the window is open for another."""
        if job_id in self._in_queue:
            del self._in_queue[job_id]
            if len(self._line):
                self.bell.ring()

    def n_ahead(self, job_id: str) -> int | None:
        """Return about how many of this router's jobs go before one, at most MAX_COUNTED; None if it is not here."""
        if job_id in self._in_queue:
            return next(n for n, one in enumerate(self._in_queue) if one == job_id or n == MAX_COUNTED)
        n_in_line = self._line.n_ahead(job_id, at_most=MAX_COUNTED)
        return None if n_in_line is None else min(n_in_line + len(self._in_queue), MAX_COUNTED)

    def retry_after_s(self) -> int:
        """Return after how many seconds those who wait now will be gone."""
        return self.drain.retry_after_s(self.waiting.n_jobs, now=self.clock())

    def _check_room(self, principal: Principal, *, n_jobs: int, n_bytes: int) -> None:
        total, own = self.waiting, self.by_key.get(principal.name, _Load())
        free_jobs, free_bytes = self.max_jobs - total.n_jobs, self.max_bytes - total.n_bytes
        is_alone = total.n_jobs + n_jobs == 1
        is_full = n_jobs > free_jobs or (n_bytes > free_bytes and not is_alone)
        if self.has_several_keys and not is_alone:
            is_full = is_full or n_jobs + own.n_jobs > FREE_SHARE * (free_jobs - n_jobs) + 1
            is_full = is_full or (own.n_bytes > 0 and n_bytes + own.n_bytes > FREE_SHARE * (free_bytes - n_bytes))
        if is_full:
            raise RefusedError(ErrorCode.OVERLOADED, _FULL, retry_after_s=self.retry_after_s())

    def _add(self, place: Place, n_jobs: int, n_bytes: int) -> None:
        self.waiting.add(n_jobs, n_bytes)
        self.by_key.setdefault(place.principal.name, _Load()).add(n_jobs, n_bytes)

    def _stop_waiting(self, place: Place) -> None:
        """Free a place in line, wherever its job stands; safe to call twice."""
        if not place.waits:
            return
        place.waits = False
        self._add(place, -1, -place.n_bytes)
        name = place.principal.name
        if not self.by_key[name].n_jobs:
            del self.by_key[name]
        if place.job_id is not None:
            self._line.discard(place.job_id)
            self.left_queue(place.job_id)

    def _is_open(self) -> bool:
        return len(self._in_queue) < max(self.min_window, self._count_slots())

    def _count_slots(self) -> int:
        now = self.clock()
        if now >= self._window_until:
            self._window, self._window_until = self.n_slots(), now + WINDOW_TTL_S
        return self._window


def declared_bytes(headers: Iterable[tuple[bytes, bytes]], *, at_most: int) -> int:
    """Return how large a request says that its body is; 0 if it does not say. Larger ones are refused elsewhere."""
    for name, value in itertools.islice(headers, 200):
        if name == b"content-length" and value.isdigit():
            return min(int(value[:18]), at_most)
    return 0
