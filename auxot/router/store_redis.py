"""The store on a real Redis server: makes connections, logs in, and makes another one when one is lost.

State:  connected -> lost (waiting calls are told) -> trying, with jittered back-off (calls are refused) -> connected

The first connection must succeed before the block of `run_redis_store` is entered. What cannot become right by
waiting is refused there as a ConfigError: a wrong password, a certificate that is not trusted, a sentinel or cluster
node. Later the same is logged and tried again, because a server that is being repaired may say anything.

On a new connection every channel is subscribed again as part of the handshake, before the first call, and then every
bell is rung.

Owner: the nursery of `run_redis_store`, which holds one task for the present connection and the way to the next.
"""

from __future__ import annotations

import random
import re
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import trio

from auxot.core.errors import ConfigError, StoreError, StoreLostError
from auxot.core.logs import get_logger
from auxot.router.store import Argument, Command, Ringable
from auxot.router.store_connection import (
    NOT_YET,
    PUSH,
    BrokenProtocolError,
    Connection,
    new_reader,
    pack,
    raise_error_reply,
)
from auxot.router.store_url import RedisAddress, TlsOptions, parse_redis_url

ATTEMPT_S = 5.0  # for one attempt to connect and log in
BACK_OFF_MIN_S = 0.05
BACK_OFF_MAX_S = 2.0  # a router waits at most that long for a server that is back
OLDEST_SERVER = (7, 0)  # the oldest one that is tested; before it XCLAIM gave entries that were deleted
CLIENT_NAME = "auxot"

_REFUSED_LOGIN = ("WRONGPASS", "NOAUTH", "NOPERM")
_UNKNOWN_HELLO = ("NOPROTO", "ERR unknown command")
_OLDEST = ".".join(map(str, OLDEST_SERVER))
_VERSION = re.compile(r"(\d+)\.(\d+)")

_log = get_logger()


@asynccontextmanager
async def run_redis_store(url: str, *, first_connect_s: float) -> AsyncIterator[RedisStore]:
    """Connect to a Redis server, and stay connected while the block runs; arguments and errors as `open_store`."""
    address = parse_redis_url(url)
    store = RedisStore(address)
    connection = await _connect_first(store, first_connect_s)
    async with trio.open_nursery() as connection_nursery:
        await connection_nursery.start(store.stay_connected, connection)
        yield store
        connection_nursery.cancel_scope.cancel()


async def _connect_first(store: RedisStore, first_connect_s: float) -> Connection:
    """Try for that long; a server that is still starting is waited for."""
    reason = f"no answer within {first_connect_s:g} s"
    with trio.move_on_after(first_connect_s):
        for delay_s in _back_off():
            try:
                return await store.connect()
            except StoreLostError as exc:
                reason = str(exc)
            await trio.sleep(delay_s)
    raise StoreLostError(f"Redis at {store.address} cannot be reached: {reason}")


def _back_off() -> Iterator[float]:
    """Yield delays in seconds: decorrelated jitter, so that routers do not come back all at once."""
    delay_s = BACK_OFF_MIN_S
    while True:
        yield delay_s
        delay_s = min(BACK_OFF_MAX_S, random.uniform(BACK_OFF_MIN_S, delay_s * 3))


