"""Which jobs have a client waiting on this router, and the answers that their events go to.

    request task:  relay.open(job, answer) -> enqueue -> answer fills -> relay.close(open_job)
    session:       open_job.answer.feed(event) ..., one terminal event

A job is opened before it is enqueued, so no event can come too early. When its request ends, for whatever reason, it
is closed: a running attempt is cancelled at its worker, a queued entry is withdrawn; a job that is being claimed at
that moment is found closed and acknowledged without running.

State of an open job:  queued -> running -> ended, or back to queued when its worker is lost: to be continued from what
was written so far if another worker can (`draft`), else to begin again while the client has nothing yet. Owned by the
router's one event loop: each transition is synchronous.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import attrs
import trio

from auxot.core.errors import ErrorCode
from auxot.core.jobs import Failed, Finished, JobEvent, JobRecord, PromptProgress
from auxot.core.protocol import decode_job, encode
from auxot.router.draft import LOST, Draft

if TYPE_CHECKING:
    from auxot.core.prefixes import Chain
    from auxot.router.admission import Place


class Loss(enum.Enum):
    """What becomes of a job whose worker is lost."""

    ENDS = "ends"  # it has ended; the client has been told
    RESTARTS = "restarts"  # its entry runs again from the beginning
    CONTINUES = "continues"  # it goes on without its entry, see `OpenJob.next_frame`


class Answer(Protocol):
    """Where a job's events go: a stream to the client, or a collector. Nothing here blocks."""

    def feed(self, event: JobEvent) -> None:
        """Take one event; it is seen by the client at the next `flush`."""

    def flush(self) -> None:
        """Send on what was fed."""

    def restart(self) -> bool:
        """Forget the events so far; False when the client has seen some, so the job cannot run again."""


@attrs.define(eq=False, kw_only=True)
class OpenJob:
    """A job whose client waits here."""

    record: JobRecord
    answer: Answer
    frame: bytes = attrs.field(repr=False)  # the encoded job message
    needs: str | None = None  # a feature that the worker must have
    entry_id: bytes | None = None  # of the queue, once it is there
    max_tokens: int | None = None  # what the job asks for: original workers do not say why they stopped
    cancel_attempt: Callable[[], None] | None = None  # set while a session runs it
    on_started: Callable[[], None] | None = None  # the request learns that a worker has it
    draft: Draft | None = None  # what was written, if another worker could go on from there
    continue_by: float = 0.0  # until when (trio's clock) a lost one waits for a worker that can go on; 0: it cannot be
    is_continued: bool = False  # it goes on without its entry: what the queue still says of it is void
    place: Place | None = None  # of a job of ours
    chain: Chain | None = None  # of its prompt, once it was looked at
    warm_by: float | None = None  # until when (trio's clock) it is held for a worker that has its prompt
    issue: int = 0  # queue entries that it has had before the present one
    is_queued: bool = False  # it has an entry, to be run from there
    entry_seen_at: float = 0.0  # when (trio's clock) that was known to be in the queue
    ended: bool = False

    @property
    def waits(self) -> bool:
        """Whether no worker has it, and it has not ended."""
        return self.cancel_attempt is None and not self.ended

    @property
    def wants_rest(self) -> bool:
        """Whether the next worker is to go on from the draft; else it begins with the first word."""
        return self.draft is not None and self.draft.is_continued

    def feed(self, event: JobEvent) -> None:
        """Pass one event on, and note the times; nothing passes after the terminal one."""
        if self.ended:
            return
        if self.draft is not None:
            as_seen = self.draft.take(event)
            if as_seen is None:
                return
            event = as_seen
        record = self.record
        if isinstance(event, (Finished, Failed)):
            self._end(event)
        elif record.first_event_at is None and not isinstance(event, PromptProgress):
            record.first_event_at = time.time()
        self.answer.feed(event)

    def _end(self, event: Finished | Failed) -> None:
        self.ended = True
        self.record.ended_at = time.time()
        if isinstance(event, Finished):
            self.record.outcome = event.reason.value
            self.record.usage = event.usage
        else:
            self.record.outcome = event.code.word

    def start(self, *, worker_id: str, attempt: int, cancel: Callable[[], None]) -> None:
        """Note that a worker has the job; `cancel` tells it to stop."""
        self.record.worker_id = worker_id
        self.record.attempt = attempt
        self.record.sent_at = time.time()
        self.continue_by = 0.0
        self.cancel_attempt = cancel
        if self.on_started is not None:
            self.on_started()

    def lose(self, *, attempt: int, max_attempts: int, may_stay: bool) -> Loss:
        """Note that the worker is gone, and decide what becomes of the job.

        Args:
            attempt: which one is over.
            max_attempts: how many there may be.
            may_stay: whether waiting for a worker of this router is as good as going back into the queue.
        """
        self.cancel_attempt = None
        if self.ended:
            return Loss.ENDS
        if attempt >= max_attempts:
            self.fail(Failed(ErrorCode.WORKER_LOST, f"given up: {attempt} workers were lost while they ran this job"))
            return Loss.ENDS
        if not self._is_worth_continuing(may_stay=may_stay) and self.begin_again():
            return Loss.CONTINUES if self.is_continued else Loss.RESTARTS
        return self._go_on()

    def begin_again(self) -> bool:
        """Forget what was written; False when the client has seen some of it."""
        if not self.answer.restart():
            return False
        self.record.first_event_at = None
        self.draft = None if self.draft is None else Draft()
        return True

    def _is_worth_continuing(self, *, may_stay: bool) -> bool:
        """Whether to go on is better than to begin again, where both can be done: exact, and no slower."""
        has_text = self.draft is not None and self.draft.has_text
        return has_text and self.continue_by > 0 and (may_stay or self.is_continued)

    def _go_on(self) -> Loss:
        """Have the rest of an answer written that has begun."""
        draft = self.draft
        if draft is None or not draft.has_text:
            self.fail(LOST)
        elif draft.is_full(self.max_tokens):
            self._tell(draft.finished_full())
        else:
            draft.begin_rest()
            self.is_continued = True
            return Loss.CONTINUES
        return Loss.ENDS

    def forgives(self, code: ErrorCode) -> bool:
        """Whether a failure is of the rest's request alone, and the job can begin again. Then the draft is closed."""
        draft = self.draft
        if draft is None or not draft.blames_rest(code) or not self.answer.restart():
            return False
        draft.close()
        return True

    def next_frame(self) -> bytes:
        """Return the job message for the next worker, once `lose` said CONTINUES: the rest, or all of it."""
        if self.draft is None or not self.wants_rest:
            return self.frame
        return encode(self.draft.rest_of(decode_job(self.frame)))

    def stop_attempt(self) -> None:
        """Tell the worker that has it, if there is one, to stop."""
        if self.cancel_attempt is not None:
            self.cancel_attempt()

    def let_go(self) -> None:
        """Cancel a running attempt, and forget who is called: they refer to the job.

        Nothing is left then that refers to itself, so the prompt's memory is free as soon as the last one is done with
        the job; else it would wait for the garbage collector.
        """
        self.on_started = None
        if self.cancel_attempt is not None:
            self.cancel_attempt()
            self.cancel_attempt = nothing  # a session has it still

    def fail(self, failure: Failed) -> None:
        """End the job with an error, and send it on at once."""
        self._tell(failure)

    def _tell(self, event: Finished | Failed) -> None:
        self.feed(event)
        self.answer.flush()


