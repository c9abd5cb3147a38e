"""The table of what a request may hold: complete by the official SDK's types, and true."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import typing_extensions
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_tokens_params
from anthropic.types.beta import message_create_params as beta_create_params

from auxot.core import protocol
from auxot.core.errors import ErrorCode, RefusedError
from auxot.router.dialects import anthropic_fields as table
from auxot.router.dialects.anthropic import ANTHROPIC, ANTHROPIC_COUNT
from auxot.router.dialects.anthropic_tools import CLIENT_TOOLS
from auxot.router.dialects.field_table import Status

MINIMUM: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}

REQUESTS = [
    message_create_params.MessageCreateParamsNonStreaming,
    message_create_params.MessageCreateParamsStreaming,
    message_count_tokens_params.MessageCountTokensParams,
    beta_create_params.MessageCreateParamsNonStreaming,
    beta_create_params.MessageCreateParamsStreaming,
    beta_count_tokens_params.MessageCountTokensParams,
]


def members_of(hint: Any) -> Iterator[Any]:
    """Yield the classes and literals of a hint, through unions, optionals, lists and annotations."""
    if typing_extensions.is_typeddict(hint) or not typing.get_args(hint) or typing.get_origin(hint) is typing.Literal:
        yield hint
    else:
        for member in typing.get_args(hint):
            yield from members_of(member)


def fields_of(request: Any) -> dict[str, Any]:
    return typing_extensions.get_type_hints(request)


def objects_at(*names: str) -> list[Any]:
    """Return every typed object that the SDK lets stand at a place, such as `messages`, `content`."""
    found = [*REQUESTS]
    for name in names:
        hints = [fields_of(holder)[name] for holder in found if name in fields_of(holder)]
        found = [each for hint in hints for each in members_of(hint) if typing_extensions.is_typeddict(each)]
    assert found
    return list(dict.fromkeys(found))


def kinds_of(typed: Any) -> list[str]:
    """Return the values of an object's `type`."""
    literals = [each for each in members_of(fields_of(typed)["type"]) if each is not types.NoneType]
    return [word for literal in literals for word in typing.get_args(literal)]


def unknown(typed: Any, entries: Any) -> set[str]:
    """Return what of an object with a `type` the table does not know, as `type` or `type.field`."""
    missing: set[str] = set()
    for kind in kinds_of(typed):
        if kind not in entries:
            missing.add(kind)
        elif entries[kind].status is Status.HONOURED:
            missing |= {f"{kind}.{name}" for name in {*fields_of(typed)} - {"type"} - {*entries[kind].fields}}
    return missing


@pytest.mark.parametrize("request_type", REQUESTS, ids=lambda each: f"{each.__module__}.{each.__name__}"[16:])
def test_every_field_of_a_request_is_in_the_table(request_type):
    """A new SDK has a field of which nobody has decided what becomes of it."""
    assert len(fields_of(request_type)) > 8
    assert {*fields_of(request_type)} - {*table.REQUEST} == set()


def test_every_field_of_a_message_is_in_the_table():
    """A new SDK has a field of which nobody has decided what becomes of it."""
    for message in objects_at("messages"):
        assert {*fields_of(message)} - {*table.MESSAGES} == set()


@pytest.mark.parametrize(
    ("place", "entries", "n_types"),
    [
        (("messages", "content"), table.BLOCKS, 20),
        (("messages", "content", "content"), table.BLOCKS, 5),  # of tool results, and what holds no blocks of ours
        (("system",), table.BLOCKS, 1),
        (("tools",), table.TOOLS, 20),
        (("tool_choice",), table.TOOL_CHOICES, 4),
        (("thinking",), table.THINKING, 4),
        (("output_config", "format"), table.OUTPUT_FORMATS, 1),
    ],
)
def test_every_type_is_in_the_table(place, entries, n_types):
    """A new SDK has a type, or a field of one, of which nobody has decided what becomes of it."""
    found = [each for each in objects_at(*place) if "type" in fields_of(each) and not is_inside_of_ignored(each)]
    assert len(found) >= n_types
    assert set().union(*(unknown(each, entries) for each in found)) == set()


def is_inside_of_ignored(typed: Any) -> bool:
    """Whether it stands in blocks only that are read over, such as the results of a web search."""
    return any(kind.endswith(("_result", "_error")) and kind not in table.BLOCKS for kind in kinds_of(typed))


def test_every_source_is_in_the_table():
    """A new SDK has a source of images or documents of which nobody has decided what becomes of it."""
    blocks = {kind: each for each in objects_at("messages", "content") for kind in kinds_of(each)}
    for block, entries in (("image", table.IMAGE_SOURCES), ("document", table.DOCUMENT_SOURCES)):
        sources = list(members_of(fields_of(blocks[block])["source"]))
        assert len(sources) >= 3
        assert set().union(*(unknown(each, entries) for each in sources)) == set()


