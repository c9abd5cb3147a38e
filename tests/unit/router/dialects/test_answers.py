"""The encoders' own promises, and the small bodies; whole answers stand in the golden files and in test_sdks."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import (
    Failed,
    Finish,
    Finished,
    FinishReason,
    JobEvent,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Transcript,
    Usage,
)
from auxot.core.sse import SseDecoder
from auxot.router.dialects import anthropic_stream
from auxot.router.dialects.anthropic import ANTHROPIC
from auxot.router.dialects.base import Dialect, ModelCard, StreamEncoder
from auxot.router.dialects.openai_chat import OPENAI_CHAT

BOTH = pytest.mark.parametrize("dialect", [OPENAI_CHAT, ANTHROPIC], ids=lambda dialect: dialect.name)
BODY = (
    b'{"model":"m","max_tokens":9,"stream":true,"thinking":{"type":"adaptive"},'
    b'"messages":[{"role":"user","content":"Hi"}]}'
)
STOPPED = Finished((Finish(FinishReason.STOP),), Usage())
LOST = Failed(ErrorCode.WORKER_LOST, "lost")

ANY_TEXT = st.text(st.characters(), max_size=4)  # lone surrogates too
ANY_INDEX = st.integers(-2, 3) | st.just(2**70)
LOGPROBS = st.none() | st.lists(st.none() | ANY_TEXT | st.dictionaries(ANY_TEXT, ANY_TEXT), max_size=2)
ANY_EVENT = st.one_of(
    st.builds(TextDelta, ANY_TEXT, ANY_INDEX, LOGPROBS),
    st.builds(ReasoningDelta, ANY_TEXT, ANY_INDEX, LOGPROBS),
    st.builds(
        ToolCallDelta, ANY_INDEX, st.none() | ANY_TEXT, st.none() | ANY_TEXT, ANY_TEXT, st.integers(-1, 2), LOGPROBS
    ),
    st.builds(PromptProgress, st.integers(), st.integers(), st.integers()),
    st.builds(
        Finished,
        st.lists(st.builds(Finish, st.sampled_from(FinishReason), st.none() | ANY_TEXT), max_size=3).map(tuple),
        st.just(Usage(prompt_tokens=1, cached_tokens=2)),
    ),
    st.builds(Failed, st.sampled_from(ErrorCode), ANY_TEXT, st.none() | st.integers(), st.none() | st.integers()),
)


def encoder_of(dialect: Dialect) -> StreamEncoder:
    return dialect.encoder(dialect.parse(BODY, job_id="chatcmpl-01", now=0))


def events_of(stream: bytes) -> list[Any]:
    return [orjson.loads(event.data) for event in SseDecoder().feed(stream) if event.data != b"[DONE]"]


def n_terminal(events: list[Any]) -> int:
    openai_ends = sum(bool(e.get("choices")) and e["choices"][0]["finish_reason"] is not None for e in events)
    return openai_ends + sum("error" in e or e.get("type") == "message_stop" for e in events)


@BOTH
@settings(max_examples=300)
@given(events=st.lists(ANY_EVENT, max_size=12))
def test_whatever_a_worker_sends_the_stream_is_whole(dialect, events):
    """One strange event of a worker would break the client's stream, or end it twice."""
    encoder = encoder_of(dialect)
    pieces = [encoder.feed(event) for event in [*events, STOPPED, LOST, TextDelta("more")]]
    for piece in pieces:
        assert not piece or piece.endswith(b"\n\n")
    written = events_of(b"".join(pieces))
    assert n_terminal(written) == 1
    assert pieces[-1] == b""
    assert encoder.begun


@BOTH
@settings(max_examples=300)
@given(events=st.lists(ANY_EVENT, max_size=12))
def test_whatever_a_worker_sends_there_is_a_blocking_answer(dialect, events):
    """One strange event of a worker would turn an answer into a 500 without a body."""
    transcript = Transcript()
    for event in events:
        transcript.add(event)
    request = dialect.parse(BODY, job_id="chatcmpl-01", now=0)
    assert orjson.loads(dialect.response(request, transcript))
    if transcript.failed:
        error = dialect.refusal(transcript.failed)
        assert error.code is transcript.failed.code
        assert orjson.loads(dialect.error_body(error, request_id="r"))


@BOTH
def test_nothing_is_written_before_there_is_something_to_say(dialect):
    """An early failure could not keep its HTTP status, and a lost job could not run again."""
    encoder = encoder_of(dialect)
    empty: list[JobEvent] = [PromptProgress(5, 2, 3), TextDelta(""), ReasoningDelta("")]
    for event in empty:
        assert encoder.feed(event) == b""
    assert not encoder.begun
    assert encoder.feed(TextDelta("Hi"))
    assert encoder.begun


@BOTH
@pytest.mark.parametrize("first", [TextDelta("a"), ReasoningDelta("a"), ToolCallDelta(0, "c", "f"), STOPPED, LOST])
def test_the_first_event_with_something_in_it_begins_the_answer(dialect, first):
    """A reader would think that a job whose answer it has begun to send may run again."""
    encoder = encoder_of(dialect)
    assert encoder.feed(first)
    assert encoder.begun


@BOTH
@pytest.mark.parametrize("head", [[], [TextDelta("a")], [ToolCallDelta(0, "c", "f", "{")]])
def test_keep_alive_is_whole_events_without_content(dialect, head):
    """A keep-alive would stand in the middle of an event, or be taken for a part of the answer."""
    encoder = encoder_of(dialect)
    for event in head:
        encoder.feed(event)
    for note in ("", "place 3\n\ndata: {}"):
        piece = encoder.keep_alive(note)
        assert piece.endswith(b"\n\n")
        assert events_of(piece) in ([], [{"type": "ping"}])
    assert encoder.begun == bool(head)


