"""Fetching what a request's address names, for strangers: everything about it is bounded, and no wall is passed.

    address -> resolved once -> every address public? -> connection to that address -> GET -> 200: the body
                 ^                                                                      '-> 3xx: at most MAX_REDIRECTS
                 '----------------------------------------------------------------------------'

The connection goes to the address that was checked, so a name that resolves to something else a moment later (DNS
rebinding) gains nothing; each redirect is checked like the first address. What the other side answered is told to
nobody: an error says what kind of thing went wrong, not what stood there. No cookies, no credentials, no proxies, no
compression: a compressed body is refused, for it may be any size once it is open.

The caller owns the deadline. h11 on a Trio stream, one connection a request, closed with it.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache

import attrs
import h11
import trio

from auxot import __version__
from auxot.router.web_address import BadAddressError, WebAddress, is_public, parse_web_address, redirected

MAX_REDIRECTS = 3
MAX_ADDRESSES = 4  # of one name that are tried
CONNECT_TIMEOUT_S = 5.0  # to one of them
_READ_BYTES = 64 * 1024
_OK = 200
_REDIRECTS = (301, 302, 303, 307, 308)
_BROKEN = (OSError, h11.ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)

_UNREACHABLE = "could not be fetched"
_NOT_PUBLIC = "is not an address on the public internet"


class FetchError(Exception):
    """An address that gave nothing; the text is for the client: it goes on from the name of a field."""


@attrs.frozen(kw_only=True)
class Fetched:
    """What was fetched. `content_type` is the bare media type, in lower case."""

    content_type: str
    body: bytes = attrs.field(repr=False)


async def fetch(url: str, *, media: str, max_bytes: int, allows_private: bool) -> Fetched:
    """Fetch what stands at an address.

    Args:
        url: http or https.
        media: what its media type must begin with, such as `image/`.
        max_bytes: of the body; a longer one is not read to its end.
        allows_private: whether addresses that are not on the public internet are allowed.

    Raises:
        FetchError: it cannot be had, or is not what it must be.
    """
    try:
        address = parse_web_address(url)
        for _ in range(MAX_REDIRECTS + 1):
            async with _asked(address, media=media, allows_private=allows_private) as answer:
                if answer.status not in _REDIRECTS:
                    return await _read(answer, media=media, max_bytes=max_bytes)
                address = redirected(address, answer.header(b"location"))
    except BadAddressError as exc:
        raise FetchError(str(exc)) from exc
    except _BROKEN as exc:
        raise FetchError(_UNREACHABLE) from exc
    raise FetchError(f"is redirected more than {MAX_REDIRECTS} times")


@attrs.define
class _Answer:
    """An answer whose head has been read."""

    stream: trio.abc.Stream
    http: h11.Connection
    status: int
    headers: list[tuple[bytes, bytes]]

    def header(self, name: bytes) -> str:
        return next((value.decode("latin-1") for found, value in self.headers if found == name), "")


@asynccontextmanager
async def _asked(address: WebAddress, *, media: str, allows_private: bool) -> AsyncGenerator[_Answer, None]:
    """Send a GET request; the block reads the answer."""
    stream: trio.abc.Stream = await _connect(address, await _resolve(address, allows_private=allows_private))
    try:
        if address.is_tls:
            context = await trio.to_thread.run_sync(_tls_context)
            stream = trio.SSLStream(stream, context, server_hostname=address.host, https_compatible=True)
        http = h11.Connection(h11.CLIENT)
        await stream.send_all(_request(http, address, media=media))
        while not isinstance(event := await _next_event(stream, http), h11.Response):
            if not isinstance(event, h11.InformationalResponse):
                raise FetchError(_UNREACHABLE)
        yield _Answer(stream, http, event.status_code, list(event.headers))
    finally:
        await trio.aclose_forcefully(stream)


def _request(http: h11.Connection, address: WebAddress, *, media: str) -> bytes:
    headers = [
        ("host", address.authority),
        ("connection", "close"),
        ("accept", f"{media}*"),
        ("accept-encoding", "identity"),
        ("user-agent", f"auxot/{__version__}"),
    ]
    head = http.send(h11.Request(method="GET", target=address.target, headers=headers)) or b""
    return head + (http.send(h11.EndOfMessage()) or b"")


async def _resolve(address: WebAddress, *, allows_private: bool) -> list[str]:
    """Return the literal addresses of a host; which of two reasons it has not to be fetched is not told."""
    try:
        found = await trio.socket.getaddrinfo(address.host, address.port, type=trio.socket.SOCK_STREAM)
    except OSError as exc:
        raise FetchError(_UNREACHABLE if allows_private else _NOT_PUBLIC) from exc
    except UnicodeError as exc:
        raise BadAddressError("is not a URL") from exc
    literals = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
    if not literals or not (allows_private or all(map(is_public, literals))):
        raise FetchError(_NOT_PUBLIC)
    return literals[:MAX_ADDRESSES]


async def _connect(address: WebAddress, literals: list[str]) -> trio.SocketStream:
    """Connect to the first of the checked addresses that answers."""
    for literal in literals[:-1]:
        try:
            return await _connect_to(literal, address.port)
        except (OSError, trio.TooSlowError):
            continue
    return await _connect_to(literals[-1], address.port)


async def _connect_to(literal: str, port: int) -> trio.SocketStream:
    family = trio.socket.AF_INET6 if ":" in literal else trio.socket.AF_INET
    sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            await sock.connect((literal, port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def _read(answer: _Answer, *, media: str, max_bytes: int) -> Fetched:
    content_type = answer.header(b"content-type").partition(";")[0].strip().lower()
    if answer.status != _OK or answer.header(b"content-encoding").lower() not in ("", "identity"):
        raise FetchError(_UNREACHABLE)
    if not re.fullmatch(rf"{media}[a-z0-9.+-]{{1,80}}", content_type):
        raise FetchError(f"is not of the type {media}*")
    declared = answer.header(b"content-length")
    if declared and int(declared) > max_bytes:  # h11 has seen to it that it is a number
        raise _too_large(max_bytes)
    body = bytearray()
    while isinstance(event := await _next_event(answer.stream, answer.http), h11.Data):
        body += event.data
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    if not isinstance(event, h11.EndOfMessage):
        raise FetchError(_UNREACHABLE)
    return Fetched(content_type=content_type, body=bytes(body))


async def _next_event(stream: trio.abc.Stream, http: h11.Connection) -> h11.Event | type[h11.PAUSED]:
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(bytes(await stream.receive_some(_READ_BYTES)))
    return event  # type: ignore[return-value]  # h11's sentinels are classes of their own metaclass


def _too_large(max_bytes: int) -> FetchError:
    return FetchError(f"is larger than {max_bytes} bytes")


@cache
def _tls_context() -> ssl.SSLContext:
    """Return what certificates are checked with; reading the authorities takes some 20 ms."""
    return ssl.create_default_context()
