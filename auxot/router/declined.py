"""Entries that this router has just left to others, so that it does not take them again at once."""

from __future__ import annotations

import attrs
import trio


@attrs.define
class Declined:
    """Entry ids, each until its time is over; there are as many as were declined within `for_s`."""

    for_s: float = 5.0
    _until: dict[bytes, float] = attrs.field(factory=dict)

    def add(self, entry_id: bytes) -> None:
        """Note that an entry was declined now."""
        self._until[entry_id] = trio.current_time() + self.for_s

    def current(self) -> set[bytes]:
        """Return those whose time is not over, and forget the others."""
        now = trio.current_time()
        self._until = {entry_id: until for entry_id, until in self._until.items() if until > now}
        return set(self._until)
