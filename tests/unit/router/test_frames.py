from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from auxot.router.frames import FrameCutter, read_text, text_frame

LENGTHS = [0, 1, 125, 126, 127, 65_535, 65_536, 200_000]
MAX_BYTES = 1_000_000
frames = st.builds(
    Frame,
    opcode=st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.CONT]),
    data=st.one_of(st.binary(max_size=200), st.sampled_from(LENGTHS).map(bytes)),
    fin=st.booleans(),
) | st.builds(Frame, opcode=st.sampled_from([Opcode.PING, Opcode.CLOSE]), data=st.binary(max_size=125))


@given(said=st.lists(st.tuples(frames, st.booleans()), max_size=6), cuts=st.lists(st.integers(0, 2000), max_size=8))
def test_frames_are_what_they_were_wherever_the_stream_is_cut(said, cuts):
    """A message would be lost, mixed up with the next one, or the connection end when two come in one packet."""
    written = [frame.serialize(mask=is_masked) for frame, is_masked in said]
    stream = b"".join(written)
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    cutter = FrameCutter(MAX_BYTES)
    found = [frame for start, end in itertools.pairwise(places) for frame in cutter.cut(stream[start:end])]
    assert found == written
    for raw, (frame, is_masked) in zip(found, said, strict=True):
        is_plain = frame.opcode is Opcode.TEXT and frame.fin and is_masked
        assert read_text(raw) == (bytes(frame.data) if is_plain else None)


@pytest.mark.parametrize("n_bytes", [1001, 70_000, 1 << 40])
def test_a_frame_that_is_too_long_is_handed_on_at_its_head(n_bytes):
    """A worker could have the router keep as much as it likes to send."""
    extended = b"\x7f" + n_bytes.to_bytes(8, "big")
    head = b"\x81" + bytes([extended[0] | 0x80]) + extended[1:]
    assert FrameCutter(1000).cut(head) == [head]


@pytest.mark.parametrize("n_bytes", LENGTHS)
def test_a_frame_is_read_as_it_was_meant_whatever_its_length(n_bytes):
    """Jobs of some lengths would end the connection of the worker that gets them."""
    protocol = ClientProtocol(parse_uri("ws://router/ws"), state=State.OPEN, max_size=None)
    payload = b"x" * n_bytes
    protocol.receive_data(text_frame(payload) + text_frame(b"next"))
    events = protocol.events_received()
    assert [(frame.opcode, bytes(frame.data)) for frame in events if isinstance(frame, Frame)] == [
        (Opcode.TEXT, payload),
        (Opcode.TEXT, b"next"),
    ]
