"""Reading a request of OpenAI's chat completions: body -> Job.

Every field that we know is checked for its type and range. Of the rest, those in REFUSED_FIELDS would change the
answer in a way that we cannot give and are refused; all others are ignored, as new SDKs send new ones.

Source: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import ChatMessage, Function, FunctionCall, Job, Tool, ToolCall
from auxot.router.dialects.base import ChatRequest
from auxot.router.dialects.fields import Fields, parse_object
from auxot.router.dialects.sampling import OUTPUT_PARAMS, SAMPLING_PARAMS, Reader, read_params, set_thinking

PARAMS: Mapping[str, Reader] = {**SAMPLING_PARAMS, **OUTPUT_PARAMS}
REFUSED_FIELDS: Mapping[str, str] = {
    "audio": "answers in audio are not supported",
    "functions": "is replaced by tools",
    "function_call": "is replaced by tool_choice",
    "web_search_options": "web search is not supported",
}
EFFORTS = frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "max"})

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_IMAGE_SCHEMES = ("data:", "https://", "http://")  # anything else would be a file of the worker's machine


def parse_chat(body: bytes, *, job_id: str, now: float) -> ChatRequest:
    """Read a request; see `Dialect.parse`."""
    fields = Fields(parse_object(body, invalid="invalid JSON: "))
    _check_refused(fields)
    messages = read_messages(fields)
    tools, choice = _read_tool_choice(fields, read_tools(fields))
    effort = fields.word("reasoning_effort", EFFORTS)
    stream_options = fields.object("stream_options")
    job = Job(
        job_id=job_id,
        messages=messages,
        tools=tools,
        temperature=fields.number("temperature", 0, 2),
        max_tokens=_read_max_tokens(fields),
        reasoning_effort=effort,
        params=_read_params(fields, effort) | choice,
    )
    return ChatRequest(
        job=job,
        stream=fields.boolean("stream") or False,
        model=fields.string("model") or "",
        answer_id=job_id,
        created=int(now),
        include_usage=bool(stream_options and stream_options.boolean("include_usage")),
    )


def _check_refused(fields: Fields) -> None:
    for name, reason in REFUSED_FIELDS.items():
        if fields.get(name) is not None:
            raise fields.refused(name, reason)
    if fields.get("modalities") not in (None, ["text"]):
        raise fields.refused("modalities", "only text is supported")


def _read_max_tokens(fields: Fields) -> int | None:
    """Read the limit of the answer's tokens: the newest of its three names wins (`n_predict` is llama-server's)."""
    limits = [fields.integer(name, 1) for name in ("max_completion_tokens", "max_tokens")]
    n_predict = fields.integer("n_predict", -1)
    limits.append(n_predict if n_predict and n_predict > 0 else None)
    return next((limit for limit in limits if limit is not None), None)


def _read_params(fields: Fields, effort: str | None) -> dict[str, Any]:
    params = read_params(fields, PARAMS)
    if effort is not None:
        set_thinking(params, enabled=effort != "none")
    return params


def read_messages(fields: Fields) -> tuple[ChatMessage, ...]:
    """Read the conversation.

    Raises:
        RefusedError: it is missing or empty, or one of its fields is wrong.
    """
    messages = fields.objects("messages")
    if not messages:
        raise RefusedError(ErrorCode.INVALID_REQUEST, "messages array is required", param="messages")
    return tuple(_read_message(message) for message in messages)


def _read_message(message: Fields) -> ChatMessage:
    role = message.word("role", _ROLES)
    if role is None:
        raise message.refused("role", "Field required")
    is_assistant = role == "assistant"
    return ChatMessage(
        role=_ROLES[role],
        content=_read_content(message, optional=is_assistant),
        tool_call_id=message.required_string("tool_call_id") if role == "tool" else None,
        tool_calls=_read_tool_calls(message) if is_assistant else (),
        name=message.string("name"),
        reasoning_content=message.string("reasoning_content") if is_assistant else None,
    )


def _read_content(message: Fields, *, optional: bool) -> Any:
    """Read a message's content: a string, or parts rebuilt from the fields that we know."""
    content = message.get("content")
    if type(content) is str:
        return content
    if content is None:
        if optional:
            return message.string("refusal")  # what the model said, in a field of its own
        raise message.refused("content", "Field required")
    if type(content) is not list:
        raise message.refused("content", "must be a string or an array of parts")
    parts = message.objects("content")
    return [_read_part(part) for part in parts or ()]


