"""Jobs that this router's workers run for other routers, and jobs of ours that run on theirs.

A guest is an open job whose answer goes into the mail in place of a client's socket: sessions and attempts see no
difference. What to do when its worker is lost is decided by the router whose client waits, which alone knows what
the client has seen; the entry is released meanwhile.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import attrs
import trio

from auxot.core.errors import ErrorCode, StoreError
from auxot.core.jobs import Failed, JobEvent
from auxot.core.logs import get_logger
from auxot.router.letters import Cancel, Happened, Letter, Lost, Started
from auxot.router.mailbox import Mailbox
from auxot.router.relay import Loss, OpenJob, nothing
from auxot.router.sweeper import is_settled

if TYPE_CHECKING:
    from collections.abc import Callable

    from auxot.router.queue import JobQueue
    from auxot.router.relay import Relay

CONTINUE_WAIT_S = 5.0  # for a worker to come (back) that can go on with an answer; the client waits in mid-sentence
WATCH_S = 0.5  # how often the routers that our guests come from are looked for

_log = get_logger()


@attrs.define(eq=False)
class GuestAnswer:
    """An answer that goes to the router in `reply_to`."""

    job_id: str
    attempt: int
    reply_to: str
    mailbox: Mailbox
    issue: int = 0
    _events: list[JobEvent] = attrs.field(factory=list)

    def feed(self, event: JobEvent) -> None:
        """Take one event; see `relay.Answer`."""
        self._events.append(event)

    def flush(self) -> None:
        """Post what was fed."""
        if self._events:
            self.post(Happened(job_id=self.job_id, attempt=self.attempt, events=tuple(self._events), issue=self.issue))
            self._events.clear()

    def restart(self) -> bool:
        """Say yes: the router whose client waits decides."""
        self._events.clear()
        return True

    def post(self, letter: Letter) -> None:
        """Post a letter."""
        self.mailbox.post(self.reply_to, letter)


@attrs.define(eq=False, kw_only=True)
class GuestJob(OpenJob):
    """A job of another router."""

    guest_answer: GuestAnswer

    def start(self, *, worker_id: str, attempt: int, cancel: Callable[[], None]) -> None:
        """Note that a worker has the job, and tell its router."""
        super().start(worker_id=worker_id, attempt=attempt, cancel=cancel)
        record = self.record
        letter = Started(
            job_id=record.job_id, attempt=attempt, worker_id=worker_id, route=record.route, issue=self.issue
        )
        self.guest_answer.post(letter)

    def fail(self, failure: Failed) -> None:
        """End the job before a worker had it; the attempt is announced first, or its end would be ignored."""
        if self.cancel_attempt is None:
            answer = self.guest_answer
            answer.post(Started(job_id=answer.job_id, attempt=answer.attempt, worker_id="", issue=self.issue))
        super().fail(failure)

    def lose(self, *, attempt: int, max_attempts: int, may_stay: bool) -> Loss:  # noqa: ARG002 -- not decided here
        """Tell the job's router that the worker is gone; the entry is released, and withdrawn if it must not run."""
        self.cancel_attempt = None
        if self.ended:
            return Loss.ENDS
        self.ended = True
        self.guest_answer.post(Lost(job_id=self.record.job_id, attempt=attempt, issue=self.issue))
        return Loss.RESTARTS