def test_every_field_of_the_output_config_is_in_the_table():
    """A new SDK has a field of which nobody has decided what becomes of it."""
    for config in objects_at("output_config"):
        assert {*fields_of(config)} - {*table.OUTPUT_CONFIG} == set()


def test_older_fields_are_still_in_the_table():
    """Clients of older SDKs would lose the fields that the newest one does not have."""
    assert {"temperature", "top_p", "top_k", "output_format"} <= {
        name for name, entry in table.REQUEST.items() if entry.status is Status.HONOURED
    }


def body(**fields: Any) -> bytes:
    return orjson.dumps({**MINIMUM, **fields})


def refusal(dialect: Any = ANTHROPIC, **fields: Any) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        dialect.parse(body(**fields), job_id="a-1", now=0)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    return caught.value


def job_of(dialect: Any = ANTHROPIC, **fields: Any) -> bytes:
    return protocol.encode(dialect.parse(body(**fields), job_id="a-1", now=0).job)


def names_of(entries: Any, status: Status) -> list[str]:
    return [name for name, entry in entries.items() if entry.status is status]


BOTH = pytest.mark.parametrize("dialect", [ANTHROPIC, ANTHROPIC_COUNT], ids=lambda dialect: dialect.name)


@BOTH
@pytest.mark.parametrize("name", names_of(table.REQUEST, Status.REFUSED))
def test_a_refused_field_is_refused_by_name(dialect, name):
    """The table would promise a 400, and the field be dropped silently."""
    error = refusal(dialect, **{name: {"type": "x"}})
    assert (error.param, error.message) == (name, f"{name}: {table.REQUEST[name].note}")
    assert error.message.partition(": ")[2]
    for empty in (None, [], {}):
        assert job_of(dialect, **{name: empty}) == job_of(dialect)


@BOTH
@pytest.mark.parametrize("name", [*names_of(table.REQUEST, Status.IGNORED), "a_field_of_tomorrow"])
@pytest.mark.parametrize("given", ["x", 5, {"type": "x", "edits": [{"type": "y"}]}])
def test_an_ignored_field_changes_no_job(dialect, name, given):
    """The table would call a field harmless that changes the answer, or fails the request."""
    assert job_of(dialect, **{name: given}) == job_of(dialect)


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [*MINIMUM["messages"], {"role": "user", "content": [*blocks]}]}


@pytest.mark.parametrize("kind", names_of(table.BLOCKS, Status.REFUSED))
@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_a_refused_block_is_refused_by_name(kind, role):
    """The table would promise a 400, and a piece of the conversation be dropped silently."""
    messages = [*MINIMUM["messages"], {"role": role, "content": [{"type": "text", "text": "x"}, {"type": kind}]}]
    error = refusal(messages=messages)
    assert error.message == f"messages.1.content.1.type: {table.BLOCKS[kind].note}"


def test_a_refused_block_in_a_result_is_refused_by_name():
    """A piece of a tool's result would be dropped silently."""
    result = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "browser_state", "tabs": []}]}
    assert refusal(**user(result)).param == "messages.1.content.0.content.0.type"


@pytest.mark.parametrize("kind", [*names_of(table.BLOCKS, Status.IGNORED), "tomorrows_tool_result"])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_an_ignored_block_changes_no_job(kind, role):
    """A history with traces of Anthropic's own tools could not be continued here."""
    with_block = [{"type": kind, "content": 5}, {"type": "text", "text": "x"}]
    expected = [*MINIMUM["messages"], {"role": role, "content": "x"}]
    assert job_of(messages=[*expected[:1], {"role": role, "content": with_block}]) == job_of(messages=expected)
    alone = [*MINIMUM["messages"], {"role": role, "content": [{"type": kind}]}]
    assert job_of(messages=alone) == job_of()


@pytest.mark.parametrize(("block", "entries"), [("image", table.IMAGE_SOURCES), ("document", table.DOCUMENT_SOURCES)])
def test_a_refused_source_is_refused_by_name(block, entries):
    """The table would promise a 400, and an image or a document be dropped silently."""
    refused = names_of(entries, Status.REFUSED)
    assert refused
    for kind in refused:
        error = refusal(**user({"type": block, "source": {"type": kind, "file_id": "x", "url": "https://x.y"}}))
        assert error.message == f"messages.1.content.0.source.type: {entries[kind].note}"


@pytest.mark.parametrize("kind", names_of(table.TOOLS, Status.REFUSED))
def test_a_refused_tool_is_refused_by_name(kind):
    """The table would promise a 400, and the model not be offered the tool."""
    error = refusal(tools=[{"name": "f", "input_schema": {}}, {"type": kind}])
    assert error.message == f"tools.1.type: {table.TOOLS[kind].note}"


@pytest.mark.parametrize("kind", [*names_of(table.TOOLS, Status.IGNORED), "a_tool_of_tomorrow", "web_search_20990101"])
def test_an_ignored_tool_changes_no_job(kind):
    """A client that offers a tool of Anthropic's servers would be refused, or the model call what nobody runs."""
    assert job_of(tools=[{"type": kind, "name": "x", "max_uses": 5}]) == job_of()


