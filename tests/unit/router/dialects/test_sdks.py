"""The official SDKs read what our encoders write: from any stream they collect the blocking answer."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx2
import openai
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
from auxot.router.dialects.anthropic import ANTHROPIC
from auxot.router.dialects.base import ChatRequest, Dialect
from auxot.router.dialects.openai_chat import OPENAI_CHAT

JOB_ID = "chatcmpl-0123456789abcdef01234567"
HI = [{"role": "user", "content": "Hi"}]
BODY = {"model": "any", "max_tokens": 9, "messages": HI, "thinking": {"type": "adaptive"}}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
COUNTS = st.integers(0, 10**6)
USAGE = st.builds(
    lambda cached, fresh, written, reasoning: Usage(
        prompt_tokens=cached + fresh, cached_tokens=cached, completion_tokens=written, reasoning_tokens=reasoning
    ),
    *[COUNTS] * 4,
)
FINISHES = st.builds(Finish, st.sampled_from(FinishReason), st.none() | TEXT)
TOKENS = st.lists(
    st.builds(TextDelta, TEXT, st.just(0))
    | st.builds(ReasoningDelta, TEXT, st.just(0))
    | st.builds(PromptProgress, COUNTS, st.just(0), COUNTS),
    max_size=12,
)


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({place % (len(text) + 1) for place in places} | {len(text)})
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@st.composite
def tool_calls(draw: Any) -> list[list[JobEvent]]:
    """Some calls, each with its deltas in order: the first has id and name."""
    calls: list[list[JobEvent]] = []
    for index in range(draw(st.integers(0, 3))):
        arguments = orjson.dumps(draw(st.dictionaries(TEXT, TEXT | st.integers(0, 9), max_size=3))).decode()
        pieces = cut(arguments, draw(st.lists(st.integers(0, 50), max_size=4)))
        first = ToolCallDelta(index, f"call_{index}", f"tool_{index}", pieces[0])
        calls.append([first, *(ToolCallDelta(index, arguments=piece) for piece in pieces[1:])])
    return calls


@st.composite
def answers(draw: Any) -> list[JobEvent]:
    """The events of an answer: text, reasoning and the calls' deltas in any order that keeps each call's own."""
    lanes: list[list[JobEvent]] = [draw(TOKENS), *draw(tool_calls())]
    events: list[JobEvent] = []
    while lanes := [lane for lane in lanes if lane]:
        events.append(lanes[draw(st.integers(0, len(lanes) - 1))].pop(0))
    return [*events, Finished((draw(FINISHES),), draw(USAGE))]


def parse(dialect: Dialect, **fields: Any) -> ChatRequest:
    return dialect.parse(orjson.dumps(BODY | fields), job_id=JOB_ID, now=1760000000)


def stream_of(dialect: Dialect, events: list[JobEvent], **fields: Any) -> bytes:
    """The stream of an answer, with a keep-alive before it, in it and before its end."""
    encoder = dialect.encoder(parse(dialect, **fields))
    pieces = [encoder.keep_alive("place 3"), *map(encoder.feed, events)]
    pieces[-1:-1] = [encoder.keep_alive()]
    return b"".join(pieces)


def response_of(dialect: Dialect, events: list[JobEvent], **fields: Any) -> Any:
    transcript = Transcript()
    for event in events:
        transcript.add(event)
    return orjson.loads(dialect.response(parse(dialect, **fields), transcript))


def client_of(body: bytes, content_type: str = "text/event-stream", status: int = 200) -> httpx2.Client:
    answer = httpx2.Response(status, content=body, headers={"content-type": content_type})
    return httpx2.Client(transport=httpx2.MockTransport(lambda _: answer))


def openai_client(body: bytes, **answer: Any) -> openai.OpenAI:
    return openai.OpenAI(api_key="k", base_url="http://router/v1", http_client=client_of(body, **answer), max_retries=0)


def anthropic_client(body: bytes, **answer: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        api_key="k", base_url="http://router", http_client=client_of(body, **answer), max_retries=0
    )


def read_openai(body: bytes) -> Any:
    """Collect a stream with the SDK's accumulator."""
    with openai_client(body) as client, client.chat.completions.stream(model="any", messages=[]) as stream:
        for _ in stream:
            pass
        return stream.current_completion_snapshot.model_dump()


def read_anthropic(body: bytes) -> Any:
    with (
        anthropic_client(body) as client,
        client.messages.stream(model="any", max_tokens=9, messages=[]) as stream,
    ):
        return stream.get_final_message().model_dump()


def openai_essence(completion: Any) -> Any:
    """What an answer says, apart from fields that a stream and a body spell differently."""
    return {
        "id": completion["id"],
        "created": completion["created"],
        "model": completion["model"],
        "usage": {k: v for k, v in completion["usage"].items() if isinstance(v, int)},
        "choices": [
            (
                choice["index"],
                choice["finish_reason"],
                choice["message"]["content"] or "",
                choice["message"].get("reasoning_content") or "",
                sorted(
                    (call["id"], call["function"]["name"], call["function"]["arguments"])
                    for call in choice["message"].get("tool_calls") or []
                ),
            )
            for choice in completion["choices"]
        ],
    }


