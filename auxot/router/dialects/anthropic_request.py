"""Reading a request of Anthropic's messages: body -> Job.

    system                          one system message first
    user: text, image, document     one user message
    user: tool_result               one tool message each, before what stands beside them in a user message
    assistant: text, thinking,      one assistant message: content, reasoning_content, tool_calls
        tool_use

What belongs to tools that Anthropic runs on its own servers is dropped: the tools, and their blocks in the history.
`cache_control`, `metadata` and `service_tier` change no answer and are ignored.

Source: https://docs.claude.com/en/api/messages
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import ChatMessage, Function, FunctionCall, Job, Tool, ToolCall
from auxot.router.dialects.base import ChatRequest, id_stem
from auxot.router.dialects.fields import Fields, parse_object
from auxot.router.dialects.openai_request import check_image_url, offer_tools, select_tools
from auxot.router.dialects.sampling import SAMPLING_PARAMS, read_params, read_stop, set_thinking

MAX_STOP_SEQUENCES = 256
EFFORTS = frozenset({"low", "medium", "high", "xhigh", "max"})

_ROLES = frozenset({"user", "assistant", "system"})
_THINKING = {"disabled": False, "enabled": True, "adaptive": True, "between_tools": True}
_DEFAULT_EFFORT = "high"  # Anthropic's own default where thinking is on
_DROPPED_BLOCKS = frozenset(
    {"thinking", "redacted_thinking", "server_tool_use", "mcp_tool_use", "container_upload", "tool_reference"}
)


def parse_messages(body: bytes, *, job_id: str, now: float) -> ChatRequest:
    """Read a request; see `Dialect.parse`."""
    fields = Fields(parse_object(body, invalid="Invalid JSON: "), dotted=True)
    messages = read_messages(fields)
    model = _read_model(fields)
    max_tokens = fields.integer("max_tokens", 1)
    if max_tokens is None:
        raise fields.refused("max_tokens", "Field required")
    tools, choice = _read_tool_choice(fields, read_tools(fields))
    effort, thinking = _read_thinking(fields)
    params = {**read_params(fields, SAMPLING_PARAMS), **thinking, **_read_output(fields), **choice}
    set_thinking(params, enabled=effort != "none")
    job = Job(
        job_id=job_id,
        messages=messages,
        tools=tools,
        temperature=fields.number("temperature", 0, 1),
        max_tokens=max_tokens,
        reasoning_effort=effort,
        params=params,
    )
    return ChatRequest(
        job=job,
        stream=fields.boolean("stream") or False,
        model=model,
        answer_id=f"msg_{id_stem(job_id)}",
        created=int(now),
    )


def _read_model(fields: Fields) -> str:
    model = fields.string("model")
    if not model:
        raise fields.refused("model", "Field required")
    return model


def _read_thinking(fields: Fields) -> tuple[str, dict[str, Any]]:
    """Read `thinking`, which is off unless it is asked for.

    Returns:
        The job's reasoning effort (`none` for off), and the parameters that bound the thinking.
    """
    config = fields.object("output_config")
    effort = config.word("effort", EFFORTS) if config else None
    thinking = fields.object("thinking")
    if thinking is None:
        return "none", {}
    kind = thinking.word("type", _THINKING)
    if kind is None:
        raise thinking.refused("type", "Field required")
    if not _THINKING[kind]:
        return "none", {}
    budget = thinking.integer("budget_tokens", 1, 2**31 - 1)
    return effort or _DEFAULT_EFFORT, {} if budget is None else {"thinking_budget_tokens": budget}


def _read_output(fields: Fields) -> dict[str, Any]:
    """Read what bounds the answer: stop sequences, and a JSON schema, under llama-server's names."""
    params: dict[str, Any] = {}
    stop = read_stop(fields, "stop_sequences", max_words=MAX_STOP_SEQUENCES)
    if stop:
        params["stop"] = stop
    config = fields.object("output_config")
    form = config.object("format") if config else None
    if form:
        form.word("type", ("json_schema",))
        form.required_object("schema")
        params["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": form.opaque_object("schema")},
        }
    return params


def read_messages(fields: Fields) -> tuple[ChatMessage, ...]:
    """Read the system prompt and the conversation.

    Raises:
        RefusedError: there are no messages, or one of their fields is wrong.
    """
    messages = fields.objects("messages")
    if not messages:
        raise RefusedError(ErrorCode.INVALID_REQUEST, "messages: Field required", param="messages")
    conversation = [converted for message in messages for converted in _read_message(message)]
    if not conversation:
        raise RefusedError(ErrorCode.INVALID_REQUEST, "messages: at least one must have content", param="messages")
    system = _read_system(fields)
    return (ChatMessage(role="system", content=system), *conversation) if system else tuple(conversation)


def _read_system(fields: Fields) -> str:
    if type(fields.get("system")) is str:
        return str(fields.get("system"))
    return "\n".join(_text(block, "text") for block in fields.objects("system") or ())


def _read_message(message: Fields) -> Iterable[ChatMessage]:
    role = message.word("role", _ROLES)
    if role is None:
        raise message.refused("role", "Field required")
    content = message.get("content")
    if content is None:
        raise message.refused("content", "Field required")
    if type(content) is str:
        return [ChatMessage(role=role, content=content)]
    if type(content) is not list:
        raise message.refused("content", "must be a string or an array of blocks")
    blocks = message.objects("content") or []
    return _read_assistant(blocks) if role == "assistant" else _read_user(role, blocks)


