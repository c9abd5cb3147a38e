"""A nursery for tasks that serve one block and end with it.

Trio wraps what leaves a nursery into an exception group. Where the tasks only serve the block (a heartbeat, a
watcher), the one error worth telling is the block's own, and its reader wants `except LinkError`, not a search
through groups. So here errors of ours that the *block* raises come out bare; what a *task* raises is a fault in the
program and comes out as a group, as Trio does it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from auxot.core.errors import AuxotError


@asynccontextmanager
async def background() -> AsyncGenerator[trio.Nursery, None]:
    """Open a nursery whose tasks are cancelled at the end of the block.

    A task may cancel the nursery's scope to end the block; the block is then left without an exception.

    Yields:
        The nursery.

    Raises:
        AuxotError: the block raised it.
    """
    failure: AuxotError | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except AuxotError as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
