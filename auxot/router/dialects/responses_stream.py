"""The events of a streaming response.

    response.created response.in_progress { item }* response.completed | response.incomplete | response.failed

    item:  output_item.added [content_part.added] delta* done [content_part.done] output_item.done

    waiting --first delta, or Finished--> begun --Finished or Failed--> ended

One message or reasoning item is open at a time: it closes when another item begins. A call closes when another item
begins and its arguments are whole, else at the end, so that calls whose deltas interleave are open side by side.
What the model wrote in the order reasoning, text, calls therefore becomes one item each; in any other order a text
may be cut into several messages. Every event has the next `sequence_number`.

A blocking answer is the response in the last event of the stream that it would have been.

Source: https://platform.openai.com/docs/api-reference/responses-streaming and the official SDK's accumulator.
"""

from __future__ import annotations

import enum
from typing import Any

import attrs
import orjson

from auxot.core import sse
from auxot.core.jobs import Delta, Failed, Finished, JobEvent, TextDelta, ToolCallDelta
from auxot.router.dialects.base import finishes_of, id_stem, json_bytes
from auxot.router.dialects.openai_objects import call_id, refusal
from auxot.router.dialects.responses_objects import (
    COMPLETED,
    FAILED,
    IN_PROGRESS,
    INCOMPLETE,
    INCOMPLETE_REASONS,
    call_item,
    logprobs_of,
    message_item,
    reasoning_item,
    reasoning_part,
    response_object,
    text_part,
)
from auxot.router.dialects.responses_request import ResponsesRequest
from auxot.router.dialects.responses_tools import Offer, custom_input


class _Kind(enum.Enum):
    """An item's kind: how its id begins, and what its events are called."""

    MESSAGE = ("msg", "output_text")
    REASONING = ("rs", "reasoning_text")
    FUNCTION = ("fc", "function_call_arguments")
    CUSTOM = ("ctc", "custom_tool_call_input")

    def __init__(self, prefix: str, event: str) -> None:
        self.prefix = prefix
        self.event = f"response.{event}"


_CALLS = (_Kind.FUNCTION, _Kind.CUSTOM)


@attrs.define(eq=False, kw_only=True)
class _Item:
    """An output item that is being written. `pieces`: of its text or arguments, at most a context full."""

    kind: _Kind
    index: int
    item_id: str
    seals: bool = False  # reasoning: return it as `encrypted_content` too
    call_id: str = ""
    offer: Offer
    pieces: list[str] = attrs.field(factory=list)
    logprobs: list[Any] = attrs.field(factory=list)
    closed: dict[str, Any] | None = None  # the whole item

    @property
    def where(self) -> dict[str, Any]:
        """Return the fields by which its events name it."""
        where: dict[str, Any] = {"item_id": self.item_id, "output_index": self.index}
        return where if self.kind in _CALLS else {**where, "content_index": 0}

    def text(self) -> str:
        """Return all of it."""
        self.pieces = ["".join(self.pieces)]
        return self.pieces[0]

    def part(self) -> dict[str, Any]:
        """Return its one content part; of messages and reasoning only."""
        text = self.text()
        return reasoning_part(text) if self.kind is _Kind.REASONING else text_part(text, self.logprobs)

    def done(self) -> dict[str, Any]:
        """Return what the event that ends its deltas tells."""
        if self.kind is _Kind.MESSAGE:
            return {"text": self.text(), "logprobs": self.logprobs}
        if self.kind is _Kind.REASONING:
            return {"text": self.text()}
        if self.kind is _Kind.CUSTOM:
            return {"input": custom_input(self.text())}
        return {"name": self.offer.name, "arguments": self.text()}

    def object(self, status: str, *, empty: bool = False) -> dict[str, Any]:
        """Return the item itself, in a state; `empty` before anything has been written."""
        if self.kind in _CALLS:
            arguments = "" if empty else self.text()
            return call_item(self.item_id, status=status, call_id=self.call_id, offer=self.offer, arguments=arguments)
        content = [] if empty else [self.part()]
        if self.kind is _Kind.MESSAGE:
            return message_item(self.item_id, status=status, content=content)
        return reasoning_item(self.item_id, status=status, content=content, sealed=self.seals)

    def is_whole(self) -> bool:
        """Whether nothing is missing: of a call's arguments, which are a JSON object."""
        if self.kind not in _CALLS:
            return True
        try:
            return type(orjson.loads(self.text())) is dict
        except orjson.JSONDecodeError:
            return False


