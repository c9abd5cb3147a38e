"""What OpenAI's chat completions and completions promise, through the official SDK and a real llama-server."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from auxot.demo.tiny_model import ANSWER, TOOL_ARGUMENTS, TOOL_NAME, TOOL_PARAMETERS
from tests.live.processes import API_KEY, House, running_router, running_worker

HI: Any = [{"role": "user", "content": "hi"}]
TOOL: Any = {"type": "function", "function": {"name": TOOL_NAME, "parameters": TOOL_PARAMETERS}}
OTHER_TOOL: Any = {"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}}
PLAIN: Any = {"model": "any", "reasoning_effort": "none"}
GREEDY: Any = {**PLAIN, "temperature": 0}
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]}
BEGIN = " ".join(ANSWER.split()[:3])
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()


@pytest.fixture(scope="module")
def house(llama_server_binary: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    with (
        running_router(folder, AUXOT_MAX_PARALLEL="2") as running,
        running_worker(running, AUXOT_LLAMA_BINARY=str(llama_server_binary), AUXOT_MODEL_FILE=str(tiny_model)),
    ):
        running.wait_health(workers=1)
        yield running


@pytest.fixture
def client(house: House) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key=API_KEY, max_retries=0) as client:
        yield client


def refused(client: openai.OpenAI, **fields: Any) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**PLAIN, "messages": HI, **fields})
    assert caught.value.type == "invalid_request_error"
    return caught.value


def test_roles_parts_and_names(client):
    """A conversation in the newest form would be refused, or its parts lost."""
    messages: Any = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "!"}]},
    ]
    answer = client.chat.completions.create(**PLAIN, messages=messages)
    assert answer.choices[0].message.content == ANSWER


@pytest.mark.parametrize("stream", [True, False])
def test_choices_and_log_probabilities(client, stream):
    """With n and logprobs a client would miss a choice, or the tokens of one."""
    answer: Any = client.chat.completions.create(
        **GREEDY, messages=HI, n=2, logprobs=True, top_logprobs=2, max_completion_tokens=3, stream=stream
    )
    chunks = list(answer) if stream else [answer]
    for index in (0, 1):
        choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        entries = [entry for choice in choices for entry in (choice.logprobs.content if choice.logprobs else ())]
        assert [entry.token for entry in entries] == ["The", " quick", " brown"]
        assert {len(entry.top_logprobs) for entry in entries} == {2}
        assert choices[-1].finish_reason == "length"


def test_log_probabilities_without_alternatives(client):
    """A client that asks for none would get twenty a token."""
    answer = client.chat.completions.create(**GREEDY, messages=HI, logprobs=True, max_tokens=2)
    assert [entry.top_logprobs for entry in answer.choices[0].logprobs.content] == [[], []]


@pytest.mark.parametrize(
    "response_format",
    [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "c", "strict": True, "schema": SCHEMA}}],
    ids=lambda response_format: response_format["type"],
)
def test_response_formats(client, response_format):
    """A client that parses JSON would be given prose."""
    answer = client.chat.completions.create(**GREEDY, messages=HI, response_format=response_format, max_tokens=60)
    text = answer.choices[0].message.content
    if response_format["type"] == "json_schema":
        assert json.loads(text) == {"city": "Paris"}
    else:
        assert text.startswith("{")


def test_a_grammar(client):
    """A field of llama-server's own would be dropped."""
    body = {"grammar": 'root ::= "fox"'}
    assert client.chat.completions.create(**GREEDY, messages=HI, extra_body=body).choices[0].message.content == "fox"


def test_none_offers_no_tools(client):
    """The model would call a tool that the client has forbidden."""
    answer = client.chat.completions.create(**PLAIN, messages=HI, tools=[TOOL], tool_choice="none")
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].message.tool_calls is None


@pytest.mark.parametrize(
    "tool_choice",
    [
        "required",
        {"type": "function", "function": {"name": TOOL_NAME}},
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOL]}},
    ],
    ids=["required", "named", "allowed"],
)
def test_a_tool_is_called_when_it_is_chosen(client, tool_choice):
    """The model would call another tool, or none."""
    answer = client.chat.completions.create(
        **GREEDY,
        messages=HI,
        tools=[TOOL] if tool_choice == "required" else [OTHER_TOOL, TOOL],
        tool_choice=tool_choice,
        parallel_tool_calls=False,
    )
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == (TOOL_NAME, json.loads(TOOL_ARGUMENTS))
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [True, False])
def test_functions(client, stream):
    """A client of the old form would be told of its call in a form that it does not know."""
    functions: Any = [TOOL["function"]]
    answer: Any = client.chat.completions.create(**GREEDY, messages=HI, functions=functions, stream=stream)
    if stream:
        deltas = [chunk.choices[0].delta for chunk in answer]
        calls = [delta.function_call for delta in deltas if delta.function_call]
        name, arguments = calls[0].name, "".join(call.arguments for call in calls)
    else:
        assert answer.choices[0].finish_reason == "function_call"
        call = answer.choices[0].message.function_call
        name, arguments = call.name, call.arguments
    assert (name, json.loads(arguments)) == (TOOL_NAME, json.loads(TOOL_ARGUMENTS))
    told: Any = {"role": "assistant", "content": None, "function_call": {"name": name, "arguments": arguments}}
    history: Any = [*HI, told, {"role": "function", "name": name, "content": "sunny"}]
    second = client.chat.completions.create(**GREEDY, messages=history, functions=functions)
    assert second.choices[0].message.content == ANSWER


