"""Reading the conversation of an OpenAI chat completion.

Content is rebuilt from the fields that we know, so nothing else reaches the worker. The old way of calling functions
(`function_call`, role `function`) is read as a tool call and its result.

Source: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from typing import Any

import orjson

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import ChatMessage, FunctionCall, ToolCall
from auxot.router.dialects.fields import Fields, WebImage
from auxot.router.dialects.openai_tools import refuse_custom
from auxot.router.dialects.repair import repair_json_object

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_WEB_SCHEMES = ("https://", "http://")


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
        content=_read_content(message, is_assistant=is_assistant),
        tool_call_id=_read_call_id(message, role),
        tool_calls=_read_calls(message) if is_assistant else (),
        name=message.string("name"),
        reasoning_content=message.string("reasoning_content") if is_assistant else None,
    )


def _read_call_id(message: Fields, role: str) -> str | None:
    """Read which call a result belongs to; a function's result names the function only."""
    if role == "function":
        return _function_call_id(message.required_string("name"))
    return message.required_string("tool_call_id") if role == "tool" else None


def _function_call_id(name: str) -> str:
    """Return the id of a call that was made without one; its result finds it by the function's name."""
    return f"call_{name}"


def _read_content(message: Fields, *, is_assistant: bool) -> Any:
    """Read a message's content: a string, or parts."""
    content = message.get("content")
    if type(content) is str:
        return content
    if content is None:
        if is_assistant:
            return message.string("refusal")  # what the model said, in a field of its own
        raise message.refused("content", "Field required")
    if type(content) is not list:
        raise message.refused("content", "must be a string or an array of parts")
    return [_read_part(part) for part in message.objects("content") or ()]


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
        encoded = {"data": _base64(audio, "data"), "format": audio.required_string("format")}
        return {"type": kind, "input_audio": encoded}
    if kind == "file":
        raise part.refused("file", "files are not supported: send their text")
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
        part = Fields({"image_url": {"url": image}}, part.path, part.dotted)
    image_url = part.required_object("image_url")
    return {"type": "image_url", "image_url": {"url": read_image_url(image_url, "url")}}


def read_image_url(fields: Fields, name: str) -> str:
    """Read an image's address: a data URL, or a `WebImage`."""
    url = fields.required_string(name)
    scheme = url[:8].lower()
    if scheme.startswith(_WEB_SCHEMES):
        return WebImage(url, field=fields.where(name))
    if not scheme.startswith("data:"):
        raise fields.refused(name, "must be a data:, https: or http: URL")
    return url


def _read_calls(message: Fields) -> tuple[ToolCall, ...]:
    """Read the calls of an assistant's message."""
    if message.get("audio") is not None:
        raise message.refused("audio", "answers in audio are not supported")
    calls = tuple(_read_tool_call(call) for call in message.objects("tool_calls") or ())
    call = message.object("function_call")
    if call is None:
        return calls
    function = _read_call(call)
    return (*calls, ToolCall(id=_function_call_id(function.name), function=function))


def _read_tool_call(call: Fields) -> ToolCall:
    refuse_custom(call)
    if call.get("type") not in (None, "function"):
        raise call.refused("type", "must be function")
    return ToolCall(id=call.string("id") or "", function=_read_call(call.required_object("function")))


def _read_call(call: Fields) -> FunctionCall:
    return FunctionCall(name=call.required_string("name"), arguments=read_arguments(call, "arguments"))


def read_arguments(call: Fields, name: str) -> str:
    """Read a call's arguments: a JSON object as text; the object itself and none at all are tolerated.

    Text that is no object and cannot be repaired is refused here by name: a chat template that parses it would fail
    each later turn too.
    """
    value = call.get(name)
    if type(value) is dict:
        call.check_depth(name, value)
        return orjson.dumps(value).decode()
    arguments = repair_json_object(call.string(name) or "")
    if arguments is None:
        raise call.refused(name, "must be a JSON object")
    return arguments
