"""PURE: what of a chat's answer has been sent, and the job that asks another worker for the rest of it.

    begin -> take(event) ... -> worker lost -> rest_of(job) -> begin_rest -> take(event) ... -> Finished

The rest is asked for by an assistant message at the end of the conversation, which llama-server goes on writing (a
prefill). That is exact for plain text only: a tool call, thoughts, a second choice, a grammar or log probabilities
have a state that no text carries. What the client is told of its tokens is the whole: the prompt of the first part,
and what all parts have written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from auxot.core.errors import ErrorCode
from auxot.core.jobs import (
    ChatMessage,
    Failed,
    Finish,
    Finished,
    FinishReason,
    Job,
    JobEvent,
    Kind,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)

MAX_CHARS = 4 * 1024 * 1024  # kept of one answer; a longer one is not continued
N_MARKS = 2  # tokens around thoughts that no delta shows: where they begin and end, or the end and a blank line
LOST = Failed(ErrorCode.WORKER_LOST, "the worker was lost in the middle of the answer")

# Parameters under which a text cannot be continued to the letter.
_CONSTRAINTS = (
    *("grammar", "json_schema", "logprobs", "top_logprobs"),
    *("add_generation_prompt", "continue_final_message", "reasoning_format"),  # the last may make thoughts text
)
_FREE_CHOICES = (None, "auto", "none")  # of tools; others are enforced by a grammar
_BLAMES = (ErrorCode.INVALID_REQUEST, ErrorCode.CONTEXT_LENGTH_EXCEEDED)  # of the rest's request, not of the client's


def can_be_continued(job: Job) -> bool:
    """Whether the answer to a job, once begun, may be finished by another worker."""
    params = job.params
    return (
        job.kind is Kind.CHAT
        and (params.get("n") or 1) == 1
        and not any(params.get(name) is not None for name in _CONSTRAINTS)
        and _is_plain(params.get("response_format"))
        and params.get("tool_choice") in _FREE_CHOICES
        and bool(job.messages)
        and _prefill(job.messages[-1]) is not None
    )


def _is_plain(response_format: Any) -> bool:
    return response_format is None or (isinstance(response_format, dict) and response_format.get("type") == "text")


@attrs.define(eq=False)
class Draft:
    """One answer as far as it has been sent.

    Attributes:
        is_continued: the rest of it is (being) written by another worker than its beginning.
    """

    is_continued: bool = False
    _text: list[str] = attrs.field(factory=list)
    _reasoning: list[str] = attrs.field(factory=list)
    _n_chars: int = 0
    _n_text_tokens: int = 0
    _n_reasoning_tokens: int = 0
    _n_tokens_before: int = 0  # written before the worker that writes now
    _is_closed: bool = False  # it holds what no other worker can go on with
    _has_repeated: bool = True  # the rest's own text has begun
    _progress: PromptProgress | None = None  # of the client's own prompt

    @property
    def n_tokens(self) -> int:
        """How many tokens have been written: our workers send one at a time. Behind thoughts it may be off by a few."""
        n_marks = N_MARKS if self._n_text_tokens and self._n_reasoning_tokens else 0
        return self._n_text_tokens + self._n_reasoning_tokens + n_marks

    @property
    def has_text(self) -> bool:
        """Whether there is text to go on from, and nothing but text."""
        return not self._is_closed and any(not piece.isspace() for piece in self._text)

    def take(self, event: JobEvent) -> JobEvent | None:
        """Note an event; return it as the client must see it, None if it must not."""
        if isinstance(event, TextDelta):
            self._take_text(event)
            return event
        if isinstance(event, ReasoningDelta):
            return self._take_reasoning(event)
        if isinstance(event, PromptProgress):
            return self._take_progress(event)
        if isinstance(event, ToolCallDelta):
            self._is_closed = True
        elif self.is_continued and isinstance(event, Finished):
            return attrs.evolve(event, usage=self._whole_usage(event.usage))
        elif isinstance(event, Failed) and self.blames_rest(event.code):
            return LOST
        return event

    def blames_rest(self, code: ErrorCode) -> bool:
        """Whether a failure is the fault of our asking for a rest, not of the client's request."""
        return self.is_continued and code in _BLAMES

    def close(self) -> None:
        """Keep nothing: no other worker goes on from here."""
        self._is_closed = True
        self._text.clear()
        self._reasoning.clear()

    def begin_rest(self) -> None:
        """Note that another worker goes on from here."""
        self.is_continued = True
        self._has_repeated = False
        self._n_tokens_before = self.n_tokens

    def is_full(self, max_tokens: int | None) -> bool:
        """Whether all tokens that were asked for have been written, and only the end is missing."""
        return max_tokens is not None and self.n_tokens >= max_tokens

    def finished_full(self) -> Finished:
        """Return the end of an answer whose last token was its last word."""
        self._n_tokens_before = 0
        usage = Usage(completion_tokens=self.n_tokens, reasoning_tokens=self._n_reasoning_tokens)
        return Finished((Finish(FinishReason.LENGTH),), self._whole_usage(usage))

    def rest_of(self, job: Job) -> Job:
        """Return the job that asks for what is missing.

        Thinking is switched off: it is over, and would begin anew. What was thought stays in the conversation.
        """
        last = job.messages[-1]
        prefill = _prefill(last) or ""
        thoughts = "".join(self._reasoning) or (last.reasoning_content if last.role == "assistant" else None)
        answer = ChatMessage(role="assistant", content=prefill + "".join(self._text), reasoning_content=thoughts)
        history = job.messages[:-1] if last.role == "assistant" else job.messages
        max_tokens = None if job.max_tokens is None else job.max_tokens - self.n_tokens
        return attrs.evolve(
            job,
            messages=(*history, answer),
            max_tokens=max_tokens,
            reasoning_effort="none",
            params=_without_thinking(job.params),
        )

    def _take_text(self, delta: TextDelta) -> None:
        self._has_repeated = True
        if delta.text:
            self._n_text_tokens += 1
            self._keep(delta.text, self._text)

    def _take_reasoning(self, delta: ReasoningDelta) -> JobEvent | None:
        if not self._has_repeated:
            return None  # llama-server repeats the thoughts of the message that it continues
        if self._text:
            self._is_closed = True  # thoughts behind a text have no place in a message
        if delta.text:
            self._n_reasoning_tokens += 1
            self._keep(delta.text, self._reasoning)
        return delta

    def _take_progress(self, progress: PromptProgress) -> JobEvent | None:
        if self.is_continued:
            return None  # of a prompt that the client does not know
        self._progress = progress
        return progress

    def _keep(self, text: str, pieces: list[str]) -> None:
        if self._is_closed:
            return
        pieces.append(text)
        self._n_chars += len(text)
        if self._n_chars > MAX_CHARS:
            self.close()

    def _whole_usage(self, usage: Usage) -> Usage:
        """Return the counts of all parts, of those of the last one."""
        progress = self._progress
        n_prompt = progress.total if progress else max(0, usage.prompt_tokens - self._n_tokens_before)
        n_cached = progress.cached if progress else min(usage.cached_tokens, n_prompt)
        return Usage(
            prompt_tokens=n_prompt,
            cached_tokens=n_cached,
            completion_tokens=self._n_tokens_before + usage.completion_tokens,
            reasoning_tokens=self._n_reasoning_tokens,
        )


def _prefill(last: ChatMessage) -> str | None:
    """Return what the client itself has the answer begin with; None if no text can be put behind it."""
    if last.role != "assistant":
        return ""
    content = last.content
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        content = content[0].get("text")  # of several parts the joints are the server's affair
    return content if isinstance(content, str) and not last.tool_calls else None


def _without_thinking(params: Mapping[str, Any]) -> dict[str, Any]:
    kwargs = params.get("chat_template_kwargs")
    off = {"enable_thinking": False, "thinking": False}
    return {**params, "chat_template_kwargs": {**(kwargs if isinstance(kwargs, dict) else {}), **off}}
