r"""Server-sent events: an encoder, and an incremental decoder. Bytes in, events out; nothing here waits.

    data: {"a":1}           one `SseEvent("message", b'{"a":1}')`
                            <- a blank line ends the event
    event: ping             one `SseEvent("ping", b"x\ny")`
    data: x
    data: y

    : anything              a comment: dropped

The decoder follows the event stream format of the WHATWG HTML standard, section 9.2.6 ("Interpreting an event
stream"): lines end in LF, CR or CRLF, a byte order mark at the start is dropped, an event without a `data` line is
not dispatched, `id` and `retry` mean nothing to us. It deviates in one point: data stay bytes, because their only
readers parse JSON, which checks UTF-8 itself.

The decoder belongs to the one task that reads the stream. What it keeps is bounded by `max_event_bytes`, and the
work is linear in the bytes fed, however they are cut.
"""

from __future__ import annotations

import re

import attrs

from auxot.core.errors import SseError

DEFAULT_MAX_EVENT_BYTES = 16 * 1024 * 1024  # the largest honest event is llama-server's last one with `verbose`
DEFAULT_EVENT = "message"

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\r|\n")


@attrs.define
class SseEvent:
    """One event of a stream: its type (`message` unless the sender named one) and its data."""

    event: str
    data: bytes


def encode_event(data: bytes, event: bytes | None = None) -> bytes:
    """Write one event.

    Args:
        data: the payload; JSON as a rule. Each of its lines becomes one `data` line.
        event: the event's type, one line; None for a plain `message`.

    Returns:
        The bytes of the event with the blank line that ends it.
    """
    head = b"" if event is None else b"event: %b\n" % event
    if b"\n" in data or b"\r" in data:
        data = b"\ndata: ".join(_LINE_END.split(data))
    return b"%bdata: %b\n\n" % (head, data)


def encode_comment(text: str) -> bytes:
    """Write a comment, which every client ignores: it keeps an idle connection open. Line ends become spaces."""
    return b": %b\n\n" % _LINE_END.sub(b" ", text.encode("utf-8", "replace"))


class SseDecoder:
    """Read events from the bytes of a stream, in pieces of any size.

    Args:
        max_event_bytes: bound on one event's data and on one line.
    """

    def __init__(self, *, max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._at_start = True  # no line has ended yet: a byte order mark may stand here
        self._skip_lf = False  # the last piece ended in CR: an LF now belongs to it
        self._line = bytearray()  # the line that has not ended yet
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._event = DEFAULT_EVENT

    def feed(self, piece: bytes) -> list[SseEvent]:
        """Take the next bytes of the stream.

        Returns:
            The events that these bytes complete, in order; often none. What stands unfinished at the end of the
            stream is no event.

        Raises:
            SseError: a line or an event is larger than `max_event_bytes`; the decoder is of no further use.
        """
        lines = self._split(piece)
        rest = lines.pop()
        if lines:
            lines[0] = self._first_line(lines[0])
        events: list[SseEvent] = []
        for line in lines:
            if line.startswith(b"data: "):  # nearly every line that is not blank
                self._add_data(line[6:])
            elif line:
                self._take_field(line)
            else:
                self._end_event(events)
        self._line += rest
        self._check_line(len(self._line))
        return events

    def _split(self, piece: bytes) -> list[bytes]:
        """Cut at the line ends; the last entry is the start of a line that goes on in the next piece."""
        if self._skip_lf and piece:
            piece = piece.removeprefix(b"\n")
            self._skip_lf = False
        if b"\r" in piece:
            self._skip_lf = piece.endswith(b"\r")
            return _LINE_END.split(piece)
        return piece.split(b"\n")

    def _first_line(self, line: bytes) -> bytes:
        """Return the first line that ends in this piece, with what earlier pieces held of it."""
        if self._line:
            line = bytes(self._line) + line
            self._line.clear()
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        return line

    def _take_field(self, line: bytes) -> None:
        self._check_line(len(line))
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._add_data(value)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")

    def _add_data(self, value: bytes) -> None:
        self._data.append(value)
        self._data_bytes += len(value) + 1  # and the line end between two of them, so that empty lines count too
        if self._data_bytes > self._max_event_bytes + 1:
            raise self._too_large()

    def _end_event(self, events: list[SseEvent]) -> None:
        if self._data:
            data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
            events.append(SseEvent(self._event or DEFAULT_EVENT, data))
            self._data.clear()
            self._data_bytes = 0
        self._event = DEFAULT_EVENT

    def _check_line(self, n_line_bytes: int) -> None:
        """Refuse a line that could not belong to an event within the bound; its field name is not counted."""
        if self._data_bytes + n_line_bytes > self._max_event_bytes + 1 + len(b"data: "):
            raise self._too_large()

    def _too_large(self) -> SseError:
        return SseError(f"an event is larger than {self._max_event_bytes} bytes")
