"""What both dialects take and refuse; whole requests stand in the golden files."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auxot.core import protocol
from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import Job
from auxot.router.dialects.anthropic import ANTHROPIC
from auxot.router.dialects.base import ChatRequest, Dialect
from auxot.router.dialects.fields import MAX_DEPTH
from auxot.router.dialects.openai_chat import OPENAI_CHAT
from auxot.router.dialects.sampling import OUTPUT_PARAMS, SAMPLING_PARAMS

HI: list[Any] = [{"role": "user", "content": "Hi"}]
OPENAI_TOOL = {"type": "function", "function": {"name": "f"}}
MINIMUM: dict[str, dict[str, Any]] = {
    "openai.chat": {"model": "m", "messages": HI},
    "anthropic.messages": {"model": "m", "messages": HI, "max_tokens": 9},
}
BOTH = pytest.mark.parametrize("dialect", [OPENAI_CHAT, ANTHROPIC], ids=lambda dialect: dialect.name)
JOB_ID = "chatcmpl-0123456789abcdef01234567"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
WORDS = st.sampled_from(
    [
        "role",
        "content",
        "type",
        "text",
        "image_url",
        "url",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "input",
        "id",
        "source",
        "data",
        "thinking",
        "tool_use",
        "tool_result",
        "user",
        "assistant",
        "tool",
        "system",
        "base64",
        "document",
        "custom",
        "auto",
        "any",
        "none",
        "enabled",
        "json_schema",
        "schema",
    ]
)
SHAPES = st.recursive(
    JSON | WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=12
)
NAMES = sorted(
    {*SAMPLING_PARAMS, *OUTPUT_PARAMS, "model", "messages", "max_tokens", "max_completion_tokens", "temperature"}
    | {"tools", "tool_choice", "stream", "stream_options", "system", "thinking", "stop_sequences", "output_config"}
    | {"reasoning_effort", "modalities", "functions", "function_call", "n_predict", "verbosity"}
)


def parse(dialect: Dialect, **fields: Any) -> ChatRequest:
    return dialect.parse(orjson.dumps({**MINIMUM[dialect.name], **fields}), job_id=JOB_ID, now=1.9)


def parse_or_refuse(dialect: Dialect, **fields: Any) -> ChatRequest | RefusedError:
    try:
        return parse(dialect, **fields)
    except RefusedError as error:
        return error


def job(dialect: Dialect, **fields: Any) -> Job:
    return parse(dialect, **fields).job


def refusal(dialect: Dialect, **fields: Any) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        parse(dialect, **fields)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    return caught.value


@BOTH
@settings(max_examples=300, deadline=None)
@given(fields=st.dictionaries(st.sampled_from(NAMES), SHAPES, max_size=4))
def test_any_request_becomes_a_job_that_can_be_sent_or_is_refused(dialect, fields):
    """A request that nobody thought of would be answered with a 500."""
    outcome = parse_or_refuse(dialect, **fields)
    if isinstance(outcome, RefusedError):
        assert outcome.code is ErrorCode.INVALID_REQUEST
        assert dialect.error_body(outcome, request_id="r")
    else:
        assert protocol.decode_job(protocol.encode(outcome.job)) == outcome.job


@BOTH
@settings(max_examples=300, deadline=None)
@given(messages=st.lists(st.fixed_dictionaries({"role": WORDS, "content": SHAPES}, optional={"tool_calls": SHAPES})))
def test_any_conversation_becomes_a_job_or_is_refused(dialect, messages):
    """A block in a shape that nobody thought of would be answered with a 500."""
    outcome = parse_or_refuse(dialect, messages=messages)
    if isinstance(outcome, RefusedError):
        assert str(outcome.param).startswith("messages")
    else:
        assert protocol.decode_job(protocol.encode(outcome.job)) == outcome.job


@BOTH
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b'{"a":"\xff"}', b'{"a":"\\ud800"}', b"[" * 5000])
def test_a_body_that_is_no_json_object_is_refused(dialect, body):
    """Bytes that are no request would be answered with a 500."""
    with pytest.raises(RefusedError, match="nvalid JSON") as caught:
        dialect.parse(body, job_id="a", now=0)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


@BOTH
def test_ids_and_times_come_from_the_caller(dialect):
    """A blocking answer would have another id than its job, or each chunk its own time."""
    request = parse(dialect, stream=True)
    assert request.job.job_id == JOB_ID
    assert (request.created, request.model, request.stream) == (1, "m", True)
    assert request.answer_id in (JOB_ID, "msg_0123456789abcdef01234567")


@BOTH
def test_the_model_of_the_request_is_no_model_of_the_job(dialect):
    """A worker that takes a model's name per job would look for the name that the client made up."""
    assert job(dialect, model="gpt-4o").model is None


