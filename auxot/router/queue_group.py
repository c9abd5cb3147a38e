"""The stream of a queue and its consumer group: how the steps of `queue` read and move what is pending.

The group is made on the first look and made again when Redis has lost it. A released entry belongs to the pseudo
consumer RELEASED, see `queue` for why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from auxot.core.errors import StoreError, StoreLostError
from auxot.core.logs import get_logger
from auxot.router.queue_entries import Pending, read_pending
from auxot.router.store import Argument, Command, Store

GROUP = "workers"
RELEASED = "released"  # the pseudo consumer of entries that anybody may claim
RELEASED_IDLE_MS = 30 * 24 * 3600 * 1000
CLAIMABLE_IDLE_MS = RELEASED_IDLE_MS // 2  # no job runs that long
PAGE = 100  # entries looked at in one command, where there can be many

_log = get_logger()


@attrs.frozen(kw_only=True)
class ConsumerGroup:
    """The group of one stream, as one router sees it. Every method raises StoreLostError and StoreError.

    Attributes:
        key: of the stream.
        router_id: who this is.
        remade_channel: where all routers are told that the group had to be made.
    """

    store: Store
    key: str
    router_id: str
    remade_channel: str

    async def create(self) -> bool:
        """Make stream and group, from the first entry on; return False if the group was there."""
        try:
            await self.store.execute("XGROUP", "CREATE", self.key, GROUP, 0, "MKSTREAM")
        except StoreError as exc:
            if str(exc).startswith("BUSYGROUP"):
                return False
            raise
        await self.store.execute("PUBLISH", self.remade_channel, self.router_id)
        return True

    async def ask(self, *commands: Command) -> list[Any]:
        """Run commands; if they fail, see to the group (no error tells that it is missing) and run them once more."""
        try:
            return await self.store.pipeline(commands)
        except StoreLostError:
            raise
        except StoreError:
            if await self.create():
                _log.warning("queue.group_lost", stream=self.key)
        return await self.store.pipeline(commands)  # also if it was there: another router may just have made it

    async def pending_of(
        self, consumer: str, *, start: bytes = b"-", end: bytes = b"+", count: int = PAGE
    ) -> list[Pending]:
        """Return entries that are with a consumer, the oldest first.

        Args:
            consumer: a router's id, or RELEASED.
            start: the first entry id, or one after `(`.
            end: the last entry id.
            count: at most so many.
        """
        [rows] = await self.ask(("XPENDING", self.key, GROUP, start, end, count, consumer))
        return [read_pending(row) for row in rows]

    async def move_to_released(
        self, rows: Sequence[Pending], *, min_idle_ms: int, options: Sequence[Argument] = ()
    ) -> int:
        """Make entries claimable if they have been idle for that long; return how many. JUSTID: no delivery."""
        ids = [row.entry_id for row in rows]
        options = ("IDLE", RELEASED_IDLE_MS, "JUSTID", *options)
        moved = await self.store.execute("XCLAIM", self.key, GROUP, RELEASED, min_idle_ms, *ids, *options)
        return len(moved)

    def removal(self, *entry_ids: bytes) -> tuple[Command, Command]:
        """Return the two commands that take entries out; never one without the other."""
        return ("XACK", self.key, GROUP, *entry_ids), ("XDEL", self.key, *entry_ids)