class ResponsesEncoder:
    """The encoder of one answer; see `StreamEncoder`."""

    def __init__(self, request: ResponsesRequest) -> None:
        self._request = request
        self._items: list[_Item] = []
        self._writing: _Item | None = None  # the open message or reasoning item
        self._text_head = b""  # of the deltas of the open message; empty if none is open
        self._calls: dict[int, _Item] = {}  # by the job's numbers of the calls, closed ones too
        self._n_events = 0
        self._begun = False
        self._ended = False
        self.response: dict[str, Any] = {}  # the whole response, once ended

    @property
    def begun(self) -> bool:
        """Whether a part of the answer, or its error, has been written."""
        return self._begun

    def feed(self, event: JobEvent) -> bytes:
        """Take the next event; see `StreamEncoder.feed`."""
        if type(event) is TextDelta and self._text_head and event.logprobs is None and event.text and not event.choice:
            return self._write_text(event.text)  # nearly every call
        if self._ended:
            return b""
        if isinstance(event, Failed):
            return self._fail(event)
        if isinstance(event, Finished):
            return self._finish(event)
        if isinstance(event, Delta):
            return self._take(event)
        return b""

    def keep_alive(self, note: str = "") -> bytes:
        """Return a comment."""
        return sse.encode_comment(note)

    def _write_text(self, text: str) -> bytes:
        assert self._writing is not None  # `_text_head` is empty then
        self._writing.pieces.append(text)
        sequence_number = self._n_events
        self._n_events += 1
        return b'%b%d,"logprobs":[],"delta":%b}\n\n' % (self._text_head, sequence_number, json_bytes(text))

    def _take(self, delta: Delta) -> bytes:
        is_empty = not isinstance(delta, ToolCallDelta) and not delta.text
        if delta.choice or is_empty:  # this API knows one choice only
            return b""
        item = self._item_of(delta)
        opening = b""
        if item is None:
            item = self._new_item(delta)
            opening = self._begin() + self._make_way(item) + self._open(item)
        if item.closed is not None:
            return b""  # a call goes on after its arguments were whole: nothing that could be used
        return opening + self._write(item, delta)

    def _item_of(self, delta: Delta) -> _Item | None:
        """Return the item that a delta continues, None if it begins one."""
        if isinstance(delta, ToolCallDelta):
            return self._calls.get(delta.index)
        kind = _Kind.MESSAGE if isinstance(delta, TextDelta) else _Kind.REASONING
        return self._writing if self._writing is not None and self._writing.kind is kind else None

    def _new_item(self, delta: Delta) -> _Item:
        request, index = self._request, len(self._items)
        offer = Offer(name="")
        if isinstance(delta, ToolCallDelta):
            offer = request.toolbox.find(delta.name or "")
            kind = _Kind.CUSTOM if offer.is_custom else _Kind.FUNCTION
        else:
            kind = _Kind.MESSAGE if isinstance(delta, TextDelta) else _Kind.REASONING
        item = _Item(
            kind=kind,
            index=index,
            item_id=f"{kind.prefix}_{id_stem(request.job.job_id)}{index:02d}",
            seals=request.seals_reasoning,
            offer=offer,
        )
        if isinstance(delta, ToolCallDelta):
            item.call_id = delta.id or call_id(request, choice=0, index=delta.index)
            self._calls[delta.index] = item
        return item

    def _make_way(self, item: _Item) -> bytes:
        """Close what a new item ends, and take note of it."""
        closing = [self._close(opened, COMPLETED) for opened in self._opened() if opened.is_whole()]
        self._items.append(item)
        if item.kind not in _CALLS:
            self._writing = item
        return b"".join(closing)

    def _opened(self) -> list[_Item]:
        return [item for item in self._items if item.closed is None]

    def _open(self, item: _Item) -> bytes:
        added = self._event(
            "response.output_item.added", {"output_index": item.index, "item": item.object(IN_PROGRESS, empty=True)}
        )
        if item.kind in _CALLS:
            return added
        added += self._event("response.content_part.added", {**item.where, "part": item.part()})
        if item.kind is _Kind.MESSAGE:
            name = b"response.output_text.delta"
            self._text_head = b'event: %b\ndata: {"type":"%b",%b,"sequence_number":' % (
                name,
                name,
                json_bytes(item.where)[1:-1],
            )
        return added

    def _write(self, item: _Item, delta: Delta) -> bytes:
        """Write a delta into its item, which is open."""
        piece = delta.arguments if isinstance(delta, ToolCallDelta) else delta.text
        if not piece:
            return b""
        item.pieces.append(piece)
        if item.kind is _Kind.CUSTOM:
            return b""  # its input is known when its arguments are whole
        told: dict[str, Any] = {**item.where, "delta": piece}
        if item.kind is _Kind.MESSAGE:
            told["logprobs"] = logprobs_of(self._request, delta.logprobs)
            item.logprobs += told["logprobs"]
        return self._event(f"{item.kind.event}.delta", told)

    def _close(self, item: _Item, status: str) -> bytes:
        if item is self._writing:
            self._writing, self._text_head = None, b""
        closing = []
        if item.kind is _Kind.CUSTOM:
            closing.append(self._event(f"{item.kind.event}.delta", {**item.where, "delta": item.done()["input"]}))
        closing.append(self._event(f"{item.kind.event}.done", {**item.where, **item.done()}))
        if item.kind not in _CALLS:
            closing.append(self._event("response.content_part.done", {**item.where, "part": item.part()}))
        item.closed = item.object(status)
        closing.append(self._event("response.output_item.done", {"output_index": item.index, "item": item.closed}))
        return b"".join(closing)

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        response = response_object(self._request, status=IN_PROGRESS)
        return self._event("response.created", {"response": response}) + self._event(
            "response.in_progress", {"response": response}
        )

    def _finish(self, event: Finished) -> bytes:
        reason = INCOMPLETE_REASONS.get(finishes_of(event, 1)[0].reason)
        begun = self._begin()
        closing = [self._close(item, self._last_status(item, reason)) for item in self._opened()]
        status = COMPLETED if reason is None else INCOMPLETE
        self.response = response_object(
            self._request, status=status, output=self._output(), usage=event.usage, incomplete_reason=reason
        )
        return begun + b"".join(closing) + self._end(status)

    def _last_status(self, item: _Item, reason: str | None) -> str:
        """Return how an item ended that was open to the last: cut short if the answer was, and it was at its end."""
        is_last = item.index == len(self._items) - 1
        return COMPLETED if reason is None or not (is_last or not item.is_whole()) else INCOMPLETE

    def _fail(self, event: Failed) -> bytes:
        begun = self._begin()
        self.response = response_object(self._request, status=FAILED, output=self._output(), error=refusal(event))
        return begun + self._end(FAILED)

    def _output(self) -> list[dict[str, Any]]:
        return [item.closed for item in self._items if item.closed is not None]

    def _end(self, status: str) -> bytes:
        self._ended, self._text_head = True, b""
        return self._event(f"response.{status}", {"response": self.response})

    def _event(self, name: str, fields: dict[str, Any]) -> bytes:
        sequence_number = self._n_events
        self._n_events += 1
        return sse.encode_event(json_bytes({"type": name, "sequence_number": sequence_number, **fields}), name.encode())
