from __future__ import annotations

import pytest
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from auxot.router.websocket import _text_frame


@pytest.mark.parametrize("n_bytes", [0, 1, 125, 126, 127, 65_535, 65_536, 1_000_000])
def test_a_frame_is_read_as_it_was_meant_whatever_its_length(n_bytes):
    """Jobs of some lengths would end the connection of the worker that gets them."""
    protocol = ClientProtocol(parse_uri("ws://router/ws"), state=State.OPEN, max_size=None)
    payload = b"x" * n_bytes
    protocol.receive_data(_text_frame(payload) + _text_frame(b"next"))
    frames = protocol.events_received()
    assert [(frame.opcode, bytes(frame.data)) for frame in frames if isinstance(frame, Frame)] == [
        (Opcode.TEXT, payload),
        (Opcode.TEXT, b"next"),
    ]
