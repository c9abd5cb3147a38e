"""The official SDK reads the Responses API as we write it: streams, bodies and errors."""

from __future__ import annotations

import json
from typing import Any

import openai
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import (
    Failed,
    Finish,
    Finished,
    FinishReason,
    JobEvent,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Transcript,
    Usage,
)
from auxot.router.dialects.openai_responses import OPENAI_RESPONSES
from auxot.router.dialects.responses_input import seal, unseal
from auxot.router.dialects.responses_request import MAX_ECHO_BYTES, ResponsesRequest, parse_responses
from auxot.router.dialects.responses_stream import ResponsesEncoder
from auxot.router.dialects.responses_tools import custom_arguments, custom_input
from tests.unit.router.dialects.test_sdks import FINISHES, JOB_ID, TEXT, USAGE, answers, openai_client, tool_calls

TOOLS = [
    {"type": "function", "name": "tool_0", "parameters": {"type": "object"}},
    {"type": "custom", "name": "tool_1"},
]
STOPPED = Finished((Finish(FinishReason.STOP),), Usage())
LOGPROB = st.builds(lambda token: {"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": []}, TEXT)


def parse(**fields: Any) -> ResponsesRequest:
    return parse_responses(orjson.dumps({"model": "any", "input": "Hi"} | fields), job_id=JOB_ID, now=1760000000)


def stream_of(events: list[JobEvent], **fields: Any) -> bytes:
    """The stream of an answer, with a keep-alive before it, in it and before its end."""
    encoder = ResponsesEncoder(parse(**fields))
    written = [encoder.keep_alive("place 3")]
    for event in events:
        written.append(encoder.feed(event))
        if not isinstance(event, Finished | Failed):
            written.append(encoder.keep_alive())
    assert encoder.feed(TextDelta("after the end")) == b""
    return b"".join(written)


def body_of(events: list[JobEvent], **fields: Any) -> bytes:
    transcript = Transcript()
    for event in events:
        transcript.add(event)
    return OPENAI_RESPONSES.response(parse(**fields), transcript)


def read_stream(body: bytes) -> list[Any]:
    """The events of a stream as the SDK's accumulator gives them."""
    with openai_client(body) as client, client.responses.stream(model="any", input="Hi") as stream:
        return list(stream)


def last_response(body: bytes) -> Any:
    """The response in the last event of a stream, which must be the one that ends it."""
    events = read_stream(body)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete", "response.failed")
    assert last.type == f"response.{last.response.status}"
    return last.response


def essence(output: Any) -> Any:
    """What an output says: a stream may cut one text into several items, in the order of its events."""
    kinds: dict[str, Any] = {"text": "", "reasoning": "", "calls": []}
    for item in output:
        if item["type"] == "message":
            kinds["text"] += "".join(part["text"] for part in item["content"])
        elif item["type"] == "reasoning":
            kinds["reasoning"] += "".join(part["text"] for part in item["content"])
        else:
            kinds["calls"].append((item["call_id"], item["name"], item.get("arguments"), item.get("input")))
    kinds["calls"].sort()
    return kinds


@st.composite
def orderly_answers(draw: Any) -> list[JobEvent]:
    """The events of an answer as a model writes it: reasoning, then text, then one call after the other."""
    pieces = st.lists(TEXT.filter(bool), max_size=4)
    events: list[JobEvent] = [ReasoningDelta(text) for text in draw(pieces)]
    logprobs = draw(st.booleans())
    events += [TextDelta(text, 0, [draw(LOGPROB)] if logprobs else None) for text in draw(pieces)]
    events += [event for call in draw(tool_calls()) for event in call]
    return [*events, Finished((draw(FINISHES),), draw(USAGE))]


@settings(max_examples=60, deadline=None)
@given(orderly_answers(), st.booleans())
def test_a_stream_ends_with_the_blocking_answer(events, seals):
    """A streaming client would get another response than a blocking one."""
    fields = {"tools": TOOLS, "include": ["reasoning.encrypted_content"] if seals else []}
    body = orjson.loads(body_of(events, **fields))
    stream = stream_of(events, stream=True, **fields)
    last = stream.rpartition(b"data: ")[2]
    assert orjson.loads(last)["response"] == body
    assert essence(last_response(stream).to_dict()["output"]) == essence(body["output"])


