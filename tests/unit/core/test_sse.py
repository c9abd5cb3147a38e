from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot.core.errors import SseError
from auxot.core.sse import SseDecoder, SseEvent, encode_comment, encode_event

PIECES = [b"data", b"event", b"id", b"retry", b":", b" ", b"\n", b"\r", b"\r\n", b"x", b"{}", b"\xef\xbb\xbf", b"\xff"]
STREAMS = st.lists(st.sampled_from(PIECES), max_size=60).map(b"".join)
CUTS = st.lists(st.integers(0, 200), max_size=20)


def decode(stream: bytes, cuts: Sequence[int] = (), max_event_bytes: int = 1000) -> list[SseEvent]:
    decoder = SseDecoder(max_event_bytes=max_event_bytes)
    pieces = itertools.pairwise([0, *sorted(cuts), len(stream)])
    return [event for start, end in pieces for event in decoder.feed(stream[start:end])]


def decode_by_the_letter(stream: bytes) -> list[SseEvent]:
    """The algorithm of the standard, sentence by sentence, over the whole stream at once."""
    text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events, data, kind = [], b"", b""
    for line in text.split(b"\n")[:-1]:
        if line == b"":
            if data:
                events.append(SseEvent(kind.decode("utf-8", "replace") or "message", data.removesuffix(b"\n")))
            data, kind = b"", b""
            continue
        name, colon, value = line.partition(b":")
        if colon and name == b"":
            continue
        value = value[1:] if value.startswith(b" ") else value
        if name == b"data":
            data += value + b"\n"
        elif name == b"event":
            kind = value
    return events


@given(STREAMS, CUTS)
def test_any_stream_cut_anywhere_decodes_as_the_standard_says(stream, cuts):
    """An event would be lost, doubled or changed by where the network cuts the bytes."""
    assert decode(stream, cuts) == decode_by_the_letter(stream)


@given(st.binary(max_size=200), CUTS)
def test_any_bytes_decode_as_the_standard_says(stream, cuts):
    """Bytes that are no text would end the reader instead of being read over."""
    assert decode(stream, cuts) == decode_by_the_letter(stream)


@given(st.lists(st.tuples(st.binary(max_size=30), st.sampled_from([None, b"ping", b"x.y"])), max_size=5), CUTS)
def test_what_is_encoded_is_decoded(events, cuts):
    """Our own client would read something else than our server wrote."""
    stream = b"".join(encode_comment("hm\r\ndata: x") + encode_event(data, event) for data, event in events)
    lines = [data.replace(b"\r\n", b"\n").replace(b"\r", b"\n") for data, _ in events]
    names = [(event or b"message").decode() for _, event in events]
    assert decode(stream, cuts) == [SseEvent(*pair) for pair in zip(names, lines, strict=True)]


def test_an_event_is_dispatched_by_the_byte_that_ends_it():
    """A token would wait for the next one: a CR that ends a line must not wait for an LF."""
    assert SseDecoder().feed(b"data: x\r\r") == [SseEvent("message", b"x")]
    assert SseDecoder().feed(b"data: x\n\n") == [SseEvent("message", b"x")]


def test_an_unfinished_event_is_none():
    """The half of an event before a broken connection would be taken for a whole one."""
    assert decode(b"data: x\n") == []


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_an_event_of_the_bound_passes_and_one_byte_more_does_not(step):
    """The bound would depend on how the bytes are cut."""
    cuts = list(range(0, 200, step))
    assert decode(b"data: " + b"x" * 100 + b"\n\n", cuts, 100) == [SseEvent("message", b"x" * 100)]
    for stream in (b"data: " + b"x" * 101 + b"\n\n", b"data: 1\n" * 51 + b"\n", b"event: " + b"x" * 101 + b"\n"):
        with pytest.raises(SseError):
            decode(stream, list(range(0, len(stream), step)), 100)


def test_a_line_without_end_is_refused():
    """A server that never ends its line would fill the memory."""
    with pytest.raises(SseError):
        decode(b": comment " * 200, range(0, 2000, 100))


def test_many_events_may_pass_in_one_piece():
    """The bound would count the stream and not the event."""
    assert len(decode(b"data: x\n\n" * 5000, max_event_bytes=10)) == 5000


def test_a_large_event_in_small_pieces_takes_linear_time():
    """A large event would cost seconds of CPU: ten times the bytes would take a hundred times as long."""

    def seconds(n_pieces: int) -> float:
        decoder, start = SseDecoder(), time.perf_counter()
        for _ in range(n_pieces):
            decoder.feed(b"x" * 64)
        return time.perf_counter() - start

    seconds(1000)
    assert min(seconds(100_000) for _ in range(3)) < 40 * min(seconds(10_000) for _ in range(3))
