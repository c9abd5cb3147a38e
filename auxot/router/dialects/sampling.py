"""The request fields that llama-server understands, and what each may hold: one table.

They go into `job.params` under llama-server's own names and as the client wrote them, so a worker merges them into
the body of its request and needs no table of its own. Fields that a Job has a place for (messages, tools,
temperature, max_tokens, reasoning_effort) are not here.

Left out on purpose, and so ignored: what chooses among a worker's slots (`id_slot`: placing a job is the router's
affair), what changes the form of llama-server's stream, which the worker has to parse (`stream`, `response_fields`,
`return_tokens`, `verbose`, `timings_per_token`, `sse_ping_interval`), and what llama-server derives from its chat
template and trusts (`chat_format`, `chat_parser`, `generation_prompt`, `grammar_triggers`, `preserved_tokens`, ...).

Source of names and ranges: llama.cpp, tools/server/server-schema.cpp and server-common.cpp; for the fields that
OpenAI documents, the ranges are OpenAI's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from auxot.router.dialects.fields import Fields

Reader = Callable[[Fields, str], Any]  # a field's checked value; None: not sent

MAX_STOP_WORDS = 16
MAX_CHOICES = 128
_INT32_MAX = 2**31 - 1


def _number(low: float = -math.inf, high: float = math.inf) -> Reader:
    return lambda fields, name: fields.number(name, low, high)


def _integer(low: float = -math.inf, high: float = math.inf) -> Reader:
    return lambda fields, name: fields.integer(name, low, high)


def _word(*words: str) -> Reader:
    return lambda fields, name: fields.word(name, words)


def read_stop(fields: Fields, name: str, *, max_words: int = MAX_STOP_WORDS) -> list[str] | None:
    """Read stop words, one string or several; empty ones, which nobody can mean, are dropped."""
    value = fields.get(name)
    words = [value] if type(value) is str else fields.strings(name)
    if words is None:
        return None
    if len(words) > max_words:
        raise fields.refused(name, f"must not hold more than {max_words} strings")
    return [word for word in words if word] or None


def _read_logit_bias(fields: Fields, name: str) -> Any:
    """Read OpenAI's object of token -> bias, or llama-server's array of [token, bias]."""
    value = fields.get(name)
    if value is None:
        return None
    pairs = list(value.items()) if type(value) is dict else value
    if type(pairs) is not list or not all(_is_bias_pair(pair) for pair in pairs):
        raise fields.refused(name, "must be an object of token: bias, each bias a number from -100 to 100 or false")
    return value


def _is_bias_pair(pair: Any) -> bool:
    if type(pair) not in (list, tuple) or len(pair) != 2:
        return False
    token, bias = pair
    return type(token) in (str, int) and (bias is False or (type(bias) in (int, float) and -100 <= bias <= 100))


def _read_logprobs(fields: Fields, name: str) -> bool | None:
    return fields.boolean(name) or None


def _read_top_logprobs(fields: Fields, name: str) -> int | None:
    value = fields.integer(name, 0, 20)
    if value is not None and fields.boolean("logprobs") is not True:
        raise fields.refused(name, "needs logprobs to be true")
    # For 0 llama-server would leave out the log probabilities of the chosen tokens too.
    return None if value is None else max(value, 1)


def _read_response_format(fields: Fields, name: str) -> Any:
    value = fields.object(name)
    if value is None:
        return None
    if value.get("type") is None:
        raise value.refused("type", "Field required")
    kind = value.word("type", ("text", "json_object", "json_schema"))
    if kind == "json_schema":
        wrapper = value.required_object("json_schema")
        return {"type": kind, "json_schema": {"schema": wrapper.opaque_object("schema") or {}}}
    schema = value.opaque_object("schema") if kind == "json_object" else None  # llama-server's own
    return {"type": kind} if schema is None else {"type": kind, "schema": schema}


def _read_samplers(fields: Fields, name: str) -> Any:
    value = fields.get(name)
    return value if type(value) is str else fields.strings(name)


def _read_lora(fields: Fields, name: str) -> Any:
    adapters = fields.objects(name)
    return None if adapters is None else [_read_adapter(adapter) for adapter in adapters]


def _read_adapter(adapter: Fields) -> dict[str, Any]:
    return {"id": adapter.integer("id", 0, _INT32_MAX), "scale": adapter.number("scale")}


def _read_continuation(fields: Fields, name: str) -> Any:
    value = fields.get(name)
    return value if type(value) is bool else fields.word(name, ("content", "reasoning_content"))


DRAWING_PARAMS: Mapping[str, Reader] = {
    "top_p": _number(0, 1),
    "top_k": _integer(0, _INT32_MAX),
    "min_p": _number(0, 1),
    "typical_p": _number(),
    "top_n_sigma": _number(),
    "xtc_probability": _number(0, 1),
    "xtc_threshold": _number(0, 1),
    "dynatemp_range": _number(),
    "dynatemp_exponent": _number(),
    "repeat_last_n": _integer(0, _INT32_MAX),
    "repeat_penalty": _number(),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "dry_multiplier": _number(),
    "dry_base": _number(),
    "dry_allowed_length": _integer(0, _INT32_MAX),
    "dry_penalty_last_n": _integer(0, _INT32_MAX),
    "dry_sequence_breakers": Fields.strings,
    "mirostat": _integer(0, 2),
    "mirostat_tau": _number(),
    "mirostat_eta": _number(),
    "adaptive_target": _number(-math.inf, 1),
    "adaptive_decay": _number(0, 0.99),
    "samplers": _read_samplers,
    "seed": _integer(-(2**63), 2**63 - 1),
    "min_keep": _integer(0, _INT32_MAX),
    "ignore_eos": Fields.boolean,
    "backend_sampling": Fields.boolean,
    "cache_prompt": Fields.boolean,
    "n_keep": _integer(-1, _INT32_MAX),
    "n_discard": _integer(0, _INT32_MAX),
    "n_cache_reuse": _integer(0, _INT32_MAX),
    "n_indent": _integer(0, _INT32_MAX),
    "t_max_predict_ms": _integer(-1, 2**53),
    "lora": _read_lora,
    "logit_bias": _read_logit_bias,
    "grammar": Fields.string,
}
"""What shapes the choice of tokens, whatever the prompt is made from."""

TEMPLATE_PARAMS: Mapping[str, Reader] = {
    "chat_template_kwargs": Fields.opaque_object,
    "thinking_budget_tokens": _integer(-1, _INT32_MAX),
    "reasoning_budget_tokens": _integer(-1, _INT32_MAX),
    "reasoning_budget_message": Fields.string,
    "reasoning_format": _word("none", "auto", "deepseek", "deepseek-legacy"),
}
"""What chat templates and the model's thinking are told."""

