"""All connected workers, and which of them gets the next job.

The choice is the worker with the fewest running jobs among those with a free slot; among equals the one that has
waited longest. Workers with a free slot stand in buckets by their number of running jobs, so that choosing and moving
one costs the same with four workers and with a thousand.

Owned by the router's event loop; nothing here blocks. `bell` is rung when a slot has become free, and `on_slots` told
when there are more or fewer of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

import attrs

from auxot.router.bell import Bell


class Member(Protocol):
    """What the fleet needs to know of a session."""

    worker_id: str

    @property
    def n_running(self) -> int:
        """Jobs that it runs."""

    @property
    def n_slots(self) -> int:
        """Jobs that it can run at once; 0 while it takes none."""

    @property
    def features(self) -> tuple[str, ...]:
        """What it understands beyond the original protocol."""


MemberT = TypeVar("MemberT", bound=Member)

_NOTHING: Mapping[str, int] = MappingProxyType({})


def _ignore(n_slots: int) -> None:
    """Do nothing."""


@attrs.frozen(kw_only=True)
class FleetCount:
    """The figures of `/health`."""

    workers: int
    total_slots: int
    active_jobs: int

    @property
    def available(self) -> int:
        """Free slots."""
        return max(0, self.total_slots - self.active_jobs)


@attrs.define(eq=False)
class Fleet(Generic[MemberT]):
    """The connected workers of one pool."""

    bell: Bell
    lost_jobs_at: float = float("-inf")  # when (trio's clock) a worker was last lost with jobs
    on_slots: Callable[[int], None] = _ignore  # called with the number of all slots when it changes
    _n_slots: int = 0
    _slots_of: dict[str, int] = attrs.field(factory=dict)  # worker id -> slots
    _members: dict[str, MemberT] = attrs.field(factory=dict)
    _bucket_of: dict[str, int] = attrs.field(factory=dict)  # worker id -> running jobs, if it has a free slot
    _buckets: dict[int, dict[str, MemberT]] = attrs.field(factory=dict)

    def update(self, member: MemberT) -> None:
        """Note that a worker has come, or that its slots or running jobs have changed."""
        self._members[member.worker_id] = member
        self._note_slots(member.worker_id, member.n_slots)
        had_free_slot = self._leave_bucket(member.worker_id)
        if member.n_running < member.n_slots:
            self._buckets.setdefault(member.n_running, {})[member.worker_id] = member
            self._bucket_of[member.worker_id] = member.n_running
            if not had_free_slot:  # else the queue was looked at when that slot became free
                self.bell.ring()

    def remove(self, member: MemberT) -> None:
        """Forget a worker that has gone. Safe to call twice."""
        self._members.pop(member.worker_id, None)
        self._note_slots(member.worker_id, 0)
        self._leave_bucket(member.worker_id)

    def choose(self, *, needs: str | None = None, reserved: Mapping[str, int] = _NOTHING) -> MemberT | None:
        """Return the worker that gets the next job, or None when all slots (of those that can do it) are taken.

        Args:
            needs: a feature that the worker must have announced.
            reserved: free slots that are not to be used, by worker id.
        """
        for load in sorted(self._buckets):
            for member in self._buckets[load].values():
                is_left = not reserved or load + reserved.get(member.worker_id, 0) < member.n_slots
                if is_left and (needs is None or needs in member.features):
                    return member
        return None

    def find_free(self, worker_id: str, *, needs: str | None = None) -> MemberT | None:
        """Return that worker if it has a free slot and the feature."""
        if worker_id not in self._bucket_of:
            return None
        member = self._members[worker_id]
        return member if needs is None or needs in member.features else None

    def is_busy(self, worker_id: str, *, needs: str | None = None) -> bool:
        """Whether that worker takes jobs and has the feature, but no slot is free."""
        member = self._members.get(worker_id)
        if member is None or worker_id in self._bucket_of or not member.n_slots:
            return False
        return needs is None or needs in member.features

    def least_load(self) -> int:
        """Return how many jobs the least busy of the workers with a free slot runs; 0 if there is none."""
        return min(self._buckets, default=0)

    def can(self, needs: str) -> bool:
        """Whether any worker that takes jobs, busy or not, has announced a feature."""
        return any(needs in member.features for member in self._members.values() if member.n_slots)

    def n_free_slots(self, *, at_most: int) -> int:
        """Return how many slots are free, counting no further than `at_most`."""
        free = 0
        for bucket in self._buckets.values():
            for member in bucket.values():
                free += member.n_slots - member.n_running
                if free >= at_most:
                    return at_most
        return free

    def count(self) -> FleetCount:
        """Return the figures of all workers that take jobs; one that has only just connected is not among them."""
        ready = [member for member in self._members.values() if member.n_slots]
        return FleetCount(
            workers=len(ready),
            total_slots=sum(member.n_slots for member in ready),
            active_jobs=sum(member.n_running for member in ready),
        )

    def members(self) -> list[MemberT]:
        """Return the workers, in no order."""
        return list(self._members.values())

    def _note_slots(self, worker_id: str, n_slots: int) -> None:
        change = n_slots - self._slots_of.get(worker_id, 0)
        if change:
            self._slots_of[worker_id] = n_slots
            self._n_slots += change
            self.on_slots(self._n_slots)
        if not n_slots:
            self._slots_of.pop(worker_id, None)

    def _leave_bucket(self, worker_id: str) -> bool:
        load = self._bucket_of.pop(worker_id, None)
        if load is None:
            return False
        bucket = self._buckets[load]
        del bucket[worker_id]
        if not bucket:
            del self._buckets[load]
        return True
