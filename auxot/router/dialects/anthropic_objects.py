"""The objects of Anthropic's API: errors, lists of models, usage, content blocks.

    {"type": "error", "error": {"type": ..., "message": ...}, "request_id": ...}

Source: https://docs.claude.com/en/api/errors, https://docs.claude.com/en/api/models-list and the types of the
official SDKs.
"""

from __future__ import annotations

import base64
import datetime as dt
import enum
import hashlib
from collections.abc import Sequence
from typing import Any

import attrs
import orjson

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import Failed, FinishReason, Usage
from auxot.router.dialects.base import ChatRequest, ModelCard, id_stem, json_bytes

STOP_REASONS = {
    FinishReason.STOP: "end_turn",
    FinishReason.STOP_SEQUENCE: "stop_sequence",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.CONTEXT_FULL: "model_context_window_exceeded",
    FinishReason.TOOL_CALLS: "tool_use",
    FinishReason.CONTENT_FILTER: "refusal",
}

_ERROR_TYPES = {
    ErrorCode.INVALID_REQUEST: "invalid_request_error",
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: "invalid_request_error",
    ErrorCode.METHOD_NOT_ALLOWED: "invalid_request_error",
    ErrorCode.UNAUTHENTICATED: "authentication_error",
    ErrorCode.NOT_FOUND: "not_found_error",
    ErrorCode.MODEL_NOT_FOUND: "not_found_error",
    ErrorCode.REQUEST_TIMEOUT: "timeout_error",
    ErrorCode.TIMEOUT: "timeout_error",
    ErrorCode.UNSUPPORTED_CODING: "invalid_request_error",
    ErrorCode.TOO_LARGE: "request_too_large",
    ErrorCode.RATE_LIMITED: "rate_limit_error",
    ErrorCode.NOT_IMPLEMENTED: "not_implemented_error",
    ErrorCode.UNAVAILABLE: "overloaded_error",
    ErrorCode.OVERLOADED: "overloaded_error",
}
_OVERLOADED_STATUS = 529  # Anthropic's own: its clients try again on it


class Thoughts(enum.Enum):
    """How much of the model's thoughts the client gets to see."""

    SHOWN = enum.auto()
    SIGNED = enum.auto()  # thinking blocks without thoughts, with their signatures
    HIDDEN = enum.auto()  # it has not asked for any: some models think all the same


@attrs.frozen(kw_only=True)
class AnthropicRequest(ChatRequest):
    """A request of this dialect."""

    thoughts: Thoughts = Thoughts.HIDDEN


def error_object(error: RefusedError, *, request_id: str) -> dict[str, Any]:
    """Return the body of an error, and the data of an `error` event; an id that is not known is left out."""
    kind = _ERROR_TYPES.get(error.code, "api_error")
    known_id = {"request_id": request_id} if request_id else {}
    return {"type": "error", "error": {"type": kind, "message": error.message}, **known_id}


def error_body(error: RefusedError, *, request_id: str) -> bytes:
    """Return the JSON body of an error."""
    return json_bytes(error_object(error, request_id=request_id))


def status(code: ErrorCode) -> int:
    """Return the HTTP status of an error."""
    return _OVERLOADED_STATUS if code is ErrorCode.OVERLOADED else code.status


def refusal(failed: Failed) -> RefusedError:
    """Return a job's failure as an error; agents compact their history when they read these words of an overflow."""
    message = failed.message
    if failed.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED and failed.n_prompt_tokens and failed.n_ctx:
        message = f"prompt is too long: {failed.n_prompt_tokens} tokens > {failed.n_ctx} maximum"
    return RefusedError(failed.code, message)


def usage_object(usage: Usage) -> dict[str, Any]:
    """Return Anthropic's `usage`, in which cached tokens are no part of `input_tokens`.

    `cache_creation_input_tokens` is always 0 and always there: clients add the three up.
    """
    counts: dict[str, Any] = {
        "input_tokens": max(usage.prompt_tokens - usage.cached_tokens, 0),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
    if usage.reasoning_tokens:
        counts["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return counts


def message_object(request: ChatRequest, usage: Usage) -> dict[str, Any]:
    """Return a message without content, as a stream starts with it."""
    return {
        "id": request.answer_id,
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_object(usage),
    }


def signature(thinking: str) -> str:
    """Return a thinking block's signature: clients send it back unread, strict ones insist that it is there."""
    return base64.b64encode(hashlib.sha256(thinking.encode("utf-8", "replace")).digest()).decode()


def tool_use_id(request: ChatRequest, *, index: int) -> str:
    """Return the id of a tool call that came without one."""
    return f"toolu_{id_stem(request.job.job_id)}{index:02d}"


def read_arguments(arguments: str) -> dict[str, Any]:
    """Return a call's arguments as the object that a `tool_use` block holds.

    What is no JSON object (a model can write anything, and `max_tokens` can cut it short) becomes an empty one: a tool
    that misses its arguments says so, one that gets half of them may do harm.
    """
    try:
        value = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return {}
    return value if type(value) is dict else {}


def models_body(cards: Sequence[ModelCard]) -> bytes:
    """Return the JSON body of the list of models."""
    return json_bytes(
        {
            "data": [_model_object(card) for card in cards],
            "first_id": cards[0].id if cards else None,
            "has_more": False,
            "last_id": cards[-1].id if cards else None,
        }
    )


def model_body(card: ModelCard) -> bytes:
    """Return the JSON body of one model."""
    return json_bytes(_model_object(card))


def _model_object(card: ModelCard) -> dict[str, Any]:
    created_at = dt.datetime.fromtimestamp(card.created, tz=dt.UTC)
    return {
        "type": "model",
        "id": card.id,
        "display_name": card.id,
        "created_at": created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": card.context_size,
    }
