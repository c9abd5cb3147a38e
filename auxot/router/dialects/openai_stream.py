"""The chunks of a streaming OpenAI chat completion.

    waiting --delta: role chunks--> begun --Finished--> finish chunks [usage chunk] [DONE]
       |                              '-----Failed----> error [DONE]
       '--Finished: as if begun; Failed: the same

Each choice starts with a chunk that holds its role; the chunks after it hold only what is new. All have the same id
and the same `created`. The official SDK collects choices and tool calls into lists, by position: so the role chunks of
all choices come first, in order, and calls are numbered as they appear. A failure is an object `error` in place of a
chunk, which makes the official SDKs raise; it is followed by `[DONE]` too, for clients that read until they see it.

One text delta is one token of one stream: its chunk is put together from bytes prepared once a stream and the JSON
of the text.

Source: https://platform.openai.com/docs/api-reference/chat/streaming
"""

from __future__ import annotations

from typing import Any

from auxot.core import sse
from auxot.core.jobs import (
    Delta,
    Failed,
    Finished,
    JobEvent,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
)
from auxot.router.dialects.base import ChatRequest, finishes_of, json_bytes
from auxot.router.dialects.openai_objects import (
    FINISH_REASONS,
    call_id,
    error_object,
    logprobs_object,
    n_choices,
    refusal,
    usage_object,
)

DONE = sse.encode_event(b"[DONE]")
ROLE = b'{"role":"assistant","content":""}'


class OpenAiChatEncoder:
    """The encoder of one answer; see `StreamEncoder`."""

    def __init__(self, request: ChatRequest) -> None:
        self._request = request
        head = {
            "id": request.answer_id,
            "object": "chat.completion.chunk",
            "created": request.created,
            "model": request.model,
        }
        self._head = b"data: " + json_bytes(head)[:-1]
        self._end = b',"usage":null}\n\n' if request.include_usage else b"}\n\n"
        self._tail = b'},"finish_reason":null}]' + self._end
        self._n_choices = n_choices(request)
        self._text_heads: dict[int, bytes] = {}  # by choice; empty until the answer begins
        self._calls: list[dict[int, int]] = [{} for _ in range(self._n_choices)]  # by choice: call -> its number
        self._begun = False
        self._ended = False

    @property
    def begun(self) -> bool:
        """Whether a part of the answer, or its error, has been written."""
        return self._begun

    def feed(self, event: JobEvent) -> bytes:
        """Take the next event; see `StreamEncoder.feed`."""
        if type(event) is TextDelta and event.logprobs is None and event.text and not self._ended:
            head = self._text_heads.get(event.choice)
            if head is not None:  # nearly every call
                return head + json_bytes(event.text) + self._tail
        if self._ended:
            return b""
        if isinstance(event, Failed):
            return self._fail(event)
        if isinstance(event, Finished):
            return self._finish(event)
        if isinstance(event, Delta):
            return self._delta(event)
        return b""

    def keep_alive(self, note: str = "") -> bytes:
        """Return a comment."""
        return sse.encode_comment(note)

    def _delta(self, event: Delta) -> bytes:
        if not 0 <= event.choice < self._n_choices:
            return b""  # nobody asked for it
        delta = self._delta_json(event)
        if delta is None and event.logprobs is None:
            return b""
        return self._begin() + self._chunk(event.choice, delta or b"{}", logprobs=event.logprobs)

    def _delta_json(self, event: Delta) -> bytes | None:
        """Return a chunk's `delta`; None if there is nothing new in it."""
        if isinstance(event, ToolCallDelta):
            return self._call_json(event)
        if not event.text:
            return None
        name = b"reasoning_content" if isinstance(event, ReasoningDelta) else b"content"
        return b'{"%b":%b}' % (name, json_bytes(event.text))

    def _call_json(self, event: ToolCallDelta) -> bytes | None:
        calls = self._calls[event.choice]
        if event.index not in calls:
            calls[event.index] = len(calls)
            call = b'{"index":%d,"id":%b,"type":"function","function":{"name":%b,"arguments":%b}}' % (
                calls[event.index],
                json_bytes(event.id or call_id(self._request, choice=event.choice, index=event.index)),
                json_bytes(event.name or ""),
                json_bytes(event.arguments),
            )
        elif event.arguments:
            call = b'{"index":%d,"function":{"arguments":%b}}' % (calls[event.index], json_bytes(event.arguments))
        else:
            return None
        return b'{"tool_calls":[%b]}' % call

    def _begin(self) -> bytes:
        """Return the role chunks, if they have not been written yet."""
        if self._begun:
            return b""
        self._begun = True
        for choice in range(self._n_choices):
            self._text_heads[choice] = b'%b,"choices":[{"index":%d,"delta":{"content":' % (self._head, choice)
        return b"".join(self._chunk(choice, ROLE) for choice in range(self._n_choices))

    def _chunk(
        self, choice: int, delta: bytes, *, finish_reason: str | None = None, logprobs: list[Any] | None = None
    ) -> bytes:
        spelt_logprobs = b"" if logprobs is None else b',"logprobs":' + json_bytes(logprobs_object(logprobs))
        return b'%b,"choices":[{"index":%d,"delta":%b%b,"finish_reason":%b}]%b' % (
            self._head,
            choice,
            delta,
            spelt_logprobs,
            json_bytes(finish_reason),
            self._end,
        )

    def _finish(self, event: Finished) -> bytes:
        self._ended = True
        chunks = [self._begin()]
        for choice, finish in enumerate(finishes_of(event, self._n_choices)):
            chunks.append(self._chunk(choice, b"{}", finish_reason=FINISH_REASONS[finish.reason]))
        if self._request.include_usage:
            chunks.append(b'%b,"choices":[],"usage":%b}\n\n' % (self._head, json_bytes(usage_object(event.usage))))
        return b"".join([*chunks, DONE])

    def _fail(self, event: Failed) -> bytes:
        self._begun = self._ended = True
        return sse.encode_event(json_bytes({"error": error_object(refusal(event))})) + DONE