@attrs.define
class Relay:
    """All open jobs of this router, by id."""

    _jobs: dict[str, OpenJob] = attrs.field(factory=dict)
    idle: trio.Event = attrs.field(factory=trio.Event)  # replaced whenever a job opens

    def open(self, open_job: OpenJob) -> _Opening:
        """Return a block that holds a job open; leaving it cancels a running attempt at its worker.

        A queued entry is left to the caller to withdraw: that must await.
        """
        return _Opening(self, open_job)

    def _open(self, open_job: OpenJob) -> None:
        self._jobs[open_job.record.job_id] = open_job

    def _close(self, open_job: OpenJob) -> None:
        del self._jobs[open_job.record.job_id]
        if not self._jobs:
            self.idle.set()
        if not open_job.ended:
            open_job.ended = True
            open_job.record.ended_at = time.time()
            open_job.record.outcome = open_job.record.outcome or "cancelled"
        open_job.let_go()

    def find(self, job_id: str) -> OpenJob | None:
        """Return the open job of that id, or None when its client has left."""
        return self._jobs.get(job_id)

    def fail_all(self, failure: Failed) -> None:
        """End every open job with an error, and let its worker go."""
        for open_job in list(self._jobs.values()):
            open_job.fail(failure)
            open_job.stop_attempt()

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[OpenJob]:
        return iter(self._jobs.values())

    async def wait_idle(self) -> None:
        """Wait until no client waits here."""
        while self._jobs:
            self.idle = trio.Event()
            await self.idle.wait()


@attrs.frozen
class _Opening:
    """The block of `Relay.open`."""

    relay: Relay
    open_job: OpenJob

    def __enter__(self) -> OpenJob:
        self.relay._open(self.open_job)  # noqa: SLF001 -- one thing in two classes
        return self.open_job

    def __exit__(self, *exc_info: object) -> None:
        self.relay._close(self.open_job)  # noqa: SLF001


def nothing() -> None:
    """Do nothing: what cancels an attempt that has ended, where None would mean that there is none."""
