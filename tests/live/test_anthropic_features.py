"""Every feature of Anthropic's messages that a tiny model can show: the official SDK and a real llama-server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from auxot.demo.tiny_model import ANSWER, N_ANSWER_TOKENS, THOUGHT, TOOL_NAME, TOOL_PARAMETERS
from tests.live.processes import API_KEY, House, running_router, running_worker

CTX_SIZE = 4096
HI: Any = [{"role": "user", "content": "hi"}]
TOOL: Any = {"name": TOOL_NAME, "description": "The weather.", "input_schema": TOOL_PARAMETERS}
OTHER_TOOL: Any = {"name": "now", "input_schema": {"type": "object", "properties": {}}}
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def house(llama_server_binary: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    with (
        running_router(folder, AUXOT_CTX_SIZE=str(CTX_SIZE), AUXOT_MAX_PARALLEL="1") as running,
        running_worker(running, AUXOT_LLAMA_BINARY=str(llama_server_binary), AUXOT_MODEL_FILE=str(tiny_model)),
    ):
        running.wait_health(workers=1)
        yield running


@pytest.fixture
def client(house: House) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=f"{house.url}/api/anthropic", api_key=API_KEY, max_retries=0) as opened:
        yield opened


def ask(client: anthropic.Anthropic, **fields: Any) -> Any:
    return client.messages.create(**{"model": "any", "max_tokens": 100, "messages": HI, **fields})


def ask_streaming(client: anthropic.Anthropic, **fields: Any) -> Any:
    with client.messages.stream(**{"model": "any", "max_tokens": 100, "messages": HI, **fields}) as stream:
        return stream.get_final_message()


BOTH_WAYS = pytest.mark.parametrize("way", [ask, ask_streaming])


def user(*blocks: Any) -> Any:
    return {"role": "user", "content": list(blocks)}


def assistant(content: Any) -> Any:
    return {"role": "assistant", "content": content}


def document(**source: Any) -> Any:
    return {"type": "document", "source": source, "title": "Notes", "citations": {"enabled": True}}


CALL: Any = {"type": "tool_use", "id": "toolu_1", "name": TOOL_NAME, "input": {"city": "Paris"}}
RICH: dict[str, Any] = {
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "tools": [OTHER_TOOL, {"type": "web_search_20250305", "name": "web_search"}],
    "messages": [
        user(
            document(type="text", media_type="text/plain", data="some notes"),
            document(type="base64", media_type="text/plain", data="c29tZSBub3Rlcw=="),
            {"type": "search_result", "title": "Fox", "source": "x", "content": [{"type": "text", "text": "jumps"}]},
        ),
        assistant([{"type": "thinking", "thinking": "Hm.", "signature": "x"}, {"type": "text", "text": "Looking."}]),
        assistant([{"type": "redacted_thinking", "data": "x"}, CALL, {**CALL, "id": "toolu_2"}]),
        user(
            {"type": "text", "text": "and then?"},
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no such city", "is_error": True},
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": [{"type": "text", "text": "12 degrees"}]},
        ),
    ],
}


@BOTH_WAYS
def test_a_conversation_of_every_kind_of_block_is_answered(client, way):
    """A block that the SDK knows would be refused, or break the prompt."""
    message = way(client, **RICH)
    assert [(block.type, block.text) for block in message.content] == [("text", ANSWER)]
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == N_ANSWER_TOKENS


@pytest.mark.parametrize(
    "fields",
    [
        {},
        RICH,
        {"system": "Be brief.", "tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": {"type": "none"}},
        {"thinking": THINKING, "max_tokens": 2000},
        {"messages": [*HI, assistant("The quick")]},
        {"messages": [*HI, *HI]},
    ],
    ids=["short", "rich", "tool", "no tool", "thinking", "prefill", "neighbours"],
)
def test_a_count_is_the_usage_of_the_same_request(client, fields):
    """An agent would compact its history too late, or much too early."""
    counted = {name: value for name, value in fields.items() if name != "max_tokens"}
    count = client.messages.count_tokens(**{"model": "any", "messages": HI, **counted}).input_tokens
    usage = ask(client, **fields).usage
    assert count == usage.input_tokens + usage.cache_read_input_tokens


def test_usage_is_whole_at_both_ends_of_a_stream(client):
    """A client would show a prompt of no tokens until the answer has ended, or another one than was read."""
    ask(client, system="x" * 500)
    with client.messages.stream(model="any", max_tokens=100, messages=HI, system="x" * 500 + "y") as stream:
        start = next(event.message.usage for event in stream if event.type == "message_start")
        start = start.model_copy()
        usage = stream.get_final_message().usage
    assert start.input_tokens > 0
    assert start.cache_read_input_tokens > 400
    assert (start.input_tokens, start.cache_read_input_tokens) == (usage.input_tokens, usage.cache_read_input_tokens)
    assert usage.cache_creation_input_tokens == 0
    assert usage.output_tokens == N_ANSWER_TOKENS


@BOTH_WAYS
@pytest.mark.parametrize("prefill", ["The quick", [{"type": "text", "text": "The quick"}]])
def test_an_assistant_message_at_the_end_is_continued(client, way, prefill):
    """A client that writes the beginning of the answer would get it twice, or another answer."""
    message = way(client, messages=[*HI, assistant(prefill)])
    assert message.content[0].text == ANSWER.removeprefix("The quick")


@BOTH_WAYS
def test_several_assistant_messages_at_the_end_are_one(client, way):
    """llama-server would refuse what Anthropic takes."""
    message = way(client, messages=[*HI, assistant("Here it is:"), assistant("The quick")])
    assert message.content[0].text == ANSWER.removeprefix("The quick")


def test_the_beta_client_is_answered(client):
    """Coding agents use the beta endpoints, with headers and fields of their own."""
    message = client.beta.messages.create(
        model="any",
        max_tokens=2000,
        messages=HI,
        betas=["context-management-2025-06-27", "interleaved-thinking-2025-05-14"],
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        thinking={"type": "adaptive"},
        metadata={"user_id": "user_1"},
    )
    assert [block.type for block in message.content] == ["thinking", "text"]
    counted = client.beta.messages.count_tokens(model="any", messages=HI, thinking={"type": "adaptive"})
    assert counted.input_tokens == message.usage.input_tokens + message.usage.cache_read_input_tokens
    with pytest.raises(anthropic.BadRequestError, match="mcp_servers"):
        client.beta.messages.create(
            model="any", max_tokens=9, messages=HI, mcp_servers=[{"type": "url", "name": "x", "url": "https://x.y"}]
        )


@BOTH_WAYS
def test_the_stop_sequence_that_was_written_is_told(client, way):
    """A client could not tell which of its stop sequences ended the answer."""
    message = way(client, stop_sequences=["unheard of", " lazy", " dog"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " lazy")
    assert message.content[0].text == ANSWER.partition(" lazy")[0]


@BOTH_WAYS
@pytest.mark.parametrize(
    ("thinking", "blocks"),
    [
        (None, ["text"]),
        ({"type": "disabled"}, ["text"]),
        ({"type": "between_tools"}, ["text"]),
        ({"type": "adaptive"}, ["thinking", "text"]),
        (THINKING, ["thinking", "text"]),
        ({**THINKING, "display": "omitted"}, ["thinking", "text"]),
    ],
)
def test_a_model_thinks_when_it_is_asked_to(client, way, thinking, blocks):
    """A client would wait for thoughts that it does not want, or miss those that it wants."""
    message = way(client, max_tokens=2000, **({} if thinking is None else {"thinking": thinking}))
    assert [block.type for block in message.content] == blocks
    assert message.content[-1].text.strip() == ANSWER
    if "thinking" in blocks:
        is_omitted = thinking.get("display") == "omitted"
        assert message.content[0].thinking.strip() == ("" if is_omitted else THOUGHT)
        assert message.content[0].signature


@BOTH_WAYS
def test_the_answer_follows_a_schema(client, way):
    """Structured output would be any text."""
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    config = {"format": {"type": "json_schema", "schema": schema}, "effort": "low"}
    message = way(client, extra_body={"output_config": config, "temperature": 0})
    assert json.loads(message.content[0].text) == {"a": 1}


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ({"type": "auto", "disable_parallel_tool_use": True}, True),
        ({"type": "any"}, True),
        ({"type": "tool", "name": TOOL_NAME}, True),
        ({"type": "none"}, False),
    ],
)
def test_the_choice_of_tools_is_the_clients(client, choice, called):
    """A model would call a tool that it must not, or none where it must."""
    message = ask(client, tools=[TOOL, OTHER_TOOL], tool_choice=choice)
    assert [block.type for block in message.content] == (["tool_use"] if called else ["text"])
    if called:
        assert (message.stop_reason, message.content[0].input) == ("tool_use", {"city": "Paris"})


def test_tools_that_clients_run_are_offered_and_those_of_servers_are_not(client):
    """A coding agent would find that the model has never heard of its bash."""
    count = client.messages.count_tokens
    bare = count(model="any", messages=HI).input_tokens
    server: Any = [{"type": "web_search_20250305", "name": "web_search"}]
    own: Any = [{"type": "bash_20250124", "name": "bash"}]
    assert count(model="any", messages=HI, tools=server).input_tokens == bare
    assert count(model="any", messages=HI, tools=own).input_tokens > bare
    assert ask(client, tools=[*server, *own, OTHER_TOOL]).content[0].text == ANSWER


def turn(n: int, messages: list[Any]) -> dict[str, Any]:
    """What Claude Code sends: a billing line of its own each turn, and a cache breakpoint that wanders."""
    marked = [*messages[:-1], {"role": "user", "content": [{**messages[-1], "cache_control": {"type": "ephemeral"}}]}]
    billing = f"x-anthropic-billing-header: cc_version=2.1.{n}; cc_entrypoint=cli; cch={n:05x};"
    return {
        "system": [
            {"type": "text", "text": billing},
            {"type": "text", "text": "You are an agent. " * 20, "cache_control": {"type": "ephemeral"}},
        ],
        "messages": marked,
    }


def cached_share(client: anthropic.Anthropic) -> float:
    """Run two turns of a conversation; return how much of the first one's prompt the second found in the cache."""
    first = ask(client, **turn(1, [{"type": "text", "text": "first question"}]))
    history = [user({"type": "text", "text": "first question"}), assistant(first.content[0].text)]
    second = ask(client, **turn(2, [*history, {"type": "text", "text": "second question"}]))
    n_first = first.usage.input_tokens + first.usage.cache_read_input_tokens
    return float(second.usage.cache_read_input_tokens / n_first)


