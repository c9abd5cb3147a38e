"""What OpenAI's chat completions have beside the other dialects: functions, log probabilities, progress."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import (
    Finish,
    Finished,
    FinishReason,
    JobEvent,
    PromptProgress,
    TextDelta,
    ToolCallDelta,
    Transcript,
    Usage,
)
from auxot.core.sse import SseDecoder
from auxot.router.dialects.openai_chat import OPENAI_CHAT
from auxot.router.dialects.openai_objects import OpenAiRequest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
USED = Usage(prompt_tokens=9, completion_tokens=3)
FUNCTIONS = {"functions": [{"name": "f"}, {"name": "g"}]}


def parse(**fields: Any) -> OpenAiRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return OPENAI_CHAT.parse(orjson.dumps(body), job_id="chatcmpl-01", now=0)


def chunks_of(events: list[JobEvent], **fields: Any) -> list[Any]:
    encoder = OPENAI_CHAT.encoder(parse(stream=True, **fields))
    stream = b"".join(map(encoder.feed, events))
    return [orjson.loads(event.data) for event in SseDecoder().feed(stream) if event.data != b"[DONE]"]


def choice_of(events: list[JobEvent], **fields: Any) -> Any:
    transcript = Transcript()
    for event in events:
        transcript.add(event)
    return orjson.loads(OPENAI_CHAT.response(parse(**fields), transcript))["choices"][0]


@settings(max_examples=200, deadline=None)
@given(body=JSON)
def test_any_json_is_refused(body):
    """A body that nobody thought of would be answered with a 500."""
    with pytest.raises(RefusedError) as caught:
        OPENAI_CHAT.parse(orjson.dumps(body), job_id="a", now=0)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


@settings(max_examples=60, deadline=None)
@given(arguments=st.lists(TEXT, min_size=1, max_size=4), text=TEXT)
def test_a_client_of_functions_is_told_of_one_call_in_the_old_form(arguments, text):
    """A client that has never heard of tools would see an empty answer."""
    events: list[JobEvent] = [TextDelta(text), ToolCallDelta(0, "c", "f", arguments[0])]
    events += [ToolCallDelta(0, arguments=piece) for piece in arguments[1:]]
    events += [ToolCallDelta(1, "d", "g", "{}"), Finished((Finish(FinishReason.TOOL_CALLS),), USED)]
    choice = choice_of(events, **FUNCTIONS)
    assert choice["message"]["function_call"] == {"name": "f", "arguments": "".join(arguments)}
    assert choice["finish_reason"] == "function_call"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks_of(events, **FUNCTIONS)]
    calls = [delta["function_call"] for delta in deltas if "function_call" in delta]
    assert [call.get("name") for call in calls] == ["f", *[None] * (len(calls) - 1)]
    assert "".join(call["arguments"] for call in calls) == "".join(arguments)
    assert not any("tool_calls" in told for told in [*deltas, choice["message"]])


@pytest.mark.parametrize(("asked", "shown"), [(None, 0), (0, 0), (1, 1), (2, 2), (20, 3)])
def test_as_many_alternatives_are_shown_as_were_asked_for(asked, shown):
    """A client that asked for none would be sent one or twenty for each token."""
    others = [{"token": token, "logprob": -1.0, "bytes": []} for token in "abc"]
    entry = {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": others}
    events: list[JobEvent] = [TextDelta("a", logprobs=[entry]), Finished((Finish(FinishReason.STOP),), USED)]
    fields = {"logprobs": True, "top_logprobs": asked}
    expected = [{**entry, "top_logprobs": others[:shown]}]
    assert choice_of(events, **fields)["logprobs"]["content"] == expected
    assert chunks_of(events, **fields)[1]["choices"][0]["logprobs"]["content"] == expected
    assert parse(**fields).job.params["top_logprobs"] == max(asked or 0, 1)


def test_progress_is_shown_to_those_who_ask_and_begins_no_answer():
    """A job that was lost in its prompt could not run again, or llama-server's clients would see no progress."""
    encoder = OPENAI_CHAT.encoder(parse(stream=True, return_progress=True))
    written = encoder.feed(PromptProgress(10, 2, 5))
    assert not encoder.begun
    chunk = orjson.loads(written.removeprefix(b"data: "))
    assert (chunk["choices"], chunk["prompt_progress"]) == ([], {"total": 10, "cache": 2, "processed": 5})
    assert OPENAI_CHAT.encoder(parse(stream=True)).feed(PromptProgress(10, 2, 5)) == b""


def test_the_sdk_reads_a_stream_with_progress():
    """The official SDK would stumble over what llama-server's clients ask for."""
    state: Any = ChatCompletionStreamState()
    events: list[JobEvent] = [PromptProgress(10, 2, 5), TextDelta("a"), TextDelta("b")]
    for chunk in chunks_of([*events, Finished((Finish(FinishReason.STOP),), USED)], return_progress=True):
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    message = state.get_final_completion().choices[0].message
    assert (message.role, message.content) == ("assistant", "ab")
