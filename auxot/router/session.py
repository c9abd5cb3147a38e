"""One worker's connection: handshake, receive, send.

    starting  hello accepted, no jobs yet (a policy connection stays here until it leaves)
    ready     `config` came: jobs flow, at most `n_slots`
    quiet     no new jobs; the running ones finish
    gone      the socket is over: running jobs are released; continued elsewhere, or failed, when their clients have
              seen text of them

The receive loop owns the session: when it ends, for whatever reason, everything here ends. It never blocks on a job:
events are written to the clients' sockets at once, grouped by read, so a token costs no task switch (budget: 10 us
of CPU at saturation, 45 us when tokens come one by one).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import attrs
import trio

from auxot.core.errors import ErrorCode, ProtocolError
from auxot.core.jobs import Failed
from auxot.core.messages import (
    FEATURE_BATCHES,
    FEATURE_CONTINUE,
    FEATURE_DELTAS,
    PENDING_BACKEND,
    BuiltinTool,
    Cancel,
    Capabilities,
    Complete,
    Config,
    ConfigAck,
    Error,
    ForwardBody,
    ForwardHead,
    Heartbeat,
    HeartbeatAck,
    JobOverload,
    JobToolCallRequest,
    JobToolCallResult,
    Policy,
    PolicyUpdate,
    PromptProgressMessage,
    Token,
    ToolCallDeltaMessage,
    ToolGenerating,
    WorkerMessage,
)
from auxot.core.protocol import decode_worker_message, encode, split, with_attempt
from auxot.router.attempt import Attempt, Outcome
from auxot.router.conduct import Conduct, EndlessAnswerError
from auxot.router.websocket import CLOSE_GOING_AWAY, SocketClosedError, WorkerSocket

if TYPE_CHECKING:
    from auxot.core.logs import Logger
    from auxot.router.fleet import Fleet
    from auxot.router.queue import ClaimedJob
    from auxot.router.relay import Answer, OpenJob

MAX_SLOTS = 1024  # a worker that announces more is believed this far
MAX_LOGGED_CHARS = 500  # of what a worker says of itself
MAX_LIVENESS_STEP_S = 1.0  # a silent worker is dropped so much later at most
PAUSE_S = 0.5  # without jobs for a worker that gave one back
RETURN_PAUSE_S = 1.0  # without jobs for a worker that comes just after one was lost with its jobs
ANNOUNCEMENT_WEIGHT = 50  # of a message that is logged; see `conduct`
JobMessage = Token | ToolCallDeltaMessage | PromptProgressMessage | ForwardHead | ForwardBody | Complete | Error
CliMessage = JobOverload | JobToolCallRequest | ToolGenerating | BuiltinTool
_HEARTBEAT_ACK = encode(HeartbeatAck())


class State(enum.Enum):
    """How far a session is; forward only."""

    STARTING = "starting"
    READY = "ready"
    QUIET = "quiet"
    GONE = "gone"


@attrs.define(eq=False, kw_only=True)
class Session:
    """The router's view of one connected worker."""

    worker_id: str
    socket: WorkerSocket
    fleet: Fleet[Session]
    settle: Callable[[Attempt], None]  # what to do when a delivery has ended; the pool's
    default_slots: int  # when the worker does not say how many it has
    dead_after_s: float
    log: Logger
    capabilities: Capabilities | None = None
    state: State = State.STARTING
    attempts: dict[str, Attempt] = attrs.field(factory=dict)
    _n_slots: int = 0
    _conduct: Conduct = attrs.field(factory=Conduct)
    _streams_all: bool = False
    _sends_batches: bool = False
    _nursery: trio.Nursery | None = None
    _liveness: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _next_step_at: float = float("-inf")  # when a message moves the liveness deadline again
    _n_pauses: int = 0  # under way

    @property
    def n_running(self) -> int:
        """Jobs that this worker has now."""
        return len(self.attempts)

    @property
    def n_slots(self) -> int:
        """Jobs that it can have at once; 0 unless it is ready, and for a moment after it has given one back."""
        return self._n_slots if self.state is State.READY and not self._n_pauses else 0

    @property
    def features(self) -> tuple[str, ...]:
        """What the worker understands beyond the original protocol."""
        return self.capabilities.features if self.capabilities is not None else ()

    async def run(self, early: list[bytes]) -> None:
        """Serve the connection until it is over; returns normally however it ends.

        Args:
            early: frames that came in the same read as `hello`.
        """
        self._sends_batches = FEATURE_BATCHES in self.features
        self.fleet.update(self)
        try:
            async with trio.open_nursery() as session_nursery:
                self._nursery = session_nursery
                session_nursery.start_soon(self.socket.drain)
                await self._receive_until_gone(early)
                session_nursery.cancel_scope.cancel()
        finally:
            self._leave()
            self.socket.abort()

    def _leave(self) -> None:
        """Leave the fleet, then give back what runs: it must not come back here."""
        self.state = State.GONE
        self.fleet.remove(self)
        if self.attempts:
            self.fleet.lost_jobs_at = trio.current_time()
        for attempt in list(self.attempts.values()):
            attempt.end(Outcome.LOST)
            self._settle(attempt)

    def start(self, claimed: ClaimedJob, open_job: OpenJob) -> None:
        """Send a claimed job to the worker and take a slot for it. The caller has seen that one is free."""
        attempt = Attempt(
            job_id=claimed.job_id,
            entry_id=claimed.entry_id,
            number=claimed.attempt,
            open_job=open_job,
            streams_all=self._streams_all,
            can_be_continued=FEATURE_CONTINUE in self.features,
        )
        self.attempts[claimed.job_id] = attempt
        self.fleet.update(self)
        open_job.start(worker_id=self.worker_id, attempt=claimed.attempt, cancel=lambda: self._cancel(attempt))
        self.socket.send(with_attempt(claimed.data, claimed.attempt))

    def tell_policy(self, policy: Policy) -> None:
        """Tell the worker that the policy has changed; what it makes of that it announces with `config`."""
        self.default_slots = policy.max_parallelism
        if self.state is not State.GONE:
            self.socket.send(encode(PolicyUpdate(policy=policy)))

    def be_quiet(self) -> None:
        """Take no more jobs."""
        if self.state in (State.STARTING, State.READY):
            self.state = State.QUIET
            self.fleet.update(self)

    async def close(self) -> None:
        """Tell the worker that the router goes away, and end the session."""
        self.be_quiet()
        await self.socket.close(CLOSE_GOING_AWAY, "the router is shutting down")
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def _receive_until_gone(self, early: list[bytes]) -> None:
        """Handle messages until the connection is over, or the worker silent for `dead_after_s`."""
        self._show_life()
        try:
            with self._liveness:
                await self._receive_loop(early)
        except SocketClosedError:
            return
        if self._liveness.cancelled_caught:
            self.log.warning("worker.silent", worker_id=self.worker_id, dead_after_s=self.dead_after_s)

    async def _receive_loop(self, frames: list[bytes]) -> None:
        written: dict[Answer, None] = {}  # answers that got something in this read, in order
        while True:
            for frame in frames:
                for message in split(frame) if self._sends_batches else (frame,):
                    self._take(message, written)
            for answer in written:
                answer.flush()
            written.clear()
            frames = await self.socket.receive()
            self._show_life()

    def _show_life(self) -> None:
        """Move the liveness deadline, at most once a step: that costs as much as reading a token."""
        now = trio.current_time()
        if now >= self._next_step_at:
            step_s = min(MAX_LIVENESS_STEP_S, self.dead_after_s / 10)
            self._next_step_at = now + step_s
            self._liveness.deadline = now + step_s + self.dead_after_s

    def _take(self, encoded: bytes, written: dict[Answer, None]) -> None:
        """Handle one message. A bad one is counted, not fatal: the original's rule."""
        try:
            message = decode_worker_message(encoded)
        except ProtocolError as exc:
            self._on_bad_message(exc)
            return
        try:
            if isinstance(message, Error) and message.job_id is None:
                self._on_worker_error(message)
            elif isinstance(message, JobMessage):
                self._on_job_message(message, written, len(encoded))
            else:
                self._on_other_message(message, written, len(encoded))
        except EndlessAnswerError as exc:
            self._drop(exc.reason)
        except ProtocolError as exc:
            self._on_bad_message(exc)

    def _on_job_message(self, message: JobMessage, written: dict[Answer, None], n_bytes: int) -> None:
        attempt = self.attempts.get(message.job_id or "")
        if attempt is None:  # late words after a cancel, or a worker that speaks for a job that is not its own
            self._conduct.check_late_words(message.job_id or "", is_end=isinstance(message, Complete | Error))
            return
        attempt.count(n_bytes, choice=getattr(message, "choice", 0), index=getattr(message, "index", 0))
        written[attempt.open_job.answer] = None
        if isinstance(message, Token):
            attempt.on_token(message)
        elif isinstance(message, ToolCallDeltaMessage):
            attempt.on_tool_call_delta(message)
        elif isinstance(message, PromptProgressMessage):
            attempt.on_prompt_progress(message)
        elif isinstance(message, ForwardHead):
            attempt.on_forward_head(message)
        elif isinstance(message, ForwardBody):
            attempt.on_forward_body(message)
        elif isinstance(message, Complete):
            attempt.on_complete(message)
            self._settle(attempt)
        else:
            attempt.on_error(message)
            if attempt.outcome is Outcome.LOST:
                self._pause(PAUSE_S)
            self._settle(attempt)

    def _on_other_message(self, message: WorkerMessage, written: dict[Answer, None], n_bytes: int) -> None:
        if isinstance(message, Heartbeat):
            self._conduct.check_remark(trio.current_time())
            self.socket.send(_HEARTBEAT_ACK)
        elif isinstance(message, Config):
            self._conduct.check_remark(trio.current_time(), weight=ANNOUNCEMENT_WEIGHT)
            self._on_config(message)
        elif isinstance(message, JobOverload | JobToolCallRequest | ToolGenerating | BuiltinTool):
            self._on_cli_message(message, written, n_bytes)
        else:
            raise ProtocolError(f"unexpected {message.TYPE}")

    def _on_cli_message(self, message: CliMessage, written: dict[Answer, None], n_bytes: int) -> None:
        attempt = self.attempts.get(message.job_id)
        if attempt is None:
            self._conduct.check_late_words(message.job_id, is_end=False)
            return
        attempt.count(n_bytes)
        if isinstance(message, JobOverload):
            self._on_overload(message, attempt, written)
        elif isinstance(message, JobToolCallRequest):
            self._refuse_tool_call(message)

    def _on_config(self, message: Config) -> None:
        """Take over what the worker announces; from now on it gets jobs."""
        self.capabilities = message.capabilities
        self._streams_all = FEATURE_DELTAS in message.capabilities.features
        self._n_slots = max(1, min(message.capabilities.total_slots or self.default_slots, MAX_SLOTS))
        self.socket.send(encode(ConfigAck(success=True)))
        if self.state is State.STARTING and message.capabilities.backend != PENDING_BACKEND:
            self.state = State.READY
            self._pause_after_loss()
        self.log.info(
            "worker.ready",
            worker_id=self.worker_id,
            backend=message.capabilities.backend,
            model=message.capabilities.model,
            slots=self._n_slots,
            ctx_size=message.capabilities.ctx_size,
        )
        self.fleet.update(self)

    def _on_worker_error(self, message: Error) -> None:
        """Log what a worker says of itself; one that says it is unavailable runs down its jobs and takes no more."""
        self._conduct.check_remark(trio.current_time(), weight=ANNOUNCEMENT_WEIGHT)
        error = message.error[:MAX_LOGGED_CHARS]
        if ErrorCode.from_word(message.code) is ErrorCode.UNAVAILABLE:
            self.log.info("worker.quiet", worker_id=self.worker_id, reason=error)
            self.be_quiet()
        else:
            self.log.warning("worker.error", worker_id=self.worker_id, error=error)

    def _on_overload(self, message: JobOverload, attempt: Attempt, written: dict[Answer, None]) -> None:
        """Fail a job whose worker is rate-limited by its provider, so that its slot is free and its client knows."""
        if (message.rate_limit_status or "").startswith("allowed"):
            return
        written[attempt.open_job.answer] = None
        attempt.open_job.feed(Failed(ErrorCode.RATE_LIMITED, "the worker's provider limits the rate: try again later"))
        attempt.end(Outcome.DONE)
        self._settle(attempt)
        self._conduct.job_is_over(attempt.job_id, is_cancelled=True)  # the worker goes on until it knows better

    def _refuse_tool_call(self, message: JobToolCallRequest) -> None:
        """Answer at once: the worker would wait for minutes for a result that cannot come."""
        refusal = JobToolCallResult(
            job_id=message.job_id,
            call_id=message.call_id,
            result="this router runs no tools for workers",
            is_error=True,
        )
        self.socket.send(encode(refusal))

    def _on_bad_message(self, exc: ProtocolError) -> None:
        self.log.warning("worker.bad_message", worker_id=self.worker_id, reason=exc.reason)
        if self._conduct.note_bad():
            self._drop("too many bad messages")

    def _drop(self, reason: str) -> NoReturn:
        """End the connection: this is no worker, or not an honest one."""
        self.log.warning("worker.dropped", worker_id=self.worker_id, reason=reason)
        raise SocketClosedError

    def _cancel(self, attempt: Attempt) -> None:
        """Tell the worker that the client has left; the slot is free from here on."""
        if attempt.outcome is None:
            self.socket.send(encode(Cancel(job_id=attempt.job_id)))
            attempt.end(Outcome.CANCELLED)
            self._settle(attempt)

    def _pause_after_loss(self) -> None:
        """Send no jobs at first if a worker was lost just now: this may be it, with a link that breaks every time.

        Always free, it would draw job after job, and use up their attempts while honest workers are busy.
        """
        if trio.current_time() - self.fleet.lost_jobs_at < RETURN_PAUSE_S:
            self._pause(RETURN_PAUSE_S)

    def _pause(self, pause_s: float) -> None:
        """Send no jobs for a moment: a worker whose llama-server has died says so a little later than of its jobs.

        Until then the same job could come back as often as it may run at all.
        """
        self._n_pauses += 1
        assert self._nursery is not None
        self._nursery.start_soon(self._end_pause, pause_s)

    async def _end_pause(self, pause_s: float) -> None:
        await trio.sleep(pause_s)
        self._n_pauses -= 1
        if self.state is State.READY:
            self.fleet.update(self)

    def _settle(self, attempt: Attempt) -> None:
        """Free the slot of a delivery that has ended, and let the queue know."""
        self._conduct.job_is_over(attempt.job_id, is_cancelled=attempt.outcome is Outcome.CANCELLED)
        if self.attempts.pop(attempt.job_id, None) is not None:
            self.settle(attempt)
            if self.state is not State.GONE:
                self.fleet.update(self)
