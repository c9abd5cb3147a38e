"""One connection of a worker that serves jobs: takes them from the link, runs each in a task of its own.

    CONNECTION nursery
    |- receive loop: starts and cancels jobs; never waits for one
    |- announcer: tells the router when this worker takes no more jobs
    '- one task a job, at most as many as there are slots; a surplus job is refused, by a task too: the outbox of a
       worker at full speed is full now and then, and that is no reason to give its connection up

The loop ends with the link (LinkError), or when `finish` is called: then the block is left in order, and what the jobs
have sent goes out before the connection closes. Jobs that still run at the end are cancelled.
"""

from __future__ import annotations

import trio

from auxot.core.background import background
from auxot.core.errors import ErrorCode, LinkError, RefusedError
from auxot.core.jobs import Failed, Job
from auxot.core.link import Link
from auxot.core.logs import get_logger
from auxot.core.messages import Cancel, ConfigAck, Error, PolicyUpdate, RouterMessage
from auxot.worker.execute import Workplace, run_job
from auxot.worker.reply import error_message
from auxot.worker.seats import Seat

MAX_REFUSALS = 64  # waiting to be sent: a router that sends more jobs and reads nothing is not one


class Connection:
    """An open link and the jobs that came through it."""

    def __init__(self, link: Link, workplace: Workplace) -> None:
        self._link = link
        self._workplace = workplace
        self._receiving = trio.CancelScope()
        self._n_refusals = 0  # waiting to be sent
        self._log = get_logger(worker_id=link.ack.gpu_id)

    async def run(self) -> None:
        """Serve jobs until the link breaks or `finish` is called.

        Raises:
            LinkError: the link broke.
        """
        async with background() as connection_nursery:
            connection_nursery.start_soon(self._announce_closing)
            with self._receiving:
                while True:
                    self._take(await self._link.receive(), connection_nursery)

    def finish(self) -> None:
        """Stop receiving, so that `run` returns."""
        self._receiving.cancel()

    def _take(self, message: RouterMessage, connection_nursery: trio.Nursery) -> None:
        if isinstance(message, Job):
            self._start(message, connection_nursery)
        elif isinstance(message, Cancel):
            was_here = self._workplace.seats.cancel(message.job_id)
            self._log.info("job.cancel", job_id=message.job_id, was_here=was_here)
        elif isinstance(message, ConfigAck):
            if not message.success:
                self._log.warning("config.refused", reason=message.error)
        elif isinstance(message, Error):
            self._log.warning("router.error", job_id=message.job_id, reason=message.error)
        elif isinstance(message, PolicyUpdate):
            self._log.warning("policy.update_ignored", reason="restart this worker to apply it")
        else:
            self._log.warning("link.unexpected", type=type(message).__name__)

    def _start(self, job: Job, connection_nursery: trio.Nursery) -> None:
        try:
            seat = self._workplace.seats.take(job.job_id)
        except RefusedError as exc:
            self._log.warning("job.refused", job_id=job.job_id, reason=exc.message)
            if self._n_refusals >= MAX_REFUSALS:
                raise LinkError("the router does not read what this worker sends") from exc
            self._n_refusals += 1
            connection_nursery.start_soon(self._refuse, job.job_id, Failed(exc.code, exc.message))
            return
        connection_nursery.start_soon(self._run_job, job, seat)

    async def _refuse(self, job_id: str, failure: Failed) -> None:
        try:
            await self._link.send(error_message(job_id, failure))
        except LinkError:
            self._log.debug("refusal.unsent", job_id=job_id)
        finally:
            self._n_refusals -= 1

    async def _run_job(self, job: Job, seat: Seat) -> None:
        await run_job(job, seat=seat, link=self._link, workplace=self._workplace, log=self._log)

    async def _announce_closing(self) -> None:
        """Tell the router that this worker takes no more jobs: an error about no job says so."""
        seats = self._workplace.seats
        await seats.closed.wait()
        try:
            await self._link.send(error_message(None, Failed(ErrorCode.UNAVAILABLE, seats.reason)))
        except LinkError:
            self._log.debug("closing.unsent")
