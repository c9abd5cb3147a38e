"""Finds the jobs of this router that the queue has lost, and puts them there again.

    in doubt, for as long as its entry was last seen before the doubt was settled:
        it waits                              Redis came back without its data, or others took us for dead
        it runs at a router that is gone      nobody releases an entry that is not there
    entry neither waiting nor pending, for CONFIRM_S  ->  a new entry, with the next issue number

What is said of an older issue is not heard, so a job that was not lost after all (its news were late) is run twice
perhaps, but never told twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from auxot.core.errors import StoreError
from auxot.router.queue_repair import find_gone
from auxot.router.sweeper import SETTLE_S, is_settled

if TYPE_CHECKING:
    from auxot.core.logs import Logger
    from auxot.router.pool import Pool
    from auxot.router.relay import OpenJob

LOOK_S = 0.5
CONFIRM_S = 2.0  # news of a job that has ended are on their way no longer than that
MAX_LOOKED_AT = 200  # jobs at once; the others follow


@attrs.frozen
class _Suspect:
    """A job that may be lost: `entry_id` and `runner` as they were; runner None: nobody has it."""

    open_job: OpenJob
    entry_id: bytes
    runner: str | None


@attrs.define(eq=False)
class Recount:
    """The recount of one pool's jobs."""

    pool: Pool
    log: Logger
    _gone_since: dict[str, float] = attrs.field(factory=dict)  # by job id

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await trio.sleep(LOOK_S)
            if not is_settled(self.pool.queue):
                continue
            try:
                await self.look()
            except StoreError as exc:  # the next look goes on
                self.log.debug("recount.failed", error=str(exc))

    async def look(self) -> None:
        """Look once, and queue again what is lost."""
        suspects = (self._waiting() + await self._left_behind())[:MAX_LOOKED_AT]
        gone = set(await find_gone(self.pool.queue, [suspect.entry_id for suspect in suspects]))
        now = trio.current_time()
        known, self._gone_since = self._gone_since, {}
        for suspect in suspects:
            open_job = suspect.open_job
            since = known.get(open_job.record.job_id, now)
            if suspect.entry_id not in gone:
                open_job.entry_seen_at = now
            elif now - since < CONFIRM_S:
                self._gone_since[open_job.record.job_id] = since
            elif self._is_unchanged(suspect):
                await self.pool.queue_again(open_job)

    def _waiting(self) -> list[_Suspect]:
        """Return the jobs that should stand in the queue and may not."""
        settled_at = self.pool.queue.doubt.since + SETTLE_S
        if trio.current_time() < settled_at:
            return []
        return [
            _Suspect(open_job, open_job.entry_id, None)
            for open_job in self.pool.relay
            if open_job.entry_id and open_job.is_queued and open_job.waits and open_job.entry_seen_at < settled_at
        ]

    async def _left_behind(self) -> list[_Suspect]:
        """Return the jobs that run at routers that are gone."""
        runners = self.pool.correspondence.runners()
        live = await self.pool.queue.roster.live_among(set(runners.values()))
        found = []
        for job_id, runner in runners.items():
            open_job = self.pool.relay.find(job_id)
            if runner not in live and open_job is not None and open_job.entry_id:
                found.append(_Suspect(open_job, open_job.entry_id, runner))
        return found

    def _is_unchanged(self, suspect: _Suspect) -> bool:
        open_job = suspect.open_job
        runner = self.pool.correspondence.runners().get(open_job.record.job_id)
        is_same = open_job.entry_id == suspect.entry_id and runner == suspect.runner
        return is_same and not open_job.ended and (runner is not None or open_job.waits)
