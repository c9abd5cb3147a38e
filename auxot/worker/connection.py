"""One connection of a worker that serves jobs: takes them from the link, runs each in a task of its own.

    CONNECTION nursery
    |- receive loop: starts and cancels jobs; never waits for one
    |- announcer: tells the router what has changed; when no more jobs are taken, that, and ends the loop when the
    |  running ones have finished, or may not take longer
    '- one task a job, at most as many as there are slots; a surplus job is refused, by a task too: the outbox of a
       worker at full speed is full now and then, and that is no reason to give its connection up

The loop ends with the link (LinkError), or because the announcer ends it: then the block is left in order, and what
the jobs have sent goes out before the connection closes. Jobs that still run at the end are cancelled.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from auxot.core.background import background
from auxot.core.errors import ErrorCode, LinkError, RefusedError
from auxot.core.jobs import Failed, Job
from auxot.core.link import Link
from auxot.core.logs import get_logger
from auxot.core.messages import Cancel, Capabilities, Config, ConfigAck, Error, Policy, PolicyUpdate, RouterMessage
from auxot.core.prefixes import NO_CHAIN, chain_of
from auxot.core.protocol import encode
from auxot.worker.execute import Workplace, run_job
from auxot.worker.reply import error_message
from auxot.worker.seats import Seat, Seats

MAX_REFUSALS = 64  # waiting to be sent: a router that sends more jobs and reads nothing is not one


class Connection:
    """An open link and the jobs that came through it.

    Args:
        link: to the router.
        workplace: where jobs run.
        capabilities: returns what is to be announced now; asked while jobs are taken.
        on_policy: called when the router changes its policy; must not wait.
    """

    def __init__(
        self,
        link: Link,
        workplace: Workplace,
        *,
        capabilities: Callable[[], Capabilities],
        on_policy: Callable[[Policy], None],
    ) -> None:
        self._link = link
        self._workplace = workplace
        self._capabilities = capabilities
        self._on_policy = on_policy
        self._receiving = trio.CancelScope()
        self._n_refusals = 0  # waiting to be sent
        self._log = get_logger(worker_id=link.ack.gpu_id)

    async def run(self, announced: Capabilities) -> None:
        """Serve jobs until the link breaks, or no more are taken and the last has ended.

        Args:
            announced: what the router has been told.

        Raises:
            LinkError: the link broke.
        """
        closed = self._workplace.seats.closed
        async with background() as connection_nursery:
            connection_nursery.start_soon(self._announce, closed, announced)
            with self._receiving:
                while True:
                    self._take(await self._link.receive(), connection_nursery)

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
            self._on_policy(message.policy)
        else:
            self._log.warning("link.unexpected", type=type(message).__name__)

    def _start(self, job: Job, connection_nursery: trio.Nursery) -> None:
        seats = self._workplace.seats
        try:
            seat = seats.take(job.job_id, chain_of(encode(job)) if seats.has_choice else NO_CHAIN)
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

    async def _announce(self, closed: trio.Event, announced: Capabilities) -> None:
        """Tell the router what changes, until no more jobs are taken; then that, and end the connection in order."""
        seats = self._workplace.seats
        try:
            while not closed.is_set():
                changed = seats.changed
                await self._send_notices(seats)
                if not closed.is_set() and (now := self._capabilities()) != announced:
                    announced = now
                    await self._link.send(Config(capabilities=announced))
                if not closed.is_set():
                    await changed.wait()
            await self._send_notices(seats)
            await self._run_down(seats)
        except LinkError:
            self._log.debug("announcement.unsent")

    async def _send_notices(self, seats: Seats) -> None:
        while seats.notices:
            notice = Error(error=seats.notices.popleft())
            if self._link.ack.features:  # an original router takes an error about no job for a farewell
                await self._link.send(notice)

    async def _run_down(self, seats: Seats) -> None:
        """Say that no more jobs are taken (an error about no job does), and wait for those that run."""
        await self._link.send(error_message(None, Failed(ErrorCode.UNAVAILABLE, seats.reason)))
        await seats.wait_run_down()
        self._receiving.cancel()
