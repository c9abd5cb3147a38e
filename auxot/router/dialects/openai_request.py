"""Reading a request of OpenAI's chat completions: body -> Job.

What becomes of each field stands in `openai_fields`. Every field that is honoured is checked for its type and range;
a field that nobody knows is ignored, as new SDKs send new ones.

Source: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from auxot.core.jobs import Job
from auxot.router.dialects.field_table import check_refused, extensions, refusals
from auxot.router.dialects.fields import Fields, parse_object
from auxot.router.dialects.openai_fields import CHAT_FIELDS
from auxot.router.dialects.openai_messages import read_messages
from auxot.router.dialects.openai_objects import OpenAiRequest
from auxot.router.dialects.openai_tools import Offer, read_offer
from auxot.router.dialects.sampling import OUTPUT_PARAMS, SAMPLING_PARAMS, Reader, read_params, set_thinking

PARAMS: Mapping[str, Reader] = {**SAMPLING_PARAMS, **OUTPUT_PARAMS}
EFFORTS = frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "max"})
VERBOSITIES = frozenset({"low", "medium", "high"})

_REFUSED = refusals(CHAT_FIELDS)
CHAT_EXTENSIONS = extensions([*PARAMS, "n_predict"], CHAT_FIELDS)


def parse_chat(body: bytes, *, job_id: str, now: float) -> OpenAiRequest:
    """Read a request; see `Dialect.parse`."""
    fields = Fields(parse_object(body, invalid="invalid JSON: "))
    check_refused(fields, _REFUSED)
    _check_modalities(fields)
    messages, offer = read_messages(fields), read_offer(fields)
    effort = fields.word("reasoning_effort", EFFORTS)
    params = _read_params(fields, effort) | offer.params
    _check_conflicts(fields, params, offer)
    job = Job(
        job_id=job_id,
        messages=messages,
        tools=offer.tools,
        temperature=fields.number("temperature", 0, 2),
        max_tokens=_read_max_tokens(fields),
        reasoning_effort=effort,
        params=params,
    )
    return OpenAiRequest(
        job=job,
        stream=fields.boolean("stream") or False,
        model=fields.string("model") or "",
        answer_id=job_id,
        created=int(now),
        include_usage=read_include_usage(fields),
        n_choices=params.get("n", 1),
        n_top_logprobs=(fields.get("top_logprobs") or 0) if "logprobs" in params else None,
        shows_progress=params.get("return_progress", False),
        uses_functions=offer.uses_functions,
    )


def read_include_usage(fields: Fields) -> bool:
    """Read whether a stream ends with a chunk of token counts."""
    options = fields.object("stream_options")
    return options is not None and options.boolean("include_usage") is True


def _check_modalities(fields: Fields) -> None:
    modalities = fields.strings("modalities")
    if modalities is not None and set(modalities) != {"text"}:
        raise fields.refused("modalities", "only text is supported")


def _read_max_tokens(fields: Fields) -> int | None:
    """Read the limit of the answer's tokens: the newest of its three names wins (`n_predict` is llama-server's)."""
    limits = [fields.integer(name, 1) for name in ("max_completion_tokens", "max_tokens")]
    n_predict = fields.integer("n_predict", -1)
    limits.append(n_predict if n_predict and n_predict > 0 else None)
    return next((limit for limit in limits if limit is not None), None)


def _read_params(fields: Fields, effort: str | None) -> dict[str, Any]:
    params = read_params(fields, PARAMS)
    if "logprobs" in params:
        params.setdefault("top_logprobs", 1)  # llama-server's own default is 20, OpenAI's none
    if effort is not None:
        set_thinking(params, enabled=effort != "none")
    verbosity = fields.word("verbosity", VERBOSITIES)
    if verbosity is not None:
        params["chat_template_kwargs"] = {"verbosity": verbosity, **params.get("chat_template_kwargs", {})}
    return params


def _check_conflicts(fields: Fields, params: Mapping[str, Any], offer: Offer) -> None:
    """Refuse what llama-server cannot do at the same time."""
    if offer.tools and "logprobs" in params:
        raise fields.refused("logprobs", "is not supported together with tools")
    if offer.tools and params.get("grammar"):
        raise fields.refused("grammar", "cannot be used together with tools")
    is_formatted = "json_schema" in params or params.get("response_format", {}).get("type", "text") != "text"
    if is_formatted and params.get("grammar"):
        raise fields.refused("grammar", "cannot be used together with a JSON schema")
