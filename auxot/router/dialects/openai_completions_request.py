"""Reading a request of OpenAI's legacy completions: body -> Job with a raw prompt, no chat template around it.

A prompt is text, a list of token ids, or a list of such prompts. Choice `i` of prompt `p` is choice `p * n + i` of the
answer, for us as for llama-server and OpenAI.

Source: https://platform.openai.com/docs/api-reference/completions/create
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from auxot.core.jobs import Job
from auxot.router.dialects.base import id_stem
from auxot.router.dialects.field_table import check_refused, extensions, refusals
from auxot.router.dialects.fields import Fields, parse_object
from auxot.router.dialects.openai_fields import COMPLETION_FIELDS
from auxot.router.dialects.openai_objects import OpenAiRequest
from auxot.router.dialects.openai_request import read_include_usage
from auxot.router.dialects.sampling import DRAWING_PARAMS, MAX_CHOICES, OUTPUT_PARAMS, Reader, read_params

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_LOGPROBS = 5
_INT32_MAX = 2**31 - 1
_FORMS = "must be a string, an array of token ids, or an array of such prompts"

PARAMS: Mapping[str, Reader] = {
    **DRAWING_PARAMS,
    **{name: OUTPUT_PARAMS[name] for name in ("stop", "n", "n_probs", "post_sampling_probs", "json_schema")},
    "return_progress": OUTPUT_PARAMS["return_progress"],
}
_REFUSED = refusals(COMPLETION_FIELDS)
COMPLETION_EXTENSIONS = extensions([*PARAMS, "n_predict"], COMPLETION_FIELDS)


@attrs.frozen(kw_only=True)
class CompletionRequest(OpenAiRequest):
    """A request for completions. `echoes`: the text to begin each choice with; "" for none."""

    echoes: tuple[str, ...]


def parse_completion(body: bytes, *, job_id: str, now: float) -> CompletionRequest:
    """Read a request; see `Dialect.parse`."""
    fields = Fields(parse_object(body, invalid="invalid JSON: "))
    check_refused(fields, _REFUSED)
    prompt = _read_prompt(fields)
    n_logprobs = fields.integer("logprobs", 0, MAX_LOGPROBS)
    params = _read_params(fields, n_logprobs)
    n = _read_n(fields, params, prompt)
    job = Job(
        job_id=job_id,
        messages=(),
        prompt=prompt,
        temperature=fields.number("temperature", 0, 2),
        max_tokens=_read_max_tokens(fields),
        params=params,
    )
    return CompletionRequest(
        job=job,
        stream=fields.boolean("stream") or False,
        model=fields.string("model") or "",
        answer_id=f"cmpl-{id_stem(job_id)}",
        created=int(now),
        include_usage=read_include_usage(fields),
        n_choices=_n_prompts(prompt) * n,
        n_top_logprobs=n_logprobs,
        shows_progress=params.get("return_progress", False),
        echoes=_read_echoes(fields, prompt, n),
    )


def _read_prompt(fields: Fields) -> Any:
    prompt = fields.get("prompt")
    if prompt is None:
        raise fields.refused("prompt", "Field required")
    if type(prompt) is str:
        return prompt
    if type(prompt) is not list:
        raise fields.refused("prompt", _FORMS)
    if not prompt:
        raise fields.refused("prompt", "must not be empty")
    if not _is_tokens(prompt) and not all(type(item) is str or (item and _is_tokens(item)) for item in prompt):
        raise fields.refused("prompt", _FORMS)
    return prompt


def _is_tokens(prompt: Any) -> bool:
    if type(prompt) is not list or not all(type(token) is int for token in prompt):
        return False
    return not prompt or (min(prompt) >= 0 and max(prompt) <= _INT32_MAX)


def _n_prompts(prompt: Any) -> int:
    return 1 if type(prompt) is str or _is_tokens(prompt) else len(prompt)


def _read_params(fields: Fields, n_logprobs: int | None) -> dict[str, Any]:
    params = read_params(fields, PARAMS)
    if n_logprobs is not None:
        params["n_probs"] = max(n_logprobs, 1)  # 0 would leave out the chosen tokens' own
    if params.get("grammar") and "json_schema" in params:
        raise fields.refused("grammar", "cannot be used together with a JSON schema")
    return params


def _read_n(fields: Fields, params: Mapping[str, Any], prompt: Any) -> int:
    """Read how many choices each prompt has, and check how many that is in all."""
    n: int = params.get("n", 1)
    if fields.integer("best_of", 1) not in (None, n):
        raise fields.refused("best_of", "must be equal to n: choices are not ranked")
    if n * _n_prompts(prompt) > MAX_CHOICES:
        raise fields.refused("prompt", f"must not ask for more than {MAX_CHOICES} choices, n of each prompt")
    return n


def _read_max_tokens(fields: Fields) -> int | None:
    """Read the limit of each choice's tokens; `n_predict`, llama-server's own, can say that there is none."""
    limit = fields.integer("max_tokens", 1)
    n_predict = fields.integer("n_predict", -1)
    if limit is not None:
        return limit
    if n_predict is None:
        return DEFAULT_MAX_TOKENS
    return n_predict if n_predict > 0 else None


def _read_echoes(fields: Fields, prompt: Any, n: int) -> tuple[str, ...]:
    """Return what each choice begins with."""
    prompts = prompt if type(prompt) is list and not _is_tokens(prompt) else [prompt]
    if not fields.boolean("echo"):
        return ("",) * (len(prompts) * n)
    if not all(type(item) is str for item in prompts):
        raise fields.refused("echo", "needs prompts that are text")
    if fields.get("logprobs") is not None:
        raise fields.refused("echo", "is not supported together with logprobs: those of the prompt are not known")
    return tuple(item for item in prompts for _ in range(n))