def _read_assistant(blocks: list[Fields]) -> list[ChatMessage]:
    """Read the blocks of one assistant message; none is left if there is nothing in it that a template can show."""
    text: list[str] = []
    thinking: list[str] = []
    calls: list[ToolCall] = []
    for block in blocks:
        kind = _kind(block)
        if kind == "text":
            text.append(_text(block, "text"))
        elif kind == "thinking":
            thinking.append(_text(block, "thinking"))
        elif kind == "tool_use":
            calls.append(_read_tool_use(block))
        elif not _is_dropped(kind):
            raise block.refused("type", "must be one of text, thinking, tool_use")
    if not (text or thinking or calls):
        return []
    return [
        ChatMessage(
            role="assistant",
            content="".join(text) or (None if calls else ""),
            tool_calls=tuple(calls),
            reasoning_content="".join(thinking) or None,
        )
    ]


def _read_tool_use(block: Fields) -> ToolCall:
    arguments = orjson.dumps(block.opaque_object("input") or {}).decode()
    return ToolCall(
        id=block.required_string("id"),
        function=FunctionCall(name=block.required_string("name"), arguments=arguments),
    )


def _read_user(role: str, blocks: list[Fields]) -> list[ChatMessage]:
    results: list[ChatMessage] = []
    parts: list[dict[str, Any]] = []
    for block in blocks:
        if _kind(block) == "tool_result":
            results.append(_read_tool_result(block))
        else:
            parts += _read_parts(block)
    if parts or not results:
        results.append(ChatMessage(role=role, content=_content(parts)))
    return results


def _read_tool_result(block: Fields) -> ChatMessage:
    content = block.get("content")
    if type(content) is str:
        parts = [_text_part(content)] if content else []
    else:
        parts = [part for inner in block.objects("content") or () for part in _read_parts(inner)]
    if block.boolean("is_error"):
        parts = _marked_as_error(parts)
    return ChatMessage(role="tool", content=_content(parts), tool_call_id=block.required_string("tool_use_id"))


def _marked_as_error(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Say in words that a tool has failed: a tool message of a chat template has no field for it."""
    if parts and parts[0]["type"] == "text":
        return [_text_part(f"Error: {parts[0]['text']}"), *parts[1:]]
    return [_text_part("Error"), *parts]


def _content(parts: list[dict[str, Any]]) -> Any:
    """Return the content of a message: the text itself if that is all there is."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts


def _read_parts(block: Fields) -> list[dict[str, Any]]:
    """Return a block as OpenAI's content parts."""
    kind = _kind(block)
    if kind == "text":
        return [_text_part(_text(block, "text"))]
    if kind == "image":
        return [{"type": "image_url", "image_url": {"url": _read_image_url(block.required_object("source"))}}]
    if kind == "document":
        return _titled(block, _read_document(block.required_object("source")))
    if kind == "search_result":
        return _titled(block, _read_blocks(block))
    if _is_dropped(kind):
        return []
    raise block.refused("type", "must be one of document, image, search_result, text, tool_result")


def _read_blocks(fields: Fields) -> list[dict[str, Any]]:
    """Read a field `content`: a string, or text and image blocks."""
    content = fields.get("content")
    if type(content) is str:
        return [_text_part(content)]
    parts: list[dict[str, Any]] = []
    for block in fields.objects("content") or ():
        if _kind(block) not in ("text", "image"):  # no block holds another of its own kind: the depth is bounded
            raise block.refused("type", "must be one of image, text")
        parts += _read_parts(block)
    return parts


def _read_document(source: Fields) -> list[dict[str, Any]]:
    kind = _kind(source)
    if kind == "text":
        return [_text_part(_text(source, "data"))]
    if kind == "content":
        return _read_blocks(source)
    raise source.refused("type", "must be text or content: other documents are not supported")


def _titled(block: Fields, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    heads = [head for head in (block.string("title"), block.string("context")) if head]
    return [_text_part("\n".join(heads)), *parts] if heads else parts


def _read_image_url(source: Fields) -> str:
    kind = _kind(source)
    if kind == "url":
        check_image_url(source, "url")
        return source.required_string("url")
    if kind != "base64":
        raise source.refused("type", "must be base64 or url")
    media_type = source.required_string("media_type")
    if not media_type.startswith("image/") or "," in media_type:
        raise source.refused("media_type", "must be an image's")
    return f"data:{media_type};base64,{source.required_string('data')}"


def _kind(block: Fields) -> str:
    return block.required_string("type")


def _is_dropped(kind: str) -> bool:
    return kind in _DROPPED_BLOCKS or (kind.endswith("_tool_result") and kind != "tool_result")


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _text(block: Fields, name: str) -> str:
    text = block.string(name)
    if text is None:
        raise block.refused(name, "Field required")
    return text


def read_tools(fields: Fields) -> tuple[Tool, ...]:
    """Read the client's own tools; those of Anthropic's servers, which no client runs, are left out."""
    tools = fields.objects("tools") or ()
    return tuple(_read_tool(tool) for tool in tools if tool.get("type") in (None, "custom"))


def _read_tool(tool: Fields) -> Tool:
    return Tool(
        function=Function(
            name=tool.required_string("name"),
            description=tool.string("description"),
            parameters=tool.opaque_object("input_schema"),
            strict=tool.boolean("strict"),
        )
    )


def _read_tool_choice(fields: Fields, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], dict[str, Any]]:
    """Apply `tool_choice`; returns the tools to offer and the parameters, as `offer_tools` does."""
    choice = fields.object("tool_choice")
    if choice is None:
        return tools, {}
    modes = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}
    kind = choice.word("type", modes)
    if kind is None:
        raise choice.refused("type", "Field required")
    if kind == "tool":
        tools = select_tools(choice, tools, {choice.required_string("name")})
    offered, params = offer_tools(fields, tools, modes[kind])
    if offered and choice.boolean("disable_parallel_tool_use"):
        return offered, {**params, "parallel_tool_calls": False}
    return offered, params
