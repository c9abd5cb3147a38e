"""When the interpreter looks for garbage: objects that only refer to one another.

A full look stops everything for a time that grows with what is in use: 100 to 200 ms with 1,000 answers on their way,
and left to itself Python takes several of them while these begin. Here they are taken when no client waits. That can
be put off because next to nothing is left behind: a request's objects refer to one another in one direction, or are
told to let go when it ends (`relay.OpenJob.let_go`), so that memory is free with the last reference; what becomes
garbage is some twenty objects of a worker's connection. tests/daemon/test_garbage.py counts them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import trio

YOUNG = 2_000  # objects more than before, until those are looked through: as Python from 3.13 on
MIDDLE = 10  # such looks, until the survivors are looked through too: some 20,000 objects, 5 ms
BACKSTOP = 500  # of these, some 10 million objects more than before, until a full look comes at any time
WORTH_IT = 5  # of these, until a full look is worth it while nobody waits
PERIOD_S = 30.0


def set_up() -> None:
    """Have the garbage collector look seldom, and never through what has been made so far: the imported modules."""
    gc.set_threshold(YOUNG, MIDDLE, BACKSTOP)
    gc.freeze()


async def run_collector(is_idle: Callable[[], bool]) -> None:
    """Look through everything for ever, when nobody waits and something may have been left behind.

    Args:
        is_idle: whether no client waits for an answer.
    """
    while True:
        await trio.sleep(PERIOD_S)
        if is_idle() and gc.get_count()[2] >= WORTH_IT:
            gc.collect()
