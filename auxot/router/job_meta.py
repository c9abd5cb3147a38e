"""PURE: what a job's queue entry tells the router that claims it, beside the job itself."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import attrs
import orjson


@attrs.frozen(kw_only=True)
class JobMeta:
    """The `meta` of a queue entry.

    Attributes:
        needs: a feature that the worker must have.
        max_tokens: what the job asks for.
        issue: how many entries this job has had before. Only what is said of the latest one counts.
        n_attempts: deliveries of those before.
    """

    needs: str | None = None
    max_tokens: int | None = None
    issue: int = 0
    n_attempts: int = 0


@lru_cache(maxsize=256)  # those of most jobs are the same few
def encode_meta(meta: JobMeta) -> bytes:
    """Return it as the bytes of the entry's field."""
    return orjson.dumps(attrs.asdict(meta))


@lru_cache(maxsize=256)
def decode_meta(content: bytes) -> JobMeta:
    """Read what `encode_meta` wrote; what cannot be read says nothing."""
    try:
        said = orjson.loads(content or b"{}")
    except orjson.JSONDecodeError:
        said = {}
    fields: dict[str, Any] = said if isinstance(said, dict) else {}
    needs = fields.get("needs")
    return JobMeta(
        needs=needs if isinstance(needs, str) else None,
        max_tokens=_number(fields.get("max_tokens")),
        issue=_number(fields.get("issue")) or 0,
        n_attempts=_number(fields.get("n_attempts")) or 0,
    )


def _number(said: Any) -> int | None:
    return said if isinstance(said, int) else None
