"""The tools of a request of Anthropic's messages, and the choice among them.

    custom                              a function with the client's own schema
    bash, text_editor, memory, computer a function with the schema that Anthropic documents: clients run these tools
                                        themselves, but leave it to the model to know them
    web_search, code_execution, ...     left out: they run on Anthropic's servers

What becomes of each type stands in `anthropic_fields`.

Source of the schemas: https://docs.claude.com/en/docs/agents-and-tools/tool-use/overview and the pages of the tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from auxot.core.jobs import Function, Tool
from auxot.router.dialects.anthropic_fields import TOOL_CHOICES, tool_entry
from auxot.router.dialects.field_table import Status
from auxot.router.dialects.fields import Fields
from auxot.router.dialects.openai_tools import offer_tools, select_tools

_MODES = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}  # in llama-server's words


def _string(description: str, *words: str) -> dict[str, Any]:
    return {"type": "string", "description": description} | ({"enum": list(words)} if words else {})


def _numbers(description: str) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2, "description": description}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


_EDITS = {
    "path": _string("Absolute path of the file or folder."),
    "view_range": _numbers("For view: first and last line, counted from 1; -1 is the end."),
    "file_text": _string("For create: the text of the file."),
    "old_str": _string("For str_replace: the text to replace, which must occur once."),
    "new_str": _string("For str_replace: the text to put in its place."),
    "insert_line": {
        "type": "integer",
        "description": "For insert: the line after which to insert; 0 is the beginning.",
    },
    "insert_text": _string("For insert: the text to insert."),
}


@attrs.frozen
class ClientTool:
    """A tool that Anthropic defines and a client runs. `name` is the one that it has if the client gives none."""

    name: str
    description: str
    parameters: Mapping[str, Any]


CLIENT_TOOLS: Mapping[str, ClientTool] = {
    "bash": ClientTool(
        "bash",
        "Run a command in a persistent bash session.",
        _object(
            [],
            command=_string("The command to run; needed unless the session is restarted."),
            restart={"type": "boolean", "description": "True: restart the session."},
        ),
    ),
    "text_editor": ClientTool(
        "str_replace_based_edit_tool",
        "View, create and edit text files.",
        _object(
            ["command", "path"], command=_string("What to do.", "view", "create", "str_replace", "insert"), **_EDITS
        ),
    ),
    "memory": ClientTool(
        "memory",
        "Read and write files below /memories, which are kept between conversations.",
        _object(
            ["command"],
            command=_string("What to do.", "view", "create", "str_replace", "insert", "delete", "rename"),
            **_EDITS,
            old_path=_string("For rename: the path now."),
            new_path=_string("For rename: the path from now on."),
        ),
    ),
    "computer": ClientTool(
        "computer",
        "Use a computer by screenshots, mouse and keyboard.",
        _object(
            ["action"],
            action=_string(
                "What to do.",
                *("screenshot", "cursor_position", "mouse_move", "left_click", "right_click", "middle_click"),
                *("double_click", "triple_click", "left_click_drag", "left_mouse_down", "left_mouse_up"),
                *("scroll", "type", "key", "hold_key", "wait"),
            ),
            coordinate=_numbers("Where: x and y in pixels from the upper left corner."),
            start_coordinate=_numbers("For left_click_drag: where to begin."),
            text=_string("What to type, the keys to press, or the keys to hold meanwhile."),
            scroll_direction=_string("For scroll.", "up", "down", "left", "right"),
            scroll_amount={"type": "integer", "description": "For scroll: how many clicks of the wheel."},
            duration={"type": "number", "description": "For hold_key and wait: seconds."},
        ),
    ),
}
"""By the beginning of their types: `bash` for `bash_20250124`."""


def read_tools(fields: Fields) -> tuple[Tool, ...]:
    """Read the tools to offer, in their order.

    Raises:
        RefusedError: one of their fields is wrong, or one is of a kind that cannot be offered.
    """
    tools = [_read_tool(tool) for tool in fields.objects("tools") or ()]
    return tuple(tool for tool in tools if tool is not None)


def _read_tool(tool: Fields) -> Tool | None:
    """Read a tool; None for one that runs on Anthropic's servers."""
    kind = tool.string("type") or "custom"
    if kind == "custom":
        return _read_custom_tool(tool)
    entry = tool_entry(kind)
    if entry.status is Status.REFUSED:
        raise tool.refused("type", entry.note)
    return _read_client_tool(tool, kind) if entry.status is Status.HONOURED else None


def _read_custom_tool(tool: Fields) -> Tool:
    return Tool(
        function=Function(
            name=tool.required_string("name"),
            description=tool.string("description"),
            parameters=tool.opaque_object("input_schema"),
            strict=tool.boolean("strict"),
        )
    )


def _read_client_tool(tool: Fields, kind: str) -> Tool:
    known = CLIENT_TOOLS[kind.rpartition("_")[0]]
    width, height = (tool.integer(f"display_{side}_px", 1) for side in ("width", "height"))
    screen = f" The screen has {width} x {height} pixels." if width and height else ""
    return Tool(
        function=Function(
            name=tool.string("name") or known.name,
            description=known.description + screen,
            parameters=known.parameters,
            strict=tool.boolean("strict"),
        )
    )


def read_tool_choice(fields: Fields, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], dict[str, Any]]:
    """Apply `tool_choice`; returns the tools to offer and the parameters, as `offer_tools` does."""
    choice = fields.object("tool_choice")
    if choice is None:
        return tools, {}
    kind = choice.word("type", TOOL_CHOICES)
    if kind is None:
        raise choice.refused("type", "Field required")
    if kind == "tool":
        tools = select_tools(choice, tools, {choice.required_string("name")})
    offered, params = offer_tools(fields, tools, _MODES[kind])
    if offered and choice.boolean("disable_parallel_tool_use"):
        return offered, {**params, "parallel_tool_calls": False}
    return offered, params