def test_text_is_neither_trimmed_nor_padded():
    """An answer would lose the space before its first word, or a code block its line ends."""
    pieces = [" The", " fox\n", "\t", "  "]
    for dialect in (OPENAI_CHAT, ANTHROPIC):
        encoder = encoder_of(dialect)
        written = events_of(b"".join(encoder.feed(TextDelta(piece)) for piece in pieces))
        deltas = [e["choices"][0]["delta"] if "choices" in e else e.get("delta", {}) for e in written]
        texts = [delta.get("content") or delta.get("text") for delta in deltas]
        assert [text for text in texts if text] == pieces


def test_openai_deltas_hold_only_what_is_new():
    """Clients that look for members of a delta would find an empty role or a null text in each."""
    encoder = encoder_of(OPENAI_CHAT)
    events: list[JobEvent] = [ReasoningDelta("a"), TextDelta("b")]
    events += [ToolCallDelta(0, "c", "f", "{"), ToolCallDelta(0, arguments="}")]
    written = events_of(b"".join(encoder.feed(event) for event in [*events, STOPPED]))
    assert [event["choices"][0]["delta"] for event in written] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "a"},
        {"content": "b"},
        {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]},
        {},
    ]
    assert not any("usage" in event for event in written)


def test_anthropic_holds_no_more_than_its_bound():
    """A worker that never ends a call's arguments would fill the router's memory."""
    encoder = anthropic_stream.AnthropicEncoder(ANTHROPIC.parse(BODY, job_id="chatcmpl-01", now=0))
    encoder.feed(ToolCallDelta(0, "c", "f", "{"))
    written = b"".join(encoder.feed(TextDelta("x")) for _ in range(anthropic_stream.MAX_HELD_DELTAS + 5))
    texts = [event["delta"]["text"] for event in events_of(written) if event["type"] == "content_block_delta"]
    assert "".join(texts) == "x" * (anthropic_stream.MAX_HELD_DELTAS + 5)


def test_anthropic_counts_the_prompt_as_soon_as_it_is_known():
    """A client would show that the prompt had no tokens until the answer ends."""
    encoder = encoder_of(ANTHROPIC)
    encoder.feed(PromptProgress(100, 60, 60))
    start = events_of(encoder.feed(TextDelta("a")))[0]
    assert start["message"]["usage"]["input_tokens"] == 40
    assert start["message"]["usage"]["cache_read_input_tokens"] == 60


@pytest.mark.parametrize(
    ("reason", "finish_reason", "stop_reason"),
    [
        (FinishReason.STOP, "stop", "end_turn"),
        (FinishReason.STOP_SEQUENCE, "stop", "stop_sequence"),
        (FinishReason.LENGTH, "length", "max_tokens"),
        (FinishReason.CONTEXT_FULL, "length", "model_context_window_exceeded"),
        (FinishReason.TOOL_CALLS, "tool_calls", "tool_use"),
        (FinishReason.CONTENT_FILTER, "content_filter", "refusal"),
    ],
)
def test_the_reason_of_the_end_is_told(reason, finish_reason, stop_reason):
    """A truncated answer would look like a complete one."""
    finished = Finished((Finish(reason),), Usage())
    chunks = events_of(encoder_of(OPENAI_CHAT).feed(finished))
    assert chunks[-1]["choices"][0]["finish_reason"] == finish_reason
    events = events_of(encoder_of(ANTHROPIC).feed(finished))
    assert events[-2]["delta"]["stop_reason"] == stop_reason


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_has_both_shapes(code):
    """A new kind of error would have no type in one of the dialects."""
    error = RefusedError(code, "the reason \udcff", param="a.b")
    assert set(orjson.loads(OPENAI_CHAT.error_body(error, request_id="r"))["error"]) == {
        "message",
        "type",
        "param",
        "code",
    }
    body = orjson.loads(ANTHROPIC.error_body(error, request_id="r"))
    assert (body["type"], body["request_id"], set(body["error"])) == ("error", "r", {"type", "message"})


def test_an_overflow_is_told_in_the_words_that_agents_know():
    """An agent would not compact its history and run into the same wall again."""
    failed = Failed(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "x", n_prompt_tokens=60020, n_ctx=40960)
    body = OPENAI_CHAT.error_body(OPENAI_CHAT.refusal(failed), request_id="r")
    assert orjson.loads(body)["error"]["code"] == "context_length_exceeded"
    assert ANTHROPIC.refusal(failed).message == "prompt is too long: 60020 tokens > 40960 maximum"
    unknown = Failed(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "the prompt is too long")
    assert ANTHROPIC.refusal(unknown).message == OPENAI_CHAT.refusal(unknown).message == "the prompt is too long"


def test_models_are_listed_in_both_shapes():
    """A client would not find the model, or not learn how long its context is."""
    cards = [ModelCard(id="a", created=86400, context_size=4096, capabilities=("chat",)), ModelCard(id="b", created=0)]
    assert orjson.loads(OPENAI_CHAT.models(cards)) == {
        "object": "list",
        "data": [
            {
                "id": "a",
                "object": "model",
                "created": 86400,
                "owned_by": "auxot",
                "capabilities": ["chat"],
                "context_length": 4096,
            },
            {"id": "b", "object": "model", "created": 0, "owned_by": "auxot", "capabilities": []},
        ],
    }
    listed = orjson.loads(ANTHROPIC.models(cards))
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == ("a", "b", False)
    assert listed["data"][0] == orjson.loads(ANTHROPIC.model(cards[0]))
    assert listed["data"][0] == {
        "type": "model",
        "id": "a",
        "display_name": "a",
        "created_at": "1970-01-02T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": 4096,
    }
    assert orjson.loads(ANTHROPIC.models([]))["first_id"] is None
