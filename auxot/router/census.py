"""All routers that share the Redis, this one included: what `/health` tells of the whole, and what others could do.

Read once a second, so that nobody who asks waits for Redis; without a Redis this router is the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import trio

from auxot.core.errors import StoreError
from auxot.router.roster import RouterStatus

if TYPE_CHECKING:
    from auxot.router.fleet import Fleet
    from auxot.router.queue import JobQueue
    from auxot.router.relay import Relay
    from auxot.router.session import Session

LOOK_S = 1.0


@attrs.define(eq=False)
class Census:
    """The routers of one Redis.

    Attributes:
        others: the living ones but this, by id, as of the last look that succeeded.
        is_current: whether the last look succeeded: the queue can be reached.
    """

    queue: JobQueue
    fleet: Fleet[Session]
    relay: Relay
    others: Mapping[str, RouterStatus] = attrs.field(factory=dict)
    is_current: bool = True

    def __attrs_post_init__(self) -> None:
        self.queue.roster.describe = self.own

    def own(self) -> RouterStatus:
        """Return what this router says of itself."""
        count = self.fleet.count()
        features = {feature for one in self.fleet.members() if one.n_slots for feature in one.features}
        return RouterStatus(
            workers=count.workers,
            total_slots=count.total_slots,
            active_jobs=count.active_jobs,
            waiting_requests=len(self.relay),
            features=tuple(sorted(features)),
        )

    def others_can(self, needs: str | None) -> bool:
        """Whether a worker of another router has announced a feature; None: whether others have workers."""
        return any(status.workers if needs is None else needs in status.features for status in self.others.values())

    def whole(self) -> dict[str, Any]:
        """Return the figures of all routers together."""
        every = [self.own(), *self.others.values()]
        total_slots = sum(one.total_slots for one in every)
        active_jobs = sum(one.active_jobs for one in every)
        return {
            "routers": len(every),
            "workers": sum(one.workers for one in every),
            "total_slots": total_slots,
            "active_jobs": active_jobs,
            "available": max(0, total_slots - active_jobs),
            "waiting_requests": sum(one.waiting_requests for one in every),
        }

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look()
            await trio.sleep(LOOK_S)

    async def look(self) -> None:
        """Look once."""
        try:
            routers = dict(await self.queue.live_routers())
        except StoreError:
            self.is_current = False
            return
        self.is_current = True
        routers.pop(self.queue.router_id, None)
        if self.others.keys() - routers.keys():
            self.queue.doubt.mark()  # it may have died while it moved entries of ours
        self.others = routers
