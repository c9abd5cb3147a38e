"""Who is next: weighted fair queueing between keys, within classes of which the first goes before the second. Pure.

Each key has a line of its own. A class keeps a virtual time; a line's head bears the time at which it would begin if
every key had its share, and the smallest goes next (start-time fair queueing: Goyal, Vin, Cheng, 1996). A key that
comes new, or comes back, begins at the present virtual time: a thousand jobs of another key are not before it, and it
has saved no credit while it was away. All jobs cost the same: how long one takes is not known before it has ended.

Batch jobs wait while interactive ones do, but for every tenth turn: a class that never moved would time out whole.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict
from typing import Generic, TypeVar

import attrs

from auxot.router.keyring import Principal, Priority

BATCH_TURN = 10  # of so many jobs that are let go while both classes wait, one is a batch job
MAX_RESTED = 1024  # lines that are empty, but whose share is still used up

T = TypeVar("T")


@attrs.define(eq=False)
class _Line(Generic[T]):
    """The waiting jobs of one key. `start`: the virtual time of its head, or of the next that comes."""

    weight: int
    start: float
    jobs: OrderedDict[str, T] = attrs.field(factory=OrderedDict)


@attrs.define(eq=False)
class _Class(Generic[T]):
    """The lines of one class. `_heap` may hold lines that have become empty; they are skipped."""

    now: float = 0.0
    n_jobs: int = 0
    lines: dict[str, _Line[T]] = attrs.field(factory=dict)
    _rested: dict[str, float] = attrs.field(factory=dict)  # when keys whose line is empty may begin again
    _heap: list[tuple[float, int, str, _Line[T]]] = attrs.field(factory=list)
    _order: itertools.count[int] = attrs.field(factory=itertools.count)

    def push(self, job_id: str, job: T, principal: Principal) -> None:
        line = self.lines.get(principal.name)
        if line is None:
            start = max(self.now, self._rested.pop(principal.name, 0.0))
            line = self.lines[principal.name] = _Line(principal.weight, start)
            self._enter(principal.name, line)
        line.weight = principal.weight  # its file may have changed
        line.jobs[job_id] = job
        self.n_jobs += 1

    def pop(self) -> tuple[str, T]:
        """Take the next job; there must be one."""
        while True:
            _, _, name, line = heapq.heappop(self._heap)
            if self.lines.get(name) is line:
                break
        self.now = line.start
        line.start += 1 / line.weight
        job_id, job = line.jobs.popitem(last=False)
        self.n_jobs -= 1
        if line.jobs:
            self._enter(name, line)
        else:
            self._rest(name, line)
        return job_id, job

    def discard(self, name: str, job_id: str) -> bool:
        line = self.lines.get(name)
        if line is None or line.jobs.pop(job_id, None) is None:
            return False
        self.n_jobs -= 1
        if not line.jobs:
            self._rest(name, line)
            if len(self._heap) > 2 * len(self.lines) + MAX_RESTED:
                self._heap = [entry for entry in self._heap if self.lines.get(entry[2]) is entry[3]]
                heapq.heapify(self._heap)
        return True

    def _enter(self, name: str, line: _Line[T]) -> None:
        heapq.heappush(self._heap, (line.start, next(self._order), name, line))

    def _rest(self, name: str, line: _Line[T]) -> None:
        """Remove an empty line; what its key has used of its share is remembered until the others have caught up."""
        del self.lines[name]
        if line.start > self.now:
            self._rested[name] = line.start
        if len(self._rested) > MAX_RESTED:
            self._rested = {name: start for name, start in self._rested.items() if start > self.now}
            while len(self._rested) > MAX_RESTED:
                del self._rested[next(iter(self._rested))]


class FairQueue(Generic[T]):
    """Jobs in line, by key and class. Every operation costs the logarithm of the number of keys at most."""

    def __init__(self) -> None:
        self._classes: dict[Priority, _Class[T]] = {priority: _Class() for priority in Priority}
        self._where: dict[str, tuple[Priority, str]] = {}  # job id -> class, key
        self._n_since_batch = 0

    def push(self, job_id: str, job: T, principal: Principal) -> None:
        """Put a job at the end of its key's line; ids are unique."""
        self._where[job_id] = (principal.priority, principal.name)
        self._classes[principal.priority].push(job_id, job, principal)

    def pop(self) -> T:
        """Take the job that is next.

        Raises:
            IndexError: none waits.
        """
        if not self._where:
            raise IndexError("no job waits")
        job_id, job = self._classes[self._next_class()].pop()
        del self._where[job_id]
        return job

    def discard(self, job_id: str) -> bool:
        """Take a job out of the line; False if it is not there."""
        where = self._where.pop(job_id, None)
        return where is not None and self._classes[where[0]].discard(where[1], job_id)

    def n_ahead(self, job_id: str, *, at_most: int) -> int | None:
        """Return about how many jobs will go before one if nothing else comes; None if it is not in line.

        Args:
            job_id: of the one.
            at_most: not counted further; looking costs so much, and the number of keys.
        """
        where = self._where.get(job_id)
        if where is None:
            return None
        of_class, name = self._classes[where[0]], where[1]
        line = of_class.lines[name]
        position = next(n for n, one in enumerate(line.jobs) if one == job_id or n == at_most)
        goes_at = line.start + position / line.weight
        n_ahead = position
        if where[0] is Priority.BATCH:
            n_ahead += self._classes[Priority.INTERACTIVE].n_jobs
        for other in of_class.lines.values():
            if other is not line and n_ahead < at_most:
                n_turns = math.ceil(max(0.0, goes_at - other.start) * other.weight)
                n_ahead += min(len(other.jobs), n_turns)
        return min(n_ahead, at_most)

    def __len__(self) -> int:
        return len(self._where)

    def _next_class(self) -> Priority:
        n_interactive, n_batch = (self._classes[one].n_jobs for one in (Priority.INTERACTIVE, Priority.BATCH))
        if not n_interactive or not n_batch:
            self._n_since_batch = 0
            return Priority.INTERACTIVE if n_interactive else Priority.BATCH
        self._n_since_batch = (self._n_since_batch + 1) % BATCH_TURN
        return Priority.INTERACTIVE if self._n_since_batch else Priority.BATCH