class RedisStore:
    """A `Store` on a real server."""

    def __init__(self, address: RedisAddress) -> None:
        self._address = address
        self._connection: Connection | None = None
        self._bells: dict[bytes, list[Ringable]] = {}
        self.connected_at: float | None = None

    @property
    def address(self) -> str:
        """The server's URL without user, password and options."""
        return self._address.label

    async def execute(self, *args: Argument) -> Any:
        """Run one command, see `Store`."""
        return (await self.pipeline((args,)))[0]

    async def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands in one go, see `Store`."""
        replies = await self.try_each(commands)
        raise_error_reply(replies)
        return replies

    async def try_each(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands in one go, see `Store`."""
        return await self._present().call(commands)

    async def transaction(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands as one step, see `Store`."""
        replies = await self._present().call((("MULTI",), *commands, ("EXEC",)))
        raise_error_reply(replies)  # a command that was refused tells more than the EXECABORT at the end
        results: list[Any] = replies[-1]
        raise_error_reply(results)
        return results

    async def subscribe(self, channel: str, bell: Ringable) -> None:
        """Ring that bell for what is published to the channel, see `Store`."""
        await self.execute("SUBSCRIBE", channel)
        self._bells.setdefault(channel.encode(), []).append(bell)
        bell.ring()

    async def connect(self) -> Connection:
        """Make a connection that is logged in and subscribed to every channel of ours.

        Raises:
            ConfigError: the server will not have us, and waiting would not help.
            StoreLostError: it cannot be reached or is not ready.
        """
        try:
            with trio.fail_after(ATTEMPT_S):
                return await self._connect()
        except (OSError, trio.BrokenResourceError, BrokenProtocolError) as exc:
            if isinstance(exc.__cause__, ssl.SSLCertVerificationError):
                reason = exc.__cause__.verify_message
                raise ConfigError(f"the certificate of Redis at {self.address} is not trusted: {reason}") from exc
            raise StoreLostError(_reason(exc)) from exc
        except trio.TooSlowError:
            raise StoreLostError(f"no answer within {ATTEMPT_S:g} s") from None

    async def stay_connected(
        self, connection: Connection, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve on that connection, then on the next one, and so on. Started: calls are taken."""
        while True:
            self._adopt(connection)
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            try:
                reason = await connection.run()
            finally:
                self._connection = self.connected_at = None
            _log.warning("store.lost", address=self.address, reason=reason)
            connection = await self._reconnect()

    def _adopt(self, connection: Connection) -> None:
        self._connection, self.connected_at = connection, trio.current_time()
        _log.info("store.connected", address=self.address)
        for channel in self._bells:
            self._ring(channel)

    async def _reconnect(self) -> Connection:
        for delay_s in _back_off():
            await trio.sleep(delay_s)
            try:
                return await self.connect()
            except (StoreLostError, ConfigError) as exc:
                _log.debug("store.connect_failed", address=self.address, reason=str(exc))
        raise AssertionError("the back-off has no end")

    async def _connect(self) -> Connection:
        stream = await _dial(self._address)
        reader = new_reader()
        try:
            await self._log_in(stream, reader)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return Connection(stream=stream, reader=reader, label=self.address, on_message=self._ring)

    async def _log_in(self, stream: trio.abc.Stream, reader: hiredis.Reader) -> None:
        hello: Command = ("HELLO", 3, *_credentials(self._address), "SETNAME", CLIENT_NAME)
        channels = list(self._bells)
        commands = [hello, ("SELECT", self._address.db), *(("SUBSCRIBE", channel) for channel in channels)]
        await stream.send_all(b"".join(pack(command) for command in commands))
        replies = [await _next_reply(stream, reader) for _ in commands]
        _check_hello(replies[0], self.address)
        if isinstance(replies[1], StoreError):
            raise ConfigError(f"AUXOT_REDIS_URL: Redis at {self.address} refuses database {self._address.db}")
        raise_error_reply(replies[2:])

    def _present(self) -> Connection:
        if self._connection is None:
            raise StoreLostError(f"Redis at {self.address} cannot be reached")
        return self._connection

    def _ring(self, channel: bytes) -> None:
        for bell in self._bells.get(channel, ()):
            bell.ring()


async def _dial(address: RedisAddress) -> trio.abc.Stream:
    if address.socket_path is not None:
        return await trio.open_unix_socket(address.socket_path)
    context = _tls_context(address.tls) if address.tls is not None else None  # before there is anything to close
    transport = await trio.open_tcp_stream(address.host, address.port)  # Trio sets TCP_NODELAY
    if context is None:
        return transport
    stream = trio.SSLStream(transport, context, server_hostname=address.host)
    try:
        await stream.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(transport)
        raise
    return stream


def _tls_context(options: TlsOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.ca_certs, capath=options.ca_path)
        if options.certfile is not None:
            context.load_cert_chain(options.certfile, options.keyfile, options.keyfile_password)
    except OSError as exc:  # includes ssl.SSLError
        raise ConfigError(f"AUXOT_REDIS_URL: a certificate or key file cannot be used: {exc.strerror}") from exc
    context.check_hostname = options.verify and options.check_hostname
    context.verify_mode = ssl.CERT_REQUIRED if options.verify else ssl.CERT_NONE
    return context


def _credentials(address: RedisAddress) -> tuple[str, ...]:
    if address.username is None and address.password is None:
        return ()
    return ("AUTH", address.username or "default", address.password or "")


async def _next_reply(stream: trio.abc.Stream, reader: hiredis.Reader) -> Any:
    """Return the next reply of the handshake; messages of channels just subscribed to are dropped, bells ring later."""
    while True:
        reply = reader.gets()
        if reply is NOT_YET:
            received = await stream.receive_some()
            if not received:
                raise trio.BrokenResourceError("closed by the server")
            reader.feed(bytes(received))
        elif type(reply) is not PUSH or reply[0] == b"subscribe":
            return reply


def _check_hello(reply: Any, label: str) -> None:
    """Raise unless the server let us in and is one that the queue can live on."""
    if isinstance(reply, StoreError):
        raise _login_error(str(reply), label)
    server = {name: _text(value) for name, value in reply.items() if not isinstance(value, list)}
    mode, role = server.get(b"mode"), server.get(b"role")
    if mode != "standalone":
        raise ConfigError(f"Redis at {label} is a {mode} node; a standalone server is needed")
    version = _VERSION.match(server.get(b"version", ""))
    if version and tuple(map(int, version.groups())) < OLDEST_SERVER:
        raise ConfigError(f"Redis at {label} is too old: version {version[0]}, needed is {_OLDEST} or newer")
    if role != "master":
        raise StoreLostError(f"Redis at {label} is a read-only {role}")


def _login_error(text: str, label: str) -> Exception:
    """Say why HELLO was refused. Never the text itself: old servers quote the command, password included."""
    word = text.partition(" ")[0]
    if word in _REFUSED_LOGIN:
        return ConfigError(f"Redis at {label} refuses the user name or the password of AUXOT_REDIS_URL ({word})")
    if text.startswith(_UNKNOWN_HELLO):
        return ConfigError(f"Redis at {label} is too old: it does not know HELLO 3; needed is {_OLDEST} or newer")
    return StoreLostError(f"Redis at {label} is not ready ({word})")


def _reason(exc: Exception) -> str:
    """Say why connecting failed; Trio keeps the system's own words in the cause."""
    cause: BaseException = exc.__cause__ or exc
    while isinstance(cause, BaseExceptionGroup):  # one error for each address of the host
        cause = cause.exceptions[0]
    return str(cause)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
