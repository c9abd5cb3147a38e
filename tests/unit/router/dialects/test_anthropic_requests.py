"""What the readers of Anthropic's requests promise of any request; single cases stand in the golden files."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auxot.core import protocol
from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import Finish, Finished, FinishReason, Job, Kind, Transcript, Usage
from auxot.router.dialects import anthropic_fields as table
from auxot.router.dialects.anthropic import ANTHROPIC, ANTHROPIC_COUNT, AnthropicCount, AnthropicMessages
from auxot.router.dialects.anthropic_history import BILLING_HEADER

HI: Any = [{"role": "user", "content": "Hi"}]
MINIMUM: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": HI}
BOTH = pytest.mark.parametrize("dialect", [ANTHROPIC, ANTHROPIC_COUNT], ids=lambda dialect: dialect.name)
TYPES = (table.BLOCKS, table.TOOLS, table.THINKING, table.TOOL_CHOICES, table.IMAGE_SOURCES, table.DOCUMENT_SOURCES)

NAMES = st.sampled_from(
    sorted(
        {field for part in TYPES for entry in part.values() for field in entry.fields}
        | {*table.REQUEST, *table.MESSAGES, *table.OUTPUT_CONFIG, "type", "schema"}
    )
)
WORDS = st.sampled_from(
    sorted(
        {kind for part in TYPES for kind in part}
        | {"user", "assistant", "system", "json_schema", "text/plain", "image/png", "/w==", '{"a": [1', ""}
    )
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(), max_size=5),  # lone surrogates too
    WORDS,
)
SHAPES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=15
)
BLOCKS = st.fixed_dictionaries({"type": WORDS}, optional=dict.fromkeys(("text", "source", "content", "input"), SHAPES))
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.lists(BLOCKS | SHAPES, max_size=4)}
)


def check(dialect: Any, body: bytes) -> None:
    """Read a body; all that may come of it is a job that can be sent, or a refusal that can be told."""
    outcome = parse_or_refuse(dialect, body)
    if isinstance(outcome, RefusedError):
        assert outcome.code is ErrorCode.INVALID_REQUEST
        assert json.loads(dialect.error_body(outcome, request_id="r"))
    else:
        assert protocol.decode_job(protocol.encode(outcome)) == outcome


def parse_or_refuse(dialect: Any, body: bytes) -> Job | RefusedError:
    try:
        job: Job = dialect.parse(body, job_id="a-1", now=0).job
    except RefusedError as error:
        return error
    return job


@BOTH
@settings(max_examples=400, deadline=None)
@given(fields=st.dictionaries(NAMES, SHAPES, max_size=4))
def test_no_request_is_a_fault_of_ours(dialect, fields):
    """A request that nobody thought of would be answered with a 500."""
    check(dialect, json.dumps({**MINIMUM, **fields}).encode())


@BOTH
@settings(max_examples=400, deadline=None)
@given(messages=st.lists(MESSAGES, min_size=1, max_size=4))
def test_no_conversation_is_a_fault_of_ours(dialect, messages):
    """A block in a shape that nobody thought of would be answered with a 500."""
    check(dialect, json.dumps({**MINIMUM, "messages": messages}).encode())


@BOTH
@settings(max_examples=200, deadline=None)
@given(start=st.integers(0, 60), end=st.integers(0, 60), noise=st.binary(max_size=6))
def test_no_bytes_are_a_fault_of_ours(dialect, start, end, noise):
    """A body that was cut or garbled on its way would be answered with a 500."""
    body = json.dumps(MINIMUM).encode()
    check(dialect, body[:start] + noise + body[end:])


DEEP_ARRAY = "[" * 900 + "]" * 900
DEEP_RESULT = '{"type":"tool_result","tool_use_id":"a","content":[' * 150 + "]}" * 150


@BOTH
@pytest.mark.parametrize(
    ("fields", "deep"),
    [
        ({"messages": "DEEP"}, DEEP_ARRAY),
        ({"system": "DEEP"}, DEEP_ARRAY),
        ({"metadata": "DEEP"}, DEEP_ARRAY),
        ({"tools": [{"name": "f", "input_schema": {"a": "DEEP"}}]}, DEEP_ARRAY),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"a": "DEEP"}}}}, DEEP_ARRAY),
        ({"messages": [{"role": "user", "content": ["DEEP"]}]}, DEEP_RESULT),
        (
            {"messages": [*HI, {"role": "assistant", "content": [{"type": "tool_use", "input": {"a": "DEEP"}}]}]},
            DEEP_ARRAY,
        ),
    ],
)
def test_no_depth_is_a_fault_of_ours(dialect, fields, deep):
    """A body that is nested too deep would be answered with a 500, or end the process."""
    check(dialect, json.dumps({**MINIMUM, **fields}).replace('"DEEP"', deep).encode())


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"type": "tool_use", "id": "a", "name": "f", "input": "ls -l"}, "messages.1.content.0.input: must be"),
        ({"type": "tool_use", "id": "a", "name": "f", "input": [1]}, "messages.1.content.0.input: must be"),
        ({"type": "tool_use", "id": "a", "name": "f", "input": "[1]"}, "messages.1.content.0.input: must be"),
        ({"type": "tool_use", "name": "f", "input": {}}, "messages.1.content.0.id: Field required"),
        ({"type": "tool_use", "id": "a", "input": {}}, "messages.1.content.0.name: Field required"),
        ({"type": "image", "source": {}}, "messages.1.content.0.type: must be one of text, thinking, tool_use"),
        ({"type": "thinking"}, "messages.1.content.0.thinking: Field required"),
    ],
)
def test_a_broken_block_of_the_history_is_named(message, told):
    """An agent's session would fail each turn, and nobody know which block it is."""
    messages = [*HI, {"role": "assistant", "content": [message]}, {"role": "user", "content": "go on"}]
    with pytest.raises(RefusedError) as caught:
        ANTHROPIC.parse(json.dumps({**MINIMUM, "messages": messages}).encode(), job_id="a-1", now=0)
    assert caught.value.message.startswith(told)


