"""The objects that OpenAI's APIs have in common: errors, lists of models, usage, log probabilities.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

Source: https://platform.openai.com/docs/api-reference, https://platform.openai.com/docs/guides/error-codes and the
types and exceptions of the official SDKs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import Failed, Finish, FinishReason, PromptProgress, Usage
from auxot.router.dialects.base import ChatRequest, ModelCard, id_stem, json_bytes

FINISH_REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.STOP_SEQUENCE: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CONTEXT_FULL: "length",
    FinishReason.TOOL_CALLS: "tool_calls",
    FinishReason.CONTENT_FILTER: "content_filter",
}

_SERVER_ERROR = "server_error"
_TYPES = {
    ErrorCode.INVALID_REQUEST: "invalid_request_error",
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: "invalid_request_error",
    ErrorCode.METHOD_NOT_ALLOWED: "invalid_request_error",
    ErrorCode.REQUEST_TIMEOUT: "invalid_request_error",
    ErrorCode.UNSUPPORTED_CODING: "invalid_request_error",
    ErrorCode.TOO_LARGE: "invalid_request_error",
    ErrorCode.UNAUTHENTICATED: "authentication_error",
    ErrorCode.NOT_FOUND: "not_found_error",
    ErrorCode.MODEL_NOT_FOUND: "invalid_request_error",
    ErrorCode.RATE_LIMITED: "rate_limit_error",
    ErrorCode.OVERLOADED: "rate_limit_error",
    ErrorCode.NOT_IMPLEMENTED: "not_implemented",
}
_CODES = {
    ErrorCode.INVALID_REQUEST: None,  # the type says it all
    ErrorCode.UNAUTHENTICATED: "invalid_api_key",
    ErrorCode.RATE_LIMITED: "rate_limit_exceeded",
    ErrorCode.OVERLOADED: "rate_limit_exceeded",
}


def error_object(error: RefusedError) -> dict[str, Any]:
    """Return what stands under `error`, in bodies and in streams."""
    return {
        "message": error.message,
        "type": _TYPES.get(error.code, _SERVER_ERROR),
        "param": error.param,
        "code": _CODES.get(error.code, error.code.word),
    }


def error_body(error: RefusedError) -> bytes:
    """Return the JSON body of an error."""
    return json_bytes({"error": error_object(error)})


def refusal(failed: Failed) -> RefusedError:
    """Return a job's failure as an error, worded as clients of OpenAI expect it."""
    message = failed.message
    if failed.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED and failed.n_prompt_tokens and failed.n_ctx:
        message = (
            f"This model's maximum context length is {failed.n_ctx} tokens. However, your messages resulted in "
            f"{failed.n_prompt_tokens} tokens. Please reduce the length of the messages."
        )
    return RefusedError(failed.code, message)


def models_body(cards: Sequence[ModelCard]) -> bytes:
    """Return the JSON body of the list of models."""
    return json_bytes({"object": "list", "data": [_model_object(card) for card in cards]})


def model_body(card: ModelCard) -> bytes:
    """Return the JSON body of one model."""
    return json_bytes(_model_object(card))


def _model_object(card: ModelCard) -> dict[str, Any]:
    """Return a model; context length and capabilities are additions that other routers make too."""
    model: dict[str, Any] = {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": card.owned_by,
        "capabilities": card.capabilities,
    }
    if card.context_size is not None:
        model["context_length"] = card.context_size
    return model


@attrs.frozen(kw_only=True)
class OpenAiRequest(ChatRequest):
    """A request of one of OpenAI's dialects, with what the form of its answer depends on.

    Attributes:
        n_choices: how many choices the answer has.
        n_top_logprobs: how many alternatives of each token to show; None for as many as there are.
        shows_progress: write llama-server's `prompt_progress` into the stream.
        uses_functions: the client knows `functions`, not `tools`: a call is told as `function_call`.
    """

    n_choices: int = 1
    n_top_logprobs: int | None = None
    shows_progress: bool = False
    uses_functions: bool = False


def openai_request(request: ChatRequest) -> OpenAiRequest:
    """Return the same request, which one of OpenAI's dialects has read."""
    assert isinstance(request, OpenAiRequest)
    return request


def finish_reason_of(request: OpenAiRequest, finish: Finish) -> str:
    """Return why a choice ended, in OpenAI's words."""
    reason = FINISH_REASONS[finish.reason]
    return "function_call" if reason == "tool_calls" and request.uses_functions else reason


def call_id(request: ChatRequest, *, choice: int, index: int) -> str:
    """Return the id of a tool call that came without one."""
    return f"call_{id_stem(request.job.job_id)}{choice:02d}{index:02d}"


def logprobs_object(entries: list[Any] | None, n_top: int | None = None) -> dict[str, Any] | None:
    """Return OpenAI's `logprobs` of a choice; None if there are none.

    Args:
        entries: of the tokens, as they come from the worker.
        n_top: how many alternatives of a token to show, None for all: the worker gives one at least.
    """
    if entries is None:
        return None
    shown = entries if n_top is None else [_shortened(entry, n_top) for entry in entries]
    return {"content": shown, "refusal": None}


def _shortened(entry: Any, n_top: int) -> Any:
    if type(entry) is not dict or type(entry.get("top_logprobs")) is not list:
        return entry
    return {**entry, "top_logprobs": entry["top_logprobs"][:n_top]}


def progress_object(progress: PromptProgress) -> dict[str, int]:
    """Return llama-server's `prompt_progress`, for clients that asked for it."""
    return {"total": progress.total, "cache": progress.cached, "processed": progress.processed}


def usage_object(usage: Usage) -> dict[str, Any]:
    """Return OpenAI's `usage`; the prompt's tokens include those from the cache."""
    counts: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    if usage.reasoning_tokens:
        counts["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return counts