@attrs.define(eq=False)
class Correspondence:
    """What this router does about the letters that it gets."""

    relay: Relay
    max_attempts: int
    withdraw: Callable[[OpenJob], None]  # take a job's entry out of the queue, later
    resume: Callable[[OpenJob], None]  # have a worker of ours write the rest of a job's answer
    may_stay: Callable[[], bool]  # whether a job that was lost may wait here for that, if it need not
    mailbox: Mailbox | None = None  # set once it exists; it calls us
    guests: dict[str, GuestJob] = attrs.field(factory=dict)  # running here for others, by job id
    _idle: trio.Event = attrs.field(factory=trio.Event)
    _runners: dict[str, tuple[str, int]] = attrs.field(factory=dict)  # job of ours -> router and attempt that runs it

    def on_letter(self, sender: str, letter: Letter) -> None:
        """Obey one letter."""
        if isinstance(letter, Cancel):
            self.dismiss(letter.job_id, issue=letter.issue)
            return
        open_job = self.relay.find(letter.job_id)
        if open_job is None or open_job.ended:
            self._runners.pop(letter.job_id, None)
            self._refuse(sender, letter)
        elif letter.issue != open_job.issue or (open_job.is_continued and not open_job.is_queued):
            self._refuse(sender, letter)  # of an entry that was taken for lost, or it begins again what we go on with
        elif isinstance(letter, Started):
            self._on_started(sender, letter, open_job)
        elif self._runners.get(letter.job_id) == (sender, letter.attempt):
            self._on_news(letter, open_job)
        elif letter.attempt > open_job.record.attempt and isinstance(letter, Happened):
            self._fail(open_job)  # that it began was among the letters that were lost
            self._cancel(sender, letter)

    def runs_elsewhere(self, job_id: str) -> bool:
        """Whether another router runs that job of ours."""
        return job_id in self._runners

    def runners(self) -> dict[str, str]:
        """Return the jobs of ours that run at other routers: job id -> router id."""
        return {job_id: runner for job_id, (runner, _) in self._runners.items()}

    def lose(self, open_job: OpenJob, *, attempt: int) -> bool:
        """Note that an attempt is over without an answer, and its words count no more.

        A job that is continued is resumed here, by a worker of this router: its entry is no longer needed.

        Returns:
            Whether the job's entry may be claimed and run again, by any router.
        """
        was_elsewhere = self._runners.pop(open_job.record.job_id, None) is not None
        loss = open_job.lose(attempt=attempt, max_attempts=self.max_attempts, may_stay=self.may_stay())
        if loss is Loss.CONTINUES:
            if was_elsewhere:
                open_job.continue_by = trio.current_time() + CONTINUE_WAIT_S  # its workers may come to us
            self.resume(open_job)
        return loss is Loss.RESTARTS

    def settled(self, job_id: str, open_job: OpenJob | None = None) -> None:
        """Forget a guest whose entry is settled. Another one of that id (a later attempt) stays."""
        if open_job is None or self.guests.get(job_id) is open_job:
            self.guests.pop(job_id, None)
        if not self.guests:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until nothing runs here for others."""
        while self.guests:
            self._idle = trio.Event()
            await self._idle.wait()

    async def watch_acceptors(self, queue: JobQueue) -> None:
        """Stop jobs whose router is gone, for ever: nobody waits for them."""
        while True:
            await trio.sleep(WATCH_S)
            acceptors = {guest.guest_answer.reply_to for guest in self.guests.values()}
            if not acceptors or not is_settled(queue):
                continue
            with suppress(StoreError):
                for gone in acceptors - set(await queue.roster.live_among(acceptors)):
                    _log.warning("router.gone", gone=gone)
                    self._dismiss_all_of(gone)

    def _dismiss_all_of(self, router_id: str) -> None:
        failure = Failed(ErrorCode.WORKER_LOST, "the router that accepted this job was taken for dead")
        for job_id, guest in list(self.guests.items()):
            answer = guest.guest_answer
            if answer.reply_to == router_id:
                answer.feed(failure)
                answer.flush()  # if it wakes up
                self.dismiss(job_id, issue=guest.issue)

    def dismiss(self, job_id: str, *, issue: int) -> None:
        """Stop a guest: its router does not want that answer any more."""
        guest = self.guests.get(job_id)
        if guest is None or guest.issue != issue:
            return
        guest.ended = True
        guest.stop_attempt()

    def on_gap(self, sender: str) -> None:
        """Fail the jobs that run at a router of whose letters some are lost: their text would have a hole."""
        for job_id, (runner, _) in list(self._runners.items()):
            open_job = self.relay.find(job_id)
            if runner == sender and open_job is not None:
                self._fail(open_job)

    def _on_started(self, sender: str, letter: Started, open_job: OpenJob) -> None:
        """Take note of a new attempt; one that must not be is cancelled."""
        record = open_job.record
        if letter.attempt <= record.attempt:
            return
        # A session of ours may still run it: we were taken for dead. Two must not write one answer.
        stop_ours = nothing if self.runs_elsewhere(letter.job_id) else open_job.cancel_attempt or nothing
        if open_job.cancel_attempt is not None and not self.lose(open_job, attempt=record.attempt):
            self._cancel(sender, letter)
        else:
            self._runners[letter.job_id] = (sender, letter.attempt)
            record.route = letter.route
            open_job.start(
                worker_id=letter.worker_id,
                attempt=letter.attempt,
                cancel=lambda: self._cancel(sender, letter),
            )
        stop_ours()

    def _on_news(self, letter: Happened | Lost, open_job: OpenJob) -> None:
        if isinstance(letter, Lost):
            if not self.lose(open_job, attempt=letter.attempt):
                self.withdraw(open_job)
            return
        for event in letter.events:
            open_job.feed(event)
        open_job.answer.flush()
        if open_job.ended:
            self._end(open_job, cancel=False)

    def _fail(self, open_job: OpenJob) -> None:
        """End a job of ours of whose words some are lost."""
        open_job.fail(Failed(ErrorCode.WORKER_LOST, "events of this job were lost between two routers"))
        self._end(open_job, cancel=True)

    def _end(self, open_job: OpenJob, *, cancel: bool) -> None:
        self._runners.pop(open_job.record.job_id, None)
        if cancel:
            open_job.stop_attempt()
        # Leaving the request must not cancel what has ended: replaced, because None would mean "in the queue".
        open_job.cancel_attempt = nothing

    def _refuse(self, sender: str, letter: Started | Happened | Lost) -> None:
        """Have a router stop a job that is not wanted of it; what it has lost has stopped."""
        if not isinstance(letter, Lost):
            self._cancel(sender, letter)

    def _cancel(self, runner: str, letter: Started | Happened) -> None:
        self._post(runner, Cancel(job_id=letter.job_id, issue=letter.issue))

    def _post(self, router_id: str, letter: Letter) -> None:
        if self.mailbox is not None:
            self.mailbox.post(router_id, letter)