@settings(max_examples=60, deadline=None)
@given(answers())
def test_deltas_in_any_order_say_the_same(events):
    """Interleaved deltas would be lost, or end up in the wrong item."""
    streamed = last_response(stream_of(events, stream=True, tools=TOOLS)).to_dict()
    whole = orjson.loads(body_of(events, tools=TOOLS))
    assert essence(streamed["output"]) == essence(whole["output"])
    assert {**streamed, "output": []} == {**whole, "output": []}


@settings(max_examples=60, deadline=None)
@given(answers())
def test_the_deltas_of_an_item_add_up_to_it(events):
    """A client that shows deltas would show something else than the finished item."""
    pieces: dict[str, str] = {}
    whole: dict[str, Any] = {}
    for event in read_stream(stream_of(events, stream=True, tools=TOOLS)):
        if event.type.endswith(".delta"):
            pieces[event.item_id] = pieces.get(event.item_id, "") + event.delta
        elif event.type == "response.output_item.done":
            assert event.item.id not in whole
            whole[event.item.id] = event.item
    for item in whole.values():
        if item.type in ("message", "reasoning"):
            told = item.content[0].text
        else:
            told = item.input if item.type == "custom_tool_call" else item.arguments
        assert pieces.get(item.id, "") == told


def test_the_sdk_reads_a_blocking_answer():
    """A blocking client would stumble over our body, or miss a field that its types promise."""
    events: list[JobEvent] = [ReasoningDelta("hm"), TextDelta(" Hi")]
    events += [ToolCallDelta(0, "c", "tool_1", '{"input": "x"}'), STOPPED]
    body = body_of(events, tools=TOOLS)
    Response.model_validate_json(body, strict=False)
    with openai_client(body, content_type="application/json") as client:
        response: Any = client.responses.create(model="any", input="Hi")
    assert response.output_text == " Hi"
    assert [item.type for item in response.output] == ["reasoning", "message", "custom_tool_call"]
    assert response.output[2].input == "x"
    assert response.usage.input_tokens_details.cached_tokens == 0


@pytest.mark.parametrize("head", [[], [TextDelta("Once")], [ToolCallDelta(0, "c", "f", '{"a')]])
def test_a_failure_ends_a_stream_as_failed(head):
    """A client would take the beginning of a broken answer for all of it."""
    response = last_response(stream_of([*head, Failed(ErrorCode.WORKER_LOST, "the worker was lost")], stream=True))
    assert (response.status, response.error.code, response.error.message) == (
        "failed",
        "server_error",
        "the worker was lost",
    )


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_is_read_by_the_sdk(code):
    """A client would see an unreadable body in place of the reason."""
    body = OPENAI_RESPONSES.error_body(OPENAI_RESPONSES.refusal(Failed(code, "the reason")), request_id="req_1")
    with (
        openai_client(body, content_type="application/json", status=code.status) as client,
        pytest.raises(openai.APIStatusError, match="the reason"),
    ):
        client.responses.create(model="any", input="Hi")


@pytest.mark.parametrize("reason", FinishReason)
def test_only_what_was_cut_short_is_incomplete(reason):
    """A cut answer would be told as whole, or a whole one as cut."""
    body = orjson.loads(body_of([TextDelta("Hi"), Finished((Finish(reason),), Usage())]))
    told = (body["status"], (body["incomplete_details"] or {}).get("reason"), body["output"][0]["status"])
    expected = {
        FinishReason.LENGTH: ("incomplete", "max_output_tokens", "incomplete"),
        FinishReason.CONTEXT_FULL: ("incomplete", "max_output_tokens", "incomplete"),
        FinishReason.CONTENT_FILTER: ("incomplete", "content_filter", "incomplete"),
    }
    assert told == expected.get(reason, ("completed", None, "completed"))


def test_a_large_request_is_not_repeated():
    """Each event that holds the response would carry megabytes that nobody reads, and fill the client's buffer."""
    encoder = ResponsesEncoder(parse(instructions="x" * (MAX_ECHO_BYTES + 1), user="me"))
    first = encoder.feed(TextDelta("Hi"))
    assert len(first) < MAX_ECHO_BYTES
    response = orjson.loads(first.partition(b"data: ")[2].partition(b"\n")[0])["response"]
    assert (response["instructions"], response["user"]) == (None, "me")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_goes_out_is_read_back(text):
    """Reasoning and the calls of custom tools would not survive the client's next request."""
    assert unseal(seal(text)) == text
    assert custom_input(custom_arguments(text)) == text


