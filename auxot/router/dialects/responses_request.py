"""Reading a request of OpenAI's Responses API: body -> Job, and what the response has to repeat of the request.

Source: https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from auxot.core.jobs import Job
from auxot.router.dialects.base import id_stem, json_bytes
from auxot.router.dialects.fields import Fields, parse_object
from auxot.router.dialects.openai_objects import OpenAiRequest
from auxot.router.dialects.openai_request import EFFORTS, VERBOSITIES
from auxot.router.dialects.responses_fields import PARAMS, check_fields
from auxot.router.dialects.responses_input import read_items, read_messages, tools_in_items
from auxot.router.dialects.responses_tools import Toolbox, choose_tools, echo_tools, read_toolbox
from auxot.router.dialects.sampling import read_params, set_thinking

# A response repeats its request three times in a stream, before and after the answer; nobody reads large parts there.
MAX_ECHO_BYTES = 32 * 1024

_SUMMARIES = ("auto", "concise", "detailed", "none")
_LOGPROBS, _SEALED = "message.output_text.logprobs", "reasoning.encrypted_content"


@attrs.frozen(kw_only=True)
class ResponsesRequest(OpenAiRequest):
    """A request of this API.

    Attributes:
        echo: the fields of the response that repeat the request.
        toolbox: what the names of the offered tools stand for.
        seals_reasoning: whether the client wants the reasoning as `encrypted_content` too.
    """

    echo: Mapping[str, Any]
    toolbox: Toolbox
    seals_reasoning: bool


def parse_responses(body: bytes, *, job_id: str, now: float) -> ResponsesRequest:
    """Read a request; see `Dialect.parse`."""
    fields = Fields(parse_object(body, invalid="invalid JSON: "))
    _check(fields)
    items, tools = read_items(fields), fields.objects("tools") or []
    toolbox = read_toolbox([*tools, *tools_in_items(items)])
    offered, choice = choose_tools(fields, toolbox)
    include = fields.strings("include") or []
    effort = _read_effort(fields)
    params = _read_params(fields, effort=effort, wants_logprobs=_LOGPROBS in include) | choice
    _check_conflicts(fields, params, has_tools=bool(offered))
    job = Job(
        job_id=job_id,
        messages=read_messages(items, instructions=fields.string("instructions")),
        tools=offered,
        temperature=fields.number("temperature", 0, 2),
        max_tokens=fields.integer("max_output_tokens", 1),
        reasoning_effort=effort,
        params=params,
    )
    return ResponsesRequest(
        job=job,
        stream=fields.boolean("stream") or False,
        model=fields.string("model") or "",
        answer_id=f"resp_{id_stem(job_id)}",
        created=int(now),
        n_top_logprobs=fields.integer("top_logprobs") or 0,
        echo=_read_echo(fields, tools),
        toolbox=toolbox,
        seals_reasoning=_SEALED in include,
    )


def _check(fields: Fields) -> None:
    check_fields(fields)
    cache = fields.object("prompt_cache_options")
    if cache is not None and cache.boolean("prewarm"):
        raise cache.refused("prewarm", "a request that generates nothing is not supported")


def _read_effort(fields: Fields) -> str | None:
    reasoning = fields.object("reasoning")
    if reasoning is None:
        return None
    reasoning.word("summary", _SUMMARIES)
    return reasoning.word("effort", EFFORTS)


def _read_params(fields: Fields, *, effort: str | None, wants_logprobs: bool) -> dict[str, Any]:
    params = read_params(fields, PARAMS)
    if effort is not None:
        set_thinking(params, enabled=effort != "none")
    n_top = fields.integer("top_logprobs", 0, 20) or 0
    if wants_logprobs or n_top:
        # For 0 llama-server would leave out the log probabilities of the chosen tokens too.
        params |= {"logprobs": True, "top_logprobs": max(n_top, 1)}
    text = fields.object("text")
    verbosity = text.word("verbosity", VERBOSITIES) if text is not None else None
    if verbosity is not None:
        params["chat_template_kwargs"] = {"verbosity": verbosity, **params.get("chat_template_kwargs", {})}
    response_format = _read_format(text) if text is not None else None
    if response_format is not None:
        params["response_format"] = response_format
    return params


def _check_conflicts(fields: Fields, params: Mapping[str, Any], *, has_tools: bool) -> None:
    """Refuse what llama-server cannot do at the same time."""
    if has_tools and "logprobs" in params:
        asked = "top_logprobs" if fields.get("top_logprobs") else "include"
        raise fields.refused(asked, "log probabilities are not supported together with tools")
    if params.get("grammar") and (has_tools or "json_schema" in params or "response_format" in params):
        raise fields.refused("grammar", "cannot be used together with tools or a format")


def _read_format(text: Fields) -> dict[str, Any] | None:
    """Return the format of the answer as chat completions spell it, None for plain text."""
    given = text.object("format")
    if given is None:
        return None
    kind = given.word("type", ("text", "json_object", "json_schema"))
    if kind is None:
        raise given.refused("type", "Field required")
    if kind != "json_schema":
        return {"type": kind} if kind == "json_object" else None
    if given.opaque_object("schema") is None:
        raise given.refused("schema", "Field required")
    given.boolean("strict")
    named = {"name": given.required_string("name"), "description": given.string("description")}
    schema = {**named, "schema": given.get("schema"), "strict": given.get("strict")}
    return {"type": kind, "json_schema": {name: value for name, value in schema.items() if value is not None}}


def _read_echo(fields: Fields, tools: list[Fields]) -> dict[str, Any]:
    """Return what a response repeats of its request, with the API's defaults; large values become the default."""
    effort = _read_effort(fields)
    echo: dict[str, tuple[Any, Any]] = {
        "instructions": (fields.get("instructions"), None),
        "max_output_tokens": (fields.get("max_output_tokens"), None),
        "max_tool_calls": (fields.integer("max_tool_calls", 0), None),
        "metadata": (_read_metadata(fields), {}),
        "parallel_tool_calls": (fields.get("parallel_tool_calls"), True),
        "prompt_cache_key": (fields.string("prompt_cache_key"), None),
        "reasoning": ({"effort": effort, "summary": None}, None),
        "safety_identifier": (fields.string("safety_identifier"), None),
        "temperature": (fields.get("temperature"), None),
        "text": (_echo_text(fields), {"format": {"type": "text"}}),
        "tool_choice": (fields.get("tool_choice"), "auto"),
        "tools": (echo_tools(tools), []),
        "top_logprobs": (fields.get("top_logprobs"), 0),
        "top_p": (fields.get("top_p"), None),
        "user": (fields.string("user"), None),
    }
    return {
        name: default if value is None or len(json_bytes(value)) > MAX_ECHO_BYTES else value
        for name, (value, default) in echo.items()
    }


def _read_metadata(fields: Fields) -> dict[str, Any] | None:
    metadata = fields.object("metadata")
    if metadata is None:
        return None
    for name in metadata.raw:
        metadata.string(name)
    return metadata.raw


def _echo_text(fields: Fields) -> dict[str, Any]:
    text = fields.get("text") or {}
    return {"format": {"type": "text"}, **{name: value for name, value in text.items() if value is not None}}