def test_a_turn_of_claude_code_reads_only_what_is_new(client):
    """Each turn of an agent would read its whole prompt again: minutes on a small machine."""
    assert cached_share(client) >= 1


def test_the_billing_header_can_be_kept(llama_server_binary, tiny_model, tmp_path):
    """An operator who wants the prompt as it was sent could not have it."""
    with (
        running_router(tmp_path, AUXOT_KEEP_BILLING_HEADER="true", AUXOT_MAX_PARALLEL="1") as house,
        running_worker(house, AUXOT_LLAMA_BINARY=str(llama_server_binary), AUXOT_MODEL_FILE=str(tiny_model)),
        anthropic.Anthropic(base_url=f"{house.url}/api/anthropic", api_key=API_KEY, max_retries=0) as client,
    ):
        house.wait_health(workers=1)
        assert cached_share(client) < 0.5


def test_a_full_context_is_told(client):
    """A client would take an answer that was cut for want of room for a whole one."""
    messages = [user({"type": "text", "text": "x" * (CTX_SIZE - 200)})]
    message = ask_streaming(client, max_tokens=100_000, messages=messages, extra_body={"ignore_eos": True})
    assert message.stop_reason == "model_context_window_exceeded"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_told_before_the_answer_begins(client, stream):
    """An agent would not compact its history, or take a broken stream for a fault of the network."""
    messages: Any = [{"role": "user", "content": "x" * (CTX_SIZE + 1)}]
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > \d+ maximum"):
        ask(client, messages=messages, stream=stream)


