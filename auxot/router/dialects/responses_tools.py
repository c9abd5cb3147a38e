"""Tools of the Responses API, as functions that a model of llama-server can be offered.

    function                    -> the function
    custom                      -> a function with one string, `input`
    namespace {name, tools}     -> its tools, each named <namespace>__<name>
    anything else               -> not offered

Answers and the history use the API's own words for a call, so both need to know what an offered name stands for.

Source: https://platform.openai.com/docs/api-reference/responses/create#responses_create-tools
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import orjson

from auxot.core.jobs import Function, Tool
from auxot.router.dialects.base import json_bytes
from auxot.router.dialects.fields import Fields
from auxot.router.dialects.openai_tools import offer_tools, select_tools
from auxot.router.dialects.responses_fields import TOOL_CHOICES, check_type

_CUSTOM_INPUT = "input"
_CUSTOM_PARAMETERS = {
    "type": "object",
    "properties": {_CUSTOM_INPUT: {"type": "string"}},
    "required": [_CUSTOM_INPUT],
    "additionalProperties": False,
}
_CHOICE_MODES = ("auto", "none", "required")


@attrs.frozen(kw_only=True)
class Offer:
    """What the client calls a tool that the model is offered."""

    name: str
    namespace: str | None = None
    is_custom: bool = False


@attrs.frozen
class Toolbox:
    """The tools that can be offered, and by the offered names what they stand for."""

    tools: tuple[Tool, ...]
    offers: Mapping[str, Offer]

    def find(self, offered: str) -> Offer:
        """Return what an offered name stands for; a name that was never offered is a function's."""
        return self.offers.get(offered) or Offer(name=offered)

    def names_of(self, name: str) -> set[str]:
        """Return the offered names of a tool that the client calls so."""
        return {offered for offered, offer in self.offers.items() if name in (offered, offer.name)}


def offered_name(name: str, namespace: str | None) -> str:
    """Return the name under which the model knows a tool."""
    return f"{namespace}__{name}" if namespace else name


def custom_arguments(text: str) -> str:
    """Return the arguments of the function that a custom tool is offered as."""
    return json_bytes({_CUSTOM_INPUT: text}).decode()


def custom_input(arguments: str) -> str:
    """Return the input of a custom tool's call; arguments in another form are the input themselves."""
    try:
        value = orjson.loads(arguments)[_CUSTOM_INPUT]
    except (orjson.JSONDecodeError, TypeError, KeyError, IndexError):
        return arguments
    return value if type(value) is str else arguments


def read_toolbox(tools: Iterable[Fields]) -> Toolbox:
    """Read the tools of a request; of two that are offered under one name the first one counts.

    Raises:
        RefusedError: a tool that is to be offered has a field that is wrong.
    """
    found: dict[str, tuple[Tool, Offer]] = {}
    for function, offer in (pair for tool in tools for pair in _read_tool(tool, None)):
        found.setdefault(function.name, (Tool(function=function), offer))
    return Toolbox(tuple(tool for tool, _ in found.values()), {offered: offer for offered, (_, offer) in found.items()})


def _read_tool(tool: Fields, namespace: str | None) -> list[tuple[Function, Offer]]:
    kind = tool.required_string("type")
    if kind == "function":
        return [_read_function(tool, namespace)]
    if kind == "custom":
        return [_read_custom(tool, namespace)]
    if kind == "namespace" and namespace is None:
        name = tool.required_string("name")
        return [pair for inner in tool.objects("tools") or () for pair in _read_tool(inner, name)]
    return []


def _read_function(tool: Fields, namespace: str | None) -> tuple[Function, Offer]:
    name = tool.required_string("name")
    function = Function(
        name=offered_name(name, namespace),
        description=tool.string("description"),
        parameters=tool.opaque_object("parameters"),
        strict=tool.boolean("strict"),
    )
    return function, Offer(name=name, namespace=namespace)


def _read_custom(tool: Fields, namespace: str | None) -> tuple[Function, Offer]:
    name = tool.required_string("name")
    description = [tool.string("description") or "", _format_note(tool.object("format"))]
    function = Function(
        name=offered_name(name, namespace),
        description="\n\n".join(filter(None, description)) or None,
        parameters=_CUSTOM_PARAMETERS,
    )
    return function, Offer(name=name, namespace=namespace, is_custom=True)


def _format_note(given: Fields | None) -> str:
    """Tell the model of a grammar: llama-server has no lark, and a grammar of its own would forbid all else."""
    if given is None or given.string("type") != "grammar":
        return ""
    syntax, definition = given.string("syntax") or "", given.string("definition") or ""
    return f"`{_CUSTOM_INPUT}` must follow this {syntax} grammar:\n{definition}"


def choose_tools(fields: Fields, toolbox: Toolbox) -> tuple[tuple[Tool, ...], dict[str, str]]:
    """Apply `tool_choice`.

    Returns:
        The tools to offer, and `{"tool_choice": ...}` for `job.params`, or an empty dict.

    Raises:
        RefusedError: the choice is not understood, or cannot be made among these tools.
    """
    choice = fields.get("tool_choice")
    if choice is None:
        return toolbox.tools, {}
    if type(choice) is str:
        return offer_tools(fields, toolbox.tools, fields.word("tool_choice", _CHOICE_MODES) or "auto")
    chosen = fields.required_object("tool_choice")
    kind = chosen.required_string("type")
    check_type(chosen, kind, TOOL_CHOICES)
    if kind == "allowed_tools":
        return _allow_tools(fields, chosen, toolbox)
    return offer_tools(fields, select_tools(chosen, toolbox.tools, _names(chosen, toolbox)), "required")


def _allow_tools(fields: Fields, chosen: Fields, toolbox: Toolbox) -> tuple[tuple[Tool, ...], dict[str, str]]:
    """Offer some of the tools; those that are never offered may be allowed too."""
    names: set[str] = set()
    for allowed in chosen.objects("tools") or ():
        if allowed.required_string("type") in ("function", "custom"):
            names |= _names(allowed, toolbox)
    mode = chosen.word("mode", ("auto", "required"))
    return offer_tools(fields, select_tools(chosen, toolbox.tools, names), mode or "auto")


def _names(chosen: Fields, toolbox: Toolbox) -> set[str]:
    """Return the offered names of a tool that is chosen by name; its own name if there is none, which is refused."""
    name = chosen.required_string("name")
    return toolbox.names_of(name) or {name}


def echo_tools(tools: Iterable[Fields]) -> list[dict[str, Any]]:
    """Return tools as a response repeats them: as they came, functions with the fields that the API always has."""
    always = {"description": None, "parameters": None, "strict": None}
    return [{**always, **tool.raw} if tool.get("type") == "function" else tool.raw for tool in tools]
