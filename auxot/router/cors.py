"""Which web pages may call the router from a browser (CORS). Pure; off unless the operator names origins.

    OPTIONS with an origin and a wanted method   a preflight: answered 204 without a key, browsers send none
    any other request with an origin             its answer, also an error, gets the headers

Keys travel in headers and never in cookies, so `Access-Control-Allow-Credentials` is not needed.

Source: https://fetch.spec.whatwg.org/#http-cors-protocol, and for pages that call a router in the local network
https://wicg.github.io/private-network-access/
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

from auxot.router.headers import Headers

ANY_ORIGIN = "*"
MAX_ALLOWED_HEADERS = 64  # of those that a browser asks for; SDKs send about twenty
MAX_AGE_S = 600

_METHODS = b"GET, POST, DELETE, OPTIONS"
_USUAL_HEADERS = (b"authorization", b"content-type", b"x-api-key", b"anthropic-version", b"x-request-id")
_EXPOSED = b"x-request-id, request-id, server-timing, x-auxot-worker, x-auxot-route, retry-after"
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")  # RFC 9110, 5.6.2; bounded


@attrs.frozen
class Cors:
    """The origins whose pages may call: `https://app.example.com`, or `*` for all."""

    origins: frozenset[str]

    def headers(self, request_headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        """Return what an answer to this request needs; nothing but `Vary` if its origin may not call."""
        allowed = self._allowed_origin(_find(request_headers, b"origin"))
        vary: Headers = [] if ANY_ORIGIN in self.origins else [(b"vary", b"origin")]
        if allowed is None:
            return vary
        return [
            *vary,
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", _EXPOSED),
        ]

    def preflight(self, request_headers: Iterable[tuple[bytes, bytes]]) -> Headers | None:
        """Return the headers of the answer to a preflight beside those of `headers`; None if it is not one."""
        request_headers = tuple(request_headers)
        origin = _find(request_headers, b"origin")
        if origin is None or _find(request_headers, b"access-control-request-method") is None:
            return None
        if self._allowed_origin(origin) is None:
            return []
        headers = [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", _allowed_headers(request_headers)),
            (b"access-control-max-age", b"%d" % MAX_AGE_S),
        ]
        if _find(request_headers, b"access-control-request-private-network") == b"true":
            headers.append((b"access-control-allow-private-network", b"true"))
        return headers

    def _allowed_origin(self, origin: bytes | None) -> bytes | None:
        if origin is None:
            return None
        if ANY_ORIGIN in self.origins:
            return ANY_ORIGIN.encode()
        return origin if origin.decode("latin-1").lower() in self.origins else None


def _allowed_headers(request_headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the headers that are asked for: SDKs send many of their own (`x-stainless-...`, `anthropic-beta`)."""
    wanted = _find(request_headers, b"access-control-request-headers") or b""
    names = [name for part in wanted.split(b",", MAX_ALLOWED_HEADERS) if _TOKEN.fullmatch(name := part.strip())]
    return b", ".join(names[:MAX_ALLOWED_HEADERS] or _USUAL_HEADERS)


def _find(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    return next((value for name, value in headers if name == wanted), None)
