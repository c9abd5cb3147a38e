"""Reading the tools of an OpenAI request, and the choice among them; `functions` are tools under their old name.

llama-server knows the choices `auto`, `none` and `required` only, and shows the model all tools whatever is chosen. So
a choice among the tools becomes a shorter list of tools, and `none` becomes no tools.

Source: https://platform.openai.com/docs/guides/function-calling
"""

from __future__ import annotations

import attrs

from auxot.core.jobs import Function, Tool
from auxot.router.dialects.fields import Fields
from auxot.router.dialects.openai_fields import NO_CUSTOM

_MODES = ("auto", "none", "required")


@attrs.frozen(kw_only=True)
class Offer:
    """What the model may call.

    Attributes:
        tools: the tools to offer.
        params: `tool_choice` and `parallel_tool_calls` as llama-server knows them, for `job.params`.
        uses_functions: the client asked with `functions`, and expects `function_call` in the answer.
    """

    tools: tuple[Tool, ...]
    params: dict[str, str | bool]
    uses_functions: bool = False


def read_offer(fields: Fields) -> Offer:
    """Read `tools` and `tool_choice`, or `functions` and `function_call` in their place.

    Raises:
        RefusedError: one of them is wrong, or both forms are used.
    """
    if fields.get("functions") is None:
        if fields.get("function_call") is not None:
            raise fields.refused("function_call", "needs functions")
        tools, choice = _read_tool_choice(fields, read_tools(fields))
        return Offer(tools=tools, params={**choice})
    if fields.get("tools") is not None:
        raise fields.refused("functions", "cannot be used together with tools")
    tools, choice = _read_function_choice(fields, _read_functions(fields))
    params: dict[str, str | bool] = {**choice}
    if tools:
        params["parallel_tool_calls"] = False  # the answer has room for one call
    return Offer(tools=tools, params=params, uses_functions=True)


def read_tools(fields: Fields) -> tuple[Tool, ...]:
    """Read the functions that the model may call."""
    return tuple(_read_tool(tool) for tool in fields.objects("tools") or ())


def _read_tool(tool: Fields) -> Tool:
    refuse_custom(tool)
    if tool.get("type") != "function":
        raise tool.refused("type", "must be function")
    return Tool(function=_read_function(tool.required_object("function")))


def refuse_custom(fields: Fields) -> None:
    """Refuse a tool, a call or a choice of a tool that takes free text."""
    if fields.get("type") == "custom":
        raise fields.refused("custom", NO_CUSTOM)


def _read_function(function: Fields) -> Function:
    return Function(
        name=function.required_string("name"),
        description=function.string("description"),
        parameters=function.opaque_object("parameters"),
        strict=function.boolean("strict"),
    )


def _read_functions(fields: Fields) -> tuple[Tool, ...]:
    return tuple(Tool(function=_read_function(function)) for function in fields.objects("functions") or ())


def _read_tool_choice(fields: Fields, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], dict[str, str]]:
    choice = fields.get("tool_choice")
    if choice is None:
        return tools, {}
    if type(choice) is str:
        return offer_tools(fields, tools, fields.word("tool_choice", _MODES) or "auto")
    chosen = fields.required_object("tool_choice")
    refuse_custom(chosen)
    kind = chosen.word("type", ("function", "allowed_tools"))
    if kind == "function":
        name = chosen.required_object("function").required_string("name")
        return offer_tools(fields, select_tools(chosen, tools, {name}), "required")
    allowed = chosen.required_object("allowed_tools")
    names = {item.required_object("function").required_string("name") for item in allowed.objects("tools") or ()}
    mode = allowed.word("mode", ("auto", "required"))
    return offer_tools(fields, select_tools(chosen, tools, names), mode or "auto")


def _read_function_choice(fields: Fields, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], dict[str, str]]:
    choice = fields.get("function_call")
    if choice is None:
        return tools, {}
    if type(choice) is str:
        return offer_tools(fields, tools, fields.word("function_call", ("auto", "none")) or "auto")
    chosen = fields.required_object("function_call")
    return offer_tools(fields, select_tools(chosen, tools, {chosen.required_string("name")}), "required")


def select_tools(chosen: Fields, tools: tuple[Tool, ...], names: set[str]) -> tuple[Tool, ...]:
    """Return the tools of these names, all of which must be offered."""
    if not names <= {tool.function.name for tool in tools}:
        raise chosen.refused("", "names a tool that is not in tools")
    return tuple(tool for tool in tools if tool.function.name in names)


def offer_tools(fields: Fields, tools: tuple[Tool, ...], mode: str) -> tuple[tuple[Tool, ...], dict[str, str]]:
    """Return the tools to offer and the `tool_choice` parameter for one of llama-server's modes."""
    if mode == "none":
        return (), {}
    if not tools:
        if mode == "required":
            raise fields.refused("tool_choice", "needs tools")
        return (), {}
    return tools, {"tool_choice": mode}