@BOTH
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "hot"),
        ("temperature", -0.1),
        ("temperature", True),
        ("top_p", 1.1),
        ("top_k", -1),
        ("top_k", 1.5),
        ("min_p", []),
        ("seed", "1"),
        ("presence_penalty", 3),
        ("logit_bias", {"1": 101}),
        ("logit_bias", [["a"]]),
        ("chat_template_kwargs", []),
        ("grammar", 5),
        ("reasoning_format", "loud"),
        ("max_tokens", 0),
        ("max_tokens", "5"),
        ("stream", "yes"),
        ("messages", {}),
        ("tools", {}),
        ("model", 5),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_by_name(dialect, field, value):
    """A mistake would be dropped silently, or fail later without a name."""
    error = refusal(dialect, **{field: value})
    assert error.param == field
    assert error.message.startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [*HI, {"content": "x"}]}, "messages[1].role"),
        ({"messages": [*HI, {"role": "robot", "content": "x"}]}, "messages[1].role"),
        ({"messages": [*HI, {"role": "function", "content": "x"}]}, "messages[1].name"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "messages[0].content[0].file"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"n": 0}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"reasoning_effort": "some"}, "reasoning_effort"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"function_call": "auto"}, "function_call"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call"),
        ({"functions": [{"name": "f"}], "tools": []}, "functions"),
        ({"functions": [{}]}, "functions[0].name"),
        ({"verbosity": "loud"}, "verbosity"),
        ({"tools": [OPENAI_TOOL], "logprobs": True}, "logprobs"),
        ({"tools": [OPENAI_TOOL], "grammar": "root ::= [a]"}, "grammar"),
        ({"response_format": {"type": "json_object"}, "grammar": "root ::= [a]"}, "grammar"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].custom"),
    ],
)
def test_openai_names_the_field_that_is_wrong(fields, param):
    """A client would have to guess which of its fields is meant."""
    assert refusal(OPENAI_CHAT, **fields).param == param


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": None}, "messages: Field required"),
        ({"model": ""}, "model: Field required"),
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: must be one of assistant, system, user"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages.0.content.0.type: must be"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text: Field required"),
        ({"tool_choice": {"type": "tool", "name": "f"}}, "tool_choice: names a tool that is not in tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice: needs tools"),
        ({"tools": [{"name": 5, "input_schema": {}}]}, "tools.0.name: must be a string"),
        ({"thinking": {"type": "loud"}}, "thinking.type: must be one of"),
        ({"system": 5}, "system: must be an array"),
        ({"stop_sequences": "x" * 3, "temperature": 2}, "temperature: must be between 0 and 1"),
    ],
)
def test_anthropic_names_the_field_that_is_wrong(fields, message):
    """A client would have to guess which of its fields is meant."""
    error = refusal(ANTHROPIC, **fields)
    assert error.message.startswith(message)
    assert error.param == message.partition(":")[0]


