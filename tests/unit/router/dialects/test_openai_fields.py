"""The tables of OpenAI's request fields: they know every name of the official SDK, and what they say is true."""

from __future__ import annotations

import copy
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

import attrs
import orjson
import pytest
import typing_extensions
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_params

from auxot.core.errors import RefusedError
from auxot.router.dialects.base import ChatRequest, Dialect
from auxot.router.dialects.field_table import FieldRule, Status
from auxot.router.dialects.openai_chat import OPENAI_CHAT
from auxot.router.dialects.openai_completions import OPENAI_COMPLETIONS
from auxot.router.dialects.openai_completions_request import COMPLETION_EXTENSIONS
from auxot.router.dialects.openai_fields import CHAT_FIELDS, COMPLETION_FIELDS, EMBEDDING_FIELDS
from auxot.router.dialects.openai_request import CHAT_EXTENSIONS

_UNIONS = (typing.Union, type(int | str))
_WRAPPERS = (typing_extensions.Required, typing_extensions.NotRequired, typing.Required, typing.NotRequired)
_NO_FIELDS = (str, int, float, bool, object, type(None), bytes)


def walk(kind: Any, path: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield the path of every field below a type of the SDK, with the words that it may hold."""
    if typing_extensions.is_typeddict(kind):
        for name, field in typing_extensions.get_type_hints(kind, include_extras=True).items():
            below = f"{path}.{name}" if path else name
            yield below, ()
            yield from walk(field, below)
        return
    origin, inner = get_origin(kind), get_args(kind)
    if origin is typing_extensions.Literal:
        yield path, inner
    elif origin in _WRAPPERS or origin in _UNIONS:
        for part in inner:
            yield from walk(part, path)
    elif origin is typing_extensions.Annotated:
        yield from walk(inner[0], path)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        return  # names of the client's own choice
    elif origin is not None and inner:
        yield from walk(inner[0], f"{path}[]")
    else:
        assert kind in _NO_FIELDS, f"{path}: {kind} is not walked"


def sdk_fields(*kinds: Any) -> dict[str, set[Any]]:
    """Return every path below some types of the SDK, with the words that each may hold."""
    found: dict[str, set[Any]] = {}
    for kind in kinds:
        for path, words in walk(kind):
            found.setdefault(path, set()).update(words)
    return {path: words for path, words in found.items() if words or not path.endswith("[]")}


def rule_of(path: str, table: tuple[FieldRule, ...]) -> FieldRule | None:
    """Return the row of a field; what is ignored or refused covers everything below it."""
    for row in table:
        covers = row.status is not Status.HONOURED and re.match(re.escape(row.name) + r"[.\[]", path)
        if row.name == path or covers:
            return row
    return None


SDK = {
    "chat": sdk_fields(chat_params.CompletionCreateParamsNonStreaming, chat_params.CompletionCreateParamsStreaming),
    "completions": sdk_fields(
        completion_create_params.CompletionCreateParamsNonStreaming,
        completion_create_params.CompletionCreateParamsStreaming,
    ),
    "embeddings": sdk_fields(embedding_create_params.EmbeddingCreateParams),
}
TABLES = {"chat": CHAT_FIELDS, "completions": COMPLETION_FIELDS, "embeddings": EMBEDDING_FIELDS}
OURS = {"completions": {"response_format"}}  # what clients send though the SDK has not


@pytest.mark.parametrize("api", TABLES)
def test_every_field_of_the_sdk_is_known(api):
    """A field of a new SDK would be dropped without a word."""
    unknown = [path for path in SDK[api] if rule_of(path.removesuffix("[]"), TABLES[api]) is None]
    assert unknown == []


@pytest.mark.parametrize("api", TABLES)
def test_no_table_speaks_of_a_field_that_is_gone(api):
    """The README would list a field that no client can send."""
    gone = {row.name for row in TABLES[api] if row.name.partition("=")[0] not in SDK[api]} - OURS.get(api, set())
    assert gone == set()


FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
ALLOWED = {"mode": "required", "tools": [{"type": "function", "function": {"name": "f"}}]}
SCHEMA = {"name": "n", "description": "d", "strict": True, "schema": {"type": "object", "properties": {}}}
HI: dict[str, Any] = {"role": "user", "content": "Hi"}


def parts(*content: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}]}


TEXT = {"type": "text", "text": "x"}
IMAGE = parts({"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}})
AUDIO = parts({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}})
CALLED = {"messages": [{"role": "assistant", "content": "x", "tool_calls": [CALL]}, HI]}
FUNCTIONS = {"functions": [{k: v for k, v in FUNCTION.items() if k != "strict"}]}
OLD_CALL = {"messages": [{"role": "assistant", "content": "x", "function_call": CALL["function"]}, HI]}

# A body, beside the minimum, in which the field stands; a field that is not here is tried with its `VALUES`.
BODIES: dict[str, dict[str, dict[str, Any]]] = {
    "chat": {
        "messages[].name": {"messages": [{**HI, "name": "ann"}]},
        "messages[].refusal": {"messages": [{"role": "assistant", "refusal": "no"}]},
        "messages[].content[].type": parts(TEXT),
        "messages[].content[].text": parts(TEXT),
        "messages[].content[].refusal": parts({"type": "refusal", "refusal": "no"}),
        "messages[].content[].file": parts({"type": "file", "file": {"file_data": "x"}}),
        "messages[].content[].prompt_cache_breakpoint": parts({**TEXT, "prompt_cache_breakpoint": {"mode": "x"}}),
        "messages[].audio": {"messages": [{"role": "assistant", "content": "x", "audio": {"id": "a"}}]},
        "messages[].tool_call_id": {"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]},
        "messages[].tool_calls[].custom": {
            "messages": [{"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "f"}}]}]
        },
        **{f"messages[].content[].image_url{name}": IMAGE for name in ("", ".url", ".detail")},
        **{f"messages[].content[].input_audio{name}": AUDIO for name in ("", ".data", ".format")},
        **{f"messages[].tool_calls{name}": CALLED for name in ("", "[].id", "[].function", "[].function.name")},
        "messages[].tool_calls[].function.arguments": CALLED,
        "messages[].tool_calls[].type": {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "type": "x"}]}]},
        **{f"messages[].function_call{name}": OLD_CALL for name in ("", ".name", ".arguments")},
        **{f"tools{name}": {"tools": [TOOL]} for name in ("", "[].type", "[].function")},
        **{f"tools[].function.{name}": {"tools": [TOOL]} for name in FUNCTION},
        "tools[].custom": {"tools": [{"type": "custom", "custom": {"name": "f"}}]},
        "tool_choice": {"tools": [TOOL], "tool_choice": "required"},
        **{
            f"tool_choice.{name}": {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}
            for name in ("type", "function", "function.name")
        },
        **{
            f"tool_choice.allowed_tools{name}": {
                "tools": [TOOL],
                "tool_choice": {"type": "allowed_tools", "allowed_tools": ALLOWED},
            }
            for name in ("", ".mode", ".tools")
        },
        "tool_choice.custom": {"tool_choice": {"type": "custom", "custom": {"name": "f"}}},
        **{f"functions{name}": FUNCTIONS for name in ("", "[].name", "[].description", "[].parameters")},
        **{f"function_call{name}": {**FUNCTIONS, "function_call": {"name": "f"}} for name in ("", ".name")},
        "top_logprobs": {"logprobs": True, "top_logprobs": 3},
        **{
            f"response_format{name}": {"response_format": {"type": "json_schema", "json_schema": SCHEMA}}
            for name in ("", ".type", ".json_schema", *(f".json_schema.{field}" for field in SCHEMA))
        },
        "modalities": {"modalities": ["text", "audio"]},
        "modalities=audio": {"modalities": ["audio"]},
    },
    "completions": {"best_of": {"n": 2, "best_of": 3}, "logprobs": {"logprobs": 2}, "suffix": {"suffix": "x"}},
}
VALUES: dict[str, Any] = {
    "model": "other",
    "messages": [HI],
    "messages[].role": "user",
    "messages[].content": "x",
    "prompt": "x",
    "stream": True,
    "stream_options": {"include_usage": True},
    "stream_options.include_usage": True,
    "stream_options.include_obfuscation": True,
    "stop": "x",
    "logit_bias": {"1": 1},
    "logprobs": True,
    "n": 2,
    "echo": True,
    "parallel_tool_calls": False,
    "reasoning_effort": "low",
    "verbosity": "low",
    "store": True,
    "metadata": {"a": "b"},
    "prediction": {"type": "content", "content": "x"},
    "user": "u",
}
DIALECTS: dict[str, Dialect] = {"chat": OPENAI_CHAT, "completions": OPENAI_COMPLETIONS}
MINIMUM: dict[str, dict[str, Any]] = {"chat": {"model": "m", "messages": [HI]}, "completions": {"prompt": "x"}}
ROWS = [pytest.param(api, row, id=f"{api}-{row.name}") for api in DIALECTS for row in TABLES[api]]


def body_with(api: str, name: str) -> dict[str, Any]:
    """Return a body in which a field stands."""
    body = {**MINIMUM[api], **BODIES[api].get(name, {})}
    if name in BODIES[api]:
        return body
    value = VALUES.get(name, 1)
    top, _, below = name.partition(".")
    if top.startswith("messages") or top == "prompt":
        return body
    body[top] = {below: value} if below else value
    return body


def parents(body: Any, name: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield every object that has the field, with the field's own name."""
    *path, last = name.partition("=")[0].replace("[]", ".[]").split(".")
    places = [body]
    for step in path:
        places = [
            item for place in places for item in (place if step == "[]" and type(place) is list else [_at(place, step)])
        ]
    yield from ((place, last) for place in places if type(place) is dict and last in place)


def _at(place: Any, step: str) -> Any:
    return place.get(step) if type(place) is dict else None


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    rest = copy.deepcopy(body)
    for place, last in list(parents(rest, name)):
        del place[last]
    return rest


def outcome(api: str, body: dict[str, Any]) -> Any:
    """Return what becomes of a body: a request without its incidental fields, or the name of the refused field."""
    try:
        request: ChatRequest = DIALECTS[api].parse(orjson.dumps(body), job_id="chatcmpl-01", now=0)
    except RefusedError as error:
        return error.param
    return attrs.asdict(request, recurse=False)


@pytest.mark.parametrize(("api", "row"), ROWS)
def test_the_table_tells_what_happens(api, row):
    """The README would promise a field that is dropped, or hide one that is refused."""
    body = body_with(api, row.name)
    assert list(parents(body, row.name)), "the body of this test has not the field"
    told = outcome(api, body)
    if row.status is Status.REFUSED:
        assert re.sub(r"\[\d+\]", "[]", str(told)) == row.name.partition("=")[0]
    elif row.status is Status.IGNORED:
        assert isinstance(told, dict)
        assert told == outcome(api, without(body, row.name))
    else:
        assert told != outcome(api, without(body, row.name))


WORDS = [
    pytest.param(api, path, word, id=f"{api}-{path}-{word}")
    for api in DIALECTS
    for path, words in SDK[api].items()
    for word in sorted(words, key=str)
    if (row := rule_of(path, TABLES[api])) is not None
    if row.status is Status.HONOURED and row.name not in ("model", "stream")
]


@pytest.mark.parametrize(("api", "path", "word"), WORDS)
def test_every_word_of_the_sdk_is_known(api, path, word):
    """A role, a kind of part or a level of effort of a new SDK would be refused as if it were a mistake."""
    body = copy.deepcopy(body_with(api, path))
    for place, last in parents(body, path):
        place[last] = word
    told = outcome(api, body)
    assert isinstance(told, dict) or not re.fullmatch(re.escape(path).replace(r"\[\]", r"\[\d+\]"), told)


@pytest.mark.parametrize(("api", "rows"), [("chat", CHAT_EXTENSIONS), ("completions", COMPLETION_EXTENSIONS)])
def test_llama_servers_own_fields_are_listed_beside_the_documented(api, rows):
    """A field that only llama-server has would be missing in the README, or stand there twice."""
    names = {row.name for row in rows}
    assert {"top_k", "min_p", "grammar", "json_schema", "n_predict", "return_progress"} <= names
    assert not names & {row.name for row in TABLES[api]}
    assert all(row.status is Status.HONOURED for row in rows)
