"""How commands reach Redis: one interface over a real server and over one inside this process.

    async with open_store(url) as store:            outermost block of the router: closed last
        reply = await store.execute("GET", "key")

With a URL, `store_redis` talks to the server over one multiplexed connection and reconnects by itself; without one,
`store_embedded` runs fakeredis in this process, private to the store and gone with it. Callers cannot tell which:
replies have RESP3's shapes (bytes, int, None, list, dict) on both, and one conformance suite runs on both.

Invariants: commands of one store run in the order in which they were given. A caller that is cancelled leaves the
connection good; whether its command was run is unknown unless a method says more. Nothing here blocks in the server
(no BLOCK, no WATCH), because everybody behind it would wait too; who waits for news waits for a `Bell`.

No library is imported before it is needed: fakeredis alone costs 0.16 s of start-up.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

Argument = str | bytes | int
Command = Sequence[Argument]

FIRST_CONNECT_S = 5.0  # a router that starts beside its Redis waits that long for it


class Ringable(Protocol):
    """What a subscription rings: a `Bell`, or anything else that takes a hint at once and never blocks."""

    def ring(self) -> None:
        """Take note that something may have happened. Called again and again; must be cheap."""
        ...


class Store(Protocol):
    """A way to Redis. All methods may be called by many tasks at once.

    Every method that sends commands raises StoreLostError when the server cannot be reached, when the connection is
    lost before the reply (the command may have been run or not), or when more commands wait than the store keeps;
    and StoreError when the server answers with an error. Error texts hold no values of the commands and no password.
    The deadline is the store's own: a server that is silent for 5 s while commands wait counts as lost.
    """

    @property
    def address(self) -> str:
        """Where the server is, fit for logs: a URL without user, password and options, or `embedded`."""
        ...

    @property
    def connected_at(self) -> float | None:
        """When the present connection was made, on the Trio clock; None while there is none."""
        ...

    async def execute(self, *args: Argument) -> Any:
        """Run one command and return its reply.

        Cancellation: the command may have been run or not; its reply is dropped.
        """
        ...

    async def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands in one go and return their replies, in order. Other callers' commands may run in between.

        Raises:
            StoreError: that of the first command that failed. The others have been run all the same.
        """
        ...

    async def try_each(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands as `pipeline` does; a StoreError stands in the place of the reply of each that failed."""
        ...

    async def transaction(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands as one step: all or none of them, and nobody else's in between; return their replies.

        Raises:
            StoreError: a command was refused. As with MULTI, one that fails only while it runs (a wrong type) undoes
                nothing of the others.
        """
        ...

    async def subscribe(self, channel: str, bell: Ringable) -> None:
        """Ring that bell whenever something is published to the channel, by this store or another one.

        It is rung before this returns, and after every reconnect: what was published before and meanwhile is
        unknown. There is no way back: a subscription lives as long as the store. Cancelled: maybe subscribed.
        """
        ...


@asynccontextmanager
async def open_store(url: str | None, *, first_connect_s: float = FIRST_CONNECT_S) -> AsyncIterator[Store]:
    """Connect to Redis for the length of the block; it reconnects by itself for as long as the block runs.

    Args:
        url: `redis://[user:password@]host[:port][/db]`, `rediss://...` (TLS) or `unix:///path[?db=n]`, with the
            options told in `store_url`; None: an embedded server of this store's own, empty.
        first_connect_s: how long the first connection is tried.

    Raises:
        ConfigError: a URL that cannot be used, or a server that will not have us: wrong password, certificate not
            trusted, database unknown, too old, a sentinel, a cluster node. One line, without the password.
        StoreLostError: no connection within `first_connect_s`.
    """
    if url is None:
        from auxot.router.store_embedded import EmbeddedStore  # noqa: PLC0415 - fakeredis is slow to import

        yield EmbeddedStore()
        return
    from auxot.router.store_redis import run_redis_store  # noqa: PLC0415 - needs this module

    async with run_redis_store(url, first_connect_s=first_connect_s) as store:
        yield store