def anthropic_essence(message: Any) -> Any:
    """What a message says: a stream may cut one text into several blocks, in the order of its events."""
    blocks = message["content"]
    return {
        "head": [message[name] for name in ("id", "model", "role", "stop_reason", "stop_sequence")],
        "usage": {k: v for k, v in message["usage"].items() if isinstance(v, int)},
        "text": "".join(block["text"] for block in blocks if block["type"] == "text"),
        "thinking": "".join(block["thinking"] for block in blocks if block["type"] == "thinking"),
        "signed": all(block["signature"] for block in blocks if block["type"] == "thinking"),
        "tools": sorted(
            (block["id"], block["name"], orjson.dumps(block["input"], option=orjson.OPT_SORT_KEYS))
            for block in blocks
            if block["type"] == "tool_use"
        ),
    }


@settings(max_examples=60, deadline=None)
@given(answers())
def test_openai_collects_the_blocking_answer(events):
    """A streaming client of OpenAI would get another message than a blocking one."""
    body = stream_of(OPENAI_CHAT, events, stream=True, stream_options={"include_usage": True})
    assert openai_essence(read_openai(body)) == openai_essence(response_of(OPENAI_CHAT, events))
    assert body.count(b"data: [DONE]\n\n") == 1
    assert body.endswith(b"data: [DONE]\n\n")


@settings(max_examples=60, deadline=None)
@given(answers())
def test_anthropic_collects_the_blocking_answer(events):
    """A streaming client of Anthropic would get another message than a blocking one."""
    body = stream_of(ANTHROPIC, events, stream=True)
    assert anthropic_essence(read_anthropic(body)) == anthropic_essence(response_of(ANTHROPIC, events))
    assert body.count(b"event: message_stop\n") == 1
    assert body.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')


@settings(max_examples=20, deadline=None)
@given(st.lists(answers(), min_size=2, max_size=3), st.randoms(use_true_random=False))
def test_openai_keeps_choices_apart(choices, random):
    """With n > 1 a client would find one choice's text in another."""
    lanes = [[e for e in events if not isinstance(e, PromptProgress | Finished)] for events in choices]
    finishes = tuple(events[-1].finishes[0] for events in choices)
    events: list[JobEvent] = []
    for choice, lane in enumerate(lanes):
        for event in lane:
            event.choice = choice
    while lanes := [lane for lane in lanes if lane]:
        events.append(random.choice(lanes).pop(0))
    events.append(Finished(finishes, Usage(prompt_tokens=1)))
    body = stream_of(OPENAI_CHAT, events, stream=True, n=len(choices), stream_options={"include_usage": True})
    assert openai_essence(read_openai(body)) == openai_essence(response_of(OPENAI_CHAT, events, n=len(choices)))


def test_the_sdks_read_blocking_answers():
    """A blocking client would stumble over our body."""
    events: list[JobEvent] = [ReasoningDelta("hm"), TextDelta(" Hi"), ToolCallDelta(0, "c", "f", '{"a":1}')]
    events.append(Finished((Finish(FinishReason.TOOL_CALLS),), Usage(prompt_tokens=3, completion_tokens=2)))
    body = orjson.dumps(response_of(OPENAI_CHAT, events))
    with openai_client(body, content_type="application/json") as client:
        choice: Any = client.chat.completions.create(model="any", messages=[]).choices[0]
    assert (choice.message.content, choice.finish_reason) == (" Hi", "tool_calls")
    assert choice.message.tool_calls[0].function.arguments == '{"a":1}'
    body = orjson.dumps(response_of(ANTHROPIC, events))
    with anthropic_client(body, content_type="application/json") as client:
        message: Any = client.messages.create(model="any", max_tokens=9, messages=[])
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert message.content[2].input == {"a": 1}


@pytest.mark.parametrize("head", [[], [TextDelta("Once")], [ToolCallDelta(0, "c", "f", '{"a')]])
def test_a_failure_raises_in_the_sdks(head):
    """A client would take the beginning of a broken answer for all of it."""
    events = [*head, Failed(ErrorCode.WORKER_LOST, "the worker was lost")]
    with pytest.raises(openai.APIError, match="the worker was lost"):
        read_openai(stream_of(OPENAI_CHAT, events, stream=True))
    with pytest.raises(anthropic.APIError, match="the worker was lost"):
        read_anthropic(stream_of(ANTHROPIC, events, stream=True))


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_is_read_by_the_sdks(code):
    """A client would see an unreadable body in place of the reason."""
    failed = Failed(code, "the reason")
    error = OPENAI_CHAT.refusal(failed)
    body = OPENAI_CHAT.error_body(error, request_id="req_1")
    with (
        openai_client(body, content_type="application/json", status=code.status) as client,
        pytest.raises(openai.APIStatusError, match="the reason") as openai_error,
    ):
        client.chat.completions.create(model="any", messages=[])
    assert openai_error.value.type
    body = ANTHROPIC.error_body(ANTHROPIC.refusal(failed), request_id="req_1")
    with (
        anthropic_client(body, content_type="application/json", status=code.status) as client,
        pytest.raises(anthropic.APIStatusError, match="the reason") as anthropic_error,
    ):
        client.messages.create(model="any", max_tokens=9, messages=[])
    assert anthropic_error.value.request_id or "req_1" in str(anthropic_error.value.body)
