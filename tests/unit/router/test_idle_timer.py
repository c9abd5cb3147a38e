"""When a connection that asks nothing is closed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import attrs
import trio
from hypercorn.trio.task_group import TaskGroup

from auxot.router.idle_timer import IDLE_TIMEOUT_S, LINGER_S, IdleTimer


@attrs.define
class Idling:
    """A connection with its timer; `closed_at` on the Trio clock."""

    tasks: TaskGroup
    leaving: trio.Event = attrs.field(factory=trio.Event)
    timer: IdleTimer = attrs.field(init=False)
    closed_at: list[float] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.timer = IdleTimer(self.leaving)

    async def be_idle(self) -> None:
        await self.timer.restart(self.tasks, self.close)

    async def close(self) -> None:
        self.closed_at.append(trio.current_time())
        await self.timer.stop()


@asynccontextmanager
async def idling() -> AsyncGenerator[Idling, None]:
    async with TaskGroup() as tasks:
        connection = Idling(tasks)
        await connection.be_idle()
        yield connection
        connection.timer.end()


async def test_a_connection_that_asks_nothing_is_closed(autojump_clock):  # noqa: ARG001 -- pytest-trio wants it here
    """A connection that was opened and forgotten is kept for ever."""
    async with idling() as connection:
        began = trio.current_time()
        await trio.sleep(3 * IDLE_TIMEOUT_S)
    assert connection.closed_at == [began + IDLE_TIMEOUT_S]


async def test_a_request_puts_the_end_off(autojump_clock):  # noqa: ARG001 -- pytest-trio wants it here
    """A client loses its connection although it asks every minute, or while it waits for a long answer."""
    async with idling() as connection:
        await trio.sleep(60)
        await connection.timer.stop()
        await trio.sleep(600)
        await connection.be_idle()
        await trio.sleep(60)
        assert not connection.closed_at
        idle_since = trio.current_time() - 60
        await trio.sleep(600)
    assert connection.closed_at == [idle_since + IDLE_TIMEOUT_S]


async def test_when_the_listeners_close_idle_connections_close_soon(autojump_clock):  # noqa: ARG001 -- pytest-trio wants it here
    """A router that stops waits for the idle connections of its clients."""
    async with idling() as connection:
        began = trio.current_time()
        connection.leaving.set()
        await trio.sleep(1)
    assert connection.closed_at == [began + LINGER_S]


async def test_an_answer_that_ends_after_the_listeners_closed_leaves_time_to_ask_again(autojump_clock):  # noqa: ARG001 -- pytest-trio wants it here
    """A client that was never told that its connection ends loses its next request."""
    async with idling() as connection:
        await connection.timer.stop()
        connection.leaving.set()
        await trio.sleep(100)
        await connection.be_idle()
        began = trio.current_time()
        await trio.sleep(1)
    (closed_at,) = connection.closed_at
    assert began + LINGER_S <= closed_at <= began + 2 * LINGER_S


async def test_who_is_not_heard_rings_again(autojump_clock):  # noqa: ARG001 -- pytest-trio wants it here
    """A connection that was spared once, or whose peer does not close its side, is kept for ever."""
    async with idling() as connection:
        connection.timer.ring_in(5)
        await trio.sleep(5.01)
        connection.timer.ring_in(2)
        await trio.sleep(2.01)
    assert len(connection.closed_at) == 2


async def test_when_the_listeners_close_a_running_answer_goes_on(autojump_clock):  # noqa: ARG001 -- pytest-trio wants it here
    """An answer is cut off because its connection counts as idle."""
    async with idling() as connection:
        await connection.timer.stop()
        connection.leaving.set()
        await trio.sleep(2 * IDLE_TIMEOUT_S)
    assert not connection.closed_at


async def test_a_connection_that_has_ended_is_not_watched(autojump_clock):  # noqa: ARG001 -- pytest-trio wants it here
    """The timer of a connection that is gone holds on to it for a minute."""
    began = trio.current_time()
    async with idling():
        pass
    assert trio.current_time() == began
