"""OpenAI's legacy completions: what is taken and refused, and what the official SDK reads."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auxot.core import protocol
from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import (
    Failed,
    Finish,
    Finished,
    FinishReason,
    JobEvent,
    Kind,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Transcript,
    Usage,
)
from auxot.core.sse import SseDecoder
from auxot.router.dialects.fields import MAX_DEPTH
from auxot.router.dialects.openai_completions import OPENAI_COMPLETIONS
from auxot.router.dialects.openai_completions_request import PARAMS, CompletionRequest

JOB_ID = "chatcmpl-0123456789abcdef01234567"
STOPPED = Finished((Finish(FinishReason.STOP),), Usage())
LOST = Failed(ErrorCode.WORKER_LOST, "lost")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        *["prompt", "max_tokens", "n", "best_of", "echo", "logprobs", "suffix", "stream", "stream_options", "model"],
        *["temperature", "n_predict", *PARAMS],
    ]
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
ANY_TEXT = st.text(st.characters(), max_size=4)  # lone surrogates too
ENTRY = st.fixed_dictionaries(
    {"token": ANY_TEXT | st.none(), "logprob": st.floats(-9, 0) | st.none()},
    optional={"top_logprobs": st.lists(st.none() | st.fixed_dictionaries({"token": ANY_TEXT}), max_size=3) | JSON},
)
LOGPROBS = st.none() | st.lists(ENTRY | JSON, max_size=2)
ANY_EVENT = st.one_of(
    st.builds(TextDelta, ANY_TEXT, st.integers(-2, 3) | st.just(2**70), LOGPROBS),
    st.builds(ReasoningDelta, ANY_TEXT),
    st.builds(ToolCallDelta, st.integers(-2, 3), st.none() | ANY_TEXT, st.none() | ANY_TEXT, ANY_TEXT),
    st.builds(PromptProgress, st.integers(), st.integers(), st.integers()),
    st.builds(
        Finished,
        st.lists(st.builds(Finish, st.sampled_from(FinishReason), st.none() | ANY_TEXT), max_size=3).map(tuple),
        st.just(Usage(prompt_tokens=1)),
    ),
    st.builds(Failed, st.sampled_from(ErrorCode), ANY_TEXT),
)


def parse(**fields: Any) -> CompletionRequest:
    body = {"model": "m", "prompt": "Once", **fields}
    return OPENAI_COMPLETIONS.parse(orjson.dumps(body), job_id=JOB_ID, now=1.9)


def parse_or_refuse(**fields: Any) -> CompletionRequest | RefusedError:
    try:
        return parse(**fields)
    except RefusedError as error:
        return error


def refusal(**fields: Any) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        parse(**fields)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    return caught.value


def stream_of(events: list[JobEvent], **fields: Any) -> bytes:
    encoder = OPENAI_COMPLETIONS.encoder(parse(stream=True, **fields))
    return b"".join([encoder.keep_alive("place 3"), *map(encoder.feed, events)])


def response_of(events: list[JobEvent], **fields: Any) -> bytes:
    transcript = Transcript()
    for event in events:
        transcript.add(event)
    return OPENAI_COMPLETIONS.response(parse(**fields), transcript)


def chunks_of(stream: bytes) -> list[Any]:
    return [orjson.loads(event.data) for event in SseDecoder().feed(stream) if event.data != b"[DONE]"]


def sdk(body: bytes, content_type: str = "text/event-stream") -> openai.OpenAI:
    answer = httpx2.Response(200, content=body, headers={"content-type": content_type})
    client = httpx2.Client(transport=httpx2.MockTransport(lambda _: answer))
    return openai.OpenAI(api_key="k", base_url="http://router/v1", http_client=client, max_retries=0)


@settings(max_examples=200, deadline=None)
@given(body=JSON)
def test_any_json_is_refused(body):
    """A body that nobody thought of would be answered with a 500."""
    with pytest.raises(RefusedError) as caught:
        OPENAI_COMPLETIONS.parse(orjson.dumps(body), job_id="a", now=0)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


@settings(max_examples=300, deadline=None)
@given(fields=st.dictionaries(NAMES, JSON, max_size=4))
def test_any_request_becomes_a_job_that_can_be_sent_or_is_refused(fields):
    """A request that nobody thought of would be answered with a 500."""
    request = parse_or_refuse(**fields)
    if isinstance(request, RefusedError):
        assert request.code is ErrorCode.INVALID_REQUEST
        assert OPENAI_COMPLETIONS.error_body(request, request_id="r")
    else:
        assert request.job.kind is Kind.COMPLETION
        assert protocol.decode_job(protocol.encode(request.job)) == request.job
        assert len(request.echoes) == request.n_choices


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "x"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**31]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [[[1]]]}, "prompt"),
        ({"prompt": ["x"] * 65, "n": 2}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"echo": True, "prompt": [1]}, "echo"),
        ({"echo": True, "prompt": ["x", [1]]}, "echo"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"grammar": "root ::= [a]", "json_schema": {}}, "grammar"),
        ({"temperature": 2.1}, "temperature"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ],
)
def test_the_field_that_is_wrong_is_named(fields, param):
    """A client would have to guess which of its fields is meant."""
    error = refusal(**fields)
    assert error.param == param
    assert error.message.startswith(f"{param}: ")


@pytest.mark.parametrize(
    ("prompt", "n_prompts"),
    [("", 1), ("x", 1), (["x"], 1), (["x", ""], 2), ([1, 2, 3], 1), ([[1, 2], [3]], 2), (["x", [1]], 2)],
)
def test_a_prompt_goes_to_the_worker_as_it_is(prompt, n_prompts):
    """Token ids would be taken for several prompts, or several prompts for one."""
    request = parse(prompt=prompt, n=3)
    assert request.job.prompt == prompt
    assert request.n_choices == 3 * n_prompts
    assert request.job.messages == ()


@pytest.mark.parametrize(
    ("fields", "limit"),
    [({}, 16), ({"max_tokens": 5, "n_predict": 9}, 5), ({"n_predict": 9}, 9), ({"n_predict": -1}, None)],
)
def test_the_limit_of_tokens_is_openais(fields, limit):
    """A client that relies on OpenAI's default would get a whole book."""
    assert parse(**fields).job.max_tokens == limit


