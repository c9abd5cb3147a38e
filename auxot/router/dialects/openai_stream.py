"""The chunks of a streaming OpenAI chat completion.

    waiting --delta: role chunks--> begun --Finished--> finish chunks [usage chunk] [DONE]
       |                              '-----Failed----> error [DONE]
       '--Finished: as if begun; Failed: the same

Each choice starts with a chunk that holds its role; the chunks after it hold only what is new. All have the same id
and the same `created`. The official SDK collects choices and tool calls into lists, by position: so the role chunks of
all choices come first, in order, and calls are numbered as they appear. Progress of the prompt, for clients that ask
for it, stands in chunks without choices: they are no part of the answer, which may begin again after them. A failure
is an object `error` in place of a chunk, which makes the official SDKs raise; it is followed by `[DONE]` too, for
clients that read until they see it.

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
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
)
from auxot.router.dialects.base import finishes_of, json_bytes
from auxot.router.dialects.openai_chunks import ChunkFrame
from auxot.router.dialects.openai_objects import OpenAiRequest, call_id, finish_reason_of, logprobs_object

ROLE = b'{"role":"assistant","content":""}'


class OpenAiChatEncoder:
    """The encoder of one answer; see `StreamEncoder`."""

    def __init__(self, request: OpenAiRequest) -> None:
        self._request = request
        self._frame = ChunkFrame(request, "chat.completion.chunk")
        self._tail = b'},"finish_reason":null}]' + self._frame.end
        self._n_choices = request.n_choices
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
        return b"" if self._ended else self._feed(event)

    def _feed(self, event: JobEvent) -> bytes:
        if isinstance(event, Failed):
            return self._fail(event)
        if isinstance(event, Finished):
            return self._finish(event)
        if isinstance(event, Delta):
            return self._delta(event)
        if isinstance(event, PromptProgress) and self._request.shows_progress:
            return self._frame.progress(event)
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
        is_new = event.index not in calls
        number = calls.setdefault(event.index, len(calls))
        if self._request.uses_functions:
            return _function_call_json(event, is_new=is_new) if number == 0 else None
        if is_new:
            call = b'{"index":%d,"id":%b,"type":"function","function":{"name":%b,"arguments":%b}}' % (
                number,
                json_bytes(event.id or call_id(self._request, choice=event.choice, index=event.index)),
                json_bytes(event.name or ""),
                json_bytes(event.arguments),
            )
        elif event.arguments:
            call = b'{"index":%d,"function":{"arguments":%b}}' % (number, json_bytes(event.arguments))
        else:
            return None
        return b'{"tool_calls":[%b]}' % call

    def _begin(self) -> bytes:
        """Return the role chunks, if they have not been written yet."""
        if self._begun:
            return b""
        self._begun = True
        for choice in range(self._n_choices):
            self._text_heads[choice] = b'%b,"choices":[{"index":%d,"delta":{"content":' % (self._frame.head, choice)
        return b"".join(self._chunk(choice, ROLE) for choice in range(self._n_choices))

    def _chunk(
        self, choice: int, delta: bytes, *, finish_reason: str | None = None, logprobs: list[Any] | None = None
    ) -> bytes:
        spelt_logprobs = b""
        if logprobs is not None:
            spelt_logprobs = b',"logprobs":' + json_bytes(logprobs_object(logprobs, self._request.n_top_logprobs))
        return self._frame.chunk(
            b'{"index":%d,"delta":%b%b,"finish_reason":%b}' % (choice, delta, spelt_logprobs, json_bytes(finish_reason))
        )

    def _finish(self, event: Finished) -> bytes:
        self._ended = True
        chunks = [self._begin()]
        for choice, finish in enumerate(finishes_of(event, self._n_choices)):
            chunks.append(self._chunk(choice, b"{}", finish_reason=finish_reason_of(self._request, finish)))
        return b"".join([*chunks, self._frame.finish(event.usage)])

    def _fail(self, event: Failed) -> bytes:
        self._begun = self._ended = True
        return self._frame.failure(event)


def _function_call_json(event: ToolCallDelta, *, is_new: bool) -> bytes | None:
    """Return a call's delta in its old form."""
    if is_new:
        named = {"name": event.name or "", "arguments": event.arguments}
        return b'{"function_call":%b}' % json_bytes(named)
    return b'{"function_call":{"arguments":%b}}' % json_bytes(event.arguments) if event.arguments else None
