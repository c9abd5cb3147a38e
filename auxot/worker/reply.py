"""What a worker tells its router about one job: from JobEvents to messages. Pure.

To our router the answer goes once, as it comes: token, tool_call_delta, ..., and `complete` without a second copy. To
a router that does not announce FEATURE_DELTAS (the original) go token, tool_generating and prompt_progress, and a
`complete` that holds the whole answer; it knows one choice only.

Exactly one terminal message (complete or error) is made, and nothing after it.
"""

from __future__ import annotations

import base64

from auxot.core.jobs import (
    Failed,
    Finished,
    FunctionCall,
    JobEvent,
    Payload,
    PayloadHead,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Transcript,
)
from auxot.core.messages import (
    Complete,
    Error,
    FinishMessage,
    ForwardBody,
    ForwardHead,
    PromptProgressMessage,
    Token,
    ToolCallDeltaMessage,
    ToolGenerating,
    WorkerMessage,
)


class Reply:
    """The messages about one job.

    Args:
        job_id: the job.
        is_original: the router has not announced FEATURE_DELTAS.
    """

    def __init__(self, job_id: str, *, is_original: bool) -> None:
        self.is_ended = False
        self._job_id = job_id
        self._transcript = Transcript() if is_original else None
        self._has_told_of_tools = False

    def messages(self, event: JobEvent, *, elapsed_ms: int) -> list[WorkerMessage]:
        """Return what to send for an event; nothing after the terminal one.

        Args:
            event: the next event of the job.
            elapsed_ms: since the job began; told in `complete`.
        """
        if self.is_ended:
            return []
        if self._transcript is not None:
            self._transcript.add(event)
        if isinstance(event, Finished | Failed):
            self.is_ended = True
            return [self._terminal(event, elapsed_ms)]
        if isinstance(event, ToolCallDelta):
            return self._tool_call(event)
        if isinstance(event, TextDelta | ReasoningDelta):
            return self._token(event, reasoning=isinstance(event, ReasoningDelta))
        return [self._other(event)]

    def _other(self, event: PromptProgress | PayloadHead | Payload) -> WorkerMessage:
        if isinstance(event, PayloadHead):
            return ForwardHead(job_id=self._job_id, status=event.status, content_type=event.content_type)
        if isinstance(event, Payload):
            return ForwardBody(job_id=self._job_id, data=base64.b64encode(event.body).decode())
        return self._progress(event)

    def _token(self, delta: TextDelta | ReasoningDelta, *, reasoning: bool) -> list[WorkerMessage]:
        if self._transcript is None:
            token, choice, logprobs = delta.text, delta.choice, delta.logprobs
            return [Token(job_id=self._job_id, token=token, reasoning=reasoning, choice=choice, logprobs=logprobs)]
        if delta.choice != 0 or not delta.text:
            return []
        return [Token(job_id=self._job_id, token=delta.text, reasoning=reasoning)]

    def _tool_call(self, delta: ToolCallDelta) -> list[WorkerMessage]:
        messages: list[WorkerMessage] = []
        if not self._has_told_of_tools:
            self._has_told_of_tools = True
            messages.append(ToolGenerating(job_id=self._job_id))
        if self._transcript is None:
            messages.append(
                ToolCallDeltaMessage(
                    job_id=self._job_id,
                    index=delta.index,
                    id=delta.id,
                    name=delta.name,
                    arguments=delta.arguments,
                    choice=delta.choice,
                    logprobs=delta.logprobs,
                )
            )
        return messages

    def _progress(self, progress: PromptProgress) -> PromptProgressMessage:
        return PromptProgressMessage(
            job_id=self._job_id, total=progress.total, cached=progress.cached, processed=progress.processed
        )

    def _terminal(self, event: Finished | Failed, elapsed_ms: int) -> WorkerMessage:
        if isinstance(event, Failed):
            return error_message(self._job_id, event)
        return self._complete(event, elapsed_ms)

    def _complete(self, finished: Finished, elapsed_ms: int) -> Complete:
        usage = finished.usage
        answer = self._transcript.choice(0) if self._transcript is not None else None
        return Complete(
            job_id=self._job_id,
            full_response="".join(answer.text) if answer else "",
            reasoning_content="".join(answer.reasoning) or None if answer else None,
            tool_calls=tuple(map(_whole_call, answer.tool_calls.values())) if answer else (),
            duration_ms=elapsed_ms,
            cache_tokens=usage.cached_tokens,
            input_tokens=max(0, usage.prompt_tokens - usage.cached_tokens),
            output_tokens=usage.completion_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            finishes=tuple(
                FinishMessage(finish_reason=finish.reason.value, stop_sequence=finish.stop_sequence)
                for finish in finished.finishes
            ),
        )


def error_message(job_id: str | None, failure: Failed) -> Error:
    """Return the `error` message for a job, or for the connection when there is no job."""
    return Error(
        job_id=job_id,
        error=failure.message,
        code=failure.code.word,
        n_prompt_tokens=failure.n_prompt_tokens,
        n_ctx=failure.n_ctx,
    )


def _whole_call(call: ToolCallDelta) -> ToolCall:
    function = FunctionCall(name=call.name or "", arguments=call.arguments)
    return ToolCall(id=call.id or f"call_{call.index}", function=function)