SAMPLING_PARAMS: Mapping[str, Reader] = {**DRAWING_PARAMS, **TEMPLATE_PARAMS}
"""What every conversation may ask for, in whatever dialect."""

OUTPUT_PARAMS: Mapping[str, Reader] = {
    "stop": read_stop,
    "n": _integer(1, MAX_CHOICES),
    "logprobs": _read_logprobs,
    "top_logprobs": _read_top_logprobs,
    "n_probs": _integer(0, _INT32_MAX),
    "post_sampling_probs": Fields.boolean,
    "response_format": _read_response_format,
    "json_schema": Fields.opaque_object,
    "parallel_tool_calls": Fields.boolean,
    "return_progress": Fields.boolean,
    "add_generation_prompt": Fields.boolean,
    "continue_final_message": _read_continuation,
}
"""What shapes the form of a chat completion: OpenAI's dialect only."""


def read_params(fields: Fields, table: Mapping[str, Reader]) -> dict[str, Any]:
    """Read every field of a table that the client sent.

    Raises:
        RefusedError: one of them is of the wrong type or out of range.
    """
    params: dict[str, Any] = {}
    for name, read in table.items():  # in the table's order: equal requests become equal bytes
        if name in fields.raw and (value := read(fields, name)) is not None:
            params[name] = value
    return params


def set_thinking(params: dict[str, Any], *, enabled: bool) -> None:
    """Switch the model's thinking on or off, unless the client's own template arguments say."""
    kwargs = params.get("chat_template_kwargs", {})
    params["chat_template_kwargs"] = {"enable_thinking": enabled, **kwargs}
