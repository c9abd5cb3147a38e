"""The official SDKs against the real thing: router, queue, worker and llama-server as processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from auxot.demo.tiny_model import ANSWER, N_ANSWER_TOKENS, THOUGHT, TOOL_ARGUMENTS, TOOL_NAME, TOOL_PARAMETERS
from tests.live.processes import API_KEY, House, running_router, running_worker

HI: Any = [{"role": "user", "content": "hi"}]
OPENAI_TOOL = {"type": "function", "function": {"name": TOOL_NAME, "parameters": TOOL_PARAMETERS}}
ANTHROPIC_TOOL = {"name": TOOL_NAME, "input_schema": TOOL_PARAMETERS}
NO_THINKING = {"reasoning_effort": "none"}


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
def openai_client(house: House) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{house.url}/v1", api_key=API_KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic_client(house: House) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=f"{house.url}/api/anthropic", api_key=API_KEY, max_retries=0) as client:
        yield client


def test_openai_blocking(openai_client):
    """A blocking client would not get the exact sentence, its reasoning or llama-server's counts."""
    completion = openai_client.chat.completions.create(model="any", messages=HI, **NO_THINKING)
    assert completion.choices[0].message.content == ANSWER
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == "any"
    assert completion.usage.completion_tokens == N_ANSWER_TOKENS
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + N_ANSWER_TOKENS


def test_openai_streaming(openai_client):
    """A streaming client would not get the exact sentence token by token, or no usage at its end."""
    with openai_client.chat.completions.stream(
        model="any", messages=HI, stream_options={"include_usage": True}, **NO_THINKING
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta" and event.delta]
        completion = stream.get_final_completion()
    assert "".join(deltas) == ANSWER
    assert len(deltas) == len(ANSWER.split())
    assert completion.choices[0].message.content == ANSWER
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.completion_tokens == N_ANSWER_TOKENS


@pytest.mark.parametrize("stream", [True, False])
def test_openai_reasoning(openai_client, stream):
    """A reasoning model's thoughts would be lost or mixed into its answer."""
    answer = openai_client.chat.completions.create(model="any", messages=HI, reasoning_effort="high", stream=stream)
    if stream:
        deltas = [chunk.choices[0].delta for chunk in answer if chunk.choices]
        reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        content = "".join(delta.content or "" for delta in deltas)
    else:
        message = answer.choices[0].message
        reasoning, content = message.reasoning_content, message.content
    assert reasoning.strip() == THOUGHT
    assert content.strip() == ANSWER


def test_openai_tool_call_streams_its_arguments(openai_client):
    """A tool call would come in one piece, or its pieces would not fit together."""
    chunks = list(
        openai_client.chat.completions.create(model="any", messages=HI, tools=[OPENAI_TOOL], stream=True, **NO_THINKING)
    )
    calls = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or ()]
    assert calls[0].id
    assert calls[0].function.name == TOOL_NAME
    pieces = [call.function.arguments for call in calls if call.function.arguments]
    assert len(pieces) > 1
    assert "".join(pieces).replace(" ", "") == TOOL_ARGUMENTS.replace(" ", "")
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_openai_tool_call_blocking_and_its_result(openai_client):
    """A tool call would be lost in a blocking answer, or the turn after it would not be understood."""
    first = openai_client.chat.completions.create(model="any", messages=HI, tools=[OPENAI_TOOL], **NO_THINKING)
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert message.tool_calls[0].function.name == TOOL_NAME
    history = [
        *HI,
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "12 degrees"},
    ]
    second = openai_client.chat.completions.create(model="any", messages=history, tools=[OPENAI_TOOL], **NO_THINKING)
    assert second.choices[0].message.content == ANSWER
    assert second.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("limits", "reason"), [({"max_tokens": 5}, "length"), ({"stop": ["lazy"]}, "stop")])
def test_openai_limits(openai_client, stream, limits, reason):
    """A cut answer would be told as whole, or a stop word ignored."""
    answer = openai_client.chat.completions.create(model="any", messages=HI, stream=stream, **limits, **NO_THINKING)
    if stream:
        choices = [chunk.choices[0] for chunk in answer if chunk.choices]
        text = "".join(choice.delta.content or "" for choice in choices)
        finish_reason = choices[-1].finish_reason
    else:
        text, finish_reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert finish_reason == reason
    expected = " ".join(ANSWER.split()[:5]) if reason == "length" else ANSWER.partition("lazy")[0]
    assert text.rstrip() == expected.rstrip()


def test_openai_several_choices_and_logprobs(openai_client):
    """`n` and `logprobs` would be dropped on the way."""
    completion = openai_client.chat.completions.create(
        model="any", messages=HI, n=2, logprobs=True, top_logprobs=2, max_tokens=4, **NO_THINKING
    )
    assert [choice.message.content for choice in completion.choices] == [" ".join(ANSWER.split()[:4])] * 2
    for choice in completion.choices:
        assert len(choice.logprobs.content) == 4
        assert len(choice.logprobs.content[0].top_logprobs) == 2


