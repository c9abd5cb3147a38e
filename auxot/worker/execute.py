"""One job from beginning to end: ask llama-server, send what it answers, say how it ended.

    CHAT, COMPLETION  client.generate          COUNT    client.count_tokens          FORWARD  forward.forward_request

A job never ends in silence, except when it was cancelled (the router asked for that) or the link is gone (the router
has seen that): its own time limit, the death of llama-server and a fault in this program all become an `error`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import attrs
import trio

from auxot.core.errors import ErrorCode, LinkError
from auxot.core.jobs import Failed, Finished, Job, JobEvent, Kind
from auxot.core.link import Link
from auxot.core.logs import Logger
from auxot.core.messages import FEATURE_DELTAS, WorkerMessage
from auxot.worker.llama.client import count_tokens, generate
from auxot.worker.llama.forward import forward_request
from auxot.worker.llama.request import chat_request, completion_request, too_long
from auxot.worker.reply import Reply, error_message
from auxot.worker.seats import Seat, Seats, Station


@attrs.frozen(kw_only=True)
class Workplace:
    """What all jobs of a worker share.

    Attributes:
        seats: the table that says who runs where.
        job_timeout_s: how long a job may take here.
    """

    seats: Seats
    job_timeout_s: float


async def run_job(job: Job, *, seat: Seat, link: Link, workplace: Workplace, log: Logger) -> None:
    """Run a job in its seat, and leave the seat. Raises nothing but Cancelled."""
    log = log.bind(job_id=job.job_id, attempt=job.attempt)
    log.info("job.started", kind=job.kind.value, n_messages=len(job.messages), n_tools=len(job.tools))
    run = _Run(job=job, seat=seat, link=link, workplace=workplace)
    try:
        with seat.scope:
            await _run_to_the_end(run, log)
        log.info("job.finished", outcome=run.outcome, duration_ms=run.elapsed_ms(), **run.counts())
    finally:
        workplace.seats.leave(seat)


async def _run_to_the_end(run: _Run, log: Logger) -> None:
    """The wall around one job."""
    try:
        with trio.move_on_after(run.workplace.job_timeout_s):
            await run.stream()
        if not run.is_told:
            await run.fail(ErrorCode.TIMEOUT, f"the worker's time limit of {run.workplace.job_timeout_s:g} s is over")
    except LinkError as exc:
        run.outcome = "link lost"
        log.info("job.unsent", reason=str(exc))
    except Exception:  # a fault in one job must not end the others
        log.exception("job.crashed")
        await _tell_of_crash(run)


async def _tell_of_crash(run: _Run) -> None:
    try:
        await run.fail(ErrorCode.INTERNAL, "the worker failed to run this job")
    except LinkError:
        run.outcome = "link lost"


@attrs.define(kw_only=True)
class _Run:
    """The state of one job while it runs; belongs to its task."""

    job: Job
    seat: Seat
    link: Link
    workplace: Workplace
    outcome: str = "cancelled"
    is_told: bool = False  # the terminal message is in the outbox
    _reply: Reply = attrs.field(init=False)
    _started_at: float = attrs.field(init=False, factory=trio.current_time)
    _finished: Finished | None = attrs.field(init=False, default=None)
    _is_waiting: bool = attrs.field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        is_original = FEATURE_DELTAS not in self.link.ack.features
        self._reply = Reply(self.job.job_id, is_original=is_original)

    async def stream(self) -> None:
        """Ask llama-server and send its answer as it comes."""
        job, station = self.job, self.seat.station
        if job.forward is not None:
            await forward_request(station.http, job.forward, deliver=self._deliver)
            return
        with self._waiting():
            if job.kind is Kind.COUNT:
                await count_tokens(station.http, chat_request(job), deliver=self._deliver)
            else:
                await self._generate(station)

    async def _generate(self, station: Station) -> None:
        job, ctx_tokens = self.job, station.facts.slot_ctx_tokens
        failure = too_long(job, ctx_tokens)
        if failure is not None:
            await self._deliver([failure])
            return
        request = chat_request(job) if job.kind is Kind.CHAT else completion_request(job)
        await generate(station.http, request, deliver=self._deliver, slot_ctx_tokens=ctx_tokens)

    async def fail(self, code: ErrorCode, message: str) -> None:
        """End the job with a failure, unless its end has been told already."""
        if self.is_told:
            return
        failure = Failed(code, message)
        self._note_end(failure)
        await self.link.send(error_message(self.job.job_id, failure))
        self.is_told = True

    def elapsed_ms(self) -> int:
        """Milliseconds since the job began."""
        return round((trio.current_time() - self._started_at) * 1000)

    def counts(self) -> dict[str, int]:
        """Return the token counts for the log."""
        if self._finished is None:
            return {}
        usage = self._finished.usage
        return {
            "n_prompt_tokens": usage.prompt_tokens,
            "n_cached_tokens": usage.cached_tokens,
            "n_completion_tokens": usage.completion_tokens,
        }

    async def _deliver(self, events: list[JobEvent]) -> None:
        elapsed_ms = self.elapsed_ms()
        messages = [message for event in events for message in self._reply.messages(event, elapsed_ms=elapsed_ms)]
        if self._reply.is_ended:
            self._note_end(events[-1])
        await self._send(messages)
        self.is_told = self._reply.is_ended

    @contextmanager
    def _waiting(self) -> Generator[None]:
        """Count the time of the block as waiting for llama-server, but for that in `_send`.

        Not that of forwarded requests: a batch of embeddings is computed without a word.
        """
        pulse = self.seat.station.pulse
        self._is_waiting = True
        pulse.wait(trio.current_time())
        try:
            yield
        finally:
            self._is_waiting = False
            pulse.leave(trio.current_time())

    async def _send(self, messages: list[WorkerMessage]) -> None:
        """Send what llama-server has said; while the router keeps us waiting nobody waits for llama-server."""
        pulse, now = self.seat.station.pulse, trio.current_time()
        pulse.heard(now)
        if self._is_waiting:
            pulse.leave(now)
        try:
            await self.link.send(*messages)
        finally:
            if self._is_waiting:
                pulse.wait(trio.current_time())

    def _note_end(self, event: JobEvent) -> None:
        """Free the slot before the terminal message goes out: the next job may come right after it."""
        self.workplace.seats.release(self.seat)
        if isinstance(event, Finished):
            self._finished = event
            self.outcome = event.reason.value
        elif isinstance(event, Failed):
            self.outcome = event.code.word
            if event.code is ErrorCode.WORKER_LOST:
                self.seat.station.on_loss()
