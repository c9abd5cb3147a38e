"""Paths: which API a request is for, whatever the client put before `/v1`. Pure.

    /api/openai/X    /api/openai/v1/X      /api/openai/v1/v1/X       -> openai, /X
    /api/anthropic/X /api/anthropic/v1/X   /api/anthropic/v1/v1/X    -> anthropic, /X
    /v1/X                                  /v1/v1/X                  -> anthropic for messages; for models, if a header
                                                                        says so; else openai
    anything else                                                    -> none, as it is

Clients build their addresses in every way that there is: each of these was seen with and without `/v1`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import attrs

ANTHROPIC_HEADERS = frozenset({b"anthropic-version", b"x-api-key"})


class Api(enum.Enum):
    """Which family of endpoints, and so of error bodies, a request belongs to."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    NONE = "none"


@attrs.frozen
class Route:
    """The API of a request and its path within it, beginning with a slash, without `/v1`."""

    api: Api
    path: str


def resolve(path: str, header_names: Iterable[bytes]) -> Route:
    """Return which API a path belongs to.

    Args:
        path: the decoded path of the URL.
        header_names: lower-case; looked at only where the path alone does not tell.
    """
    for prefix, api in (("/api/openai", Api.OPENAI), ("/api/anthropic", Api.ANTHROPIC)):
        if path == prefix or path.startswith(prefix + "/"):
            return Route(api, _without_v1(path[len(prefix) :]))
    if path.startswith("/v1/"):
        rest = _without_v1(path)
        return Route(_api_of_alias(rest, header_names), rest)
    return Route(Api.NONE, path)


def _without_v1(path: str) -> str:
    for _ in range(2):
        if path == "/v1" or path.startswith("/v1/"):
            path = path[3:]
    return path or "/"


def _api_of_alias(path: str, header_names: Iterable[bytes]) -> Api:
    if path == "/messages" or path.startswith("/messages/"):
        return Api.ANTHROPIC
    if path == "/models" or path.startswith("/models/"):
        return Api.ANTHROPIC if ANTHROPIC_HEADERS.intersection(header_names) else Api.OPENAI
    return Api.OPENAI
