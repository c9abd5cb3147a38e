from __future__ import annotations

import pytest
import trio

from auxot.core.background import background
from auxot.core.errors import LinkError


async def test_tasks_end_with_the_block() -> None:
    """A heartbeat outlives its connection."""
    async with background() as nursery:
        nursery.start_soon(trio.sleep_forever)


async def test_the_blocks_error_comes_out_bare() -> None:
    """`except LinkError` does not see the error, because it is in a group."""

    async def fail_inside() -> None:
        async with background() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.lowlevel.checkpoint()
            raise LinkError("gone")

    with pytest.raises(LinkError):
        await fail_inside()


async def test_a_tasks_fault_is_not_lost() -> None:
    """A fault in a background task is swallowed."""

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError):
        async with background() as nursery:
            nursery.start_soon(fail)
            await trio.sleep_forever()
