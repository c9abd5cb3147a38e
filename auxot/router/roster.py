"""Which routers share a Redis, that they live, and what each says of itself.

    auxot:router:<id>     written at every heartbeat, gone `ttl_s` after the last one: the router is dead
                          value: its RouterStatus as JSON

The status is for `/health` and for deciding whether another router could do what this one cannot; it is as old as the
last heartbeat, and a heartbeat is sent within a second of a change (`sweeper.keep_alive`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import attrs
import orjson

from auxot.router.store import Command, Store

Describe = Callable[[], "RouterStatus"]


@attrs.frozen(kw_only=True)
class RouterStatus:
    """What a router says of itself: the figures of its own workers, and the features that any of them announced."""

    workers: int = 0
    total_slots: int = 0
    active_jobs: int = 0
    waiting_requests: int = 0
    features: tuple[str, ...] = ()


def encode_status(status: RouterStatus) -> bytes:
    """Return a status as the value of the router's key."""
    return orjson.dumps(attrs.asdict(status))


def decode_status(value: bytes) -> RouterStatus:
    """Read what `encode_status` wrote; what a router of another version does not say, or says otherwise, is 0."""
    try:
        said = orjson.loads(value)
    except orjson.JSONDecodeError:
        return RouterStatus()
    if not isinstance(said, dict):
        return RouterStatus()
    counts = {name: _count(said.get(name)) for name in ("workers", "total_slots", "active_jobs", "waiting_requests")}
    features = said.get("features")
    names = tuple(one for one in features if isinstance(one, str)) if isinstance(features, list) else ()
    return RouterStatus(**counts, features=names)


def _count(said: Any) -> int:
    return said if isinstance(said, int) and said >= 0 else 0


class Roster:
    """The routers of one Redis, as one of them sees them. Every method raises as `Store` tells.

    Args:
        store: kept open by the caller for longer.
        router_id: this router's.
        ttl_s: how long a router counts as alive after a heartbeat.

    Attributes:
        describe: tells this router's status.
    """

    def __init__(self, store: Store, *, router_id: str, ttl_s: float) -> None:
        self.describe: Describe = RouterStatus
        self._store = store
        self._router_id = router_id
        self._ttl_ms = round(ttl_s * 1000)

    def heartbeat(self) -> Command:
        """Return the command that says that this router lives; its reply is None if it had been taken for dead."""
        value = encode_status(self.describe())
        return ("SET", router_key(self._router_id), value, "PX", self._ttl_ms, "GET")

    async def live_among(self, names: Collection[str]) -> Mapping[str, RouterStatus]:
        """Return those of the routers whose heartbeat has not run out, with what they say of themselves."""
        if not names:
            return {}
        ordered = sorted(names)
        values = await self._store.execute("MGET", *map(router_key, ordered))
        return {name: decode_status(value) for name, value in zip(ordered, values, strict=True) if value is not None}

    async def first_expiry_s(self, names: Collection[str]) -> float:
        """Return in how many seconds the first of these routers is dead unless it is heard of; infinity without any."""
        if not names:
            return math.inf
        ttls_ms: list[int] = await self._store.pipeline([("PTTL", router_key(name)) for name in sorted(names)])
        return max(0, min(ttls_ms)) / 1000


def router_key(router_id: str) -> str:
    """Return the key of a router's heartbeat; the channel of that name is its own bell."""
    return f"auxot:router:{router_id}"