def _read_part(part: Fields) -> dict[str, Any]:
    kind = part.string("type")
    if kind == "text":
        return {"type": "text", "text": _text(part, "text")}
    if kind == "refusal":
        return {"type": "text", "text": _text(part, "refusal")}
    if kind == "image_url":
        return _read_image(part)
    if kind == "input_audio":
        audio = part.required_object("input_audio")
        return {
            "type": kind,
            "input_audio": {"data": _base64(audio, "data"), "format": audio.required_string("format")},
        }
    if kind == "file":
        raise part.refused("type", "files are not supported: send their text")
    raise part.refused("type", "must be one of image_url, input_audio, text")


def _text(part: Fields, name: str) -> str:
    text = part.string(name)
    if text is None:
        raise part.refused(name, "Field required")
    return text


def _base64(audio: Fields, name: str) -> str:
    encoded = audio.required_string(name)
    if ":" in encoded:
        raise audio.refused(name, "must be base64")
    return encoded


def _read_image(part: Fields) -> dict[str, Any]:
    """Read an image part; a bare address in place of the object is common, and tolerated."""
    image = part.get("image_url")
    if type(image) is str:
        image = {"url": image}
        part = Fields({**part.raw, "image_url": image}, part.path, part.dotted)
    fields = part.required_object("image_url")
    check_image_url(fields, "url")
    detail = fields.string("detail")
    return {"type": "image_url", "image_url": {"url": fields.get("url"), **({"detail": detail} if detail else {})}}


def check_image_url(fields: Fields, name: str) -> None:
    """Refuse an image's address that is neither a data URL nor on the web."""
    url = fields.required_string(name)
    if not url[:8].lower().startswith(_IMAGE_SCHEMES):
        raise fields.refused(name, "must be a data:, https: or http: URL")


def _read_tool_calls(message: Fields) -> tuple[ToolCall, ...]:
    return tuple(_read_tool_call(call) for call in message.objects("tool_calls") or ())


def _read_tool_call(call: Fields) -> ToolCall:
    if call.get("type") not in (None, "function"):
        raise call.refused("type", "must be function")
    function = call.required_object("function")
    return ToolCall(
        id=call.string("id") or "",
        function=FunctionCall(name=function.required_string("name"), arguments=_read_arguments(function)),
    )


def _read_arguments(function: Fields) -> str:
    """Read a call's arguments: JSON text, or none for a function without parameters.

    Text that is no JSON is refused here by name: a chat template that parses it would fail each later turn too.
    """
    arguments = function.string("arguments")
    if not arguments:
        return "{}"
    try:
        orjson.loads(arguments)
    except orjson.JSONDecodeError as exc:
        raise function.refused("arguments", "must be JSON") from exc
    return arguments


def read_tools(fields: Fields) -> tuple[Tool, ...]:
    """Read the functions that the model may call."""
    return tuple(_read_tool(tool) for tool in fields.objects("tools") or ())


def _read_tool(tool: Fields) -> Tool:
    if tool.get("type") != "function":
        raise tool.refused("type", "must be function")
    function = tool.required_object("function")
    return Tool(
        function=Function(
            name=function.required_string("name"),
            description=function.string("description"),
            parameters=function.opaque_object("parameters"),
            strict=function.boolean("strict"),
        )
    )


def _read_tool_choice(fields: Fields, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], dict[str, str]]:
    """Apply `tool_choice`.

    llama-server knows `auto`, `none` and `required` only, and shows the model all tools whatever is chosen. So a
    choice among the tools becomes a shorter list of tools, and `none` becomes no tools.

    Returns:
        The tools to offer, and `{"tool_choice": ...}` for `job.params`, or an empty dict.
    """
    choice = fields.get("tool_choice")
    if choice is None:
        return tools, {}
    if type(choice) is str:
        mode = fields.word("tool_choice", ("auto", "none", "required"))
        return offer_tools(fields, tools, mode or "auto")
    chosen = fields.required_object("tool_choice")
    kind = chosen.word("type", ("function", "allowed_tools"))
    if kind == "function":
        name = chosen.required_object("function").required_string("name")
        return offer_tools(fields, select_tools(chosen, tools, {name}), "required")
    allowed = chosen.required_object("allowed_tools")
    names = {item.required_object("function").required_string("name") for item in allowed.objects("tools") or ()}
    mode = allowed.word("mode", ("auto", "required"))
    return offer_tools(fields, select_tools(chosen, tools, names), mode or "auto")


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