@BOTH
def test_no_error_quotes_what_the_client_sent(dialect):
    """A prompt, or a key in it, would stand in a log that keeps error texts."""
    content = [{"type": "image_url", "image_url": {"url": "file:///secret"}}, {"type": "secret"}]
    for wrong in ("secret", ["secret"], [{"role": "secret"}], [{"role": "user", "content": content}]):
        assert "secret" not in refusal(dialect, messages=wrong).message


@pytest.mark.parametrize("url", ["file:///etc/passwd", "/etc/passwd", "ftp://x/y.png", ""])
def test_images_come_from_the_web_or_the_request(url):
    """A client would read files of the worker's machine."""
    part = {"type": "image_url", "image_url": {"url": url}}
    assert refusal(OPENAI_CHAT, messages=[{"role": "user", "content": [part]}]).param
    block = {"type": "image", "source": {"type": "url", "url": url}}
    assert refusal(ANTHROPIC, messages=[{"role": "user", "content": [block]}]).param


@BOTH
def test_a_null_counts_as_absent(dialect):
    """A client that writes every field would be refused for those that it does not use."""
    fields = dict.fromkeys(set(NAMES) - {"messages", "model", "max_tokens"})
    assert protocol.encode(job(dialect, **fields)) == protocol.encode(job(dialect))


def test_every_parameter_goes_through_under_its_own_name():
    """A sampling parameter would be dropped silently."""
    values: dict[str, Any] = {"stop": ["x"], "samplers": ["top_k"], "dry_sequence_breakers": ["x"]}
    values |= {"lora": [{"id": 1, "scale": 1}], "logit_bias": {"1": 1}, "chat_template_kwargs": {"a": 1}}
    values |= {"reasoning_format": "none", "reasoning_budget_message": "x", "continue_final_message": True}
    values |= {"response_format": {"type": "text"}, "json_schema": {"a": 1}, "adaptive_decay": 0.5, "grammar": ""}
    booleans = "ignore_eos backend_sampling cache_prompt logprobs post_sampling_probs parallel_tool_calls"
    values |= dict.fromkeys([*booleans.split(), "return_progress", "add_generation_prompt"], True)
    sent = {name: values.get(name, 1) for name in {**SAMPLING_PARAMS, **OUTPUT_PARAMS}}
    assert job(OPENAI_CHAT, **sent).params == sent


def test_equal_requests_become_equal_bytes():
    """A worker's prompt cache would miss because a client writes its fields in another order."""
    fields = {"top_p": 0.5, "seed": 1, "stop": "x", "top_k": 3}
    jobs = [job(OPENAI_CHAT, **dict(order)) for order in (fields.items(), reversed(fields.items()))]
    assert protocol.encode(jobs[0]) == protocol.encode(jobs[1])


def test_the_newest_limit_of_tokens_wins():
    """A client that sends both for old and new servers would get the wrong one."""
    assert job(OPENAI_CHAT, max_tokens=5, max_completion_tokens=7, n_predict=9).max_tokens == 7
    assert job(OPENAI_CHAT, max_tokens=5, n_predict=9).max_tokens == 5
    assert job(OPENAI_CHAT, n_predict=9).max_tokens == 9
    assert job(OPENAI_CHAT, n_predict=-1).max_tokens is None


@pytest.mark.parametrize(
    ("fields", "kwargs"),
    [
        ({}, None),
        ({"reasoning_effort": "none"}, {"enable_thinking": False}),
        ({"reasoning_effort": "low"}, {"enable_thinking": True}),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False, "a": 1}},
            {"enable_thinking": False, "a": 1},
        ),
    ],
)
def test_openai_effort_switches_thinking(fields, kwargs):
    """A client could not switch thinking off, or its own template arguments would be overruled."""
    assert job(OPENAI_CHAT, **fields).params.get("chat_template_kwargs") == kwargs


