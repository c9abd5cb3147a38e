"""A level-triggered wake-up: rung any number of times before it is waited for, it wakes once."""

from __future__ import annotations

import attrs
import trio


class Bell:
    """Coalescing wake-up for one waiting task: `ring` never blocks and is never lost."""

    __slots__ = ("_lot", "_rung")

    def __init__(self) -> None:
        self._rung = False
        self._lot = trio.lowlevel.ParkingLot()

    def ring(self) -> None:
        """Wake the waiter, or let the next `wait` return at once."""
        self._rung = True
        self._lot.unpark_all()

    def take(self) -> bool:
        """Return whether it was rung since the last `wait` or `take`, and forget it."""
        was_rung, self._rung = self._rung, False
        return was_rung

    async def wait(self) -> None:
        """Wait until it was rung since the last `wait`. Always a checkpoint; cancelled, a ring stays for the next."""
        if self._rung:
            await trio.lowlevel.checkpoint()
        else:
            await self._lot.park()
        self._rung = False


@attrs.define
class MarkingBell:
    """Rings another bell, and remembers that it rang."""

    bell: Bell
    is_rung: bool = True  # at the start nobody knows

    def ring(self) -> None:
        """Ring both."""
        self.is_rung = True
        self.bell.ring()


@attrs.define
class Doubt:
    """Rings another bell, and remembers when: what was true before may not be so any more."""

    bell: Bell
    since: float = float("-inf")  # on the Trio clock

    def mark(self) -> None:
        """Begin to doubt."""
        self.since = trio.current_time()

    def ring(self) -> None:
        """Begin to doubt, and ring."""
        self.mark()
        self.bell.ring()
