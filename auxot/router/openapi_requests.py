"""JSON schemas of the request bodies, for `openapi`. Pure.

Which fields there are is told by the dialects' own tables; here stand the types of those that have one worth telling.
Fields without a type here take what llama-server or the API's documentation says. Refused fields are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from auxot.router.dialects import anthropic_fields, openai_fields, responses_fields

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
STRINGS: Schema = {"type": "array", "items": STRING}

_SOME_TEXT: Schema = {"type": "string", "minLength": 1}
_EXAMPLE_MODEL = "any"
_HI = [{"role": "user", "content": "hi"}]


def integer(low: int | None = None, high: int | None = None) -> Schema:
    """Return the schema of a whole number in a range, ends included."""
    return _number("integer", low, high)


def number(low: float | None = None, high: float | None = None) -> Schema:
    """Return the schema of a number in a range, ends included."""
    return _number("number", low, high)


def _number(kind: str, low: float | None, high: float | None) -> Schema:
    bounds = {"minimum": low, "maximum": high}
    return {"type": kind, **{name: bound for name, bound in bounds.items() if bound is not None}}


def array(items: Schema, *, at_least: int = 0) -> Schema:
    """Return the schema of an array."""
    return {"type": "array", "items": items, **({"minItems": at_least} if at_least else {})}


def one_of(*schemas: Schema) -> Schema:
    """Return the schema of a value that has one of several forms."""
    return {"anyOf": list(schemas)}


def tagged(kind: str, required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """Return the schema of an object that says what it is in `type`."""
    fields = {"type": {"const": kind}, **required}
    return {"type": "object", "required": list(fields), "properties": {**fields, **(optional or {})}}


def fields_object(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """Return the schema of an object with some fields that must be there."""
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


_IMAGE_URL: Schema = {"type": "string", "pattern": "^(data:|https?://)"}
_SEED: Schema = integer(0, 2**32 - 1)
_STOP = one_of(STRING, {**STRINGS, "maxItems": 16})
_FUNCTION = fields_object({"name": _SOME_TEXT}, {"description": STRING, "parameters": OBJECT, "strict": BOOLEAN})
_SAMPLING: Mapping[str, Schema] = {
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "top_k": integer(0, 2**31 - 1),
    "min_p": number(0, 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "seed": _SEED,
    "stop": _STOP,
    "logit_bias": {"type": "object", "additionalProperties": number(-100, 100)},
    "n": integer(1, 128),
    "stream": BOOLEAN,
    "stream_options": {"type": "object", "properties": {"include_usage": BOOLEAN}},
    "cache_prompt": BOOLEAN,
    "ignore_eos": BOOLEAN,
    "user": STRING,
}

_CHAT_PART = one_of(
    tagged("text", {"text": STRING}),
    tagged("image_url", {"image_url": fields_object({"url": _IMAGE_URL}, {"detail": STRING})}),
)
_CHAT_CONTENT = one_of(STRING, array(_CHAT_PART))
_TOOL_CALL = {
    "type": "object",
    "required": ["id", "type", "function"],
    "properties": {
        "id": STRING,
        "type": {"const": "function"},
        "function": fields_object({"name": _SOME_TEXT, "arguments": STRING}),
    },
}
_CHAT_MESSAGE = one_of(
    fields_object({"role": {"enum": ["system", "developer", "user"]}, "content": _CHAT_CONTENT}, {"name": STRING}),
    fields_object(
        {"role": {"const": "assistant"}},
        {
            "content": one_of(STRING, {"type": "null"}),
            "tool_calls": array(_TOOL_CALL),
            "reasoning_content": STRING,
        },
    ),
    fields_object({"role": {"const": "tool"}, "content": _CHAT_CONTENT, "tool_call_id": _SOME_TEXT}),
)
_CHAT: Mapping[str, Schema] = {
    **_SAMPLING,
    "model": STRING,
    "messages": array(_CHAT_MESSAGE, at_least=1),
    "tools": array(tagged("function", {"function": _FUNCTION})),
    "tool_choice": one_of(
        {"enum": ["none", "auto", "required"]},
        tagged("function", {"function": fields_object({"name": STRING})}),
        tagged("allowed_tools", {"allowed_tools": OBJECT}),
    ),
    "parallel_tool_calls": BOOLEAN,
    "max_tokens": integer(1),
    "max_completion_tokens": integer(1),
    "logprobs": BOOLEAN,
    "top_logprobs": integer(0, 20),
    "reasoning_effort": {"enum": ["none", "minimal", "low", "medium", "high", "xhigh"]},
    "response_format": one_of(
        tagged("text", {}),
        tagged("json_object", {}),
        tagged("json_schema", {"json_schema": fields_object({"schema": OBJECT}, {"name": STRING, "strict": BOOLEAN})}),
    ),
}

_COMPLETION: Mapping[str, Schema] = {
    **_SAMPLING,
    "model": STRING,
    "prompt": one_of(STRING, array(STRING, at_least=1), array(integer(0), at_least=1)),
    "max_tokens": integer(0),
    "logprobs": integer(0, 5),
    "echo": BOOLEAN,
    "best_of": integer(1),
}

_EMBEDDING: Mapping[str, Schema] = {
    "model": STRING,
    "input": one_of(STRING, array(STRING, at_least=1), array(integer(0), at_least=1)),
    "encoding_format": {"enum": ["float", "base64"]},
}

_RESPONSES: Mapping[str, Schema] = {
    "model": STRING,
    "input": one_of(
        STRING,
        array(fields_object({"role": {"enum": ["user", "assistant", "system", "developer"]}, "content": STRING})),
    ),
    "instructions": STRING,
    "max_output_tokens": integer(1),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "top_logprobs": integer(0, 20),
    "tools": array(fields_object({"type": STRING}, {"name": STRING, "parameters": OBJECT})),
    "parallel_tool_calls": BOOLEAN,
    "stream": BOOLEAN,
    "store": BOOLEAN,
    "metadata": {"type": "object", "additionalProperties": STRING},
    "include": STRINGS,
    "reasoning": {"type": "object", "properties": {"effort": STRING}},
    "user": STRING,
}

_BLOCK = one_of(
    tagged("text", {"text": STRING}),
    tagged("image", {"source": tagged("url", {"url": _IMAGE_URL})}),
    tagged("tool_use", {"id": _SOME_TEXT, "name": STRING, "input": OBJECT}),
    tagged("tool_result", {"tool_use_id": _SOME_TEXT}, {"content": STRING, "is_error": BOOLEAN}),
    tagged("thinking", {"thinking": STRING, "signature": STRING}),
)
_ANTHROPIC: Mapping[str, Schema] = {
    "model": _SOME_TEXT,
    "messages": array(
        fields_object({"role": {"enum": ["user", "assistant"]}, "content": one_of(STRING, array(_BLOCK))}), at_least=1
    ),
    "system": one_of(STRING, array(tagged("text", {"text": STRING}))),
    "max_tokens": integer(1),
    "stream": BOOLEAN,
    "stop_sequences": STRINGS,
    "temperature": number(0, 1),
    "top_p": number(0, 1),
    "top_k": integer(0, 2**31 - 1),
    "tools": array(fields_object({"name": _SOME_TEXT, "input_schema": OBJECT})),
    "tool_choice": one_of(
        tagged("auto", {}, {"disable_parallel_tool_use": BOOLEAN}),
        tagged("any", {}),
        tagged("none", {}),
        tagged("tool", {"name": STRING}),
    ),
    "thinking": one_of(
        tagged("disabled", {}), tagged("adaptive", {}), tagged("enabled", {"budget_tokens": integer(1024, 2**31 - 1)})
    ),
    "metadata": OBJECT,
}

# llama.cpp's own endpoints have no tables: what else they take is told in llama.cpp's documentation.
_TOKEN_IDS = array(integer(0, 2**31 - 1), at_least=1)
_LLAMA: Mapping[str, tuple[Mapping[str, Schema], Mapping[str, Schema]]] = {
    "RerankRequest": ({"query": _SOME_TEXT, "documents": array(STRING, at_least=1)}, {"top_n": integer(1)}),
    "TokenizeRequest": (
        {"content": STRING},
        {"add_special": BOOLEAN, "parse_special": BOOLEAN, "with_pieces": BOOLEAN},
    ),
    "DetokenizeRequest": ({"tokens": _TOKEN_IDS}, {}),
    "ApplyTemplateRequest": ({"messages": array(_CHAT_MESSAGE, at_least=1)}, {}),
    "InfillRequest": (
        {"input_prefix": STRING, "input_suffix": STRING},
        {"prompt": STRING, "n_predict": integer(1), "stream": BOOLEAN},
    ),
}
_LLAMA_EXAMPLES: Mapping[str, Schema] = {
    "RerankRequest": {"query": "fox", "documents": ["a fox", "a dog"]},
    "TokenizeRequest": {"content": "The quick"},
    "DetokenizeRequest": {"tokens": [1, 2]},
    "ApplyTemplateRequest": {"messages": _HI},
    "InfillRequest": {"input_prefix": "The quick", "input_suffix": "fox", "n_predict": 2},
}

Rows = Iterable[tuple[str, str, str]]  # name, what becomes of it, why or how


def _openai_rows(table: Iterable[Any]) -> Rows:
    return [(row.name, row.status.value, row.note) for row in table if row.is_top_level]


def _anthropic_rows() -> Rows:
    return [(name, entry.status.value, entry.note) for name, entry in anthropic_fields.REQUEST.items()]


def _responses_rows() -> Rows:
    return [(name, rule.status.value, rule.note) for name, rule in responses_fields.REQUEST_FIELDS.items()]


def _body(rows: Rows, typed: Mapping[str, Schema], *, required: Iterable[str], example: Schema) -> Schema:
    """Return the schema of a request body: the fields of a dialect's table, with the types of those that have one."""
    properties = {name: dict(schema) for name, schema in typed.items()}
    for name, status, note in rows:
        if status == "refused":
            properties.pop(name, None)
            continue
        schema = properties.setdefault(name, {})
        told = f"{status}: {note}" if status != "honoured" and note else note
        if told:
            schema["description"] = told
    return {"type": "object", "required": list(required), "properties": properties, "example": example}


