"""JSON schemas of the answers, for `openapi`. Pure. Objects may always hold more than is told here."""

from __future__ import annotations

from typing import Any

from auxot.router.openapi_requests import (
    BOOLEAN,
    OBJECT,
    STRING,
    STRINGS,
    Schema,
    array,
    fields_object,
    integer,
    number,
    one_of,
    tagged,
)

_NULL: Schema = {"type": "null"}
_NULLABLE_STRING: Schema = {"type": ["string", "null"]}
_COUNT = integer(0)
_UNIX_S = integer(0)


def _const(value: Any) -> Schema:
    return {"const": value}


_USAGE = fields_object(
    {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT},
    {"prompt_tokens_details": fields_object({"cached_tokens": _COUNT}), "completion_tokens_details": OBJECT},
)
_TOOL_CALL = fields_object(
    {"id": STRING, "type": _const("function"), "function": fields_object({"name": STRING, "arguments": STRING})}
)
_CHAT_CHOICE = fields_object(
    {
        "index": _COUNT,
        "message": fields_object(
            {"role": _const("assistant"), "content": _NULLABLE_STRING},
            {"reasoning_content": STRING, "tool_calls": array(_TOOL_CALL, at_least=1)},
        ),
        "finish_reason": {"enum": ["stop", "length", "tool_calls", "function_call", "content_filter"]},
        "logprobs": one_of(_NULL, OBJECT),
    }
)
_OPENAI_MODEL = fields_object(
    {"id": STRING, "object": _const("model"), "created": _UNIX_S, "owned_by": STRING},
    {"context_length": _COUNT, "capabilities": STRINGS},
)
_ANTHROPIC_MODEL = fields_object(
    {"id": STRING, "type": _const("model"), "display_name": STRING, "created_at": {"type": "string"}}
)
_BLOCK = one_of(
    tagged("text", {"text": STRING}),
    tagged("thinking", {"thinking": STRING, "signature": STRING}),
    tagged("tool_use", {"id": STRING, "name": STRING, "input": OBJECT}),
)
_STOP_REASONS = [
    "end_turn",
    "max_tokens",
    "stop_sequence",
    "tool_use",
    "pause_turn",
    "refusal",
    "model_context_window_exceeded",
]
_HEALTH_COUNTS = ("workers", "total_slots", "active_jobs", "available", "waiting_requests")


def response_schemas() -> dict[str, Schema]:
    """Return the schemas of all answers by name."""
    return {**_openai_schemas(), **_anthropic_schemas(), **_other_schemas()}


def _openai_schemas() -> dict[str, Schema]:
    whole = {"id": STRING, "created": _UNIX_S, "model": STRING}
    completion_choice = fields_object(
        {
            "index": _COUNT,
            "text": STRING,
            "finish_reason": {"enum": ["stop", "length", "content_filter"]},
            "logprobs": one_of(_NULL, OBJECT),
        }
    )
    embedding = fields_object(
        {"object": _const("embedding"), "index": _COUNT, "embedding": one_of(STRING, array(number()))}
    )
    error = fields_object(
        {"message": STRING, "type": STRING, "param": _NULLABLE_STRING, "code": _NULLABLE_STRING},
    )
    return {
        "ChatCompletion": fields_object(
            {**whole, "object": _const("chat.completion"), "choices": array(_CHAT_CHOICE, at_least=1), "usage": _USAGE}
        ),
        "Completion": fields_object(
            {**whole, "object": _const("text_completion"), "choices": array(completion_choice), "usage": _USAGE}
        ),
        "Response": fields_object(
            {
                "id": STRING,
                "object": _const("response"),
                "created_at": number(0),
                "status": {"enum": ["completed", "incomplete", "failed", "in_progress"]},
                "model": STRING,
                "output": array(fields_object({"type": STRING, "id": STRING})),
            }
        ),
        "InputTokens": fields_object({"object": _const("response.input_tokens"), "input_tokens": _COUNT}),
        "EmbeddingList": fields_object({"object": _const("list"), "data": array(embedding), "model": STRING}),
        "OpenAIModel": _OPENAI_MODEL,
        "OpenAIModelList": fields_object({"object": _const("list"), "data": array(_OPENAI_MODEL, at_least=1)}),
        "StoredCompletionList": fields_object({"object": _const("list"), "data": array(OBJECT), "has_more": BOOLEAN}),
        "OpenAIError": fields_object({"error": error}),
    }


def _anthropic_schemas() -> dict[str, Schema]:
    usage = fields_object({"input_tokens": _COUNT, "output_tokens": _COUNT}, {"cache_read_input_tokens": _COUNT})
    return {
        "Message": tagged(
            "message",
            {
                "id": STRING,
                "role": _const("assistant"),
                "model": STRING,
                "content": array(_BLOCK),
                "stop_reason": {"enum": _STOP_REASONS},
                "stop_sequence": _NULLABLE_STRING,
                "usage": usage,
            },
        ),
        "TokenCount": fields_object({"input_tokens": _COUNT}),
        "AnthropicModel": _ANTHROPIC_MODEL,
        "AnthropicModelList": fields_object(
            {
                "data": array(_ANTHROPIC_MODEL, at_least=1),
                "has_more": BOOLEAN,
                "first_id": _NULLABLE_STRING,
                "last_id": _NULLABLE_STRING,
            }
        ),
        "AnthropicError": tagged(
            "error", {"error": fields_object({"type": STRING, "message": STRING}), "request_id": STRING}
        ),
    }


def _other_schemas() -> dict[str, Schema]:
    counts = dict.fromkeys(_HEALTH_COUNTS, _COUNT)
    health = {
        "status": {"enum": ["ok", "draining"]},
        **counts,
        "queue": {"enum": ["ok", "unreachable"]},
        "all_routers": fields_object({"routers": _COUNT, **counts}),
    }
    return {
        "Health": fields_object(health),
        "Json": one_of(OBJECT, {"type": "array"}),
    }
