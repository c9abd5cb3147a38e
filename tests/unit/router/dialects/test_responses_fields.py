"""The tables of the Responses API know every name of the official SDK, and say what is done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import orjson
import pytest
from openai.types import responses
from openai.types.responses.response_create_params import ResponseCreateParamsBase, ResponseCreateParamsStreaming
from openai.types.responses.response_create_params import ToolChoice as ToolChoiceParam
from openai.types.responses.response_includable import ResponseIncludable
from openai.types.responses.response_input_content_param import ResponseInputContentParam
from openai.types.responses.response_input_item_param import ResponseInputItemParam
from openai.types.responses.response_output_message_param import Content as OutputContentParam
from typing_extensions import get_type_hints, is_typeddict

from auxot.core import protocol
from auxot.core.errors import RefusedError
from auxot.router.dialects.field_table import Status
from auxot.router.dialects.responses_fields import (
    CONTENT_PARTS,
    INCLUDES,
    INPUT_ITEMS,
    REQUEST_FIELDS,
    TOOL_CHOICES,
    TOOLS,
    field_rules,
)
from auxot.router.dialects.responses_request import ResponsesRequest, parse_responses

# What each ignored field may hold.
IGNORED_VALUES = {
    "max_tool_calls": 3,
    "store": True,
    "truncation": "auto",
    "stream_options": {"include_obfuscation": True},
    "service_tier": "flex",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "context_management": [{"type": "compaction", "compact_threshold": 1000}],
    "access_programs": {"cyber": "standard"},
    "image": {"context_compression": "auto"},
}
REFUSED_VALUES = {
    "background": True,
    "conversation": "conv_1",
    "previous_response_id": "resp_1",
    "prompt": {"id": "pmpt_1"},
    "moderation": {"model": "omni-moderation-latest"},
}


def parse(**fields: Any) -> ResponsesRequest:
    body = orjson.dumps({"model": "any", "input": "Hi"} | fields)
    return parse_responses(body, job_id="chatcmpl-0123", now=0)


def members(union: Any) -> Iterator[Any]:
    """Yield the types that a union is made of, at whatever depth."""
    if get_args(union) and not isinstance(union, type) and get_origin(union) is not Literal:
        for member in get_args(union):
            yield from members(member)
    else:
        yield union


def literals(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for argument in get_args(annotation):
            yield from literals(argument)


def types_of(union: Any) -> set[str]:
    """Return the values of `type` that the objects of a union may have."""
    return {
        word
        for member in members(union)
        if is_typeddict(member)
        for word in literals(get_type_hints(member).get("type"))
    }


def names(table: Any, *statuses: Status) -> list[str]:
    return [name for name, rule in table.items() if rule.status in statuses]


def test_every_request_field_is_in_the_table():
    """A new SDK has a request field of which nobody has decided what becomes of it."""
    known = get_type_hints(ResponseCreateParamsBase) | get_type_hints(ResponseCreateParamsStreaming)
    assert set(known) == set(REQUEST_FIELDS)


@pytest.mark.parametrize(
    ("union", "table"),
    [
        (ResponseInputItemParam, INPUT_ITEMS),
        (ResponseInputContentParam | OutputContentParam, CONTENT_PARTS),
        (responses.ToolParam, TOOLS),
        (ToolChoiceParam, TOOL_CHOICES),
    ],
)
def test_every_type_is_in_its_table(union, table):
    """A new SDK has an item, a part, a tool or a choice of which nobody has decided what becomes of it."""
    documented = types_of(union)
    assert len(documented) > 2
    assert documented <= set(table)


def test_every_include_is_in_the_table():
    """A new SDK can ask for something of which nobody has decided what becomes of it."""
    assert set(literals(ResponseIncludable)) == set(INCLUDES)


@pytest.mark.parametrize("name", names(REQUEST_FIELDS, Status.REFUSED))
def test_refused_fields_are_refused_by_name(name):
    """A field that the table refuses would be dropped silently."""
    with pytest.raises(RefusedError) as caught:
        parse(**{name: REFUSED_VALUES[name]})
    assert (caught.value.param, caught.value.code.status) == (name, 400)
    parse(**{name: None})


@pytest.mark.parametrize("name", names(REQUEST_FIELDS, Status.IGNORED))
def test_ignored_fields_change_nothing(name):
    """A field that the table ignores would change the job."""
    assert protocol.encode(parse(**{name: IGNORED_VALUES[name]}).job) == protocol.encode(parse().job)


@pytest.mark.parametrize("kind", [*names(INPUT_ITEMS, Status.REFUSED), "telepathy"])
def test_refused_items_are_refused_by_place(kind):
    """An item that cannot be honoured would be dropped from the conversation."""
    with pytest.raises(RefusedError) as caught:
        parse(input=[{"role": "user", "content": "Hi"}, {"type": kind}])
    assert caught.value.param == "input[1].type"


@pytest.mark.parametrize("kind", names(INPUT_ITEMS, Status.IGNORED))
def test_ignored_items_change_nothing(kind):
    """A record of another server's tool would be taken for a message, or refused."""
    user = {"role": "user", "content": "Hi"}
    assert parse(input=[user, {"type": kind, "id": "x_1"}]).job == parse(input=[user]).job


@pytest.mark.parametrize("kind", [*names(TOOLS, Status.IGNORED), "not_known_yet"])
def test_other_tools_are_tolerated(kind):
    """An agent that offers a tool which cannot run here could not be used at all."""
    request = parse(tools=[{"type": kind}, {"type": "function", "name": "f"}])
    assert [tool.function.name for tool in request.job.tools] == ["f"]
    assert len(request.echo["tools"]) == 2


@pytest.mark.parametrize("kind", [*names(TOOL_CHOICES, Status.REFUSED), "telepathy"])
def test_a_choice_of_another_tool_is_refused(kind):
    """A client that forces a tool which cannot run here would get an answer without it."""
    with pytest.raises(RefusedError) as caught:
        parse(tool_choice={"type": kind})
    assert caught.value.param == "tool_choice.type"


@pytest.mark.parametrize("kind", [*names(CONTENT_PARTS, Status.REFUSED), "telepathy"])
def test_refused_parts_are_refused_by_place(kind):
    """A part of a message would be dropped silently."""
    with pytest.raises(RefusedError) as caught:
        parse(input=[{"role": "user", "content": [{"type": kind}]}])
    assert caught.value.param == "input[0].content[0].type"


def test_the_rows_have_a_reason_for_all_that_is_not_honoured():
    """The API reference would leave its reader without the reason."""
    rows = field_rules()
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.note for row in rows if row.status is not Status.HONOURED)
