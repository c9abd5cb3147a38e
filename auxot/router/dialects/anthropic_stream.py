"""The events of a streaming Anthropic message.

    message_start ping { content_block_start content_block_delta* content_block_stop }* message_delta message_stop
                                                                                       error

One block is open at a time, and a block never opens twice:

                +--text--> TEXT ------+        a delta of the open block is written into it; a delta of another one
    none open --+--reasoning> THINKING +-->     closes the open block and opens its own, with the next index
                '--call k--> TOOL k --+        a thinking block gets its signature when it closes

Two calls whose deltas interleave cannot both be open. So while a call's arguments are incomplete, deltas of other
blocks are held back, and follow as soon as the arguments are a whole JSON object (or the job ends). llama-server
writes one call after the other, and nothing is held then.

Source: https://docs.claude.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

import enum
from typing import Any

import attrs
import orjson

from auxot.core import sse
from auxot.core.jobs import (
    Delta,
    Failed,
    Finish,
    Finished,
    JobEvent,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from auxot.router.dialects.anthropic_objects import (
    STOP_REASONS,
    AnthropicRequest,
    Thoughts,
    error_object,
    message_object,
    refusal,
    signature,
    tool_use_id,
    usage_object,
)
from auxot.router.dialects.base import finishes_of, json_bytes

PING = sse.encode_event(b'{"type":"ping"}', b"ping")
MAX_HELD_DELTAS = 65_536  # a few MiB; then the open call is closed as it is

_BLOCK_START = b'event: content_block_start\ndata: {"type":"content_block_start","index":%d,"content_block":%b}\n\n'
_BLOCK_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
_DELTA_HEAD = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b_delta","%b":'
)
_DELTA_TAIL = b"}}\n\n"


class _Kind(enum.Enum):
    TEXT = enum.auto()
    THINKING = enum.auto()
    TOOL = enum.auto()


_DELTA_NAMES = {
    _Kind.TEXT: (b"text", b"text"),
    _Kind.THINKING: (b"thinking", b"thinking"),
    _Kind.TOOL: (b"input_json", b"partial_json"),
}


@attrs.define
class _Block:
    """The open block.

    `call` is a tool block's call. `pieces` is what a thinking or a tool block has got so far: at most a context full.
    """

    kind: _Kind
    index: int
    head: bytes
    call: int | None = None
    pieces: list[str] = attrs.field(factory=list)

    def holds(self, delta: Delta) -> bool:
        return _block_of(delta) == (self.kind, self.call)

    def is_complete(self) -> bool:
        """Whether another block may follow: always, but for a call in the middle of its arguments."""
        if self.kind is not _Kind.TOOL:
            return True
        if not self.pieces or not self.pieces[-1].rstrip().endswith("}"):
            return False
        self.pieces = ["".join(self.pieces)]
        try:
            orjson.loads(self.pieces[0])
        except orjson.JSONDecodeError:
            return False
        return True


class AnthropicEncoder:
    """The encoder of one answer; see `StreamEncoder`."""

    def __init__(self, request: AnthropicRequest) -> None:
        self._request = request
        self._prompt = Usage()
        self._block: _Block | None = None
        self._n_blocks = 0
        self._calls: set[int] = set()  # those whose block has been opened
        self._held: list[Delta] = []
        self._begun = False
        self._ended = False

    @property
    def begun(self) -> bool:
        """Whether a part of the answer, or its error, has been written."""
        return self._begun

    def feed(self, event: JobEvent) -> bytes:
        """Take the next event; see `StreamEncoder.feed`."""
        block = self._block
        if type(event) is TextDelta and block is not None and block.kind is _Kind.TEXT:  # nearly every call
            if event.choice or not event.text:
                return b""
            return block.head + json_bytes(event.text) + _DELTA_TAIL
        if self._ended:
            return b""
        if isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta):
            return self._take(event)
        return self._mark(event)

    def _mark(self, event: JobEvent) -> bytes:
        """Take an event that is no part of the answer's content."""
        if isinstance(event, Finished):
            return self._finish(event)
        if isinstance(event, Failed):
            return self._fail(event)
        if isinstance(event, PromptProgress):
            self._prompt = Usage(prompt_tokens=event.total, cached_tokens=event.cached)
        return b""

    def keep_alive(self, note: str = "") -> bytes:
        """Return a `ping` event, after a comment if there is a note."""
        return (sse.encode_comment(note) if note else b"") + PING

    def _take(self, delta: Delta) -> bytes:
        """Write a delta, or hold it back while it is not its block's turn."""
        if delta.choice or not self._is_seen(delta):  # this API knows one choice only
            return b""
        if self._may_write(delta):
            written = self._write(delta)
            return written + self._release() if self._held else written
        self._held.append(delta)
        return self._flush() if len(self._held) >= MAX_HELD_DELTAS else b""

    def _is_seen(self, delta: Delta) -> bool:
        if isinstance(delta, ReasoningDelta) and self._request.thoughts is Thoughts.HIDDEN:
            return False
        return isinstance(delta, ToolCallDelta) or bool(delta.text)

    def _may_write(self, delta: Delta) -> bool:
        """Whether it is a delta's turn: it continues the open block, or nothing is in its way."""
        block = self._block
        return block is None or block.holds(delta) or (not self._held and block.is_complete())

    def _release(self) -> bytes:
        """Write what has been held back, as far as the open block allows."""
        written: list[bytes] = []
        while self._held and (self._block is None or self._block.is_complete()):
            held, self._held = self._held, []
            for delta in held:
                if self._may_write(delta):
                    written.append(self._write(delta))
                else:
                    self._held.append(delta)
        return b"".join(written)

    def _flush(self) -> bytes:
        """Write all that has been held back, block by block, and close the last one."""
        order: dict[Any, int] = {}
        for delta in self._held:
            order.setdefault(_block_of(delta), len(order))
        held = sorted(self._held, key=lambda delta: order[_block_of(delta)])
        self._held = []
        return b"".join([*map(self._write, held), self._close()])

    def _write(self, delta: Delta) -> bytes:
        """Write a delta into its block, which is opened first if it is not open."""
        opening = b""
        if self._block is None or not self._block.holds(delta):
            if isinstance(delta, ToolCallDelta) and delta.index in self._calls:
                return b""  # a call goes on after its arguments were whole: nothing that could be used
            opening = self._begin() + self._close() + self._open(delta)
        piece = delta.arguments if isinstance(delta, ToolCallDelta) else delta.text
        if not piece or self._block is None:
            return opening
        if self._block.kind is not _Kind.TEXT:
            self._block.pieces.append(piece)
        if self._block.kind is _Kind.THINKING and self._request.thoughts is not Thoughts.SHOWN:
            return opening
        return opening + self._block.head + json_bytes(piece) + _DELTA_TAIL

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return _event("message_start", {"message": message_object(self._request, self._prompt)}) + PING

    def _open(self, delta: Delta) -> bytes:
        kind, call = _block_of(delta)
        index = self._n_blocks
        self._n_blocks += 1
        self._block = _Block(kind, index, _DELTA_HEAD % (index, *_DELTA_NAMES[kind]), call)
        return _BLOCK_START % (index, json_bytes(self._block_object(delta)))

    def _block_object(self, delta: Delta) -> dict[str, Any]:
        if isinstance(delta, TextDelta):
            return {"type": "text", "text": ""}
        if isinstance(delta, ReasoningDelta):
            return {"type": "thinking", "thinking": "", "signature": ""}
        self._calls.add(delta.index)
        spelt_id = delta.id or tool_use_id(self._request, index=delta.index)
        return {"type": "tool_use", "id": spelt_id, "name": delta.name or "", "input": {}}

    def _close(self) -> bytes:
        block, self._block = self._block, None
        if block is None:
            return b""
        sealed = b""
        if block.kind is _Kind.THINKING:
            delta = {"type": "signature_delta", "signature": signature("".join(block.pieces))}
            sealed = _event("content_block_delta", {"index": block.index, "delta": delta})
        return sealed + _BLOCK_STOP % block.index

    def _finish(self, event: Finished) -> bytes:
        blocks = self._begin() + self._flush()
        self._ended = True
        return blocks + message_delta(finishes_of(event, 1)[0], event.usage) + _event("message_stop", {})

    def _fail(self, event: Failed) -> bytes:
        self._begun = self._ended = True
        self._block = None
        self._held.clear()
        error = error_object(refusal(event), request_id=self._request.request_id)
        return sse.encode_event(json_bytes(error), b"error")


def message_delta(finish: Finish, usage: Usage) -> bytes:
    """Return the event that tells how the message ended and what it took."""
    delta = {"stop_reason": STOP_REASONS[finish.reason], "stop_sequence": finish.stop_sequence}
    return _event("message_delta", {"delta": delta, "usage": usage_object(usage)})


def _event(name: str, fields: dict[str, Any]) -> bytes:
    return sse.encode_event(json_bytes({"type": name, **fields}), name.encode())


def _block_of(delta: Delta) -> tuple[_Kind, int | None]:
    """Return the block that a delta belongs to."""
    if isinstance(delta, TextDelta):
        return _Kind.TEXT, None
    if isinstance(delta, ReasoningDelta):
        return _Kind.THINKING, None
    return _Kind.TOOL, delta.index
