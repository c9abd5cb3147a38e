"""Which worker gets which of the jobs that are to start now: the one with most of the prompt, or the least busy.

    jobs with their chains -> plan: best pairs first, over all jobs -> take, job by job in the queue's order

The plan reserves slots for the jobs that gain most by them. It never costs a job its turn: a job that finds none but
reserved slots gets one of these, before any job behind it.

A worker with a free slot is never left idle for a warm one, unless the operator allows a wait: then a job may be held
for at most that long while the workers that hold its prompt are busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic

import attrs

from auxot.core.prefixes import NO_CHAIN, Chain, Match, PrefixMap
from auxot.router.fleet import Fleet, MemberT

PREFIX = "prefix"
LEAST_LOADED = "least-loaded"
MIN_GAIN_BYTES = 1024  # for less, some 250 tokens, no worker with more to do than another is chosen


@attrs.frozen(kw_only=True)
class Wish:
    """A job that is to be placed. `needs`: a feature that the worker must have."""

    job_id: str
    needs: str | None = None
    chain: Chain = NO_CHAIN


@attrs.define(eq=False, kw_only=True)
class Placement(Generic[MemberT]):
    """The placing of one pool's jobs.

    Attributes:
        is_on: look for prompts that a worker holds; else the least busy gets each job.
        wait_s: how long a job may be held for a worker that holds its prompt.
    """

    fleet: Fleet[MemberT]
    is_on: bool = True
    wait_s: float = 0.0
    prefixes: PrefixMap = attrs.field(factory=PrefixMap)

    def plan(self, wishes: Sequence[Wish]) -> Plan[MemberT]:
        """Decide which jobs go where their prompts are; holds as long as the fleet is not changed but by them."""
        plan = Plan(self.fleet)
        if self.is_on:
            matches = {wish.job_id: self.prefixes.matches(wish.chain) for wish in wishes}
            plan.reserve(wishes, matches)
        return plan

    def started(self, chain: Chain, worker_id: str) -> None:
        """Note that a worker has got a job with this prompt."""
        if self.is_on:
            self.prefixes.started(chain, worker_id)

    def ended(self, chain: Chain, worker_id: str) -> None:
        """Note that it is done with it."""
        if self.is_on:
            self.prefixes.ended(chain, worker_id)


@attrs.define(eq=False)
class Plan(Generic[MemberT]):
    """Slots that are reserved for some of the jobs that start now."""

    _fleet: Fleet[MemberT]
    _homes: dict[str, str] = attrs.field(factory=dict)  # job id -> worker id
    _reserved: dict[str, int] = attrs.field(factory=dict)  # by worker id
    _matches: dict[str, list[Match]] = attrs.field(factory=dict)

    def reserve(self, wishes: Sequence[Wish], matches: dict[str, list[Match]]) -> None:
        """Reserve slots, for the longest matches first; among equals for the first job, at the least busy worker."""
        self._matches = matches
        if not any(matches.values()):
            return
        pairs = []
        for place, wish in enumerate(wishes):
            for match in matches[wish.job_id]:
                member = self._fleet.find_free(match.worker_id, needs=wish.needs)
                if member is not None and self._is_worth_it(match, member):
                    pairs.append((-match.n_bytes, place, member.n_running, wish, match, member))
        taken: set[tuple[str, int]] = set()  # what the slot of an earlier pair holds: it is busy with that
        for _, _, _, wish, match, member in sorted(pairs, key=lambda pair: pair[:3]):
            worker_id = member.worker_id
            is_free = member.n_running + self._reserved.get(worker_id, 0) < member.n_slots
            if is_free and wish.job_id not in self._homes and (worker_id, match.node) not in taken:
                self._homes[wish.job_id] = worker_id
                self._reserved[worker_id] = self._reserved.get(worker_id, 0) + 1
                if len(pairs) > 1:
                    taken.update((worker_id, node) for node in wish.chain.nodes)

    def take(self, wish: Wish) -> tuple[MemberT, str] | None:
        """Return the worker for a job and why it is that one, or None if no slot (that can do it) is free.

        To be called in the order of the queue, and the job must be started before the next is asked for.
        """
        home = self._homes.pop(wish.job_id, None)
        if home is not None:
            self._reserved[home] -= 1
            member = self._fleet.find_free(home, needs=wish.needs)
            if member is not None:
                return member, PREFIX
        member = self._fleet.choose(needs=wish.needs, reserved=self._reserved)
        member = member or self._fleet.choose(needs=wish.needs)
        return None if member is None else (member, LEAST_LOADED)

    def may_wait(self, wish: Wish) -> bool:
        """Whether there is no slot free for a job at a worker that holds its prompt, but there is such a worker."""
        if wish.job_id in self._homes:
            return False
        long = [match for match in self._matches.get(wish.job_id, ()) if match.n_bytes >= MIN_GAIN_BYTES]
        return any(self._fleet.is_busy(match.worker_id, needs=wish.needs) for match in long)

    def _is_worth_it(self, match: Match, member: MemberT) -> bool:
        return match.n_bytes >= MIN_GAIN_BYTES or member.n_running <= self._fleet.least_load()
