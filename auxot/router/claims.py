"""Which job an entry that was claimed is of, and whether it may run now.

An entry outlives what it asks for: its client may have left, its job may have been queued anew or go on without it,
or run here already because this router was taken for dead. An entry of another router's job makes it a guest here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import trio

from auxot.core.errors import ErrorCode
from auxot.core.jobs import Failed, JobRecord
from auxot.router.guests import Correspondence, GuestAnswer, GuestJob
from auxot.router.job_meta import JobMeta, decode_meta
from auxot.router.queue import ClaimedJob, JobQueue
from auxot.router.sweeper import is_settled

if TYPE_CHECKING:
    from auxot.core.logs import Logger
    from auxot.router.relay import OpenJob, Relay

LIVE_S = 1.0  # how long another router is taken to live after it was seen
NO_ENTRY = b""  # the entry id of what is continued


@attrs.define(eq=False, kw_only=True)
class Claims:
    """Looks at what was claimed. `drop`: settles an entry that must not run."""

    queue: JobQueue
    relay: Relay
    correspondence: Correspondence
    router_id: str
    max_attempts: int
    log: Logger
    drop: Callable[[ClaimedJob], None]
    _live: dict[str, float] = attrs.field(factory=dict)  # other routers, and until when they are taken to live

    async def find_job(self, claimed: ClaimedJob) -> OpenJob | None:
        """Return the job of an entry if it may run now; None if it may not, and then the entry is settled.

        Raises:
            StoreError: that could not be found out.
        """
        is_ours = claimed.reply_to == self.router_id
        if claimed.entry_id == NO_ENTRY:
            open_job = self.relay.find(claimed.job_id)
            return None if open_job is None or not open_job.waits or is_from_queue(open_job) else open_job
        meta = decode_meta(claimed.meta)
        open_job = self.relay.find(claimed.job_id) if is_ours else await self._welcome(claimed, meta)
        if open_job is not None and open_job.issue != meta.issue:
            open_job = None  # of an entry that was taken for lost
        if open_job is not None and is_from_queue(open_job) and self._runs_here(open_job):
            return None  # this router was taken for dead: the job is its own again, and the session settles it
        if open_job is None or open_job.ended or not self._may_run(open_job, claimed):
            self.log.info("job.dropped", job_id=claimed.job_id, reason="nobody waits for it")
            self.drop(claimed)
            return None
        if claimed.is_exhausted:
            message = f"given up after {self.max_attempts} deliveries"
            open_job.fail(Failed(ErrorCode.WORKER_LOST, message))
            self.drop(claimed)
            return None
        return open_job

    def _may_run(self, open_job: OpenJob, claimed: ClaimedJob) -> bool:
        """Whether a job may run (again); one that another router ran until it died may have shown its client text."""
        if not is_from_queue(open_job):
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


def is_from_queue(open_job: OpenJob) -> bool:
    """Whether what a job's entry asks for is what its client waits for: not once a worker of ours goes on with it."""
    return open_job.is_queued or not open_job.is_continued