@pytest.mark.parametrize(
    "block",
    [
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}},
        {"type": "document", "source": {"type": "url", "url": "https://example.com/x.pdf"}},
        {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
    ],
)
def test_what_the_model_cannot_see_is_a_bad_request(client, block):
    """A picture or a paper would be left out silently, and the answer be about nothing."""
    with pytest.raises(anthropic.BadRequestError):
        ask(client, messages=[user(block)])


@pytest.mark.parametrize(
    "content",
    ["\x00", "a\x00b" * 50, "\U0001f600", "\ufeff\u202e\uffff", "<|im_start|>"],
    ids=["nul", "nuls", "emoji", "marks", "control token"],
)
def test_strange_text_is_answered(client, content):
    """One character in a file that an agent reads would end its session."""
    assert ask(client, messages=[{"role": "user", "content": content}]).content[0].text == ANSWER


def test_five_hundred_tools_are_answered(client):
    """An agent with many servers of tools would get a fault in place of a reason."""
    tools: Any = [{**OTHER_TOOL, "name": f"tool_{index}"} for index in range(500)]
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        ask(client, tools=tools)


def test_ten_megabytes_are_answered(client):
    """A very long prompt would be a fault of the server, or never be answered."""
    with pytest.raises(anthropic.APIStatusError) as caught:
        ask(client, messages=[{"role": "user", "content": "word " * 2_000_000}])
    assert caught.value.status_code in (400, 413)


BAD_BODIES = [b"{", b"[]", b'{"messages": "\\ud800"}', b'{"model":"\xff"}', b'{"a":' * 2000 + b"1" + b"}" * 2000]


@pytest.mark.parametrize("path", ["messages", "messages/count_tokens"])
@pytest.mark.parametrize("body", BAD_BODIES)
def test_a_broken_body_is_a_bad_request(house, path, body):
    """A broken client would look like a broken server."""
    headers = {"x-api-key": API_KEY, "content-type": "application/json"}
    answer = httpx.post(f"{house.url}/v1/{path}", content=body, headers=headers, trust_env=False)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.json()["request_id"] == answer.headers["request-id"]


def test_batches_are_refused_in_words(client, house):
    """A client of batches would get an answer that it cannot read."""
    batches = client.messages.batches
    calls = [
        lambda: batches.create(requests=[]),
        lambda: list(batches.list()),
        lambda: batches.retrieve("msgbatch_1"),
        lambda: batches.cancel("msgbatch_1"),
        lambda: batches.delete("msgbatch_1"),
    ]
    for call in calls:
        with pytest.raises(anthropic.APIStatusError, match="batches are not supported") as caught:
            call()
        assert caught.value.status_code == 501
    results = f"{house.url}/v1/messages/batches/msgbatch_1/results"
    assert httpx.get(results, headers={"x-api-key": API_KEY}, trust_env=False).status_code == 501
    assert httpx.get(results, trust_env=False).status_code == 401