@pytest.mark.parametrize("sealed", [None, "", "gAAAA", "auxot1.%%%", "auxot1.gICA", "auxot1.é"])
def test_foreign_reasoning_is_dropped(sealed):
    """A conversation that began on another server could not go on here."""
    items = [{"role": "user", "content": "Hi"}, {"type": "reasoning", "summary": [], "encrypted_content": sealed}]
    assert [message.role for message in parse(input=items).job.messages] == ["user"]


def test_a_whole_turn_is_one_message():
    """Chat templates would see a turn of the assistant as several, and refuse it or lose its calls."""
    items = [
        {"role": "user", "content": "Hi"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "So"}]},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {"type": "function_call_output", "call_id": "b", "output": "2"},
    ]
    messages = parse(input=items).job.messages
    assert [message.role for message in messages] == ["user", "assistant", "tool", "tool"]
    assert (messages[1].reasoning_content, messages[1].content) == ("hm", "So")
    assert [call.id for call in messages[1].tool_calls] == ["a", "b"]


def test_an_answer_is_understood_when_it_comes_back():
    """The items of a response could not be sent back as the input of the next request, as the API promises."""
    events: list[JobEvent] = [
        ReasoningDelta("hm"),
        TextDelta("So"),
        ToolCallDelta(0, "a", "tool_0", '{"b": 1}'),
        ToolCallDelta(1, "c", "tool_1", '{"input":"d"}'),
        STOPPED,
    ]
    output = orjson.loads(body_of(events, tools=TOOLS))["output"]
    assistant = parse(input=[{"role": "user", "content": "Hi"}, *output], tools=TOOLS).job.messages[1]
    assert (assistant.reasoning_content, assistant.content) == ("hm", "So")
    calls = [(call.id, call.function.name, call.function.arguments) for call in assistant.tool_calls]
    assert calls == [("a", "tool_0", '{"b": 1}'), ("c", "tool_1", '{"input":"d"}')]


@pytest.mark.parametrize(
    ("choice", "offered", "mode"),
    [
        (None, ["tool_0", "tool_1"], None),
        ("auto", ["tool_0", "tool_1"], "auto"),
        ("none", [], None),
        ("required", ["tool_0", "tool_1"], "required"),
        ({"type": "function", "name": "tool_0"}, ["tool_0"], "required"),
        ({"type": "custom", "name": "tool_1"}, ["tool_1"], "required"),
        (
            {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "tool_0"}, {"type": "mcp"}],
            },
            ["tool_0"],
            "auto",
        ),
    ],
)
def test_tool_choice_decides_what_is_offered(choice, offered, mode):
    """A choice among the tools would be ignored."""
    job = parse(tools=TOOLS, tool_choice=choice).job
    assert [tool.function.name for tool in job.tools] == offered
    assert job.params.get("tool_choice") == mode


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [
        *("type", "role", "content", "name", "tools", "output", "call_id", "arguments", "input", "text", "format"),
        *("schema", "action", "summary", "encrypted_content", "image_url", "effort", "mode"),
        *("message", "function", "custom"),
    ]
)
OBJECTS = st.dictionaries(NAMES, JSON | NAMES | st.lists(st.dictionaries(NAMES, JSON | NAMES)), max_size=5)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["input", "tools", "tool_choice", "text", "reasoning", "include", "metadata", "instructions"]),
        JSON | OBJECTS | st.lists(OBJECTS, max_size=3),
    )
)
def test_no_request_is_a_fault_of_ours(fields):
    """Some odd request would be answered with a 500."""
    body = json.dumps({"model": "any", "input": "Hi"} | fields).encode()
    try:
        request = parse_responses(body, job_id=JOB_ID, now=0)
    except RefusedError:
        return  # and nothing else
    encoder = ResponsesEncoder(request)
    assert encoder.feed(TextDelta("Hi")) + encoder.feed(STOPPED)
