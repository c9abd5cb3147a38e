"""From the chunks of llama-server's chat completions and completions to JobEvents: pure.

    chunk, chunk, ...          read(chunk) -> events
    [DONE]                     end()       -> Finished
    the stream breaks off      lost()      -> Failed
    {"error": ...}             read(chunk) -> Failed

Whatever comes, and in whatever order it is asked, a reader gives exactly one terminal event and nothing after it. In
particular a stream that ends without [DONE] has failed: what was sent until then is not an answer.

What the chunks look like (llama.cpp 0.5.0-dev; all fields as seen from a running server):

    choices[].delta.{content, reasoning_content, tool_calls[]}, choices[].{index, logprobs.content, finish_reason}
    choices[].text                                 in completions, instead of the delta
    prompt_progress {total, cache, processed}      beside a choice whose delta or text is empty
    usage, timings                                 in a chunk without choices, or in that of the choice's end; with
                                                   several choices one after each choice's end
    __verbose {index, stop_type, stopping_word}    when the request has "verbose": near the end of a choice

With several prompts the choices are counted through: choice i of prompt p has the index p * n + i.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from auxot.core.errors import ErrorCode
from auxot.core.jobs import (
    Failed,
    Finish,
    Finished,
    FinishReason,
    JobEvent,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)

MAX_ERROR_CHARS = 1000

_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "tool_calls": FinishReason.TOOL_CALLS}
_WORD = "word"  # __verbose.stop_type: a stop word was written

_LOST = "llama-server went away before the answer was complete"
_OVERFLOW = "exceed_context_size_error"
_CLIENT_STATUSES = {400, 413, 422}  # not 401 or 404: the way to an external llama-server is wrong, not the request
_CLIENT_ERRORS = {"invalid_request_error", "not_supported_error"}
# llama-server reports these as its own failures (500), but trying elsewhere would not help: the request is at fault.
_CLIENT_FAULTS = (
    "input is not supported",  # an image, audio or video for a model without a projector
    "failed to load image",
    "failed to download image",
    "invalid base64",
    "failed to parse messages",
    "failed to parse tools",
    "failed to parse tool call arguments",
    "cannot specify",
    "cannot use both",
    "unknown reasoning format",
    "jinja exception",  # the chat template refuses the conversation, for example its order of roles
    "json.exception.parse_error",  # of its JSON library: not JSON, ...
    "json.exception.type_error.302",  # ... a field of the wrong type, ...
    "json.exception.out_of_range",  # ... a field that is missing, or a number beyond all bounds
    "vector::_m_range_check",  # a token id that the vocabulary does not have
    "elements must be a string, a list of tokens",
    "is too large to process",  # an embedding's input, which has to fit into one physical batch
)


def failure_of(error: Any, *, status: int | None = None) -> Failed:
    """Say in the inner language what an error object of llama-server means.

    Args:
        error: the value of `error` in its answer or in a chunk.
        status: the HTTP status it came with; None: the `code` in the object.
    """
    fields = error if isinstance(error, dict) else {"message": str(error)}
    message = str(fields.get("message") or "llama-server failed without a reason")[:MAX_ERROR_CHARS]
    return Failed(
        _code_of(fields, status, message), message, _count(fields, "n_prompt_tokens"), _count(fields, "n_ctx")
    )


def _code_of(fields: Mapping[str, Any], status: int | None, message: str) -> ErrorCode:
    status = status or _count(fields, "code") or 500
    if fields.get("type") == _OVERFLOW:
        return ErrorCode.CONTEXT_LENGTH_EXCEEDED
    if status == 503:  # it is loading its model: another worker may serve this
        return ErrorCode.UNAVAILABLE
    is_client_fault = any(text in message.lower() for text in _CLIENT_FAULTS)
    if status in _CLIENT_STATUSES or str(fields.get("type")) in _CLIENT_ERRORS or is_client_fault:
        return ErrorCode.INVALID_REQUEST
    return ErrorCode.WORKER_FAILED


@attrs.define
class _Choice:
    """One choice of the answer; its counts are its own, when the server counts choices one by one."""

    reason: str | None = None
    stop_word: str | None = None
    n_prompt_tokens: int = 0
    n_completion_tokens: int = 0
    is_prefill_over: bool = False


class ChunkReader:
    """Fold the chunks of one answer into JobEvents.

    Args:
        prefill: the text of an assistant message at the end of the request, which llama-server continues. It repeats
            that text as if it were written now, and here it is taken away again. "": none.
        max_tokens: the limit of the request, None if there is none: tells a full context from a reached limit.
        slot_ctx_tokens: context of one slot.
        n_choices: of each prompt; all choices of a prompt share its tokens.
    """

    def __init__(
        self,
        *,
        prefill: str = "",
        max_tokens: int | None = None,
        slot_ctx_tokens: int | None = None,
        n_choices: int = 1,
    ) -> None:
        self._prefill = prefill
        self._n_choices = n_choices
        self._max_tokens = max_tokens
        self._slot_ctx_tokens = slot_ctx_tokens
        self._choices: dict[int, _Choice] = {}
        self._ended_index = 0  # the choice that ended last: the next usage is its
        self._progress_seen = False
        self._usage_of_prompt: dict[int, Usage] = {}
        self._n_reasoning = 0
        self.is_ended = False

    def read(self, chunk: Any) -> list[JobEvent]:
        """Take one chunk, decoded from JSON; return what it says. Never raises."""
        if self.is_ended:
            return []
        try:
            return self._read(chunk)
        except (AttributeError, TypeError):  # something stands where an object or a list should
            return self._fail(Failed(ErrorCode.WORKER_FAILED, "llama-server sent a chunk of an unknown form"))

    def _read(self, chunk: Mapping[str, Any]) -> list[JobEvent]:
        error = chunk.get("error")
        if error is not None:
            return self._fail(failure_of(error))
        events: list[JobEvent] = []
        progress = chunk.get("prompt_progress")
        if progress is not None:
            self._progress_seen = True
        for choice in chunk.get("choices") or ():
            index = _count(choice, "index") or 0
            if progress is None or not self._prefill:
                self._read_delta(choice, index, events)
            if progress is not None and index == 0:
                events.append(_progress(progress))
            self._read_reason(choice, index)
        self._read_totals(chunk)
        return events

    def end(self) -> list[JobEvent]:
        """Take the end of the stream ([DONE]); return the terminal event."""
        if self.is_ended:
            return []
        if not self._choices or any(choice.reason is None for choice in self._choices.values()):
            return self.lost()
        self.is_ended = True
        finishes = tuple(self._finish(self._choices[index]) for index in sorted(self._choices))
        return [Finished(finishes, self._usage())]

    def lost(self) -> list[JobEvent]:
        """Take the loss of the stream: the job may be run again elsewhere."""
        return self._fail(Failed(ErrorCode.WORKER_LOST, _LOST))

    def fail(self, failure: Failed) -> list[JobEvent]:
        """End the answer with a failure that is not llama-server's word."""
        return self._fail(failure)

    def _fail(self, failure: Failed) -> list[JobEvent]:
        if self.is_ended:
            return []
        self.is_ended = True
        return [failure]

    def _choice(self, index: int) -> _Choice:
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice(is_prefill_over=not self._prefill)
        return choice

    def _read_delta(self, choice: Mapping[str, Any], index: int, events: list[JobEvent]) -> None:
        delta = choice.get("delta") or {}
        logprobs = (choice.get("logprobs") or {}).get("content")
        n_events = len(events)
        if reasoning := _text(delta, "reasoning_content"):
            self._n_reasoning += 1  # llama-server writes a chunk a token
            events.append(ReasoningDelta(reasoning, index))
        text = _text(delta, "content") or _text(choice, "text")
        if text and (text := self._without_prefill(text, index)):
            events.append(TextDelta(text, index))
        events.extend(_tool_call_delta(call, index) for call in delta.get("tool_calls") or ())
        if logprobs:
            if len(events) == n_events:  # a token without text of its own, such as a tag
                events.append(TextDelta("", index))
            event = events[-1]
            assert isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta)
            event.logprobs = logprobs

    def _without_prefill(self, text: str, index: int) -> str:
        """Take the repeated prefill off the first text of a choice.

        A server that reports progress repeats it beside the progress, where no new text can be; one that does not
        puts it before the first token.
        """
        choice = self._choice(index)
        if choice.is_prefill_over:
            return text
        choice.is_prefill_over = True
        return text if self._progress_seen else text.removeprefix(self._prefill)

    def _read_reason(self, choice: Mapping[str, Any], index: int) -> None:
        state = self._choice(index)
        reason = choice.get("finish_reason")
        if reason is not None:
            state.reason = str(reason)
            self._ended_index = index

    def _read_totals(self, chunk: Mapping[str, Any]) -> None:
        verbose = chunk.get("__verbose")
        if isinstance(verbose, dict) and verbose.get("stop_type") == _WORD:
            self._choice(_count(verbose, "index") or 0).stop_word = str(verbose.get("stopping_word") or "")
        usage = _usage(chunk)
        if usage is None:
            return
        choice = self._choice(self._ended_index)
        choice.n_prompt_tokens, choice.n_completion_tokens = usage.prompt_tokens, usage.completion_tokens
        prompt = self._ended_index // self._n_choices
        before = self._usage_of_prompt.get(prompt)
        if before is not None:  # with n > 1 the prompt is one, its answers add up
            n_tokens = before.completion_tokens + usage.completion_tokens
            usage = attrs.evolve(before, completion_tokens=n_tokens)
        self._usage_of_prompt[prompt] = usage

    def _usage(self) -> Usage:
        usages = self._usage_of_prompt.values()
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in usages),
            cached_tokens=sum(usage.cached_tokens for usage in usages),
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            reasoning_tokens=self._n_reasoning,
        )

    def _finish(self, choice: _Choice) -> Finish:
        reason = _REASONS.get(choice.reason or "", FinishReason.STOP)
        if reason is FinishReason.STOP and choice.stop_word is not None:
            return Finish(FinishReason.STOP_SEQUENCE, choice.stop_word or None)
        if reason is FinishReason.LENGTH and self._is_context_full(choice):
            return Finish(FinishReason.CONTEXT_FULL)
        return Finish(reason)

    def _is_context_full(self, choice: _Choice) -> bool:
        if self._slot_ctx_tokens is None:
            return False
        if self._max_tokens is not None and choice.n_completion_tokens >= self._max_tokens:
            return False
        return choice.n_prompt_tokens + choice.n_completion_tokens >= self._slot_ctx_tokens