def request_schemas() -> dict[str, Schema]:
    """Return the schemas of all request bodies by name."""
    hi = {"model": _EXAMPLE_MODEL, "messages": _HI}
    anthropic = (_anthropic_rows(), _ANTHROPIC)
    return {
        "ChatCompletionRequest": _body(
            _openai_rows(openai_fields.CHAT_FIELDS), _CHAT, required=["messages"], example={**hi, "max_tokens": 16}
        ),
        "CompletionRequest": _body(
            _openai_rows(openai_fields.COMPLETION_FIELDS),
            _COMPLETION,
            required=["prompt"],
            example={"model": _EXAMPLE_MODEL, "prompt": "The quick", "max_tokens": 4},
        ),
        "EmbeddingRequest": _body(
            _openai_rows(openai_fields.EMBEDDING_FIELDS),
            _EMBEDDING,
            required=["input"],
            example={"model": _EXAMPLE_MODEL, "input": "hi"},
        ),
        "ResponseRequest": _body(
            _responses_rows(), _RESPONSES, required=["input"], example={"model": _EXAMPLE_MODEL, "input": "hi"}
        ),
        "CountResponseTokensRequest": _body(_responses_rows(), _RESPONSES, required=["input"], example={"input": "hi"}),
        "MessageRequest": _body(
            *anthropic, required=["model", "messages", "max_tokens"], example={**hi, "max_tokens": 16}
        ),
        "CountTokensRequest": _body(*anthropic, required=["model", "messages"], example=hi),
        **{name: {**fields_object(*fields), "example": _LLAMA_EXAMPLES[name]} for name, fields in _LLAMA.items()},
    }
