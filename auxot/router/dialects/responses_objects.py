"""The objects of OpenAI's Responses API: the response, its output items, its usage and its errors.

Source: https://platform.openai.com/docs/api-reference/responses/object and the types of the official SDK.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import FinishReason, Usage
from auxot.router.dialects.openai_objects import logprobs_object
from auxot.router.dialects.responses_input import seal
from auxot.router.dialects.responses_request import ResponsesRequest
from auxot.router.dialects.responses_tools import Offer, custom_input

IN_PROGRESS, COMPLETED, INCOMPLETE, FAILED = "in_progress", "completed", "incomplete", "failed"

# Why a response is incomplete; all other reasons are an ordinary end.
INCOMPLETE_REASONS = {
    FinishReason.LENGTH: "max_output_tokens",
    FinishReason.CONTEXT_FULL: "max_output_tokens",
    FinishReason.CONTENT_FILTER: "content_filter",
}
_ERROR_CODES = {
    ErrorCode.INVALID_REQUEST: "invalid_prompt",
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: "context_length_exceeded",  # Codex compacts the conversation when it sees it
    ErrorCode.RATE_LIMITED: "rate_limit_exceeded",
    ErrorCode.OVERLOADED: "rate_limit_exceeded",
}


def response_object(
    request: ResponsesRequest,
    *,
    status: str,
    output: Sequence[Any] = (),
    usage: Usage | None = None,
    error: RefusedError | None = None,
    incomplete_reason: str | None = None,
) -> dict[str, Any]:
    """Return a response in one of its states."""
    return {
        "id": request.answer_id,
        "object": "response",
        "created_at": request.created,
        "status": status,
        "background": False,
        "completed_at": None,
        "conversation": None,
        "error": None if error is None else _error_object(error),
        "incomplete_details": None if incomplete_reason is None else {"reason": incomplete_reason},
        "model": request.model,
        "output": list(output),
        "previous_response_id": None,
        "prompt": None,
        "service_tier": "default",
        "store": False,
        "truncation": "disabled",
        "usage": None if usage is None else usage_object(usage),
        **request.echo,
    }


def usage_object(usage: Usage) -> dict[str, Any]:
    """Return the token counts; the input's include those from the cache."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _error_object(error: RefusedError) -> dict[str, Any]:
    return {"code": _ERROR_CODES.get(error.code, "server_error"), "message": error.message}


def logprobs_of(request: ResponsesRequest, entries: list[Any] | None) -> list[Any]:
    """Return the log probabilities of some tokens of a text; empty if there are none."""
    shown = logprobs_object(entries, request.n_top_logprobs)
    return [] if shown is None else list(shown["content"])


def text_part(text: str, logprobs: Sequence[Any] = ()) -> dict[str, Any]:
    """Return the content part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def reasoning_part(text: str) -> dict[str, Any]:
    """Return the content part of a reasoning item."""
    return {"type": "reasoning_text", "text": text}


def message_item(item_id: str, *, status: str, content: list[Any]) -> dict[str, Any]:
    """Return an assistant's message."""
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": content}


def reasoning_item(item_id: str, *, status: str, content: list[Any], sealed: bool) -> dict[str, Any]:
    """Return what the model thought; no summary is made of it."""
    text = "".join(part["text"] for part in content)
    return {
        "id": item_id,
        "type": "reasoning",
        "status": status,
        "summary": [],
        "content": content,
        "encrypted_content": seal(text) if sealed and text else None,
    }


def call_item(item_id: str, *, status: str, call_id: str, offer: Offer, arguments: str) -> dict[str, Any]:
    """Return a call, in the words of the tool that it is for."""
    told = {"input": custom_input(arguments)} if offer.is_custom else {"arguments": arguments}
    return {
        "id": item_id,
        "type": "custom_tool_call" if offer.is_custom else "function_call",
        "status": status,
        "call_id": call_id,
        "name": offer.name,
        **({} if offer.namespace is None else {"namespace": offer.namespace}),
        **told,
    }