def job_of(dialect: Any, **fields: Any) -> Job:
    job: Job = dialect.parse(json.dumps({**MINIMUM, **fields}).encode(), job_id="a-1", now=0).job
    return job


BILLING = f"{BILLING_HEADER} cc_version=2.1.37; cch=0a1b2;"


@pytest.mark.parametrize("kind", [AnthropicMessages, AnthropicCount])
@pytest.mark.parametrize(
    "given",
    [
        {"system": BILLING + "\nBe brief."},
        {"system": BILLING + "\n\nBe brief."},
        {"system": [{"type": "text", "text": BILLING}, {"type": "text", "text": "Be brief."}]},
        {"system": [{"type": "text", "text": BILLING + "\nBe brief."}]},
        {"messages": [{"role": "system", "content": BILLING + "\nBe brief."}, *HI]},
    ],
)
def test_the_billing_header_is_removed_unless_it_is_kept(kind, given):
    """No prompt of an agent would begin like the one before it, or an operator could not have the line."""
    assert job_of(kind(), **given) == job_of(kind(), system="Be brief.")
    assert BILLING in job_of(kind(keep_billing_header=True), **given).messages[0].content


def test_only_the_head_of_a_system_text_is_the_billing_header():
    """A text that speaks of the header would lose a line."""
    for text in (f"Beware of\n{BILLING}", f" {BILLING}"):
        assert job_of(ANTHROPIC, system=text).messages[0].content == text
    alone = job_of(ANTHROPIC, system=BILLING)
    assert [message.role for message in alone.messages] == ["user"]


TEXTS = st.text("ab \n", min_size=1, max_size=5)
CALLS = st.builds(
    lambda number, inputs: {"type": "tool_use", "id": f"t{number}", "name": "f", "input": inputs},
    st.integers(0, 9),
    st.dictionaries(TEXTS, TEXTS, max_size=3),
)


@settings(max_examples=100, deadline=None)
@given(
    turns=st.lists(st.tuples(TEXTS, TEXTS, st.none() | CALLS), min_size=1, max_size=5),
    billing=st.lists(st.integers(0, 99999), min_size=2, max_size=2),
)
def test_each_turn_begins_like_the_one_before_it(turns, billing):
    """A worker would read the whole prompt of an agent anew each turn."""
    messages: list[Any] = []
    for asked, answered, call in turns:
        messages.append({"role": "user", "content": [{"type": "text", "text": asked}]})
        blocks: list[Any] = [{"type": "text", "text": answered}]
        messages.append({"role": "assistant", "content": [*blocks, call] if call else blocks})
        if call:
            result = {"type": "tool_result", "tool_use_id": call["id"], "content": "x"}
            messages.append({"role": "user", "content": [result]})
            messages.append({"role": "assistant", "content": "done"})
    prompts: list[list[bytes]] = []
    for n_messages, number in zip((len(messages) - 2, len(messages)), billing, strict=True):
        history = [*messages[:n_messages], {"role": "user", "content": [{"type": "text", "text": "next"}]}]
        history[-1]["content"][0]["cache_control"] = {"type": "ephemeral"}
        system = [{"type": "text", "text": f"{BILLING_HEADER} cch={number};"}, {"type": "text", "text": "Be brief."}]
        job = job_of(
            ANTHROPIC, system=system, messages=history, tools=[{"name": "f", "input_schema": {"b": 1, "a": 2}}]
        )
        prompts.append([protocol.encode(Job(job_id="", messages=(each,))) for each in job.messages])
        assert list(job.tools[0].function.parameters) == ["b", "a"]
    shorter, longer = prompts
    assert longer[: len(shorter) - 1] == shorter[:-1]


def test_a_count_asks_for_the_very_prompt_of_the_messages():
    """A count would differ from the usage of the same request, or generate an answer."""
    fields = {
        "system": "Be brief.",
        "tools": [{"name": name, "input_schema": {}} for name in "ab"],
        "tool_choice": {"type": "tool", "name": "b"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "output_config": {"effort": "low"},
        "stream": True,
    }
    counted, asked = job_of(ANTHROPIC_COUNT, **fields), job_of(ANTHROPIC, **fields)
    assert (counted.kind, asked.kind) == (Kind.COUNT, Kind.CHAT)
    for name in ("messages", "tools", "reasoning_effort"):
        assert getattr(counted, name) == getattr(asked, name)
    for name in ("chat_template_kwargs", "tool_choice"):
        assert counted.params[name] == asked.params[name]
    assert counted.max_tokens is None


def test_a_count_needs_no_limit_and_never_streams():
    """A request that is whole for the count would be refused, or answered in events."""
    body = json.dumps({"model": "m", "messages": HI, "stream": True}).encode()
    request = ANTHROPIC_COUNT.parse(body, job_id="a-1", now=0)
    assert not request.stream
    transcript = Transcript()
    transcript.add(Finished((Finish(FinishReason.STOP),), Usage(prompt_tokens=42, cached_tokens=40)))
    assert json.loads(ANTHROPIC_COUNT.response(request, transcript)) == {"input_tokens": 42}