def test_a_broken_call_in_the_history_does_not_end_the_conversation(client):
    """A call that was cut off would make every later turn fail."""
    call = {"id": "c", "type": "function", "function": {"name": TOOL_NAME, "arguments": '{"city": "Par'}}
    history: Any = [*HI, {"role": "assistant", "tool_calls": [call]}]
    history.append({"role": "tool", "tool_call_id": "c", "content": "sunny"})
    answer = client.chat.completions.create(**PLAIN, messages=history, tools=[TOOL])
    assert answer.choices[0].message.content == ANSWER


def test_an_assistant_message_at_the_end_is_continued(client):
    """A client that gives the beginning would get a second beginning."""
    messages: Any = [*HI, {"role": "assistant", "content": BEGIN}]
    answer = client.chat.completions.create(**PLAIN, messages=messages)
    assert BEGIN + answer.choices[0].message.content == ANSWER


def test_progress_and_usage_only_for_those_who_ask(client):
    """llama-server's clients would see no progress, and others chunks that they did not ask for."""
    fields = {**PLAIN, "messages": [{"role": "user", "content": "x" * 3000}], "stream": True}
    plain = list(client.chat.completions.create(**fields))
    assert not any(chunk.usage or "prompt_progress" in (chunk.model_extra or {}) for chunk in plain)
    asked: Any = list(
        client.chat.completions.create(
            **fields, stream_options={"include_usage": True}, extra_body={"return_progress": True}
        )
    )
    progress = [chunk.prompt_progress for chunk in asked if "prompt_progress" in chunk.model_extra]
    assert progress[-1]["processed"] == progress[-1]["total"] > 3000
    assert (asked[-1].choices, asked[-1].usage.prompt_tokens) == ([], progress[-1]["total"])
    assert len({(chunk.id, chunk.created) for chunk in asked}) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_an_image_for_a_model_without_eyes_is_refused(client, stream):
    """The client would get a 500, or an answer that has not seen the image."""
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    error = refused(client, messages=[{"role": "user", "content": [part]}], stream=stream)
    assert "image" in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"modalities": ["audio"], "audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"logprobs": True, "tools": [TOOL]}, "logprobs"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].custom"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client, fields, param):
    """A client would have to guess which of its fields is meant."""
    assert refused(client, **fields).param == param


@pytest.mark.parametrize("stream", [True, False])
def test_completions_echo_their_prompts(client, stream):
    """A client of the oldest API would miss the text that it continues."""
    answer: Any = client.completions.create(
        model="any", prompt=[BEGIN, "The"], n=2, echo=True, max_tokens=2, temperature=0, stream=stream
    )
    texts = [""] * 4
    for chunk in answer if stream else [answer]:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [f"{BEGIN} fox jumps"] * 2 + ["The quick brown"] * 2


def test_completions_tell_log_probabilities_in_their_own_form(client):
    """A client of the oldest API would not find its tokens."""
    answer = client.completions.create(model="any", prompt="The", logprobs=1, max_tokens=2, temperature=0)
    shown = answer.choices[0].logprobs
    assert (shown.tokens, shown.text_offset) == ([" quick", " brown"], [0, 6])
    assert [list(top) for top in shown.top_logprobs] == [[" quick"], [" brown"]]
    assert answer.id.startswith("cmpl-")


def test_completions_need_a_prompt(house):
    """A mistake of the client would be a fault of the worker's."""
    with house.client() as client:
        answer = client.post("/v1/completions", json={"model": "any"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
        assert client.get("/v1/completions").status_code == 405


@pytest.mark.parametrize("text", ["a\0b", "\U0001f600\u200d", "\ufeff", "<|im_start|>system"])
def test_strange_text_is_answered(house, text):
    """A character that nobody thought of would be answered with a 500."""
    with house.client() as client:
        raw = client.post("/v1/completions", json={"prompt": text, "max_tokens": 1})
        chat = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": text}], **PLAIN})
    assert (raw.status_code, chat.status_code) == (200, 200)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_that_is_too_long_is_refused_with_its_reason(house, path, stream):
    """A client would not learn that its prompt is too long, or be answered with a 500."""
    text = "x" * 60_000
    body = {"prompt": text, "messages": [{"role": "user", "content": text}], "stream": stream}
    with house.client() as client:
        answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_prompt_of_tokens_that_is_too_long_is_refused_with_the_numbers(house):
    """A client that counts tokens itself would not learn by how many its prompt is too long."""
    with house.client() as client:
        answer = client.post("/v1/completions", json={"prompt": [1] * 20_000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    message = answer.json()["error"]["message"]
    assert "maximum context length is 16384 tokens" in message
    assert "20000 tokens" in message
