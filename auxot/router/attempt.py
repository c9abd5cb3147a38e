"""One delivery of a job to one worker: what the worker says of it, translated into JobEvents.

    sent -> (deltas) -> DONE       a terminal event was passed on: the entry is acknowledged
                     -> CANCELLED  the client has left: the worker is told, the entry is acknowledged
                     -> LOST       the worker is gone or gave the job back: another one goes on, or begins again if
                                   the client has seen nothing; else it fails visibly

Original workers say in `complete` what they did not stream (whole tool calls, text held back); it becomes events
here, so that everything behind this file sees one kind of worker.
"""

from __future__ import annotations

import base64
import binascii
import enum
from collections.abc import Iterator

import attrs

from auxot.core.errors import ErrorCode, ProtocolError
from auxot.core.jobs import (
    Failed,
    Finish,
    Finished,
    FinishReason,
    JobEvent,
    Payload,
    PayloadHead,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from auxot.core.messages import (
    Complete,
    Error,
    ForwardBody,
    ForwardHead,
    PromptProgressMessage,
    Token,
    ToolCallDeltaMessage,
)
from auxot.router.conduct import Allowance, EndlessAnswerError
from auxot.router.relay import OpenJob

MAX_TOKENS = 2**31 - 1  # that a worker is believed
# A worker that says one of these could not run the job, and another may.
_GIVEN_BACK = (ErrorCode.WORKER_LOST, ErrorCode.UNAVAILABLE)


class Outcome(enum.Enum):
    """How a delivery ended."""

    DONE = "done"
    CANCELLED = "cancelled"
    LOST = "lost"


@attrs.define(eq=False, kw_only=True)
class Attempt:
    """A job while one worker has it. `entry_id`: its place in the queue, to acknowledge or release."""

    job_id: str
    entry_id: bytes
    number: int
    open_job: OpenJob
    streams_all: bool  # the worker announced FEATURE_DELTAS: nothing is told again in `complete`
    can_be_continued: bool = False  # the worker announced FEATURE_CONTINUE: so may others
    outcome: Outcome | None = None
    _text: list[str] = attrs.field(factory=list)
    _reasoning: list[str] = attrs.field(factory=list)
    _tool_calls: int = 0
    _allowance: Allowance = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._allowance = Allowance.of(self.open_job.max_tokens)

    def count(self, n_bytes: int, *, choice: int = 0, index: int = 0) -> None:
        """Count a message about it; see `conduct.Allowance`. An answer without end fails here."""
        try:
            self._allowance.spend(n_bytes, choice=choice, index=index)
        except EndlessAnswerError:
            self.open_job.fail(Failed(ErrorCode.WORKER_FAILED, "the worker sent more than an answer can have"))
            self.end(Outcome.DONE)
            raise

    def end(self, outcome: Outcome) -> None:
        """Note how it ended, once."""
        if self.outcome is None:
            self.outcome = outcome

    def on_token(self, message: Token) -> None:
        """Pass on text or reasoning."""
        if not self.streams_all:
            (self._reasoning if message.reasoning else self._text).append(message.token)
        kind = ReasoningDelta if message.reasoning else TextDelta
        self._feed(kind(message.token, message.choice, message.logprobs))

    def on_tool_call_delta(self, message: ToolCallDeltaMessage) -> None:
        """Pass on a piece of a tool call."""
        self._tool_calls += 1
        self._feed(
            ToolCallDelta(message.index, message.id, message.name, message.arguments, message.choice, message.logprobs)
        )

    def on_prompt_progress(self, message: PromptProgressMessage) -> None:
        """Pass on how far the prompt is."""
        self._feed(PromptProgress(*map(_count, (message.total, message.cached, message.processed))))

    def on_forward_head(self, message: ForwardHead) -> None:
        """Pass on the head of a forwarded endpoint's answer."""
        self._feed(PayloadHead(message.status, message.content_type))

    def on_forward_body(self, message: ForwardBody) -> None:
        """Pass on more of its body; raises ProtocolError if it is not base64."""
        try:
            body = base64.b64decode(message.data, validate=True)
        except binascii.Error as exc:
            raise ProtocolError("malformed forward_body: not base64") from exc
        self._feed(Payload(body))

    def on_complete(self, message: Complete) -> None:
        """Pass on what was not streamed, and the end."""
        if self.outcome is None:
            for event in self._rest(message):
                self.open_job.feed(event)
            self.end(Outcome.DONE)

    def on_error(self, message: Error) -> None:
        """Give the job back, or fail it."""
        if self.outcome is not None:
            return
        code = ErrorCode.from_word(message.code)
        if code in _GIVEN_BACK or self.open_job.forgives(code):
            self.end(Outcome.LOST)
            return
        text = f"{message.error}: {message.details[:800]}" if message.details else message.error
        self.open_job.feed(Failed(code, text, message.n_prompt_tokens, message.n_ctx))
        self.end(Outcome.DONE)

    def _feed(self, event: JobEvent) -> None:
        if self.outcome is None:
            self.open_job.feed(event)

    def _rest(self, message: Complete) -> Iterator[JobEvent]:
        yield from _remainder(self._reasoning, message.reasoning_content, ReasoningDelta)
        yield from _remainder(self._text, message.full_response, TextDelta)
        if not self._tool_calls:
            for index, call in enumerate(message.tool_calls):
                yield ToolCallDelta(index, call.id, call.function.name, call.function.arguments)
        yield Finished(self._finishes(message), _usage(message))

    def _finishes(self, message: Complete) -> tuple[Finish, ...]:
        """Return why each choice ended; an original worker does not say, so it is told from the counts."""
        finishes = tuple(
            Finish(_REASONS.get(each.finish_reason, FinishReason.STOP), each.stop_sequence) for each in message.finishes
        )
        if finishes:
            return finishes
        if message.tool_calls:
            return (Finish(FinishReason.TOOL_CALLS),)
        max_tokens = self.open_job.max_tokens
        full = max_tokens is not None and message.output_tokens >= max_tokens
        return (Finish(FinishReason.LENGTH if full else FinishReason.STOP),)


_REASONS = {reason.value: reason for reason in FinishReason}


def _remainder(
    streamed: list[str], whole: str | None, kind: type[TextDelta | ReasoningDelta]
) -> Iterator[TextDelta | ReasoningDelta]:
    """Yield what of the whole text was not streamed; nothing when it is not a continuation of what was."""
    if whole:
        so_far = "".join(streamed)
        if len(whole) > len(so_far) and whole.startswith(so_far):
            yield kind(whole[len(so_far) :])


def _usage(message: Complete) -> Usage:
    return Usage(
        prompt_tokens=_count(message.input_tokens) + _count(message.cache_tokens),
        cached_tokens=_count(message.cache_tokens),
        completion_tokens=_count(message.output_tokens),
        reasoning_tokens=_count(message.reasoning_tokens),
    )


def _count(n_tokens: int) -> int:
    """Return a count of tokens that can be one."""
    return max(0, min(n_tokens, MAX_TOKENS))
