"""HTTP as downloads need it: one client, small requests with retries, and errors that say what to do."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import urlsplit, urlunsplit

import httpx
import trio

from auxot import __version__
from auxot.core.errors import FetchError
from auxot.core.logs import get_logger
from auxot.worker.fetch.source import Patience

MAX_REDIRECTS = 5
MAX_RETRY_AFTER_S = 300.0

_MAX_FAILURES = 5  # of a small request: someone without a network learns so in a quarter of a minute
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # worth another try

_log = get_logger()


class PassingError(Exception):
    """An answer that may be another one in a moment. `retry_after_s`: what the site asks for, 0 if nothing."""

    def __init__(self, reason: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class RefusedByServerError(FetchError):
    """A status that will stay; `status` is it, `reason_word` the site's own word for it, if any."""

    def __init__(self, message: str, *, status: int, reason_word: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason_word = reason_word


def open_client(patience: Patience) -> httpx.AsyncClient:
    """Return a client for downloads. Proxies come from the environment, as for other programs."""
    timeout = httpx.Timeout(patience.read_s, connect=patience.connect_s, pool=None)
    return httpx.AsyncClient(
        timeout=timeout,
        limits=httpx.Limits(max_connections=patience.connections + 2),
        headers={"user-agent": f"auxot/{__version__}", "accept-encoding": "identity"},
        max_redirects=MAX_REDIRECTS,
    )


async def ask(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    patience: Patience,
    follow: bool = False,
) -> httpx.Response:
    """Make a small request, again while its failures may pass; redirects are followed only if `follow`.

    Raises:
        RefusedByServerError: a status that is an error and will stay.
        FetchError: no proper answer after all tries.
    """
    max_failures = min(patience.max_failures, _MAX_FAILURES)
    for n_failures in range(1, max_failures + 1):
        try:
            response = await client.request(method, url, headers=dict(headers), follow_redirects=follow)
            check_status(response)
        except (httpx.TransportError, httpx.TooManyRedirects, PassingError) as exc:
            if n_failures == max_failures:
                raise FetchError(f"{plain_url(url)}: {told(exc)} ({n_failures} tries)") from exc
            delay_s = max(patience.delay_s(n_failures), getattr(exc, "retry_after_s", 0.0))
            _log.info("fetch.retry", url=plain_url(url), reason=told(exc), retry_ms=round(delay_s * 1000))
            await trio.sleep(delay_s)
        else:
            return response
    raise AssertionError("a try is the last one")


def check_status(response: httpx.Response) -> None:
    """Raise PassingError or RefusedByServerError for a status that is an error."""
    status = response.status_code
    if status in _PASSING:
        raise PassingError(f"status {status}", retry_after_s=_retry_after_s(response.headers.get("retry-after", "")))
    if status >= HTTPStatus.BAD_REQUEST:
        raise RefusedByServerError(
            f"{plain_url(str(response.url))}: status {status}",
            status=status,
            reason_word=response.headers.get("x-error-code", ""),
        )


def plain_url(url: str) -> str:
    """Return a URL without what may be secret in it: user, password, and the query, which signed addresses have."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def told(exc: Exception) -> str:
    """Return a phrase for a failure of the network; httpx's own are sometimes empty."""
    if isinstance(exc, httpx.ConnectTimeout | httpx.ConnectError):
        return f"cannot be reached ({str(exc) or type(exc).__name__})"
    if isinstance(exc, httpx.TimeoutException):
        return "does not answer in time"
    return str(exc) or type(exc).__name__


def _retry_after_s(value: str) -> float:
    return min(float(value), MAX_RETRY_AFTER_S) if value.isdecimal() else 0.0
