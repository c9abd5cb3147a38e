"""A time limit for many at once: who takes longer is called.

    start -> (stop) | its time has run out: called once, and forgotten

All have the same time, so they run out in the order in which they started: one task sleeps until the first one's date,
and a start or a stop costs one operation on a dictionary. A cancel scope in a task of its own for each request, which
does the same, costs 70 us. Owned by the router's event loop.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from auxot.router.bell import Bell

OnOvertime = Callable[[], None]


@attrs.define(eq=False)
class Timer:
    """Calls back whoever has been running for `duration_s` seconds. `run` must be running."""

    duration_s: float
    _dates: dict[OnOvertime, float] = attrs.field(factory=dict)  # on the Trio clock; the first runs out first
    _bell: Bell = attrs.field(factory=Bell)

    def start(self, on_overtime: OnOvertime) -> None:
        """Call that function once its time has run out; it must not block. It is its own name: not twice at once."""
        self._dates[on_overtime] = trio.current_time() + self.duration_s
        if len(self._dates) == 1:
            self._bell.ring()

    def stop(self, on_overtime: OnOvertime) -> None:
        """Do not call it. Safe to call for one that does not run."""
        self._dates.pop(on_overtime, None)

    async def run(self) -> None:
        """Call for ever."""
        while True:
            if self._dates:
                await trio.sleep_until(next(iter(self._dates.values())))
                self._call_overdue()
            else:
                await self._bell.wait()

    def _call_overdue(self) -> None:
        now = trio.current_time()
        while self._dates:
            on_overtime, date = next(iter(self._dates.items()))
            if date > now:
                return
            del self._dates[on_overtime]
            on_overtime()
