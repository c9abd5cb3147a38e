"""The frames of a WebSocket (RFC 6455, 5.2), as bytes: cut out of a stream, and the plain ones read and written.

The `websockets` package's parser costs 5 us of CPU a frame, half of all that the router does with a token. What
workers say are text messages of one frame each, with a mask: those are read here. Any other frame goes to the package
as it is, which knows the whole protocol; it gets whole frames only, so that either may read the next one.
"""

from __future__ import annotations

import attrs
from websockets.frames import apply_mask  # type: ignore[attr-defined]  # in C, where it could be built

_PLAIN = 0x81  # the last frame of a message, which is a text
_MASKED = 0x80
_LENGTH = 0x7F
_LONG, _VERY_LONG = 126, 127  # the length is in the 2, in the 8 bytes that follow
_MASK_BYTES = 4


@attrs.define
class FrameCutter:
    """Cuts a stream into frames.

    Attributes:
        max_bytes: of a frame's payload. A longer one is handed on with what is there of it, for the package to refuse;
            nothing may be cut after it.
    """

    max_bytes: int
    _rest: bytearray = attrs.field(factory=bytearray)  # of a frame that is not whole
    _n_needed: int = 0  # bytes that it has, at least

    def cut(self, received: bytes) -> list[bytes]:
        """Return the frames that have become whole."""
        if self._rest:
            self._rest += received
            if len(self._rest) < self._n_needed:
                return []
            received, self._rest = bytes(self._rest), bytearray()
        frames = []
        start, n_bytes = 0, len(received)
        while start < n_bytes:
            end = self._end(received, start)
            if end > n_bytes:
                self._rest += received[start:]
                self._n_needed = end - start
                break
            frames.append(received[start:end])
            start = end
        return frames

    def _end(self, received: bytes, start: int) -> int:
        """Return where a frame ends, or that at least a byte is missing."""
        n_there = len(received) - start
        if n_there < 2:
            return start + 2
        length, n_head = received[start + 1] & _LENGTH, 2
        if length >= _LONG:
            n_head = 4 if length == _LONG else 10
            if n_there < n_head:
                return start + n_head
            length = int.from_bytes(received[start + 2 : start + n_head], "big")
        if length > self.max_bytes:
            return len(received)
        if received[start + 1] & _MASKED:
            n_head += _MASK_BYTES
        return start + n_head + length


def read_text(frame: bytes) -> bytes | None:
    """Return the text of a whole, masked, final text frame; None if it is another one."""
    if frame[0] != _PLAIN or not frame[1] & _MASKED:
        return None
    length = frame[1] & _LENGTH
    start = 2 if length < _LONG else 4 if length == _LONG else 10
    payload: bytes = apply_mask(frame[start + _MASK_BYTES :], frame[start : start + _MASK_BYTES])
    return payload


def text_frame(payload: bytes) -> bytes:
    """Return a whole text message as a server sends it: one frame, not masked."""
    n_bytes = len(payload)
    if n_bytes < _LONG:
        return b"\x81%c%b" % (n_bytes, payload)
    if n_bytes < 1 << 16:
        return b"\x81\x7e%b%b" % (n_bytes.to_bytes(2, "big"), payload)
    return b"\x81\x7f%b%b" % (n_bytes.to_bytes(8, "big"), payload)
