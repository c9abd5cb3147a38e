"""A pool: one policy, the queue of its jobs and the fleet of its workers. One today, several tomorrow.

    request -> submit -> (line -> releaser) -> stream entry -> dispatcher (`dispatch`) -> session
    session -> settle: acknowledge, or release for another worker, or resume: the dispatcher holds what is missing
               until a worker can go on

An answer that is written in part is continued from here: only here is it known what has been written. A worker of this
router goes on with it, without an entry; if none can, what is missing is queued like a job, for those of others.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs
import trio

from auxot.core.errors import ErrorCode, StoreError
from auxot.core.jobs import Failed
from auxot.core.messages import FEATURE_CONTINUE
from auxot.router.attempt import Attempt, Outcome
from auxot.router.dispatch import Dispatcher
from auxot.router.draft import LOST
from auxot.router.guests import CONTINUE_WAIT_S, Correspondence
from auxot.router.job_meta import JobMeta, encode_meta
from auxot.router.placement import Placement
from auxot.router.queue import JobQueue, QueuedJob

if TYPE_CHECKING:
    from auxot.core.logs import Logger
    from auxot.core.messages import Policy
    from auxot.router.admission import Admission
    from auxot.router.census import Census
    from auxot.router.fleet import Fleet
    from auxot.router.relay import OpenJob, Relay
    from auxot.router.session import Session

POLL_S = 1.0  # the releaser's backstop
STORE_PAUSE_S = 0.5  # after an error of the store
WITHDRAW_TIMEOUT_S = 1.0


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
    dispatcher: Dispatcher = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.correspondence = Correspondence(
            relay=self.relay,
            max_attempts=self.max_attempts,
            withdraw=self._withdraw_soon,
            resume=self._resume,
            may_stay=self._may_stay,
        )
        self.dispatcher = Dispatcher(
            queue=self.queue,
            fleet=self.fleet,
            placement=self.placement,
            relay=self.relay,
            admission=self.admission,
            census=self.census,
            correspondence=self.correspondence,
            router_id=self.router_id,
            max_attempts=self.max_attempts,
            log=self.log,
            quiet=self.quiet,
            queue_rest=self._queue_rest,
            withdraw=self._withdraw,
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
        enqueue = self.queue.enqueue_and_claim if self._has_idle_worker(meta.needs) else self.queue.enqueue
        open_job.entry_id = await enqueue(entry)

    def _has_idle_worker(self, needs: str | None) -> bool:
        """Whether a job is best claimed here, though there are other routers: one of our workers has nothing to do."""
        if self.correspondence.mailbox is None:
            return False  # there are no others
        member = self.fleet.choose(needs=needs)
        if member is None or member.n_running:
            return False
        n_early = self.queue.n_early  # those have a slot each, too
        return not n_early or self.fleet.n_free_slots(at_most=n_early + 1) > n_early

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
        self.dispatcher.settle(attempt.entry_id, runs_again=runs_again)

    def _withdraw_soon(self, open_job: OpenJob) -> None:
        if open_job.entry_id is not None:
            self.dispatcher.withdraw_soon(open_job.entry_id)

    def _may_stay(self) -> bool:
        """Whether a job can wait here for a worker to go on with it: others cannot claim what is held here."""
        return self.correspondence.mailbox is None or self.fleet.can(FEATURE_CONTINUE)

    def _resume(self, open_job: OpenJob) -> None:
        self.dispatcher.resume(open_job)

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