@pytest.mark.parametrize("kind", [*names_of(table.TOOLS, Status.HONOURED), "bash_20990101", "computer_20990101"])
def test_an_honoured_tool_has_a_schema(kind):
    """A model would not know how to call a tool that the client leaves to it to know."""
    given = {"type": kind, "name": "x", "strict": True, "input_schema": {"type": "object"}}
    request = ANTHROPIC.parse(body(tools=[given]), job_id="a-1", now=0)
    assert [tool.function.name for tool in request.job.tools] == ["x"]
    assert request.job.tools[0].function.parameters["type"] == "object"
    assert request.job.tools[0].function.strict is True


def test_every_client_tool_is_in_the_table():
    """A schema would be kept that nobody can ask for."""
    families = {kind.rpartition("_")[0] for kind in names_of(table.TOOLS, Status.HONOURED)} - {""}
    assert families == {*CLIENT_TOOLS}
    for known in CLIENT_TOOLS.values():
        assert {*known.parameters["required"]} <= {*known.parameters["properties"]}


IGNORED_IN = [
    ("BLOCKS", name, field) for name, entry in table.BLOCKS.items() for field in names_of(entry.fields, Status.IGNORED)
] + [("TOOLS", name, field) for name, entry in table.TOOLS.items() for field in names_of(entry.fields, Status.IGNORED)]
SAMPLES: dict[str, Any] = {
    "text": {"text": "x"},
    "image": {"source": {"type": "url", "url": "https://x.y/z.png"}},
    "document": {"source": {"type": "text", "data": "x"}},
    "search_result": {"title": "x", "source": "y", "content": [{"type": "text", "text": "z"}]},
    "thinking": {"thinking": "x"},
    "tool_use": {"id": "a", "name": "f", "input": {}},
    "tool_result": {"tool_use_id": "a", "content": "x"},
    "compaction": {"content": "x"},
}
ASSISTANTS = ("thinking", "tool_use", "compaction")


@pytest.mark.parametrize(("part", "kind", "field"), IGNORED_IN)
def test_an_ignored_field_of_a_type_changes_no_job(part, kind, field):
    """A cache breakpoint that wanders, or a hint, would change the prompt, or fail the request."""
    jobs: list[bytes] = []
    for more in ({}, {field: {"type": "ephemeral", "ttl": "1h"}}, {field: "x"}):
        if part == "TOOLS":
            jobs.append(job_of(tools=[{"type": kind, "name": "x", "input_schema": {}, **more}]))
        else:
            role = "assistant" if kind in ASSISTANTS else "user"
            blocks = [{"type": kind, **SAMPLES[kind], **more}, {"type": "text", "text": "and"}]
            blocks = blocks if role == "assistant" else blocks[:1]
            jobs.append(job_of(messages=[*MINIMUM["messages"], {"role": role, "content": blocks}]))
    assert jobs[0] == jobs[1] == jobs[2]


def test_the_rows_name_every_entry_once():
    """The table for people would leave out a field, or tell two things of it."""
    names = [row.name for row in table.rows()]
    assert len(names) == len(set(names))
    assert {"mcp_servers", "messages[].content[].document.title", "thinking.enabled.budget_tokens"} <= {*names}
    assert all(row.note for row in table.rows() if row.status is not Status.HONOURED)


NONSENSE: Any = [[5]]  # nothing that a request holds may be this


@pytest.mark.parametrize("name", names_of(table.REQUEST, Status.HONOURED))
def test_an_honoured_field_is_read(name):
    """The table would call a field honoured at which nobody looks."""
    assert str(refusal(**{name: NONSENSE}).param).startswith(name)


HONOURED_IN = [
    ("BLOCKS", name, field) for name, entry in table.BLOCKS.items() for field in names_of(entry.fields, Status.HONOURED)
] + [("TOOLS", name, field) for name, entry in table.TOOLS.items() for field in names_of(entry.fields, Status.HONOURED)]


@pytest.mark.parametrize(("part", "kind", "field"), HONOURED_IN)
def test_an_honoured_field_of_a_type_is_read(part, kind, field):
    """The table would call a field honoured at which nobody looks."""
    if part == "TOOLS":
        given: dict[str, Any] = {"tools": [{"type": kind, "name": "x", field: NONSENSE}]}
    else:
        role = "assistant" if kind in ASSISTANTS else "user"
        block = {"type": kind, **SAMPLES[kind], field: NONSENSE}
        given = {
            "messages": [*MINIMUM["messages"], {"role": role, "content": [block, {"type": "text", "text": "and"}]}]
        }
    place = "tools.0" if part == "TOOLS" else "messages.1.content.0"
    assert str(refusal(**given).param).startswith(f"{place}.{field}")
