"""The embedded store: fakeredis in this process, one private server a store, gone when the router ends.

A command runs at once, in the caller's task, so commands given together also run together: a pipeline is as atomic as
a transaction. A turn of the event loop costs as much as a command, so only every TURN_CALLS-th call gives the other
tasks one: they get theirs also beside a task that only calls.

fakeredis is spoken to where a command has been read from its socket already: writing it as RESP and reading it again
would cost half as much as running it does, and for a prompt of megabytes more. That entrance is not documented, so the
version is pinned, and tests/store says what must still hold when it moves. The connection class is the API of
redis-py's `Connection`; replies have the shapes of RESP3, as on the real link.

Nothing is published inside fakeredis: nobody can be subscribed there, the bells hang here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import fakeredis
import redis.exceptions
import trio

from auxot.core.errors import StoreError
from auxot.router.store import Argument, Command, Ringable

TURN_CALLS = 8
_VERSION = (7, 0)  # the oldest server that CI tests; 7.2 differs only in creating a consumer on an empty read


class EmbeddedStore:
    """A `Store` without a server. Nothing to close: it owns no task, thread or descriptor."""

    address = "embedded"

    def __init__(self) -> None:
        server = fakeredis.FakeServer(version=_VERSION)
        self._connection = fakeredis.FakeRedisConnection(server=server, protocol=3)
        self._connection.connect()
        socket: Any = self._connection.get_socket()
        self._process: Callable[[list[bytes]], None] = socket._process_command  # noqa: SLF001 -- see above
        self._next_reply: Callable[[], Any] = socket.responses.get_nowait  # it is there: commands run at once
        self._n_calls = 0
        self._bells: defaultdict[str, list[Ringable]] = defaultdict(list)
        self.connected_at: float | None = trio.current_time()

    async def execute(self, *args: Argument) -> Any:
        """Run one command, see `Store`. Cancelled: it has not been run."""
        return (await self.pipeline((args,)))[0]

    async def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands, see `Store`. Cancelled: none has been run."""
        replies = await self.try_each(commands)
        for reply in replies:
            if isinstance(reply, StoreError):
                raise reply
        return replies

    async def try_each(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands, see `Store`. Cancelled: none has been run."""
        await trio.lowlevel.checkpoint_if_cancelled()
        replies = [self._run(command) for command in commands]
        self._n_calls += 1
        if self._n_calls % TURN_CALLS == 0:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return replies

    async def transaction(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands as one step, see `Store`. Cancelled: none has been run."""
        return await self.pipeline(commands)

    async def subscribe(self, channel: str, bell: Ringable) -> None:
        """Ring that bell for what is published to the channel, see `Store`."""
        await trio.lowlevel.checkpoint()
        self._bells[channel].append(bell)
        bell.ring()

    def _run(self, command: Command) -> Any:
        if command[0] == "PUBLISH":
            return self._publish(str(command[1]))
        self._process([_as_bytes(argument) for argument in command])
        reply = self._next_reply()
        return StoreError(str(reply)) if isinstance(reply, redis.exceptions.RedisError) else reply

    def _publish(self, channel: str) -> int:
        bells = self._bells.get(channel, [])
        for bell in bells:
            bell.ring()
        return len(bells)


def _as_bytes(argument: Argument) -> bytes:
    """Return an argument as it is on the wire."""
    if isinstance(argument, bytes):
        return argument
    return argument.encode() if isinstance(argument, str) else b"%d" % argument