def test_a_schema_that_is_too_deep_is_refused():
    """The job could not be written for the queue: a 500 in place of a 400."""
    depth = MAX_DEPTH + 1
    body = b'{"prompt":"x","json_schema":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
    with pytest.raises(RefusedError, match="nested more than"):
        OPENAI_COMPLETIONS.parse(body, job_id="a", now=0)


@settings(max_examples=200, deadline=None)
@given(events=st.lists(ANY_EVENT, max_size=12), n_logprobs=st.none() | st.integers(0, 2))
def test_whatever_a_worker_sends_both_answers_are_whole(events, n_logprobs):
    """One strange event of a worker would break the client's stream, or turn an answer into a 500."""
    encoder = OPENAI_COMPLETIONS.encoder(parse(stream=True, logprobs=n_logprobs))
    pieces = [encoder.feed(event) for event in [*events, STOPPED, LOST, TextDelta("more")]]
    assert all(not piece or piece.endswith(b"\n\n") for piece in pieces)
    chunks = chunks_of(b"".join(pieces))
    ends = [chunk for chunk in chunks if "error" in chunk or chunk["choices"][0]["finish_reason"]]
    assert len(ends) == 1
    assert pieces[-1] == b""
    assert encoder.begun
    assert orjson.loads(response_of(events, logprobs=n_logprobs))["choices"]


def test_nothing_is_written_before_there_is_something_to_say():
    """An early failure could not keep its HTTP status, and a lost job could not run again."""
    encoder = OPENAI_COMPLETIONS.encoder(parse(stream=True, echo=True))
    for event in (PromptProgress(5, 2, 3), TextDelta("")):
        assert encoder.feed(event) == b""
    assert not encoder.begun
    assert encoder.feed(TextDelta("x"))
    assert encoder.begun


def test_progress_is_shown_to_those_who_ask_and_begins_no_answer():
    """A job that was lost in its prompt could not run again, or llama-server's clients would see no progress."""
    encoder = OPENAI_COMPLETIONS.encoder(parse(stream=True, return_progress=True))
    (chunk,) = chunks_of(encoder.feed(PromptProgress(10, 2, 5)))
    assert (chunk["choices"], chunk["prompt_progress"]) == ([], {"total": 10, "cache": 2, "processed": 5})
    assert not encoder.begun


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.tuples(TEXT, st.integers(0, 3)), max_size=12),
    reasons=st.lists(st.builds(Finish, st.sampled_from(FinishReason)), min_size=4, max_size=4),
    is_echoed=st.booleans(),
)
def test_the_sdk_collects_the_blocking_answer(pieces, reasons, is_echoed):
    """A streaming client would get another text than a blocking one."""
    usage = Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=len(pieces))
    events: list[JobEvent] = [TextDelta(text, choice) for text, choice in pieces]
    events.append(Finished(tuple(reasons), usage))
    fields: dict[str, Any] = {"prompt": ["a", "b"], "n": 2, "echo": is_echoed}
    body = stream_of(events, **fields, stream_options={"include_usage": True})
    texts, ends, counts = [""] * 4, [""] * 4, None
    with sdk(body) as client:
        for chunk in client.completions.create(model="m", prompt="x", stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                ends[choice.index] = choice.finish_reason
            counts = chunk.usage or counts
    with sdk(response_of(events, **fields), content_type="application/json") as client:
        answer = client.completions.create(model="m", prompt="x")
    assert [choice.text for choice in answer.choices] == texts
    assert [choice.finish_reason for choice in answer.choices] == ends
    assert answer.usage == counts
    assert body.endswith(b"data: [DONE]\n\n")


@settings(max_examples=60, deadline=None)
@given(tokens=st.lists(st.lists(TEXT, max_size=3), max_size=5), n_logprobs=st.integers(0, 2))
def test_the_log_probabilities_of_both_answers_are_the_same(tokens, n_logprobs):
    """A streaming client would find the tokens at other places of the text than a blocking one."""
    events: list[JobEvent] = []
    for group in tokens:
        entries = [{"token": t, "logprob": -1.0, "top_logprobs": [{"token": "x", "logprob": -0.5}]} for t in group]
        events.append(TextDelta("".join(group), logprobs=entries))
    events.append(STOPPED)
    chunks = chunks_of(stream_of(events, logprobs=n_logprobs))
    shown = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    whole = orjson.loads(response_of(events, logprobs=n_logprobs))["choices"][0]["logprobs"]
    if not tokens:
        assert (shown, whole) == ([], None)
        return
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [item for part in shown for item in part[name]] == whole[name]
    text = "".join(map("".join, tokens))
    assert [text[at : at + len(token)] for token, at in zip(whole["tokens"], whole["text_offset"], strict=True)] == (
        whole["tokens"]
    )


@pytest.mark.parametrize("head", [[], [TextDelta("Once")]])
def test_a_failure_raises_in_the_sdk(head):
    """A client would take the beginning of a broken answer for all of it."""
    with (
        sdk(stream_of([*head, LOST])) as client,
        pytest.raises(openai.APIError, match="lost"),
    ):
        list(client.completions.create(model="m", prompt="x", stream=True))
