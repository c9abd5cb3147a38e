"""The dispatcher of a pool: gives jobs to free slots, and tells the queue what has ended.

    bell -> release, withdraw what is due -> claim as many as slots are free -> `claims`: may it run?
         -> plan (`placement`: who gets which) -> session.start, or held: for a worker that can do it, that has its
            prompt, or that can go on with an answer; or given back to other routers
         -> acknowledge what has ended, that of many jobs together

The dispatcher is the only one that claims. It sleeps on the queue's bell, which is rung by new entries, released
entries and freed slots, and looks every second anyway. Owned by one task; what others ask for (`settle`, `resume`,
`withdraw_soon`) is noted, and done at its next turn.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import attrs
import trio

from auxot.core.errors import ErrorCode, StoreError
from auxot.core.jobs import Failed, Kind
from auxot.core.messages import FEATURE_CONTINUE, FEATURE_OF_KIND
from auxot.core.prefixes import NO_CHAIN, Chain, chain_of
from auxot.router.claims import NO_ENTRY, Claims, is_from_queue
from auxot.router.draft import LOST
from auxot.router.job_meta import decode_meta
from auxot.router.placement import Placement, Plan, Wish
from auxot.router.queue import ClaimedJob, JobQueue

if TYPE_CHECKING:
    from auxot.core.logs import Logger
    from auxot.router.admission import Admission
    from auxot.router.census import Census
    from auxot.router.fleet import Fleet
    from auxot.router.guests import Correspondence
    from auxot.router.relay import OpenJob, Relay
    from auxot.router.session import Session

POLL_S = 1.0  # the backstop: a bell can be lost with the store's connection
MAX_CLAIM = 64  # entries at once: what is claimed here cannot go to another router
STORE_PAUSE_S = 0.5  # after an error of the store
MAX_WARM_WAITS = 32  # jobs that are held at once for a busy worker with their prompt
_NEEDS_OF_PROMPTS = (None, FEATURE_OF_KIND[Kind.COMPLETION])  # of jobs that fill a slot's cache


@attrs.define(eq=False, kw_only=True)
class Dispatcher:
    """Gives the jobs of one queue to the workers of one fleet.

    Attributes:
        quiet: once set, only jobs of clients that wait here are claimed.
        queue_rest: have what is missing of an answer written by a worker of another router.
        withdraw: take an entry out of the queue; never raises.
    """

    queue: JobQueue
    fleet: Fleet[Session]
    placement: Placement[Session]
    relay: Relay
    admission: Admission
    census: Census
    correspondence: Correspondence
    router_id: str
    max_attempts: int
    log: Logger
    quiet: trio.Event
    queue_rest: Callable[[OpenJob], Awaitable[None]]
    withdraw: Callable[[bytes], Awaitable[None]]
    claims: Claims = attrs.field(init=False)
    _unwanted: list[bytes] = attrs.field(factory=list)  # entries that must not run again
    _given_back: list[tuple[bytes, bool]] = attrs.field(factory=list)  # for others; True: we decline to take it again
    _held: deque[ClaimedJob] = attrs.field(factory=deque)  # claimed, and no session has them (yet)

    def __attrs_post_init__(self) -> None:
        self.claims = Claims(
            queue=self.queue,
            relay=self.relay,
            correspondence=self.correspondence,
            router_id=self.router_id,
            max_attempts=self.max_attempts,
            log=self.log,
            drop=self._drop,
        )

    async def run(self) -> None:
        """Give jobs to free slots for ever."""
        while True:
            if (patience_s := self._patience_s()) is None:
                await self.queue.bell.wait()
            else:
                with trio.move_on_after(patience_s):
                    await self.queue.bell.wait()
            try:
                await self._dispatch()
            except StoreError as exc:
                self.log.warning("queue.unreachable", error=str(exc))
                await trio.sleep(STORE_PAUSE_S)

    async def run_poll(self) -> None:
        """Ring the bell every POLL_S for ever; a time limit on each wait for it would cost more."""
        while True:
            await trio.sleep(POLL_S)
            self.queue.bell.ring()

    def settle(self, entry_id: bytes, *, runs_again: bool, declines: bool = False) -> None:
        """Have an entry released, or acknowledged.

        Args:
            entry_id: of the queue; NO_ENTRY is nothing to settle.
            runs_again: release it, else acknowledge it.
            declines: released for other routers, not to be claimed here again.
        """
        if entry_id == NO_ENTRY:
            return
        if runs_again:
            self._given_back.append((entry_id, declines))
            self.queue.bell.ring()
        else:
            self.queue.ack_soon(entry_id)

    def withdraw_soon(self, entry_id: bytes) -> None:
        """Have an entry taken out of the queue."""
        self._unwanted.append(entry_id)
        self.queue.bell.ring()

    def resume(self, open_job: OpenJob) -> None:
        """Have a job go on at a worker of this router; whoever has its entry removes that."""
        record = open_job.record
        open_job.chain = None  # it may be longer now
        open_job.is_queued = False
        rest = ClaimedJob(
            entry_id=NO_ENTRY,
            job_id=record.job_id,
            data=open_job.next_frame(),
            reply_to=self.router_id,
            meta=b"",
            attempt=record.attempt + 1,
            is_exhausted=False,
        )
        self._held.append(rest)
        self.queue.bell.ring()

    async def _dispatch(self) -> None:
        """Tell the queue what has ended, and give the free slots jobs; those first that nobody can wait for."""
        while self._given_back:
            entry_id, declines = self._given_back.pop()
            await self.queue.release(entry_id, declines=declines)
        await self._hand_over()
        while self._unwanted:
            await self.withdraw(self._unwanted.pop())
        if len(self.relay) or not self.quiet.is_set():
            await self._claim()
        await self.queue.announce_left()
        await self.queue.flush()

    async def _claim(self) -> None:
        """Claim and hand over until the queue is empty or every slot is taken."""
        while len(self._held) < MAX_CLAIM and (free := self._n_wanted()):
            claimed_jobs = await self.queue.claim(free)
            self._held.extend(map(self._counted, claimed_jobs))
            await self._hand_over()
            if len(claimed_jobs) < free:  # no more wait, or the bell has been rung
                return

    def _n_wanted(self) -> int:
        """Return how many jobs to claim: for each free slot one, and those that have been claimed in advance."""
        return max(self.fleet.n_free_slots(at_most=MAX_CLAIM), self.queue.n_early)

    def _counted(self, claimed: ClaimedJob) -> ClaimedJob:
        """Return a claimed job with the attempts of the entries before it; to be asked once."""
        n_before = decode_meta(claimed.meta).n_attempts
        if not n_before:
            return claimed
        attempt = claimed.attempt + n_before
        return attrs.evolve(claimed, attempt=attempt, is_exhausted=attempt > self.max_attempts)

    def _patience_s(self) -> float | None:
        """Return how long the next job may be held for a warm worker; None: there is none."""
        if not self._held or not self.placement.wait_s:
            return None
        now, guests = trio.current_time(), self.correspondence.guests
        jobs = (self.relay.find(claimed.job_id) or guests.get(claimed.job_id) for claimed in self._held)
        waits_s = (job.warm_by - now for job in jobs if job is not None and job.warm_by is not None)
        return min((wait_s for wait_s in waits_s if wait_s > 0), default=None)  # else it waits for any free slot

    async def _hand_over(self) -> None:
        """Give what is claimed to the best workers, in order. StoreError: what no session has is still held."""
        batch: list[tuple[ClaimedJob, OpenJob, Wish]] = []
        try:
            while self._held:
                claimed = self._held[0]
                open_job = await self.claims.find_job(claimed)
                self._held.popleft()
                if open_job is not None:
                    batch.append((claimed, open_job, self._wish(claimed, open_job)))
        except StoreError:
            self._held.extendleft((claimed for claimed, _, _ in reversed(batch)))
            raise
        if not batch:
            return
        plan = self.placement.plan([wish for _, _, wish in batch])
        for claimed, open_job, wish in batch:
            await self._start(claimed, open_job, wish=wish, plan=plan)

    def _wish(self, claimed: ClaimedJob, open_job: OpenJob) -> Wish:
        needs = FEATURE_CONTINUE if open_job.wants_rest else open_job.needs
        return Wish(job_id=claimed.job_id, needs=needs, chain=self._chain(claimed, open_job))

    def _chain(self, claimed: ClaimedJob, open_job: OpenJob) -> Chain:
        """Return the chain of a job's prompt; told once."""
        if open_job.chain is None:
            has_prompt = self.placement.is_on and open_job.needs in _NEEDS_OF_PROMPTS
            open_job.chain = chain_of(claimed.data) if has_prompt else NO_CHAIN
        return open_job.chain

    async def _start(self, claimed: ClaimedJob, open_job: OpenJob, *, wish: Wish, plan: Plan[Session]) -> None:
        """Give a job to its worker; each way out settles the entry, leaves it to a session, or holds it."""
        is_rest = claimed.entry_id == NO_ENTRY
        if not open_job.waits or is_from_queue(open_job) is is_rest:  # since jobs before it were seen to
            self._held.append(claimed)
            self.queue.bell.ring()
        elif self._waits_for_warmth(open_job, wish=wish, plan=plan):
            self._hold(claimed)
        elif (choice := plan.take(wish)) is not None:
            self._give(claimed, open_job, session=choice[0], route=choice[1])
        elif is_rest:
            await self._hold_rest(claimed, open_job, needs=wish.needs)
        else:
            self._wait_for_worker(claimed, open_job, needs=wish.needs)

    def _give(self, claimed: ClaimedJob, open_job: OpenJob, *, session: Session, route: str) -> None:
        open_job.record.route = route
        if claimed.entry_id == NO_ENTRY:
            event = "job.continued" if open_job.wants_rest else "job.restarted"
            self.log.info(event, job_id=claimed.job_id, worker_id=session.worker_id, attempt=claimed.attempt)
        else:
            open_job.record.claimed_at = time.time()
        self.placement.started(self._chain(claimed, open_job), session.worker_id)
        session.start(claimed, open_job)

    def _waits_for_warmth(self, open_job: OpenJob, *, wish: Wish, plan: Plan[Session]) -> bool:
        """Whether a job is to wait (longer) for a worker that holds its prompt."""
        wait_s, now = self.placement.wait_s, trio.current_time()
        if not wait_s or len(self._held) >= MAX_WARM_WAITS or not plan.may_wait(wish):
            return False
        if open_job.warm_by is None:
            open_job.warm_by = now + wait_s
        return now < open_job.warm_by

    def _hold(self, claimed: ClaimedJob) -> None:
        self._held.append(claimed)
        self.admission.left_queue(claimed.job_id)  # others need not wait for that

    async def _hold_rest(self, rest: ClaimedJob, open_job: OpenJob, *, needs: str | None) -> None:
        """Keep what goes on here until a worker that can do that is free or has come back, or leave it to others."""
        may_come = self.fleet.can(FEATURE_CONTINUE) or trio.current_time() < open_job.continue_by
        if not self._can(needs) and self.census.others_can(needs):
            await self.queue_rest(open_job)
        elif may_come or not open_job.wants_rest:
            self._held.append(rest)
        elif open_job.begin_again():
            self.resume(open_job)
        else:
            open_job.fail(LOST)

    def _can(self, needs: str | None) -> bool:
        """Whether a worker of this router, busy or not, can do what needs a feature, or what needs none."""
        return self.fleet.can(needs) if needs is not None else self.fleet.count().workers > 0

    def _wait_for_worker(self, claimed: ClaimedJob, open_job: OpenJob, *, needs: str | None) -> None:
        """Keep a job that not every worker can do, or that was held already, or leave it to other routers.

        Others are given back: a worker has left.
        """
        if not self.fleet.count().workers or (needs is None and open_job.warm_by is None):
            self._give_up(claimed, runs_again=True)
        elif needs is None or self.fleet.can(needs):
            self._hold(claimed)
        elif self.census.others_can(needs):
            self._give_up(claimed, runs_again=True, declines=True)
        else:
            open_job.fail(Failed(ErrorCode.NOT_IMPLEMENTED, f"no connected worker can do this ({needs})"))
            self._give_up(claimed, runs_again=False)

    def _drop(self, claimed: ClaimedJob) -> None:
        self._give_up(claimed, runs_again=False)

    def _give_up(self, claimed: ClaimedJob, *, runs_again: bool, declines: bool = False) -> None:
        """Settle a claim that no session has taken. A guest is forgotten: the next claim is another attempt."""
        guest = self.correspondence.guests.get(claimed.job_id)
        if guest is not None and guest.entry_id == claimed.entry_id:
            self.correspondence.settled(claimed.job_id)
        self.settle(claimed.entry_id, runs_again=runs_again, declines=declines)
