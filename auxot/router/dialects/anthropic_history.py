"""The system prompt and the conversation of a request of Anthropic's messages, as messages for a chat template.

    system, leading system messages     one system message first
    user: text, image, document, ...    one user message
    user: tool_result                   one tool message each, before what stands beside them in a user message
    assistant: text, thinking,          one assistant message: content, reasoning_content, tool_calls
        tool_use

Neighbours of the same role are one turn, as Anthropic has it: many templates insist on turns that alternate, and
llama-server refuses two assistant messages at the end. An assistant message at the end is continued.

Equal conversations must become equal prompts, or workers read them anew each turn: nothing here depends on
`cache_control` (which wanders along with the conversation), arguments keep the order of their keys, and the line that
Claude Code counts its turns with is removed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import attrs
import orjson

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import ChatMessage, FunctionCall, ToolCall
from auxot.router.dialects.anthropic_blocks import (
    Part,
    content_of,
    is_ignored,
    kind_of,
    read_parts,
    read_text,
    text_part,
)
from auxot.router.dialects.fields import Fields
from auxot.router.dialects.repair import repair_json_object

BILLING_HEADER = "x-anthropic-billing-header:"

_ROLES = frozenset({"user", "assistant", "system"})


@attrs.frozen
class _Turn:
    """The blocks of neighbouring messages of one role, message by message."""

    role: str
    messages: list[list[Fields]]

    @property
    def blocks(self) -> list[Fields]:
        return [block for blocks in self.messages for block in blocks]


def read_messages(fields: Fields, *, keep_billing_header: bool) -> tuple[ChatMessage, ...]:
    """Read the system prompt and the conversation.

    Args:
        fields: the body.
        keep_billing_header: leave Claude Code's changing line at the head of the system prompt in its place.

    Raises:
        RefusedError: there are no messages, or one of their fields is wrong.
    """
    messages = fields.objects("messages")
    if not messages:
        raise fields.refused("messages", "Field required")
    system = _read_system(fields, keep_billing_header=keep_billing_header)
    turns = _turns_of(messages)
    if turns and turns[0].role == "system":
        system = _joined([system, _read_system_text(turns.pop(0).blocks, keep_billing_header=keep_billing_header)])
    if not turns:
        raise RefusedError(ErrorCode.INVALID_REQUEST, "messages: at least one must have content", param="messages")
    _check_last(messages[-1], turns[-1])
    conversation = [message for turn in turns for message in _read_turn(turn, keep_billing_header=keep_billing_header)]
    return (ChatMessage(role="system", content=system), *conversation) if system else tuple(conversation)


def _turns_of(messages: list[Fields]) -> list[_Turn]:
    turns: list[_Turn] = []
    for message in messages:
        role = message.word("role", _ROLES)
        if role is None:
            raise message.refused("role", "Field required")
        blocks = [block for block in _blocks_of(message) if not is_ignored(block)]
        if role != "user" and not any(map(_says_something, blocks)):
            continue  # what only Anthropic can read, or a turn that was broken off
        if turns and turns[-1].role == role:
            turns[-1].messages.append(blocks)
        else:
            turns.append(_Turn(role, [blocks]))
    return turns


def _blocks_of(message: Fields) -> list[Fields]:
    content = message.get("content")
    if content is None:
        raise message.refused("content", "Field required")
    if type(content) is str:
        return [Fields({"type": "text", "text": content}, message.where("content"), dotted=True)]
    if type(content) is not list:
        raise message.refused("content", "must be a string or an array of blocks")
    return message.objects("content") or []


def _says_something(block: Fields) -> bool:
    return (block.get("type"), block.get("text")) != ("text", "")


def _check_last(message: Fields, turn: _Turn) -> None:
    """Refuse a conversation that ends in nothing but thoughts: a model continues text."""
    if turn.role == "assistant" and all(kind_of(block) == "thinking" for block in turn.blocks):
        raise message.refused("content", "the last assistant message must hold more than thinking")


def _read_turn(turn: _Turn, *, keep_billing_header: bool) -> list[ChatMessage]:
    if turn.role == "user":
        return _read_user(turn.blocks)
    if turn.role == "assistant":
        return [_read_assistant(turn)]
    text = _read_system_text(turn.blocks, keep_billing_header=keep_billing_header)
    return [ChatMessage(role="system", content=text)] if text else []


def _read_system(fields: Fields, *, keep_billing_header: bool) -> str:
    system = fields.get("system")
    if type(system) is str:
        return system if keep_billing_header else _without_billing_header(system)
    return _read_system_text(fields.objects("system") or (), keep_billing_header=keep_billing_header)


def _read_system_text(blocks: Iterable[Fields], *, keep_billing_header: bool) -> str:
    texts: list[str] = []
    for block in blocks:
        if kind_of(block) != "text":
            raise block.refused("type", "must be text")
        text = read_text(block, "text")
        texts.append(text if keep_billing_header else _without_billing_header(text))
    return _joined(texts)


def _without_billing_header(text: str) -> str:
    """Return a system text without the line at its head that no model needs and that is another one each turn."""
    return text.partition("\n")[2].lstrip("\n") if text.startswith(BILLING_HEADER) else text


def _joined(texts: Iterable[str]) -> str:
    return "\n".join(text for text in texts if text)


def _read_assistant(turn: _Turn) -> ChatMessage:
    texts: list[str] = []
    thinking: list[str] = []
    calls: list[ToolCall] = []
    for blocks in turn.messages:
        text: list[str] = []  # the text of one message may be cut into blocks anywhere
        for block in blocks:
            kind = kind_of(block)
            if kind == "text":
                text.append(read_text(block, "text"))
            elif kind == "thinking":
                thinking.append(read_text(block, "thinking"))
            elif kind == "tool_use":
                calls.append(_read_tool_use(block))
            elif kind == "compaction":
                text.append(block.string("content") or "")
            else:
                raise block.refused("type", "must be one of text, thinking, tool_use")
        texts.append("".join(text))
    return ChatMessage(
        role="assistant",
        content=_joined(texts) or (None if calls else ""),
        tool_calls=tuple(calls),
        reasoning_content="".join(thinking) or None,
    )


def _read_tool_use(block: Fields) -> ToolCall:
    return ToolCall(
        id=block.required_string("id"),
        function=FunctionCall(name=block.required_string("name"), arguments=_read_input(block)),
    )


def _read_input(block: Fields) -> str:
    """Read a call's input as JSON text, spaced as templates teach models to write it.

    A broken input comes again with every turn, so it is repaired if that is certain, else refused by name.
    """
    given = block.get("input")
    if type(given) is str:
        repaired = repair_json_object(given)
        if repaired is None:
            raise block.refused("input", "must be an object")
        given = orjson.loads(repaired)
        block = Fields({**block.raw, "input": given}, block.path, block.dotted)
    return json.dumps(block.opaque_object("input") or {}, ensure_ascii=False)


def _read_user(blocks: list[Fields]) -> list[ChatMessage]:
    results: list[ChatMessage] = []
    parts: list[Part] = []
    for block in blocks:
        if kind_of(block) == "tool_result":
            results.append(_read_tool_result(block))
        else:
            parts += read_parts(block)
    if parts or not results:
        results.append(ChatMessage(role="user", content=content_of(parts)))
    return results


def _read_tool_result(block: Fields) -> ChatMessage:
    content = block.get("content")
    if type(content) is str:
        parts = [text_part(content)] if content else []
    else:
        parts = [part for inner in block.objects("content") or () for part in read_parts(inner)]
    if block.boolean("is_error"):
        parts = _marked_as_error(parts)
    return ChatMessage(role="tool", content=content_of(parts), tool_call_id=block.required_string("tool_use_id"))


def _marked_as_error(parts: list[Part]) -> list[Part]:
    """Say in words that a tool has failed: a tool message of a chat template has no field for it."""
    if not parts or parts[0]["type"] != "text":
        return [text_part("Error"), *parts]
    if parts[0]["text"].lower().startswith("error"):
        return parts
    return [text_part(f"Error: {parts[0]['text']}"), *parts[1:]]