def test_openai_cached_tokens_are_told(openai_client):
    """A client could not see that its prompt was cached."""
    messages = [{"role": "user", "content": "once upon a time " * 20}]
    openai_client.chat.completions.create(model="any", messages=messages, **NO_THINKING)
    completion = openai_client.chat.completions.create(model="any", messages=messages, **NO_THINKING)
    assert completion.usage.prompt_tokens_details.cached_tokens > 300


def test_openai_models(openai_client):
    """A client that lists the models would find none."""
    assert [model.id for model in openai_client.models.list()] == ["tiny-bigram"]
    assert openai_client.models.retrieve("tiny-bigram").owned_by == "auxot"


def test_openai_errors_have_their_classes(house, openai_client):
    """SDK users could not tell a wrong key from a bad request."""
    with pytest.raises(openai.BadRequestError, match="temperature"):
        openai_client.chat.completions.create(model="any", messages=HI, temperature=9)
    with (
        openai.OpenAI(base_url=f"{house.url}/v1", api_key="rtr_wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
    long = [{"role": "user", "content": "x" * 20_000}]
    for stream in (True, False):
        with pytest.raises(openai.BadRequestError) as caught:
            openai_client.chat.completions.create(model="any", messages=long, stream=stream)
        assert caught.value.code == "context_length_exceeded"


def test_anthropic_blocking(anthropic_client):
    """A blocking client would not get the exact sentence or llama-server's counts."""
    message = anthropic_client.messages.create(model="any", max_tokens=100, messages=HI)
    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].text == ANSWER
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == N_ANSWER_TOKENS
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens > 0


def test_anthropic_streaming(anthropic_client):
    """A streaming client would not get the exact sentence token by token."""
    with anthropic_client.messages.stream(model="any", max_tokens=100, messages=HI) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert "".join(pieces) == ANSWER
    assert len(pieces) == len(ANSWER.split())
    assert message.content[0].text == ANSWER
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == N_ANSWER_TOKENS


@pytest.mark.parametrize("stream", [True, False])
def test_anthropic_thinking(anthropic_client, stream):
    """Thoughts would be lost, unsigned, or mixed into the answer."""
    asked = {
        "model": "any",
        "max_tokens": 2000,
        "messages": HI,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    if stream:
        with anthropic_client.messages.stream(**asked) as opened:
            message = opened.get_final_message()
    else:
        message = anthropic_client.messages.create(**asked)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].thinking.strip() == THOUGHT
    assert message.content[0].signature
    assert message.content[1].text.strip() == ANSWER


def test_anthropic_tool_use_streams_its_input(anthropic_client):
    """A tool call would come in one piece, or its pieces would not fit together."""
    with anthropic_client.messages.stream(model="any", max_tokens=100, messages=HI, tools=[ANTHROPIC_TOOL]) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json" and event.partial_json]
        message = stream.get_final_message()
    assert len(pieces) > 1
    assert message.stop_reason == "tool_use"
    assert message.content[-1].type == "tool_use"
    assert (message.content[-1].name, message.content[-1].input) == (TOOL_NAME, {"city": "Paris"})


def test_anthropic_tool_use_blocking_and_its_result(anthropic_client):
    """A tool call would be lost in a blocking answer, or the turn after it would not be understood."""
    first = anthropic_client.messages.create(model="any", max_tokens=100, messages=HI, tools=[ANTHROPIC_TOOL])
    use = first.content[-1]
    assert (use.type, use.name, use.input) == ("tool_use", TOOL_NAME, {"city": "Paris"})
    history = [
        *HI,
        {"role": "assistant", "content": [block.model_dump() for block in first.content]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "12 degrees"}]},
    ]
    second = anthropic_client.messages.create(model="any", max_tokens=100, messages=history, tools=[ANTHROPIC_TOOL])
    assert second.content[0].text == ANSWER


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("limits", "reason"), [({"max_tokens": 5}, "max_tokens"), ({"stop_sequences": ["lazy"]}, "stop_sequence")]
)
def test_anthropic_limits(anthropic_client, stream, limits, reason):
    """A cut answer would be told as whole, or a stop sequence not named."""
    asked = {"model": "any", "max_tokens": 100, "messages": HI, **limits}
    if stream:
        with anthropic_client.messages.stream(**asked) as opened:
            message = opened.get_final_message()
    else:
        message = anthropic_client.messages.create(**asked)
    assert message.stop_reason == reason
    assert message.stop_sequence == ("lazy" if reason == "stop_sequence" else None)


def test_anthropic_errors_have_their_classes(house, anthropic_client):
    """SDK users could not tell a wrong key from a bad request."""
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        anthropic_client.messages.create(model="any", max_tokens=0, messages=HI)
    with (
        anthropic.Anthropic(base_url=f"{house.url}/api/anthropic", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError),
    ):
        stranger.messages.create(model="any", max_tokens=5, messages=HI)
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > \d+ maximum"):
        anthropic_client.messages.create(
            model="any", max_tokens=5, messages=[{"role": "user", "content": "x" * 20_000}]
        )


def test_anthropic_models(anthropic_client):
    """A client that lists the models would find none."""
    assert [model.id for model in anthropic_client.models.list()] == ["tiny-bigram"]
