"""A small HTTP/1.1 client for one llama-server, on h11 and a Trio stream.

One connection a request, closed with it: llama-server drops idle connections after 5 s, and a request that meets the
dropping would fail; a new one costs some 100 us. Closing is also how a request is cancelled. No deadlines of its own.

Why not a general client: a token costs about 100 us in httpx and about 60 here, and httpx leaves async generators
behind when a stream is not read to its end, which Trio reports.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import h11
import trio

from auxot.core.errors import ConfigError, LlamaError

_READ_BYTES = 64 * 1024
_DEFAULT_PORTS = {"http": 80, "https": 443}


class BrokenExchangeError(LlamaError):
    """llama-server cannot be reached, broke the connection off, or does not speak HTTP."""


@attrs.frozen(kw_only=True)
class LlamaAddress:
    """Where a llama-server listens: on a UNIX socket, or on a host and port.

    Attributes:
        authority: the `Host` header.
        prefix: the path before `/v1` and `/health`, without a slash at its end.
    """

    socket: Path | None = None
    host: str = ""
    port: int = 0
    is_tls: bool = False
    authority: str = "llama-server"
    prefix: str = ""

    async def connect(self) -> trio.abc.Stream:
        """Open a connection; OSError if that fails."""
        if self.socket is not None:
            return await trio.open_unix_socket(self.socket)
        if not self.is_tls:
            return await trio.open_tcp_stream(self.host, self.port)
        stream = await trio.open_tcp_stream(self.host, self.port)
        context = ssl.create_default_context()
        return trio.SSLStream(stream, context, server_hostname=self.host, https_compatible=True)


def parse_llama_url(url: str) -> LlamaAddress:
    """Read the base URL of an external llama-server; `/v1` at its end is not needed.

    Raises:
        ConfigError: not an http or https URL with a host.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise ConfigError(f"AUXOT_LLAMA_URL is not a URL: {exc}") from exc
    if parts.scheme not in _DEFAULT_PORTS or not host:
        raise ConfigError("AUXOT_LLAMA_URL must be http://HOST:PORT or https://HOST")
    return LlamaAddress(
        host=host,
        port=port or _DEFAULT_PORTS[parts.scheme],
        is_tls=parts.scheme == "https",
        authority=parts.netloc.rpartition("@")[2],
        prefix=parts.path.rstrip("/").removesuffix("/v1").rstrip("/"),
    )


class Exchange:
    """One request and its answer. `status` and `content_type` are known from the start; the body comes in pieces."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.status = 0
        self.content_type = ""
        self._is_over = False  # the body has been read
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)

    async def read(self) -> bytes:
        """Return what has come of the body, at most 64 KiB; b"" at its end.

        Raises:
            BrokenExchangeError: the connection ended before the body did.
        """
        while not self._is_over:
            piece = self._ready_data()
            if piece:
                return piece
            if not self._is_over:
                await self._receive()
        return b""

    async def read_all(self, max_bytes: int) -> bytes:
        """Return the whole body; of a longer one the first `max_bytes`. Errors as `read`."""
        body = bytearray()
        while len(body) < max_bytes and (piece := await self.read()):
            body += piece
        return bytes(body[:max_bytes])

    async def ask(self, request: h11.Request, body: bytes) -> None:
        """Send the request, and wait for the head of the answer."""
        head = self._http.send(request) or b""
        rest = self._http.send(h11.Data(data=body)) or b""
        end = self._http.send(h11.EndOfMessage()) or b""
        try:
            await self._stream.send_all(b"".join((head, rest, end)))
        except trio.BrokenResourceError as exc:
            raise BrokenExchangeError("llama-server closed the connection") from exc
        while not isinstance(event := self._next_event(), h11.Response):
            if event is h11.NEED_DATA:
                await self._receive()
            elif not isinstance(event, h11.InformationalResponse):
                raise BrokenExchangeError("llama-server closed the connection")
        self.status = event.status_code
        self.content_type = next(
            (value.decode("latin-1") for name, value in event.headers if name == b"content-type"), ""
        )

    def _ready_data(self) -> bytes:
        """Return what h11 can give of the body without more input; an error waits until that has been taken."""
        pieces: list[bytes] = []
        while True:
            try:
                event = self._next_event()
            except BrokenExchangeError:
                if pieces:
                    break
                raise
            if not isinstance(event, h11.Data):
                self._is_over = event is not h11.NEED_DATA
                break
            pieces.append(bytes(event.data))
        return b"".join(pieces)

    def _next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as exc:
            raise BrokenExchangeError(f"llama-server broke off: {exc}") from exc

    async def _receive(self) -> None:
        try:
            piece = bytes(await self._stream.receive_some(_READ_BYTES))
        except trio.BrokenResourceError as exc:
            raise BrokenExchangeError("llama-server closed the connection") from exc
        self._http.receive_data(piece)


@attrs.frozen
class LlamaHttp:
    """Requests to one llama-server."""

    address: LlamaAddress

    @asynccontextmanager
    async def open(
        self, method: str, path: str, body: bytes = b"", *, content_type: str = "application/json"
    ) -> AsyncGenerator[Exchange, None]:
        """Send a request; the block reads the answer. At the end of the block the connection is closed.

        Raises:
            BrokenExchangeError: no connection, or no answer.
        """
        try:
            stream = await self.address.connect()
        except OSError as exc:
            raise BrokenExchangeError(f"llama-server cannot be reached: {exc}") from exc
        try:
            exchange = Exchange(stream)
            await exchange.ask(self._request(method, path, len(body), content_type), body)
            yield exchange
        finally:
            await trio.aclose_forcefully(stream)

    async def get(self, path: str, *, max_bytes: int = 16 * 1024 * 1024) -> tuple[int, bytes]:
        """Return status and body of a GET request; the caller sets the deadline. Errors as `open`."""
        async with self.open("GET", path) as exchange:
            return exchange.status, await exchange.read_all(max_bytes)

    async def post(self, path: str, body: bytes, *, max_bytes: int = 16 * 1024 * 1024) -> tuple[int, bytes]:
        """Return status and body of a POST request with JSON; the caller sets the deadline. Errors as `open`."""
        async with self.open("POST", path, body) as exchange:
            return exchange.status, await exchange.read_all(max_bytes)

    def _request(self, method: str, path: str, n_body_bytes: int, content_type: str) -> h11.Request:
        headers = [
            ("host", self.address.authority),
            ("connection", "close"),
            ("accept", "*/*"),
            ("content-type", content_type),
            ("content-length", str(n_body_bytes)),
        ]
        return h11.Request(method=method, target=self.address.prefix + path, headers=headers)
