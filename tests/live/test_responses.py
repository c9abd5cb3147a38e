"""The Responses API through the official SDK, against router, worker and llama-server as processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from auxot.demo.tiny_model import ANSWER, N_ANSWER_TOKENS, THOUGHT, TOOL_ARGUMENTS, TOOL_NAME, TOOL_PARAMETERS
from tests.live.processes import API_KEY, House, running_router, running_worker

TOOL: Any = {"type": "function", "name": TOOL_NAME, "parameters": TOOL_PARAMETERS, "strict": False}
NO_THINKING: Any = {"effort": "none"}


@pytest.fixture(scope="module")
def house(llama_server_binary: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    with (
        running_router(folder) as running,
        running_worker(running, AUXOT_LLAMA_BINARY=str(llama_server_binary), AUXOT_MODEL_FILE=str(tiny_model)),
    ):
        running.wait_health(workers=1)
        yield running


@pytest.fixture
def client(house: House) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key=API_KEY, max_retries=0) as opened:
        yield opened


def ask(client: openai.OpenAI, *, stream: bool, **fields: Any) -> Any:
    """Return the whole response, however it is asked for."""
    fields = {"model": "any", "input": "hi"} | fields
    if not stream:
        return client.responses.create(**fields)
    events: Any = client.responses.create(stream=True, **fields)
    *_, last = events
    return last.response


def test_a_streamed_text_comes_token_by_token(client):
    """A streaming client would get the sentence in one piece, or not to the letter."""
    with client.responses.stream(model="any", input="hi", reasoning=NO_THINKING) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        response = stream.get_final_response()
    assert "".join(deltas) == response.output_text == ANSWER
    assert len(deltas) == len(ANSWER.split())
    assert response.usage.output_tokens == N_ANSWER_TOKENS


@pytest.mark.parametrize("stream", [True, False])
def test_a_text(client, stream):
    """A client would not get the sentence, its instructions back or llama-server's counts."""
    response = ask(client, stream=stream, instructions="Be brief.", reasoning=NO_THINKING, metadata={"a": "b"})
    assert (response.status, response.output_text, response.model) == ("completed", ANSWER, "any")
    assert (response.instructions, response.metadata) == ("Be brief.", {"a": "b"})
    assert response.usage.output_tokens == N_ANSWER_TOKENS
    assert response.usage.total_tokens == response.usage.input_tokens + N_ANSWER_TOKENS


@pytest.mark.parametrize("stream", [True, False])
def test_reasoning(client, stream):
    """A reasoning model's thoughts would be lost or mixed into its answer."""
    response = ask(
        client, stream=stream, reasoning={"effort": "high"}, include=["reasoning.encrypted_content"], store=False
    )
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output[0].content[0].text.strip() == THOUGHT
    assert response.output[0].encrypted_content
    assert response.output_text.strip() == ANSWER


@pytest.mark.parametrize("stream", [True, False])
def test_a_tool_call_and_its_output(client, stream):
    """An agent's call would be lost, or the turn after it would not be understood."""
    items: list[Any] = [{"role": "user", "content": "hi"}]
    asked = {"stream": stream, "tools": [TOOL, {"type": "web_search"}], "reasoning": NO_THINKING}
    first = ask(client, input=items, **asked)
    call = first.output[-1]
    assert (call.type, call.name, call.status) == ("function_call", TOOL_NAME, "completed")
    assert json.loads(call.arguments) == json.loads(TOOL_ARGUMENTS)
    items += [item.model_dump(exclude_none=True) for item in first.output]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "12 degrees"})
    second = ask(client, input=items, **asked)
    assert (second.status, second.output_text) == ("completed", ANSWER)


def test_a_calls_arguments_come_as_they_are_written(client):
    """A call would come in one piece, or its pieces would not fit together."""
    with client.responses.stream(model="any", input="hi", tools=[TOOL], reasoning=NO_THINKING) as stream:
        pieces = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        response = stream.get_final_response()
    assert len(pieces) > 1
    assert "".join(pieces) == response.output[-1].arguments
    assert json.loads("".join(pieces)) == json.loads(TOOL_ARGUMENTS)


@pytest.mark.parametrize("stream", [True, False])
def test_a_cut_answer_is_incomplete(client, stream):
    """A cut answer would be told as whole."""
    response = ask(client, stream=stream, max_output_tokens=5, reasoning=NO_THINKING)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output_text.split() == ANSWER.split()[:5]
    assert response.output[-1].status == "incomplete"


@pytest.mark.parametrize("stream", [True, False])
def test_log_probabilities(client, stream):
    """Log probabilities that were asked for would not come, or not with their tokens."""
    response = ask(
        client,
        stream=stream,
        max_output_tokens=4,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        reasoning=NO_THINKING,
    )
    part = response.output[0].content[0]
    assert "".join(entry.token for entry in part.logprobs) == part.text
    assert [len(entry.top_logprobs) for entry in part.logprobs] == [2] * 4


def test_a_structured_answer_is_held_to_its_schema(client):
    """`text.format` would be dropped, and the client could not parse the answer."""
    schema = {"type": "object", "properties": {"n": {"enum": [1]}}, "required": ["n"], "additionalProperties": False}
    text: Any = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
    response = client.responses.create(model="any", input="hi", text=text, temperature=0, reasoning=NO_THINKING)
    assert "".join(response.output_text.split()) == '{"n":1}'


def test_what_needs_storage_is_refused(client):
    """A client that relies on stored responses would silently lose its conversation."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="any", input="hi", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
    for forgotten in (
        client.responses.retrieve,
        client.responses.delete,
        client.responses.cancel,
        lambda response_id: list(client.responses.input_items.list(response_id)),
    ):
        with pytest.raises(openai.NotFoundError, match="does not store responses"):
            forgotten("resp_1")


@pytest.mark.parametrize("stream", [True, False])
def test_an_overflow_keeps_its_status(client, stream):
    """An agent could not tell that it has to compact its conversation."""
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, stream=stream, input="x" * 20_000)
    assert caught.value.code == "context_length_exceeded"
