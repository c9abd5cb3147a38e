"""Which of the router processes behind one port a new connection is for. Pure.

The kernel spreads connections by chance. A request costs four times the CPU where its worker is connected to another
process, so clients go where the slots are, in proportion to them, and workers are spread evenly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

MAX_UNTAKEN = 64  # connections on their way to one process; it takes them within milliseconds, unless it is stuck


@attrs.frozen(kw_only=True)
class Standing:
    """How one process stands, as its siblings see it.

    Attributes:
        takes: it serves, and nobody has told it to stop.
        n_workers: connections of workers, those on their way included.
        n_slots: of its workers that take jobs.
        n_clients: connections with a request, or with none yet; those on their way included.
        n_untaken: connections of both kinds that are on their way to it.
    """

    takes: bool = False
    n_workers: int = 0
    n_slots: int = 0
    n_clients: int = 0
    n_untaken: int = 0


def place_client(standings: Sequence[Standing], *, here: int) -> int:
    """Return the number of the process that a client's connection is for, the present one counted in none.

    It stays where a worker has nothing to do, and wherever nobody can do better.
    """
    mine = standings[here]
    if mine.n_clients < min(mine.n_workers, mine.n_slots):
        return here
    own = _crowding(mine)
    there = min(_takers(standings, here), key=lambda number: _crowding(standings[number]), default=here)
    return there if _crowding(standings[there]) < own else here


def place_worker(standings: Sequence[Standing], *, here: int) -> int:
    """Return the number of the process that a worker's connection is for: that with the fewest, if it is not here."""
    there = min(_takers(standings, here), key=lambda number: standings[number].n_workers, default=here)
    return there if standings[there].n_workers < standings[here].n_workers else here


def _crowding(standing: Standing) -> float:
    """Return how many clients there would be for each slot, with one more."""
    return (standing.n_clients + 1) / standing.n_slots if standing.n_slots else math.inf


def _takers(standings: Sequence[Standing], here: int) -> list[int]:
    """Return the processes that a connection can be handed to."""
    return [
        number for number, one in enumerate(standings) if number != here and one.takes and one.n_untaken < MAX_UNTAKEN
    ]
