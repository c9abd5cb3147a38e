from __future__ import annotations

import json
from itertools import pairwise

import trio
from hypothesis import given
from hypothesis import strategies as st

from auxot.core.errors import ErrorCode
from auxot.core.jobs import Failed, Finish, Finished, FinishReason, Payload, PayloadHead, Usage
from auxot.core.sse import SseDecoder
from auxot.router.dialects.openai_chat import OPENAI_CHAT
from auxot.router.forward import EventPassage
from auxot.router.streaming import MAX_PAYLOAD_BYTES, CollectedAnswer, WholeAnswer

EVENTS = b'data: {"content":"one"}\n\ndata: {"content":"two"}\n\n'
FINISHED = Finished((Finish(FinishReason.STOP),), Usage())
FAILED = Failed(ErrorCode.WORKER_FAILED, "oops")


@given(cuts=st.lists(st.integers(0, len(EVENTS)), max_size=4), fails=st.booleans())
def test_events_stay_whole(cuts: list[int], fails: bool) -> None:
    """A keep-alive or an error stands in the middle of an event, which no client can parse."""
    passage = EventPassage(OPENAI_CHAT)
    written = passage.keep_alive("queued") + passage.feed(PayloadHead(200, "text/event-stream"))
    edges = [0, *sorted(cuts), len(EVENTS)]
    for start, end in pairwise(edges):
        written += passage.feed(Payload(EVENTS[start:end])) + passage.keep_alive("prompt 4%")
    written += passage.feed(FAILED if fails else FINISHED)
    assert passage.feed(Payload(b"late")) == b""
    told = [json.loads(event.data) for event in SseDecoder().feed(written)]
    assert told[:2] == [{"content": "one"}, {"content": "two"}]
    assert [event["error"]["message"] for event in told[2:]] == (["oops"] if fails else [])


def test_error_in_the_middle_of_an_event() -> None:
    """The error that ends a broken stream is read as a part of the event that was cut."""
    passage = EventPassage(OPENAI_CHAT)
    written = passage.feed(Payload(b'data: {"content":"o')) + passage.keep_alive() + passage.feed(FAILED)
    torn, error = SseDecoder().feed(written)
    assert torn.data == b'{"content":"o'
    assert json.loads(error.data)["error"]["message"] == "oops"


def test_what_has_begun() -> None:
    """A job of which a client has seen something runs again, or one of which it has not does not."""
    passage = EventPassage(OPENAI_CHAT)
    passage.feed(PayloadHead(200, "text/event-stream"))
    passage.keep_alive()
    assert not passage.begun
    passage.feed(Payload(b"data: 1\n\n"))
    assert passage.begun


def test_status_that_is_no_stream() -> None:
    """An error object of a worker that knows no better is sent as events."""
    passage = EventPassage(OPENAI_CHAT)
    written = passage.feed(PayloadHead(400, "application/json")) + passage.feed(Payload(b'{"error":1}'))
    [event] = SseDecoder().feed(written)
    assert "status 400" in json.loads(event.data)["error"]["message"]


async def test_answer_beyond_the_bound() -> None:
    """A worker fills the router's memory with one answer."""
    answer = CollectedAnswer(lambda _: WholeAnswer(b""), None)
    answer.feed(PayloadHead(200, "application/json"))
    piece = bytes(1024 * 1024)
    for _ in range(MAX_PAYLOAD_BYTES // len(piece) + 1):  # the same bytes again and again take no memory
        answer.feed(Payload(piece))
    answer.flush()
    with trio.fail_after(1):
        failure = await answer.send_begin(_never, list)
    assert failure is not None
    assert failure.code is ErrorCode.WORKER_FAILED
    answer.restart()
    answer.feed(FINISHED)
    assert await answer.send_begin(_never, list) is None


async def _never(_: object) -> None:
    await trio.lowlevel.checkpoint()
    raise AssertionError
