"""A pool: one policy, the queue of its jobs and the fleet of its workers. One today, several tomorrow.

    request -> submit -> (line -> releaser) -> stream entry
    dispatcher: claim as many as slots are free -> plan (`placement`: who gets which) -> session.start
    session -> settle: acknowledge, or release for another worker (both done by the dispatcher, those of many jobs
               together), or resume: held here until a worker can go on

An answer that is written in part is continued from here: only here is it known what has been written. A worker of this
router goes on with it, without an entry; if none can, what is missing is queued like a job, for those of others.

The dispatcher is the only one that claims. It sleeps on the queue's bell, which is rung by new entries, released
entries and freed slots, and looks every second anyway.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs
import trio

from auxot.core.errors import ErrorCode, StoreError
from auxot.core.jobs import Failed, JobRecord, Kind
from auxot.core.messages import FEATURE_CONTINUE, FEATURE_OF_KIND
from auxot.router.attempt import Attempt, Outcome
from auxot.router.draft import LOST
from auxot.router.guests import CONTINUE_WAIT_S, Correspondence, GuestAnswer, GuestJob
from auxot.router.job_meta import JobMeta, decode_meta, encode_meta
from auxot.router.placement import Placement, Plan, Wish
from auxot.router.prefixes import NO_CHAIN, Chain, chain_of
from auxot.router.queue import ClaimedJob, JobQueue, QueuedJob
from auxot.router.sweeper import is_settled

if TYPE_CHECKING:
    from auxot.core.logs import Logger
    from auxot.core.messages import Policy
    from auxot.router.admission import Admission
    from auxot.router.census import Census
    from auxot.router.fleet import Fleet
    from auxot.router.relay import OpenJob, Relay
    from auxot.router.session import Session

POLL_S = 1.0  # the dispatcher's backstop: a bell can be lost with the store's connection
MAX_CLAIM = 64  # entries at once: what is claimed here cannot go to another router
STORE_PAUSE_S = 0.5  # after an error of the store
WITHDRAW_TIMEOUT_S = 1.0
LIVE_S = 1.0  # how long another router is taken to live after it was seen
MAX_WARM_WAITS = 32  # jobs that are held at once for a busy worker with their prompt
_NO_ENTRY = b""  # the entry id of what is continued
_NEEDS_OF_PROMPTS = (None, FEATURE_OF_KIND[Kind.COMPLETION])  # of jobs that fill a slot's cache


@attrs.define(eq=False, kw_only=True)
class Pool:
    """The workers that serve one policy, with their queue."""

    policy: Policy
    queue: JobQueue
    fleet: Fleet[Session]
    placement: Placement[Session]
    relay: Relay
    admission: Admission
    census: Census
    router_id: str
    max_attempts: int
    log: Logger
    quiet: trio.Event  # once set, only jobs of clients that wait here are claimed
    correspondence: Correspondence = attrs.field(init=False)
    _unwanted: list[bytes] = attrs.field(factory=list)  # entries that must not run again
    _given_back: list[tuple[bytes, bool]] = attrs.field(factory=list)  # for others; True: we decline to take it again
    _live: dict[str, float] = attrs.field(factory=dict)  # other routers, and until when they are taken to live
    _held: deque[ClaimedJob] = attrs.field(factory=deque)  # claimed, and no session has them (yet)

    def __attrs_post_init__(self) -> None:
        self.correspondence = Correspondence(
            relay=self.relay,
            max_attempts=self.max_attempts,
            withdraw=self._withdraw_soon,
            resume=self._resume,
            may_stay=self._may_stay,
        )

    def adopt(self, policy: Policy) -> None:
        """Serve another policy from now on: the workers that are here are told, new ones learn it with their hello."""
        self.policy = policy
        for session in self.fleet.members():
            session.tell_policy(policy)

    async def submit(self, open_job: OpenJob) -> None:
        """Put an open job into the queue, or into the line before it.

        Raises:
            StoreError: the store cannot take it.
        """
        open_job.record.queued_at = time.time()
        place = open_job.place
        if place is None or self.admission.pass_now(place, open_job.record.job_id):
            await self._enqueue(open_job)
        else:
            self.admission.line_up(place, open_job)

    def n_ahead(self, job_id: str) -> int | None:
        """Return about how many jobs go before one; None if it does not wait, or is unknown."""
        open_job = self.relay.find(job_id)
        if open_job is None or not open_job.waits:
            return None
        return self.admission.n_ahead(job_id) or 0  # 0 also for one that runs again: those go first

    async def _enqueue(self, open_job: OpenJob) -> None:
        """Write a job's entry; of one that goes on, what asks for the rest."""
        record = open_job.record
        meta = JobMeta(
            needs=FEATURE_CONTINUE if open_job.wants_rest else open_job.needs,
            max_tokens=open_job.max_tokens,
            issue=open_job.issue,
            n_attempts=record.attempt,
        )
        data = open_job.next_frame()
        entry = QueuedJob(job_id=record.job_id, data=data, reply_to=self.router_id, meta=encode_meta(meta))
        open_job.is_queued, open_job.entry_seen_at = True, trio.current_time()
        open_job.entry_id = await self.queue.enqueue(entry)

    async def queue_again(self, open_job: OpenJob) -> None:
        """Give a job whose entry is lost a new one; what is still said of the old one counts no more.

        Raises:
            StoreError: it may be in the queue or not; it is as if that new entry were lost as well.
        """
        record = open_job.record
        if open_job.cancel_attempt is not None and not self.correspondence.lose(open_job, attempt=record.attempt):
            return
        old_entry_id = open_job.entry_id
        open_job.issue += 1
        self.log.warning("job.queued_again", job_id=record.job_id, issue=open_job.issue)
        await self._enqueue(open_job)
        if old_entry_id:
            await self.queue.withdraw(old_entry_id)  # it may be in the stream, where nobody gets to it
        if open_job.ended:
            await self.withdraw(open_job)

    async def run_releaser(self) -> None:
        """Let jobs from the line into the queue for ever, each when its turn has come."""
        while True:
            with trio.move_on_after(POLL_S):
                await self.admission.bell.wait()
            while (open_job := self.admission.next_job()) is not None:
                await self._release(open_job)

    async def _release(self, open_job: OpenJob) -> None:
        try:
            await self._enqueue(open_job)
        except StoreError as exc:  # it may be in the queue or not, so it must not be put there once more
            self.log.warning("queue.unreachable", error=str(exc))
            open_job.fail(Failed(ErrorCode.UNAVAILABLE, "the queue cannot be reached"))
            await self._wait_for_store()
            return
        if open_job.ended:  # meanwhile; its request did not know the entry
            await self.withdraw(open_job)

    async def _wait_for_store(self) -> None:
        """Wait until the store answers: the other jobs in line need not fail."""
        while True:
            await trio.sleep(STORE_PAUSE_S)
            with suppress(StoreError):
                await self.queue.depth()
                return

    async def withdraw(self, open_job: OpenJob) -> None:
        """Take the entry of a job whose client has left out of the queue, unless a session has it and settles it."""
        entry_id = open_job.entry_id
        if entry_id is not None and open_job.cancel_attempt is None:
            await self._withdraw(entry_id)

    async def _withdraw(self, entry_id: bytes) -> None:
        with trio.move_on_after(WITHDRAW_TIMEOUT_S, shield=True), suppress(StoreError):
            await self.queue.withdraw(entry_id)  # else the dispatcher drops it when it gets there

    def settle(self, attempt: Attempt) -> None:
        """Decide what becomes of a job whose delivery has ended; the dispatcher tells the queue."""
        if attempt.number != attempt.open_job.record.attempt:
            return  # somebody else runs it by now, and settles it: this router was taken for dead
        open_job = attempt.open_job
        if attempt.outcome is not Outcome.LOST and open_job.chain and open_job.record.worker_id:
            self.placement.ended(open_job.chain, open_job.record.worker_id)
        if attempt.can_be_continued:
            open_job.continue_by = trio.current_time() + CONTINUE_WAIT_S
        lost = attempt.outcome is Outcome.LOST
        runs_again = lost and self.correspondence.lose(open_job, attempt=attempt.number)
        self.correspondence.settled(attempt.job_id, open_job)
        self._settle(attempt.entry_id, runs_again=runs_again)

    async def run_dispatcher(self) -> None:
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

    async def _dispatch(self) -> None:
        """Tell the queue what has ended, and give the free slots jobs; those first that nobody can wait for."""
        while self._given_back:
            entry_id, declines = self._given_back.pop()
            await self.queue.release(entry_id, declines=declines)
        await self._hand_over()
        while self._unwanted:
            await self._withdraw(self._unwanted.pop())
        if len(self.relay) or not self.quiet.is_set():
            await self._claim()
        await self.queue.flush()

    async def _claim(self) -> None:
        """Claim and hand over until the queue is empty or every slot is taken."""
        while len(self._held) < MAX_CLAIM and (free := self.fleet.n_free_slots(at_most=MAX_CLAIM)):
            claimed_jobs = await self.queue.claim(free)
            self._held.extend(map(self._counted, claimed_jobs))
            await self._hand_over()
            if len(claimed_jobs) < free:  # no more wait, or the bell has been rung
                return

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
                open_job = await self._runnable(claimed)
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
        is_rest = claimed.entry_id == _NO_ENTRY
        if not open_job.waits or _is_from_queue(open_job) is is_rest:  # since jobs before it were seen to
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
        if claimed.entry_id == _NO_ENTRY:
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

    async def _runnable(self, claimed: ClaimedJob) -> OpenJob | None:
        """Return the job of an entry if it may run now; None if it may not, and then the entry is settled.

        Raises:
            StoreError: that could not be found out.
        """
        is_ours = claimed.reply_to == self.router_id
        if claimed.entry_id == _NO_ENTRY:
            open_job = self.relay.find(claimed.job_id)
            return None if open_job is None or not open_job.waits or _is_from_queue(open_job) else open_job
        meta = decode_meta(claimed.meta)
        open_job = self.relay.find(claimed.job_id) if is_ours else await self._welcome(claimed, meta)
        if open_job is not None and open_job.issue != meta.issue:
            open_job = None  # of an entry that was taken for lost
        if open_job is not None and _is_from_queue(open_job) and self._runs_here(open_job):
            return None  # this router was taken for dead: the job is its own again, and the session settles it
        if open_job is None or open_job.ended or not self._may_run(open_job, claimed):
            self.log.info("job.dropped", job_id=claimed.job_id, reason="nobody waits for it")
            self._give_up(claimed, runs_again=False)
            return None
        if claimed.is_exhausted:
            message = f"given up after {self.max_attempts} deliveries"
            open_job.fail(Failed(ErrorCode.WORKER_LOST, message))
            self._give_up(claimed, runs_again=False)
            return None
        return open_job

    def _may_run(self, open_job: OpenJob, claimed: ClaimedJob) -> bool:
        """Whether a job may run (again); one that another router ran until it died may have shown its client text."""
        if not _is_from_queue(open_job):
            return False
        if open_job.cancel_attempt is None:
            return True
        return self.correspondence.lose(open_job, attempt=claimed.attempt - 1)

    def _runs_here(self, open_job: OpenJob) -> bool:
        """Whether a session of this router has a job, and it has not ended."""
        is_running = open_job.cancel_attempt is not None and not open_job.ended
        return is_running and not self.correspondence.runs_elsewhere(open_job.record.job_id)

    async def _welcome(self, claimed: ClaimedJob, meta: JobMeta) -> GuestJob | None:
        """Return a job of another router as a guest; None if that router is gone, and its client with it."""
        guest = self.correspondence.guests.get(claimed.job_id)
        if guest is not None and guest.issue < meta.issue:
            self.correspondence.dismiss(claimed.job_id, issue=guest.issue)
            guest = None
        mailbox = self.correspondence.mailbox
        if guest is not None or mailbox is None or not await self._is_live(claimed.reply_to):
            return guest
        answer = GuestAnswer(claimed.job_id, claimed.attempt, claimed.reply_to, mailbox, meta.issue)
        guest = GuestJob(
            record=JobRecord(job_id=claimed.job_id, accepted_at=time.time(), router_id=claimed.reply_to),
            answer=answer,
            guest_answer=answer,
            frame=b"",
            needs=meta.needs,
            max_tokens=meta.max_tokens,
            entry_id=claimed.entry_id,
            issue=meta.issue,
            is_queued=True,
        )
        self.correspondence.guests[claimed.job_id] = guest
        return guest

    async def _is_live(self, router_id: str) -> bool:
        now = trio.current_time()
        if not is_settled(self.queue):
            return True  # it may only not be back yet; if it is dead the job is stopped once that is known
        if self._live.get(router_id, 0.0) < now:
            self._live.clear()  # it stays small, and there are few
            if router_id not in await self.queue.roster.live_among({router_id}):
                return False
            self._live[router_id] = now + LIVE_S
        return True

    def _withdraw_soon(self, open_job: OpenJob) -> None:
        if open_job.entry_id is not None:
            self._unwanted.append(open_job.entry_id)
            self.queue.bell.ring()

    def _may_stay(self) -> bool:
        """Whether a job can wait here for a worker to go on with it: others cannot claim what is held here."""
        return self.correspondence.mailbox is None or self.fleet.can(FEATURE_CONTINUE)

    def _resume(self, open_job: OpenJob) -> None:
        """Have a job go on at a worker of this router; whoever has its entry removes that."""
        record = open_job.record
        open_job.chain = None  # it may be longer now
        open_job.is_queued = False
        rest = ClaimedJob(
            entry_id=_NO_ENTRY,
            job_id=record.job_id,
            data=open_job.next_frame(),
            reply_to=self.router_id,
            meta=b"",
            attempt=record.attempt + 1,
            is_exhausted=False,
        )
        self._held.append(rest)
        self.queue.bell.ring()

    async def _hold_rest(self, rest: ClaimedJob, open_job: OpenJob, *, needs: str | None) -> None:
        """Keep what goes on here until a worker that can do that is free or has come back, or leave it to others."""
        may_come = self.fleet.can(FEATURE_CONTINUE) or trio.current_time() < open_job.continue_by
        if not self._can(needs) and self.census.others_can(needs):
            await self._queue_rest(open_job)
        elif may_come or not open_job.wants_rest:
            self._held.append(rest)
        elif open_job.begin_again():
            self._resume(open_job)
        else:
            open_job.fail(LOST)

    def _can(self, needs: str | None) -> bool:
        """Whether a worker of this router, busy or not, can do what needs a feature, or what needs none."""
        return self.fleet.can(needs) if needs is not None else self.fleet.count().workers > 0

    async def _queue_rest(self, open_job: OpenJob) -> None:
        """Have what is missing of an answer written by a worker of another router."""
        open_job.issue += 1
        try:
            await self._enqueue(open_job)
        except StoreError:
            open_job.fail(LOST)
            return
        self.log.info("job.rest_queued", job_id=open_job.record.job_id, attempt=open_job.record.attempt)
        if open_job.ended:
            await self.withdraw(open_job)

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

    def _give_up(self, claimed: ClaimedJob, *, runs_again: bool, declines: bool = False) -> None:
        """Settle a claim that no session has taken. A guest is forgotten: the next claim is another attempt."""
        guest = self.correspondence.guests.get(claimed.job_id)
        if guest is not None and guest.entry_id == claimed.entry_id:
            self.correspondence.settled(claimed.job_id)
        self._settle(claimed.entry_id, runs_again=runs_again, declines=declines)

    def _settle(self, entry_id: bytes, *, runs_again: bool, declines: bool = False) -> None:
        """Have the dispatcher release an entry, or acknowledge it."""
        if entry_id == _NO_ENTRY:
            return
        if runs_again:
            self._given_back.append((entry_id, declines))
            self.queue.bell.ring()
        else:
            self.queue.ack_soon(entry_id)


def _is_from_queue(open_job: OpenJob) -> bool:
    """Whether what a job's entry asks for is what its client waits for: not once a worker of ours goes on with it."""
    return open_job.is_queued or not open_job.is_continued