@pytest.mark.parametrize(
    ("thinking", "effort", "budget"),
    [
        (None, "none", None),
        ({"type": "disabled"}, "none", None),
        ({"type": "adaptive"}, "high", None),
        ({"type": "enabled", "budget_tokens": 2048}, "high", 2048),
    ],
)
def test_anthropic_thinks_only_when_asked(thinking, effort, budget):
    """A client that did not ask for thinking would wait for it and pay for it."""
    parsed = job(ANTHROPIC, thinking=thinking)
    assert parsed.reasoning_effort == effort
    assert parsed.params["chat_template_kwargs"] == {"enable_thinking": effort != "none"}
    assert parsed.params.get("thinking_budget_tokens") == budget


def test_openai_functions_are_tools_under_their_old_name():
    """A client of the old form would be told of calls in a form that it does not know, or not at all."""
    functions = [{"name": name} for name in "ab"]
    request = OPENAI_CHAT.parse(
        orjson.dumps({**MINIMUM["openai.chat"], "functions": functions, "function_call": {"name": "b"}}),
        job_id=JOB_ID,
        now=0,
    )
    assert [tool.function.name for tool in request.job.tools] == ["b"]
    assert request.job.params == {"tool_choice": "required", "parallel_tool_calls": False}
    assert request.uses_functions
    assert job(OPENAI_CHAT, functions=functions, function_call="none").tools == ()


def test_openai_choice_among_tools_shortens_the_list():
    """A model would call a tool that the client has not allowed."""
    tools = [{"type": "function", "function": {"name": name}} for name in "abc"]
    allowed = [{"type": "function", "function": {"name": name}} for name in "ac"]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": allowed}}
    parsed = job(OPENAI_CHAT, tools=tools, tool_choice=choice)
    assert [tool.function.name for tool in parsed.tools] == ["a", "c"]
    assert parsed.params["tool_choice"] == "required"
    assert job(OPENAI_CHAT, tools=tools, tool_choice="none").tools == ()


def test_anthropic_choice_among_tools_shortens_the_list():
    """A model would call a tool that the client has not chosen."""
    tools = [{"name": name, "input_schema": {}} for name in "abc"]
    parsed = job(ANTHROPIC, tools=tools, tool_choice={"type": "tool", "name": "b"})
    assert [tool.function.name for tool in parsed.tools] == ["b"]
    assert parsed.params["tool_choice"] == "required"


@BOTH
@pytest.mark.parametrize(("depth", "passes"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False), (1000, False)])
def test_a_deep_schema_is_refused_before_it_cannot_be_sent(dialect, depth, passes):
    """The job could not be written for the queue: a 500 in place of a 400."""
    schema = b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)
    tool = {"name": "f", "input_schema": "SCHEMA", "parameters": "SCHEMA"}
    tools = [{"type": "function", "function": tool} if dialect is OPENAI_CHAT else tool]
    body = orjson.dumps({**MINIMUM[dialect.name], "tools": tools}).replace(b'"SCHEMA"', schema)
    if passes:
        parsed = dialect.parse(body, job_id="a", now=0)
        assert protocol.decode_job(protocol.encode(parsed.job)) == parsed.job
    else:
        with pytest.raises(RefusedError, match="nested more than 100 levels deep"):
            dialect.parse(body, job_id="a", now=0)


@BOTH
def test_a_large_request_is_read_in_time(dialect):
    """A long prompt with many tools would block the router for everybody else."""
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": {"type": "object"}}}
        if dialect is OPENAI_CHAT
        else {"name": f"f{i}", "input_schema": {"type": "object"}}
        for i in range(500)
    ]
    messages = [{"role": role, "content": "x" * 10_000} for role in ("user", "assistant") * 500]
    body = orjson.dumps({**MINIMUM[dialect.name], "messages": messages, "tools": tools})
    start = time.perf_counter()
    request = dialect.parse(body, job_id="a", now=0)
    assert time.perf_counter() - start < 0.5
    assert (len(request.job.messages), len(request.job.tools)) == (1000, 500)
