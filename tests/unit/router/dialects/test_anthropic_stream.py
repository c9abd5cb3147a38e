"""The grammar of a stream of Anthropic's messages, whatever the order of a job's events."""

from __future__ import annotations

from typing import Any

import anthropic
import attrs
import httpx2
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auxot.core.errors import ErrorCode
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
from auxot.router.dialects.anthropic import ANTHROPIC
from auxot.router.dialects.anthropic_objects import AnthropicRequest, Thoughts

THINKING: dict[Thoughts, Any] = {
    Thoughts.SHOWN: {"type": "adaptive"},
    Thoughts.SIGNED: {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
    Thoughts.HIDDEN: {"type": "disabled"},
}
MEMBERS = {"text": {"text"}, "thinking": {"thinking", "signature"}, "tool_use": {"id", "name", "input"}}
DELTAS = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
PIECES = st.sampled_from(["", "{", '"a"', ":", "1", "}", "{}"])
TOKENS = st.one_of(
    st.builds(TextDelta, TEXT),
    st.builds(ReasoningDelta, TEXT),
    st.builds(PromptProgress, st.just(50), st.just(20), st.integers(20, 50)),
    st.none(),  # a keep-alive
)
CALLS = st.builds(lambda index, piece: ToolCallDelta(index, f"c{index}", f"f{index}", piece), st.integers(0, 2), PIECES)
ENDS = st.one_of(
    st.builds(
        Finished,
        st.tuples(st.builds(Finish, st.sampled_from(FinishReason), st.none() | TEXT)),
        st.just(Usage(prompt_tokens=50, cached_tokens=20, completion_tokens=7, reasoning_tokens=3)),
    ),
    st.builds(Failed, st.sampled_from(ErrorCode), TEXT),
)
ANY_THOUGHTS = st.sampled_from(Thoughts)


def request_of(thoughts: Thoughts, **fields: Any) -> AnthropicRequest:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    body["thinking"] = THINKING[thoughts]
    return ANTHROPIC.parse(orjson.dumps(body | fields), job_id="chatcmpl-01", now=0)


def stream_of(thoughts: Thoughts, events: list[JobEvent | None]) -> bytes:
    encoder = ANTHROPIC.encoder(request_of(thoughts))
    return b"".join(encoder.keep_alive("50 of 60") if event is None else encoder.feed(event) for event in events)


def events_of(stream: bytes) -> list[Any]:
    """Return the events but for pings, after comparing each one's name with its type."""
    decoded = [(event.event, orjson.loads(event.data)) for event in SseDecoder().feed(stream)]
    assert all(name == data["type"] for name, data in decoded)
    return [data for _, data in decoded if data["type"] != "ping"]


class Grammar:
    """Takes the events of a stream in their order; fails on the first that has no place there."""

    def __init__(self) -> None:
        self.state = "new"
        self.index = 0
        self.kind = ""
        self.signed = False

    def take(self, event: Any) -> None:
        getattr(self, f"take_{event['type']}")(event)

    def take_message_start(self, event: Any) -> None:
        assert self.state == "new"
        assert event["message"]["content"] == []
        assert event["message"]["stop_reason"] is None
        assert event["message"]["usage"]["output_tokens"] == 0
        self.state = "between"

    def take_content_block_start(self, event: Any) -> None:
        assert (self.state, event["index"]) == ("between", self.index)
        block = event["content_block"]
        self.kind = block["type"]
        assert set(block) == MEMBERS[self.kind] | {"type"}
        assert not any(block[name] for name in MEMBERS[self.kind] - {"id", "name"})
        self.state, self.signed = "block", False

    def take_content_block_delta(self, event: Any) -> None:
        assert (self.state, event["index"], self.signed) == ("block", self.index, False)
        if event["delta"]["type"] == "signature_delta":
            assert self.kind == "thinking"
            assert event["delta"]["signature"]
            self.signed = True
        else:
            assert event["delta"]["type"] == DELTAS[self.kind]

    def take_content_block_stop(self, event: Any) -> None:
        assert (self.state, event["index"]) == ("block", self.index)
        assert self.signed == (self.kind == "thinking")
        self.state, self.index = "between", self.index + 1

    def take_message_delta(self, event: Any) -> None:
        assert self.state == "between"
        assert set(event["delta"]) == {"stop_reason", "stop_sequence"}
        assert event["usage"] == {
            "input_tokens": 30,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 20,
            "output_tokens": 7,
            "output_tokens_details": {"thinking_tokens": 3},
        }
        self.state = "told"

    def take_message_stop(self, _: Any) -> None:
        assert self.state == "told"
        self.state = "ended"

    def take_error(self, event: Any) -> None:
        assert self.state != "ended"
        assert event["error"]["type"].endswith(("_error", "_large"))
        self.state = "ended"


@settings(max_examples=500, deadline=None)
@given(thoughts=ANY_THOUGHTS, events=st.lists(TOKENS | CALLS, max_size=15), end=ENDS)
def test_every_stream_follows_the_grammar(thoughts, events, end):
    """A strict client would refuse a delta that is not of the open block, or a block that is never closed."""
    grammar = Grammar()
    for event in events_of(stream_of(thoughts, [*events, end, TextDelta("more"), end])):
        grammar.take(event)
    assert grammar.state == "ended"


@settings(max_examples=200, deadline=None)
@given(thoughts=ANY_THOUGHTS, events=st.lists(TOKENS, max_size=15), end=ENDS)
def test_the_sdk_collects_what_a_blocking_client_gets(thoughts, events, end):
    """A streaming client would get another message than a blocking one, or thoughts that it has not asked for."""
    if isinstance(end, Failed):
        with pytest.raises(anthropic.APIError):
            collect(stream_of(thoughts, [*events, end]))
        return
    transcript = Transcript()
    for event in [*events, end]:
        if event is not None:
            transcript.add(event)
    whole = orjson.loads(ANTHROPIC.response(request_of(thoughts), transcript))
    streamed = collect(stream_of(thoughts, [*events, end]))
    for name in ("id", "model", "role", "stop_reason", "stop_sequence"):
        assert streamed[name] == whole[name]
    for kind, member in (("text", "text"), ("thinking", "thinking")):
        assert joined(streamed, kind, member) == joined(whole, kind, member)
    usage = {name: count for name, count in streamed["usage"].items() if count is not None}
    assert usage == whole["usage"]


def joined(message: Any, kind: str, member: str) -> str:
    return "".join(block[member] for block in message["content"] if block["type"] == kind)


def collect(stream: bytes) -> Any:
    answer = httpx2.Response(200, content=stream, headers={"content-type": "text/event-stream"})
    transport = httpx2.MockTransport(lambda _: answer)
    with (
        httpx2.Client(transport=transport) as http_client,
        anthropic.Anthropic(api_key="k", base_url="http://router", http_client=http_client, max_retries=0) as client,
        client.messages.stream(model="m", max_tokens=9, messages=[]) as opened,
    ):
        return opened.get_final_message().model_dump()


def test_a_model_that_thinks_unasked_is_not_heard():
    """A client that takes the first block for the answer would show the thoughts, or fail on their type."""
    events: list[JobEvent | None] = [ReasoningDelta("hm"), TextDelta("Hi"), ReasoningDelta("hm")]
    stream = events_of(stream_of(Thoughts.HIDDEN, events))
    assert [event["content_block"]["type"] for event in stream if event["type"] == "content_block_start"] == ["text"]


@pytest.mark.parametrize("request_id", ["req_1", ""])
def test_an_error_in_a_stream_names_the_request(request_id):
    """A user could not tell the operator which request has failed."""
    encoder = ANTHROPIC.encoder(attrs.evolve(request_of(Thoughts.SHOWN), request_id=request_id))
    encoder.feed(TextDelta("Hi"))
    error = events_of(encoder.feed(Failed(ErrorCode.WORKER_LOST, "lost")))[0]
    assert error.get("request_id", "") == request_id
