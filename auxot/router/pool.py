"""A pool: one policy, the queue of its jobs and the fleet of its workers. One today, several tomorrow.

    request -> submit -> (line -> releaser) -> stream entry
    dispatcher: claim as many as slots are free -> session.start
    session -> settle: acknowledge, or release for another worker (both done by the dispatcher, those of many jobs
               together), or resume: held here until a worker can go on

An answer that is written in part is continued by a worker of this router, and has no entry any more: only here is it
known what has been written.

The dispatcher is the only one that claims. It sleeps on the queue's bell, which is rung by new entries, released
entries and freed slots, and looks every second anyway.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs
import orjson
import trio

from auxot.core.errors import ErrorCode, StoreError
from auxot.core.jobs import Failed, JobRecord
from auxot.core.messages import FEATURE_CONTINUE
from auxot.router.attempt import Attempt, Outcome
from auxot.router.draft import LOST
from auxot.router.guests import Correspondence, GuestAnswer, GuestJob
from auxot.router.queue import ClaimedJob, JobQueue, QueuedJob
from auxot.router.sweeper import is_settled

if TYPE_CHECKING:
    from auxot.core.logs import Logger
    from auxot.core.messages import Policy
    from auxot.router.admission import Admission
    from auxot.router.fleet import Fleet
    from auxot.router.relay import OpenJob, Relay
    from auxot.router.session import Session

POLL_S = 1.0  # the dispatcher's backstop: a bell can be lost with the store's connection
MAX_CLAIM = 64  # entries at once: what is claimed here cannot go to another router
STORE_PAUSE_S = 0.5  # after an error of the store
WITHDRAW_TIMEOUT_S = 1.0
LIVE_S = 1.0  # how long another router is taken to live after it was seen
CONTINUE_WAIT_S = 5.0  # for a worker to come (back) that can go on with an answer; the client waits in mid-sentence
_NO_ENTRY = b""  # the entry id of what is continued


@attrs.define(eq=False, kw_only=True)
class Pool:
    """The workers that serve one policy, with their queue."""

    policy: Policy
    queue: JobQueue
    fleet: Fleet[Session]
    relay: Relay
    admission: Admission
    router_id: str
    max_attempts: int
    log: Logger
    quiet: trio.Event  # once set, only jobs of clients that wait here are claimed
    correspondence: Correspondence = attrs.field(init=False)
    _unwanted: list[bytes] = attrs.field(factory=list)  # entries that must not run again
    _given_back: list[bytes] = attrs.field(factory=list)  # entries that another worker may have
    _live: dict[str, float] = attrs.field(factory=dict)  # other routers, and until when they are taken to live
    _held: deque[ClaimedJob] = attrs.field(factory=deque)  # claimed; only some workers can do them, and those are busy

    def __attrs_post_init__(self) -> None:
        self.correspondence = Correspondence(
            relay=self.relay,
            max_attempts=self.max_attempts,
            withdraw=self._withdraw_soon,
            resume=self._resume,
            may_stay=self._may_stay,
        )

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
        record = open_job.record
        meta = orjson.dumps({"needs": open_job.needs, "max_tokens": open_job.max_tokens})
        entry = QueuedJob(job_id=record.job_id, data=open_job.frame, reply_to=self.router_id, meta=meta)
        open_job.entry_id = await self.queue.enqueue(entry)

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
        if attempt.can_be_continued:
            open_job.continue_by = trio.current_time() + CONTINUE_WAIT_S
        lost = attempt.outcome is Outcome.LOST
        runs_again = lost and self.correspondence.lose(open_job, attempt=attempt.number)
        self.correspondence.settled(attempt.job_id, open_job)
        self._settle(attempt.entry_id, runs_again=runs_again)

    async def run_dispatcher(self) -> None:
        """Give jobs to free slots for ever."""
        while True:
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
            await self.queue.release(self._given_back.pop())
        for _ in range(len(self._held)):
            await self._hand_over(self._held.popleft())
        while self._unwanted:
            await self._withdraw(self._unwanted.pop())
        if len(self.relay) or not self.quiet.is_set():
            await self._claim()
        await self.queue.flush()

    async def _claim(self) -> None:
        """Claim and hand over until the queue is empty or every slot is taken."""
        while len(self._held) < MAX_CLAIM and (free := self.fleet.n_free_slots(at_most=MAX_CLAIM)):
            claimed_jobs = await self.queue.claim(free)
            for claimed in claimed_jobs:
                await self._hand_over(claimed)
            if len(claimed_jobs) < free:  # no more wait, or the bell has been rung
                return

    async def _hand_over(self, claimed: ClaimedJob) -> None:
        """Give one claimed job to the best worker; each way out settles the entry or leaves it to a session."""
        is_ours = claimed.reply_to == self.router_id
        open_job = self.relay.find(claimed.job_id) if is_ours else await self._welcome(claimed)
        if claimed.entry_id == _NO_ENTRY:
            self._continue(claimed, open_job)
            return
        if open_job is not None and not open_job.is_continued and self._runs_here(open_job):
            return  # this router was taken for dead: the job is its own again, and the session settles it
        if open_job is None or open_job.ended or not self._may_run(open_job, claimed):
            self.log.info("job.dropped", job_id=claimed.job_id, reason="nobody waits for it")
            self._give_up(claimed, runs_again=False)
            return
        if claimed.is_exhausted:
            message = f"given up after {self.max_attempts} deliveries"
            open_job.fail(Failed(ErrorCode.WORKER_LOST, message))
            self._give_up(claimed, runs_again=False)
            return
        session = self.fleet.choose(needs=open_job.needs)
        if session is None:
            self._wait_for_worker(claimed, open_job)
            return
        open_job.record.claimed_at = time.time()
        session.start(claimed, open_job)

    def _may_run(self, open_job: OpenJob, claimed: ClaimedJob) -> bool:
        """Whether a job may run (again); one that another router ran until it died may have shown its client text."""
        if open_job.is_continued:
            return False
        if open_job.cancel_attempt is None:
            return True
        return self.correspondence.lose(open_job, attempt=claimed.attempt - 1)

    def _runs_here(self, open_job: OpenJob) -> bool:
        """Whether a session of this router has a job, and it has not ended."""
        is_running = open_job.cancel_attempt is not None and not open_job.ended
        return is_running and not self.correspondence.runs_elsewhere(open_job.record.job_id)

    async def _welcome(self, claimed: ClaimedJob) -> GuestJob | None:
        """Return a job of another router as a guest; None if that router is gone, and its client with it."""
        guest = self.correspondence.guests.get(claimed.job_id)
        mailbox = self.correspondence.mailbox
        if guest is not None or mailbox is None or not await self._is_live(claimed.reply_to):
            return guest
        wants = orjson.loads(claimed.meta or b"{}")
        answer = GuestAnswer(claimed.job_id, claimed.attempt, claimed.reply_to, mailbox)
        guest = GuestJob(
            record=JobRecord(job_id=claimed.job_id, accepted_at=time.time(), router_id=claimed.reply_to),
            answer=answer,
            guest_answer=answer,
            frame=b"",
            needs=wants.get("needs"),
            max_tokens=wants.get("max_tokens"),
        )
        self.correspondence.guests[claimed.job_id] = guest
        return guest

    async def _is_live(self, router_id: str) -> bool:
        now = trio.current_time()
        if not is_settled(self.queue):
            return True  # it may only not be back yet; if it is dead the job is stopped once that is known
        if self._live.get(router_id, 0.0) < now:
            self._live.clear()  # it stays small, and there are few
            if router_id not in await self.queue.live_among({router_id}):
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

    def _continue(self, rest: ClaimedJob, open_job: OpenJob | None) -> None:
        """Give the rest of an answer to a worker that can go on with it; what begins again, to any."""
        if open_job is None or open_job.ended:
            return
        needs = FEATURE_CONTINUE if open_job.wants_rest else open_job.needs
        session = self.fleet.choose(needs=needs)
        if session is not None:
            event = "job.continued" if open_job.wants_rest else "job.restarted"
            self.log.info(event, job_id=rest.job_id, worker_id=session.worker_id, attempt=rest.attempt)
            session.start(rest, open_job)
        elif self.fleet.can(FEATURE_CONTINUE) or trio.current_time() < open_job.continue_by or not open_job.wants_rest:
            self._held.append(rest)
        elif open_job.begin_again():
            self._resume(open_job)
        else:
            open_job.fail(LOST)

    def _wait_for_worker(self, claimed: ClaimedJob, open_job: OpenJob) -> None:
        """Keep a job that not every worker can do until one that can is free; give others back: a worker has left."""
        needs = open_job.needs
        if needs is None or not self.fleet.count().workers:
            self._give_up(claimed, runs_again=True)
        elif self.fleet.can(needs):
            self._held.append(claimed)
            self.admission.left_queue(claimed.job_id)  # others need not wait for that
        else:
            open_job.fail(Failed(ErrorCode.NOT_IMPLEMENTED, f"no connected worker can do this ({needs})"))
            self._give_up(claimed, runs_again=False)

    def _give_up(self, claimed: ClaimedJob, *, runs_again: bool) -> None:
        """Settle a claim that no session has taken. A guest is forgotten: the next claim is another attempt."""
        self.correspondence.settled(claimed.job_id)
        self._settle(claimed.entry_id, runs_again=runs_again)

    def _settle(self, entry_id: bytes, *, runs_again: bool) -> None:
        """Have the dispatcher release an entry, or acknowledge it."""
        if entry_id == _NO_ENTRY:
            return
        if runs_again:
            self._given_back.append(entry_id)
            self.queue.bell.ring()
        else:
            self.queue.ack_soon(entry_id)
