"""Reading a request of Anthropic's messages, or a count of its tokens: body -> Job.

The conversation is `anthropic_history`'s, the tools are `anthropic_tools`'s; what becomes of each field stands in
`anthropic_fields`.

Source: https://docs.claude.com/en/api/messages, https://docs.claude.com/en/api/messages-count-tokens
"""

from __future__ import annotations

from typing import Any

import attrs

from auxot.core.jobs import Job
from auxot.router.dialects.anthropic_fields import OUTPUT_FORMATS, REQUEST, THINKING
from auxot.router.dialects.anthropic_history import read_messages
from auxot.router.dialects.anthropic_objects import AnthropicRequest, Thoughts
from auxot.router.dialects.anthropic_tools import read_tool_choice, read_tools
from auxot.router.dialects.base import id_stem
from auxot.router.dialects.field_table import Status
from auxot.router.dialects.fields import Fields, parse_object
from auxot.router.dialects.sampling import SAMPLING_PARAMS, read_params, read_stop, set_thinking

MAX_STOP_SEQUENCES = 256
EFFORTS = frozenset({"low", "medium", "high", "xhigh", "max"})

_INT32_MAX = 2**31 - 1
_DEFAULT_EFFORT = "high"  # Anthropic's own default where thinking is on
_THINKS = frozenset({"enabled", "adaptive"})
_REFUSED = {name: entry.note for name, entry in REQUEST.items() if entry.status is Status.REFUSED}


@attrs.frozen(kw_only=True)
class Thinking:
    """What a request says about thinking, which is off unless it is asked for.

    Attributes:
        effort: the job's reasoning effort; `none` for off.
        budget_tokens: the most thinking that there may be; None for no limit.
        thoughts: how much of it the client wants to see.
    """

    effort: str = "none"
    budget_tokens: int | None = None
    thoughts: Thoughts = Thoughts.HIDDEN


def parse_messages(body: bytes, *, job_id: str, now: float, keep_billing_header: bool) -> AnthropicRequest:
    """Read a request; see `Dialect.parse`, and `read_messages` for `keep_billing_header`."""
    fields = _read_body(body)
    messages = read_messages(fields, keep_billing_header=keep_billing_header)
    model = _read_model(fields)
    max_tokens = fields.integer("max_tokens", 1, _INT32_MAX)
    if max_tokens is None:
        raise fields.refused("max_tokens", "Field required")
    tools, choice = read_tool_choice(fields, read_tools(fields))
    thinking = read_thinking(fields)
    job = Job(
        job_id=job_id,
        messages=messages,
        tools=tools,
        temperature=fields.number("temperature", 0, 1),
        max_tokens=max_tokens,
        reasoning_effort=thinking.effort,
        params=_read_params(fields, thinking) | choice,
    )
    return AnthropicRequest(
        job=job,
        stream=fields.boolean("stream") or False,
        model=model,
        answer_id=f"msg_{id_stem(job_id)}",
        created=int(now),
        thoughts=thinking.thoughts,
    )


def parse_count(body: bytes, *, job_id: str, now: float, keep_billing_header: bool) -> AnthropicRequest:
    """Read a request for the number of its prompt's tokens; see `parse_messages`.

    The job holds all that the prompt is made of, and no more: what only shapes the answer is not looked at.
    """
    fields = _read_body(body)
    messages = read_messages(fields, keep_billing_header=keep_billing_header)
    model = _read_model(fields)
    tools, choice = read_tool_choice(fields, read_tools(fields))
    thinking = read_thinking(fields)
    params = read_params(fields, {"chat_template_kwargs": SAMPLING_PARAMS["chat_template_kwargs"]})
    set_thinking(params, enabled=thinking.effort != "none")
    job = Job(
        job_id=job_id,
        messages=messages,
        tools=tools,
        reasoning_effort=thinking.effort,
        params=params | choice,
        count_only=True,
    )
    return AnthropicRequest(job=job, stream=False, model=model, answer_id=f"msg_{id_stem(job_id)}", created=int(now))


def _read_body(body: bytes) -> Fields:
    fields = Fields(parse_object(body, invalid="Invalid JSON: "), dotted=True)
    for name, reason in _REFUSED.items():
        if fields.get(name) not in (None, [], {}):  # clients write empty ones too
            raise fields.refused(name, reason)
    return fields


def _read_model(fields: Fields) -> str:
    model = fields.string("model")
    if not model:
        raise fields.refused("model", "Field required")
    return model


def read_thinking(fields: Fields) -> Thinking:
    """Read `thinking`, and the effort of `output_config`, which counts where thinking is on."""
    config = fields.object("output_config")
    effort = config.word("effort", EFFORTS) if config else None
    thinking = fields.object("thinking")
    if thinking is None:
        return Thinking()
    kind = thinking.word("type", THINKING)
    if kind is None:
        raise thinking.refused("type", "Field required")
    if kind not in _THINKS:
        return Thinking()
    is_omitted = thinking.word("display", ("omitted", "summarized")) == "omitted"
    return Thinking(
        effort=effort or _DEFAULT_EFFORT,
        budget_tokens=thinking.integer("budget_tokens", 1, _INT32_MAX),
        thoughts=Thoughts.SIGNED if is_omitted else Thoughts.SHOWN,
    )


def _read_params(fields: Fields, thinking: Thinking) -> dict[str, Any]:
    """Read what shapes the answer, under llama-server's names."""
    params = read_params(fields, SAMPLING_PARAMS)
    if thinking.budget_tokens is not None:
        params["thinking_budget_tokens"] = thinking.budget_tokens
    stop = read_stop(fields, "stop_sequences", max_words=MAX_STOP_SEQUENCES)
    if stop:
        params["stop"] = stop
    schema = _read_schema(fields)
    if schema is not None:
        params["response_format"] = {"type": "json_schema", "json_schema": {"name": "output", "schema": schema}}
    set_thinking(params, enabled=thinking.effort != "none")
    return params


def _read_schema(fields: Fields) -> dict[str, Any] | None:
    """Read the JSON schema that the answer must follow."""
    config = fields.object("output_config")
    form = (config.object("format") if config else None) or fields.object("output_format")
    if form is None:
        return None
    if form.word("type", OUTPUT_FORMATS) is None:
        raise form.refused("type", "Field required")
    form.required_object("schema")
    return form.opaque_object("schema")
