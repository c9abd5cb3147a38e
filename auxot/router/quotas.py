"""What each key uses of its limits, and how fast the queue drains. Pure.

A key's rate is a token bucket that holds a minute's worth, so that a client which was idle may send its requests in
one burst, as it may at the providers whose clients these are.
"""

from __future__ import annotations

import math

import attrs

from auxot.core.errors import ErrorCode, RefusedError
from auxot.router.keyring import Principal

CONCURRENT_RETRY_S = 2  # nobody knows when one of the key's own requests ends
MIN_RETRY_S, MAX_RETRY_S = 1, 300
UNKNOWN_RETRY_S = 30  # while nothing has left the queue
DRAIN_MEMORY_S = 60.0

_MINUTE_S = 60.0


@attrs.define
class _Use:
    """What a key has used. `n_left`: requests that the bucket still holds, as of `at`."""

    n_left: float
    at: float
    n_open: int = 0


@attrs.define
class Quotas:
    """The use of all keys that have come, by name: as many entries as there are keys."""

    _uses: dict[str, _Use] = attrs.field(factory=dict)

    def enter(self, principal: Principal, *, now: float) -> None:
        """Count one request of a key, until `leave`.

        Raises:
            RefusedError: RATE_LIMITED, with the time after which it may try again; then it is not counted.
        """
        name = principal.name
        use = self._uses.get(name)
        if use is None:
            use = self._uses[name] = _Use(float(principal.requests_per_minute or 0), now)
        self._check(principal, use, now=now)
        use.n_open += 1

    def leave(self, principal: Principal) -> None:
        """Note that a request that was counted has ended."""
        use = self._uses[principal.name]
        use.n_open -= 1
        if not use.n_open and principal.requests_per_minute is None:
            del self._uses[principal.name]

    def keep_only(self, names: set[str]) -> None:
        """Forget keys that exist no more; what is open of them runs on."""
        self._uses = {name: use for name, use in self._uses.items() if name in names or use.n_open}

    def _check(self, principal: Principal, use: _Use, *, now: float) -> None:
        most = principal.max_concurrent
        if most is not None and use.n_open >= most:
            message = f"the key has {most} requests open, as many as it may"
            raise RefusedError(ErrorCode.RATE_LIMITED, message, retry_after_s=CONCURRENT_RETRY_S)
        per_minute = principal.requests_per_minute
        if per_minute is None:
            return
        use.n_left = min(float(per_minute), use.n_left + (now - use.at) * per_minute / _MINUTE_S)
        use.at = now
        if use.n_left < 1:
            wait_s = (1 - use.n_left) * _MINUTE_S / per_minute
            message = f"the key may send {per_minute} requests a minute"
            raise RefusedError(ErrorCode.RATE_LIMITED, message, retry_after_s=max(1, math.ceil(wait_s)))
        use.n_left -= 1


@attrs.define
class DrainRate:
    """How many jobs leave the queue in a second, of late ones more: an exponentially weighted mean."""

    _since: float
    _sum: float = 0.0
    _at: float = 0.0

    def note(self, *, now: float) -> None:
        """Count one job that has left."""
        self._sum = self._decayed(now) + 1
        self._at = now

    def per_second(self, *, now: float) -> float:
        """Return the rate; 0 while nothing has left."""
        seen_s = max(now - self._since, 1.0)
        return self._decayed(now) / (DRAIN_MEMORY_S * -math.expm1(-seen_s / DRAIN_MEMORY_S))

    def retry_after_s(self, n_waiting: int, *, now: float) -> int:
        """Return after how many seconds those who wait now will be gone, within bounds."""
        rate = self.per_second(now=now)
        if not rate:
            return UNKNOWN_RETRY_S
        return round(min(max(n_waiting / rate, MIN_RETRY_S), MAX_RETRY_S))

    def _decayed(self, now: float) -> float:
        return self._sum * math.exp((self._at - now) / DRAIN_MEMORY_S) if self._sum else 0.0
