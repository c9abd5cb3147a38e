"""The input items of the Responses API, as messages.

The API has an item for each thing that the assistant did; a chat template wants one message a turn:

    instructions, system and developer items at the head   -> one system message
    reasoning, message (assistant), *_call items in a row  -> one assistant message
    *_call_output                                          -> a message of role tool
    message (user), system and developer items later on    -> a message each

Source: https://platform.openai.com/docs/api-reference/responses/create#responses_create-input
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import ChatMessage, FunctionCall, ToolCall
from auxot.router.dialects.base import json_bytes
from auxot.router.dialects.fields import Fields
from auxot.router.dialects.openai_messages import read_arguments, read_image_url
from auxot.router.dialects.responses_fields import CONTENT_PARTS, INPUT_ITEMS, check_type
from auxot.router.dialects.responses_tools import custom_arguments, offered_name

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_SEAL = "auxot1."  # begins what we put into `encrypted_content`; other servers' cannot be read
_ITEMS_WITH_TOOLS = frozenset({"additional_tools", "tool_search_output"})

# Calls of tools that the API knows by name: what they are called, and the field that says what they do.
_BUILT_IN_CALLS = {
    "local_shell_call": ("local_shell", "action"),
    "shell_call": ("shell", "action"),
    "apply_patch_call": ("apply_patch", "operation"),
}


def seal(reasoning: str) -> str:
    """Return reasoning as `encrypted_content`: not secret, but whole and opaque, for clients that keep only that."""
    return _SEAL + base64.b64encode(reasoning.encode("utf-8", "replace")).decode()


def unseal(sealed: str | None) -> str:
    """Return the reasoning in `encrypted_content`; empty if it is not ours."""
    if not sealed or not sealed.startswith(_SEAL):
        return ""
    try:
        return base64.b64decode(sealed[len(_SEAL) :], validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


def read_items(fields: Fields) -> list[Fields]:
    """Read `input` as items: a string is the user's message.

    Raises:
        RefusedError: it is missing, or neither a string nor an array of objects.
    """
    given = fields.get("input")
    if given is None:
        raise RefusedError(ErrorCode.INVALID_REQUEST, "input: Field required", param="input")
    if type(given) is str:
        return [Fields({"role": "user", "content": given}, "input", fields.dotted)]
    if type(given) is not list:
        raise fields.refused("input", "must be a string or an array of items")
    return fields.objects("input") or []


def tools_in_items(items: Sequence[Fields]) -> list[Fields]:
    """Return the tools that came in the middle of the conversation."""
    return [tool for item in items if item.string("type") in _ITEMS_WITH_TOOLS for tool in item.objects("tools") or ()]


def read_messages(items: Sequence[Fields], *, instructions: str | None) -> tuple[ChatMessage, ...]:
    """Read the conversation.

    Raises:
        RefusedError: an item is unknown, cannot be honoured, or has a field that is wrong; or there is none.
    """
    conversation = _Conversation()
    if instructions:
        conversation.add_message("system", instructions)
    for item in items:
        kind = _kind_of(item)
        reader = _READERS.get(kind)
        if reader is not None:
            reader(conversation, item)
    if not conversation.messages:
        raise RefusedError(ErrorCode.INVALID_REQUEST, "input: must not be empty", param="input")
    return tuple(conversation.messages)


def _kind_of(item: Fields) -> str:
    """Return an item's type, which messages and references may leave out; refuses what cannot be honoured."""
    kind = item.string("type")
    if kind is None:
        kind = "message" if "role" in item.raw else "item_reference" if "id" in item.raw else None
    if kind is None:
        raise item.refused("type", "Field required")
    check_type(item, kind, INPUT_ITEMS)
    return kind


@attrs.define
class _Conversation:
    """The messages so far. What the assistant did in a row is put together into its last message."""

    messages: list[ChatMessage] = attrs.field(factory=list)

    def add_message(self, role: str, content: Any) -> None:
        last = self.messages[-1] if self.messages else None
        if role == "assistant":
            self.add_to_assistant(content=content)
        elif role == "system" and last is not None and len(self.messages) == 1 and last.role == "system":
            # Many templates accept one system message only, and only at the head.
            self.messages[-1] = attrs.evolve(last, content=_joined(last.content, content))
        else:
            self.messages.append(ChatMessage(role=role, content=content))

    def add_to_assistant(
        self, *, content: Any = None, call: ToolCall | None = None, reasoning: str | None = None
    ) -> None:
        last = self._open_assistant()
        if content is not None:
            last = attrs.evolve(last, content=content if last.content is None else _joined(last.content, content))
        if call is not None:
            last = attrs.evolve(last, tool_calls=(*last.tool_calls, call))
        if reasoning:
            known = f"{last.reasoning_content}\n\n" if last.reasoning_content else ""
            last = attrs.evolve(last, reasoning_content=known + reasoning)
        self.messages[-1] = last

    def add_output(self, call_id: str, content: Any) -> None:
        self.messages.append(ChatMessage(role="tool", content=content, tool_call_id=call_id))

    def _open_assistant(self) -> ChatMessage:
        """Return the assistant's message at the end, which is begun if there is none."""
        if not self.messages or self.messages[-1].role != "assistant":
            self.messages.append(ChatMessage(role="assistant", content=None))
        return self.messages[-1]


