"""The worker's end of its WebSocket to the router: connect, hello, heartbeat, outbox, liveness, back-off.

    connect --> hello --> hello_ack --> open --> closed
       |          |           |          |
       |          |           |          '- nothing heard for dead_after_s, or the socket broke: LinkError
       |          |           '- the key is refused: KeyRefusedError; anything else is wrong: LinkError
       '----------'- no answer in time: LinkError

`open_link` is the connection as a context manager: it lives exactly as long as its block. Inside, one task calls
`Link.receive` and goes on doing so (pings are answered only while somebody receives); any task may `send`. One task
writes, from a bounded outbox: who sends more than the router takes waits, which holds back llama-server.

Liveness is a deadline that every message from the router moves forward; a router answers each heartbeat.

Messages: `auxot.core.protocol`. Owner: the worker's service.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from random import Random
from urllib.parse import urlsplit, urlunsplit

import attrs
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream

from auxot.core.background import background
from auxot.core.errors import ConfigError, KeyRefusedError, LinkError, ProtocolError
from auxot.core.logs import Level, get_logger
from auxot.core.messages import (
    AUTH_FAILED,
    FEATURE_BATCHES,
    Error,
    Heartbeat,
    HeartbeatAck,
    Hello,
    HelloAck,
    RouterMessage,
    WorkerMessage,
)
from auxot.core.protocol import decode_router_message, encode, join

CONNECT_TIMEOUT_S = 20.0  # for name look-up and TCP, and again for TLS and the upgrade
HELLO_TIMEOUT_S = 30.0  # the original's; a router may have many keys to verify before ours
CLOSE_TIMEOUT_S = 1.0
MISSED_HEARTBEATS = 3  # so many intervals without a word and the router counts as gone
OUTBOX_FRAMES = 256  # some 50 ms of tokens: enough to ride out a slow write, too little to hide a stuck router
MAX_BATCH_CHARS = 64 * 1024  # of messages that share a frame; one read of the router's

# A job carries its conversation, images as base64 included: a router takes bodies of 32 MiB by default and an operator
# may allow more. The library's default of 1 MiB would end the connection at the first larger job.
MAX_MESSAGE_BYTES = 256 * 1024 * 1024
_RECEIVE_BYTES = 64 * 1024

_WORKER_PATH = "/ws"
_HOSTED_PATH = "/api/gpu/client"  # the path in the original's default URL for installed workers; it means /ws
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}

Transport = trio.SocketStream | trio.SSLStream[trio.SocketStream]

_log = get_logger()


@attrs.frozen(kw_only=True)
class LinkSettings:
    """How a worker reaches its router.

    Attributes:
        url: as `normalise_router_url` returns it.
        heartbeat_interval_s: seconds between two heartbeats.
        ssl_context: for wss URLs; None: the system's certificates.
    """

    url: str
    heartbeat_interval_s: float = 10.0
    ssl_context: ssl.SSLContext | None = None

    @property
    def dead_after_s(self) -> float:
        """Seconds of silence after which the router counts as gone."""
        return MISSED_HEARTBEATS * self.heartbeat_interval_s


def normalise_router_url(text: str) -> str:
    """Return the WebSocket URL that a worker connects to.

    Args:
        text: what the operator wrote. No scheme: wss. http and https become ws and wss. A missing path becomes `/ws`;
            any other path is kept (a reverse proxy's prefix) and ends in `/ws`. Query and fragment are dropped.

    Raises:
        ConfigError: not the address of a router; the text is not repeated where it may hold a password.
    """
    text = text.strip()
    try:
        parts = urlsplit(text if "://" in text else f"wss://{text}")
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise ConfigError(f"the router URL is not a URL: {exc}") from exc
    if parts.username is not None:
        raise ConfigError("the router URL must not hold a user or a password: the worker authenticates with its key")
    if parts.scheme.lower() not in _SCHEMES:
        raise ConfigError(f"the router URL begins with {parts.scheme}://, expected ws, wss, http or https")
    if not host or any(char.isspace() for char in text):
        raise ConfigError(f"the router URL {text!r} names no host")
    host = f"[{host}]" if ":" in host else host
    netloc = host if port is None else f"{host}:{port}"
    return urlunsplit((_SCHEMES[parts.scheme.lower()], netloc, _websocket_path(parts.path), "", ""))


def _websocket_path(path: str) -> str:
    path = path.rstrip("/")
    if path in {"", _HOSTED_PATH}:
        return _WORKER_PATH
    return path if path.endswith(_WORKER_PATH) else path + _WORKER_PATH


def backoff_delays(*, first_s: float, max_s: float, rng: Random | None = None) -> Iterator[float]:
    """Yield the delays before the next tries, for ever: decorrelated jitter, from `first_s` up to `max_s` seconds.

    Each delay is drawn between `first_s` and three times the one before. Workers that lost the same router at the same
    moment drift apart; how it compares: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    Args:
        first_s: the shortest delay; more than 0.
        max_s: the longest delay; at least `first_s`.
        rng: the source of chance, for tests.
    """
    rng = rng or Random()
    delay_s = first_s
    while True:
        delay_s = min(max_s, rng.uniform(first_s, delay_s * 3))
        yield delay_s


class Link:
    """An open connection to the router; made by `open_link`. `ack` is the router's answer to hello."""

    def __init__(self, socket: WebSocketConnection, ack: HelloAck, settings: LinkSettings) -> None:
        self.ack = ack
        self._socket = socket
        self._settings = settings
        self._outbox, self._outgoing = trio.open_memory_channel[str](OUTBOX_FRAMES)
        self._sends_batches = FEATURE_BATCHES in ack.features
        self._written = trio.Event()  # everything that was in the outbox when it was closed
        self._log = _log.bind(worker_id=ack.gpu_id)

    async def send(self, *messages: WorkerMessage) -> None:
        """Put messages into the outbox, in order; wait where it is full.

        Cancel-safe: each message goes out whole or not at all.

        Raises:
            LinkError: the connection is gone.
        """
        for message in messages:
            frame = self._frame(message)
            try:
                self._outbox.send_nowait(frame)
            except trio.WouldBlock:
                await self._send_when_there_is_room(frame)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                raise LinkError("the connection to the router is gone") from exc

    async def receive(self) -> RouterMessage:
        """Wait for the next message of the router; heartbeat acknowledgements and unreadable ones are passed over.

        Cancel-safe: a message that has been taken is returned.

        Raises:
            LinkError: the connection is gone, or the router has been silent for too long.
        """
        while True:
            message = await self._receive_any()
            if message is not None and not isinstance(message, HeartbeatAck):
                return message

    async def _receive_any(self) -> RouterMessage | None:
        try:
            with trio.fail_after(self._settings.dead_after_s):
                frame = await self._socket.get_message()
        except trio.TooSlowError as exc:
            raise LinkError(f"nothing heard from the router for {self._settings.dead_after_s:g} s") from exc
        except ConnectionClosed as exc:
            raise LinkError(f"the router closed the connection ({_close_code(exc)})") from exc
        try:
            message = decode_router_message(frame)
        except ProtocolError as exc:  # a newer router may say things that we do not know
            self._log.warning("link.unreadable", reason=exc.reason, n_chars=len(frame))
            return None
        if _log.is_enabled(Level.DEBUG):
            self._log.debug("link.received", type=type(message).__name__, n_chars=len(frame))
        return message

    async def run_sender(self) -> None:
        """Write the outbox to the socket until it is closed or the socket breaks (whoever receives will see it)."""
        with self._outgoing:
            async for message in self._outgoing:
                try:
                    for frame in self._frames(message):
                        await self._socket.send_message(frame)
                except ConnectionClosed:
                    break
        self._written.set()

    def _frames(self, message: str) -> Iterator[str]:
        """Yield a message, and what waits behind it: in as few frames as the router takes. Nothing is waited for.

        llama-server writes the tokens of all its slots together, so this is one frame where there would be as many.
        """
        batch, n_chars = [message], len(message)
        while self._sends_batches and (waiting := self._next_waiting()) is not None:
            if n_chars + len(waiting) > MAX_BATCH_CHARS:
                yield join(batch)
                batch, n_chars = [], 0
            batch.append(waiting)
            n_chars += len(waiting)
        yield join(batch)

    def _next_waiting(self) -> str | None:
        try:
            return self._outgoing.receive_nowait()
        except (trio.WouldBlock, trio.EndOfChannel):
            return None

    async def run_heartbeat(self) -> None:
        """Send a heartbeat at every interval until the connection breaks."""
        while True:
            await trio.sleep(self._settings.heartbeat_interval_s)
            try:
                await self.send(Heartbeat())
            except LinkError:
                return

    async def close(self) -> None:
        """Write what is in the outbox, then say goodbye; the caller sets the deadline."""
        self._outbox.close()
        await self._written.wait()
        await self._socket.aclose()

    async def _send_when_there_is_room(self, frame: str) -> None:
        try:
            await self._outbox.send(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise LinkError("the connection to the router is gone") from exc

    def _frame(self, message: WorkerMessage) -> str:
        frame = encode(message).decode()
        if _log.is_enabled(Level.DEBUG):
            self._log.debug("link.sent", type=type(message).__name__, n_chars=len(frame))
        return frame


@asynccontextmanager
async def open_link(settings: LinkSettings, hello: Hello) -> AsyncGenerator[Link, None]:
    """Connect to the router, introduce the worker, and keep the connection for the length of the block.

    At the end of the block what was sent is written out and the connection closed, within CLOSE_TIMEOUT_S; when the
    block is cancelled or fails the connection is dropped at once.

    Raises:
        KeyRefusedError: the router does not accept the key.
        LinkError: no connection, or no proper answer; or the block raised it.
    """
    async with _open_socket(settings) as socket:
        ack = await _introduce(socket, hello)
        link = Link(socket, ack, settings)
        async with background() as link_nursery:
            link_nursery.start_soon(link.run_sender)
            link_nursery.start_soon(link.run_heartbeat)
            yield link
            with trio.move_on_after(CLOSE_TIMEOUT_S):
                await link.close()


@asynccontextmanager
async def _open_socket(settings: LinkSettings) -> AsyncGenerator[WebSocketConnection, None]:
    """Open the WebSocket on a stream of our own, which is closed with the block whatever happens.

    trio-websocket 0.12 leaves the stream open when the other side breaks off or refuses the upgrade.
    """
    stream = await _connect(settings)
    status = 0
    try:
        async with background() as socket_nursery:
            yield await _upgrade(stream, settings.url, socket_nursery)
    except* ConnectionRejected as refusals:  # the library raises it in its reading task
        status = _status_of(refusals)
    finally:
        await trio.aclose_forcefully(stream)
    if status:
        raise LinkError(f"{settings.url} answered with HTTP status {status}, not with a WebSocket")


async def _connect(settings: LinkSettings) -> Transport:
    """Open a TCP stream, with TLS for wss; TLS shakes hands with the first bytes."""
    parts = urlsplit(settings.url)
    is_tls = parts.scheme == "wss"
    host, port = parts.hostname or "", parts.port or (443 if is_tls else 80)
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            stream = await trio.open_tcp_stream(host, port)
    except (OSError, trio.TooSlowError) as exc:
        raise LinkError(f"no connection to {settings.url}: {str(exc) or 'it took too long'}") from exc
    if not is_tls:
        return stream
    context = settings.ssl_context or ssl.create_default_context()
    return trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)


async def _upgrade(stream: Transport, url: str, socket_nursery: trio.Nursery) -> WebSocketConnection:
    """Make the stream a WebSocket, read by a task of `socket_nursery`."""
    parts = urlsplit(url)
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            if isinstance(stream, trio.SSLStream):
                await stream.do_handshake()
            return await wrap_client_stream(
                socket_nursery,
                stream,
                parts.netloc,
                parts.path,
                max_message_size=MAX_MESSAGE_BYTES,
                receive_buffer_size=_RECEIVE_BYTES,
            )
    except trio.TooSlowError as exc:
        raise LinkError(f"{url} does not answer as a WebSocket") from exc
    except (trio.BrokenResourceError, ConnectionClosed) as exc:  # TLS says why in the cause
        raise LinkError(f"{url} broke the connection off: {exc.__cause__ or 'no reason given'}") from exc


def _status_of(refusals: BaseExceptionGroup[ConnectionRejected]) -> int:
    """Return the HTTP status of a refused upgrade."""
    refusal: BaseException = refusals
    while isinstance(refusal, BaseExceptionGroup):
        refusal = refusal.exceptions[0]
    assert isinstance(refusal, ConnectionRejected)
    return refusal.status_code


async def _introduce(socket: WebSocketConnection, hello: Hello) -> HelloAck:
    """Send hello, return the router's acceptance."""
    try:
        with trio.fail_after(HELLO_TIMEOUT_S):
            await socket.send_message(encode(hello).decode())
            answer = decode_router_message(await socket.get_message())
    except trio.TooSlowError as exc:
        raise LinkError(f"the router did not answer hello within {HELLO_TIMEOUT_S:g} s") from exc
    except ConnectionClosed as exc:
        raise LinkError(f"the router closed the connection instead of answering hello ({_close_code(exc)})") from exc
    except ProtocolError as exc:
        raise LinkError(f"the router's answer to hello is not in the protocol: {exc.reason}") from exc
    return _accepted(answer)


def _accepted(answer: RouterMessage) -> HelloAck:
    """Return the answer to hello if it is a welcome.

    Raises:
        KeyRefusedError: it says, as our router or as the original one does, that the key is wrong.
        LinkError: it says anything else.
    """
    if isinstance(answer, HelloAck) and answer.success:
        return answer
    if not isinstance(answer, HelloAck | Error):
        raise LinkError(f"the router answered hello with {type(answer).__name__}")
    text = answer.error or ""
    if _blames_key(text):
        raise KeyRefusedError(f"the router refuses this worker's key: {text or 'no reason given'}")
    raise LinkError(f"the router refuses this worker: {text}")


def _blames_key(text: str) -> bool:
    """Tell a wrong key from a router that is too busy or not set up for this worker, where trying again may help.

    Ours and the original's words for tools workers are AUTH_FAILED, the original's for GPU workers "invalid GPU key".
    """
    words = text.lower()
    return not words or AUTH_FAILED in words or ("invalid" in words and "key" in words)


def _close_code(exc: ConnectionClosed) -> str:
    reason = exc.reason
    return f"code {reason.code} {reason.reason or ''}".rstrip() if reason is not None else "no code"
