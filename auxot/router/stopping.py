"""What signals ask for, and the stages in which a router stops, see `service`: draining, quiet, the end."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import attrs
import trio

from auxot.core.errors import ErrorCode
from auxot.core.jobs import Failed

if TYPE_CHECKING:
    from auxot.router.front import FrontPhases
    from auxot.router.pool import Pool

LINGER_S = 0.5  # in which a client that has its answer uses the connection again, or does not


@attrs.frozen
class Terminal:
    """The terminal that this process was started from, if there was one."""

    was_there: bool = attrs.field(factory=lambda: os.isatty(0))

    def asks_for_reload(self, number: int) -> bool:
        """Whether a signal asks for that: HUP does, but from a terminal that has closed it asks for the end."""
        has_closed = self.was_there and not os.isatty(0)
        return number == signal.SIGHUP and not has_closed


async def be_quiet_after_draining(pool: Pool, phases: FrontPhases, *, delay_s: float, grace_s: float) -> None:
    """Go from `draining` to `quiet`: after the delay, and when the answers that had begun before have ended.

    Those did not say that their connection is going to be closed: it is kept until its client has had time to use it
    once more, which is answered and says so.
    """
    await phases.draining.wait()
    if delay_s:
        pool.log.info("router.draining", delay_s=delay_s)
        began = [open_job.record.job_id for open_job in pool.relay]
        await trio.sleep(delay_s)
        with trio.move_on_after(grace_s):
            while any(pool.relay.find(job_id) for job_id in began):  # noqa: ASYNC110 -- once in a router's life
                await trio.sleep(LINGER_S / 5)
            await trio.sleep(LINGER_S)
    phases.quiet.set()


async def drain(pool: Pool, phases: FrontPhases, *, grace_s: float) -> None:
    """Wait for the answers to end; tell the clients of those that do not, and all workers."""
    pool.log.info("router.quiet", waiting_requests=len(pool.relay), grace_s=grace_s)
    with trio.move_on_after(grace_s):
        if not phases.refusing.is_set():
            await trio.sleep(2 * LINGER_S)  # a request more may come, and start a job
        await pool.relay.wait_idle()
        await pool.correspondence.wait_idle()
    phases.refusing.set()
    pool.relay.fail_all(Failed(ErrorCode.UNAVAILABLE, "the router is shutting down"))
    async with trio.open_nursery() as closing:
        for session in pool.fleet.members():
            closing.start_soon(session.close)