def _joined(first: Any, second: Any) -> Any:
    """Put two contents together: as one text where both are text, else as parts."""
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return _parts(first) + _parts(second)


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _read_message(conversation: _Conversation, item: Fields) -> None:
    role = item.word("role", _ROLES)
    if role is None:
        raise item.refused("role", "Field required")
    conversation.add_message(_ROLES[role], _read_content(item, "content"))


def _read_content(item: Fields, name: str) -> Any:
    """Read a message's content or a call's output: a string, or parts; one part of text is as good as a string."""
    content = item.get(name)
    if type(content) is str:
        return content
    if content is None:
        raise item.refused(name, "Field required")
    if type(content) is not list:
        raise item.refused(name, "must be a string or an array of parts")
    parts = [_read_part(part) for part in item.objects(name) or ()]
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts or ""


def _read_part(part: Fields) -> dict[str, Any]:
    kind = part.required_string("type")
    check_type(part, kind, CONTENT_PARTS)
    if kind == "input_image":
        return _read_image(part)
    if kind == "input_audio":
        audio = part.required_object("input_audio")
        encoded = audio.required_string("data")
        if ":" in encoded:
            raise audio.refused("data", "must be base64")
        return {"type": kind, "input_audio": {"data": encoded, "format": audio.required_string("format")}}
    return {"type": "text", "text": _text(part, "refusal" if kind == "refusal" else "text")}


def _read_image(part: Fields) -> dict[str, Any]:
    if part.get("image_url") is None and part.get("file_id") is not None:
        raise part.refused("file_id", "files are not stored here: send the image as image_url")
    return {"type": "image_url", "image_url": {"url": read_image_url(part, "image_url")}}


def _text(holder: Fields, name: str) -> str:
    text = holder.string(name)
    if text is None:
        raise holder.refused(name, "Field required")
    return text


def _read_reasoning(conversation: _Conversation, item: Fields) -> None:
    """Read what the model thought. Its text, or ours in `encrypted_content`; a summary is not what was thought."""
    texts = [_text(part, "text") for part in item.objects("content") or ()]
    thought = "\n\n".join(filter(None, texts)) or unseal(item.string("encrypted_content"))
    if thought:
        conversation.add_to_assistant(reasoning=thought)


def _read_function_call(conversation: _Conversation, item: Fields) -> None:
    name = offered_name(item.required_string("name"), item.string("namespace"))
    _add_call(conversation, item, FunctionCall(name=name, arguments=read_arguments(item, "arguments")))


def _read_custom_call(conversation: _Conversation, item: Fields) -> None:
    name = offered_name(item.required_string("name"), item.string("namespace"))
    _add_call(conversation, item, FunctionCall(name=name, arguments=custom_arguments(_text(item, "input"))))


def _read_built_in_call(conversation: _Conversation, item: Fields) -> None:
    name, what = _BUILT_IN_CALLS[_text(item, "type")]
    arguments = json_bytes(item.opaque_object(what) or {}).decode()
    _add_call(conversation, item, FunctionCall(name=name, arguments=arguments))


def _add_call(conversation: _Conversation, item: Fields, function: FunctionCall) -> None:
    call_id = item.string("call_id") or item.string("id") or ""
    conversation.add_to_assistant(call=ToolCall(id=call_id, function=function))


def _read_output(conversation: _Conversation, item: Fields) -> None:
    conversation.add_output(item.string("call_id") or item.string("id") or "", _read_content(item, "output"))


def _read_shell_output(conversation: _Conversation, item: Fields) -> None:
    """Read what a shell said: the API's own objects, as JSON."""
    output = item.array("output") or []
    item.check_depth("output", output)
    conversation.add_output(item.string("call_id") or "", json_bytes(output).decode())


def _read_patch_output(conversation: _Conversation, item: Fields) -> None:
    conversation.add_output(item.string("call_id") or "", item.string("output") or item.string("status") or "")


_READERS: Mapping[str, Callable[[_Conversation, Fields], None]] = {
    "message": _read_message,
    "reasoning": _read_reasoning,
    "function_call": _read_function_call,
    "function_call_output": _read_output,
    "custom_tool_call": _read_custom_call,
    "custom_tool_call_output": _read_output,
    **dict.fromkeys(_BUILT_IN_CALLS, _read_built_in_call),
    "local_shell_call_output": _read_output,
    "shell_call_output": _read_shell_output,
    "apply_patch_call_output": _read_patch_output,
}
"""By type: how an item is added. Those without a reader are ignored, or hold tools only."""
