"""The embedded store: fakeredis in this process, one private server a store, gone when the router ends.

A command runs at once, in the caller's task, so commands given together also run together: a pipeline is as atomic as
a transaction. Every call gives the other tasks a turn, as a call to a real server would.

fakeredis is spoken to through its connection class (the API of redis-py's `Connection`), RESP3 as on the real link.
Its clients would cost half as much again, and its TCP server a thread for each connection.
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
from auxot.router.store_connection import pack

_VERSION = (7, 0)  # the oldest server that CI tests; 7.2 differs only in creating a consumer on an empty read


class EmbeddedStore:
    """A `Store` without a server. Nothing to close: it owns no task, thread or descriptor."""

    address = "embedded"

    def __init__(self) -> None:
        server = fakeredis.FakeServer(version=_VERSION)
        self._connection = fakeredis.FakeRedisConnection(server=server, protocol=3)
        self._connection.connect()
        self._send: Callable[..., None] = self._connection.send_packed_command
        self._receive: Callable[[], Any] = self._connection.read_response
        self._bells: defaultdict[str, list[Ringable]] = defaultdict(list)
        self.connected_at: float | None = trio.current_time()

    async def execute(self, *args: Argument) -> Any:
        """Run one command, see `Store`. Cancelled: it has not been run."""
        return (await self.pipeline((args,)))[0]

    async def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands, see `Store`. Cancelled: none has been run."""
        await trio.lowlevel.checkpoint_if_cancelled()
        replies = [self._run(command) for command in commands]
        await trio.lowlevel.cancel_shielded_checkpoint()
        for reply in replies:
            if isinstance(reply, StoreError):
                raise reply
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
        try:
            self._send((pack(command),), check_health=False)
            reply = self._receive()
        except redis.exceptions.RedisError as exc:
            return StoreError(str(exc))
        if command[0] == "PUBLISH":
            for bell in self._bells.get(str(command[1]), ()):
                bell.ring()
        return reply