def _progress(progress: Mapping[str, Any]) -> PromptProgress:
    return PromptProgress(
        total=_count(progress, "total") or 0,
        cached=_count(progress, "cache") or 0,
        processed=_count(progress, "processed") or 0,
    )


def _tool_call_delta(call: Mapping[str, Any], choice: int) -> ToolCallDelta:
    function = call.get("function") or {}
    return ToolCallDelta(
        index=_count(call, "index") or 0,
        id=_text(call, "id") or None,
        name=_text(function, "name") or None,
        arguments=_text(function, "arguments"),
        choice=choice,
    )


def _usage(chunk: Mapping[str, Any]) -> Usage | None:
    """Return the counts in a chunk: `usage`, else `timings`, which leaves the cached part out of the prompt."""
    usage = chunk.get("usage")
    if isinstance(usage, dict):
        details = usage.get("prompt_tokens_details")
        return Usage(
            prompt_tokens=_count(usage, "prompt_tokens") or 0,
            cached_tokens=_count(details, "cached_tokens") or 0 if isinstance(details, dict) else 0,
            completion_tokens=_count(usage, "completion_tokens") or 0,
        )
    timings = chunk.get("timings")
    has_ended = any(choice.get("finish_reason") is not None for choice in chunk.get("choices") or ())
    if not isinstance(timings, dict) or not has_ended:  # `timings_per_token` puts running counts into every chunk
        return None
    cached = _count(timings, "cache_n") or 0
    return Usage(
        prompt_tokens=cached + (_count(timings, "prompt_n") or 0),
        cached_tokens=cached,
        completion_tokens=_count(timings, "predicted_n") or 0,
    )


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if type(value) is not str:
        raise TypeError(name)
    return value


def _count(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    return value if type(value) is int and value >= 0 else None
