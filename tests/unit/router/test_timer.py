"""A time limit for many at once."""

from __future__ import annotations

from collections.abc import Callable

import trio

from auxot.router.timer import Timer


async def test_each_is_called_when_its_own_time_has_run_out(autojump_clock):  # noqa: ARG001 -- pytest-trio wants it here
    """A job is stopped before its time, or never."""
    timer, called = Timer(10), []

    def note(name: str) -> Callable[[], None]:
        return lambda: called.append((name, trio.current_time() - began))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timer.run)
        await trio.sleep(100)
        began = trio.current_time()
        first, second, third = note("first"), note("second"), note("third")
        timer.start(first)
        await trio.sleep(3)
        timer.start(second)
        timer.start(third)
        await trio.sleep(5)
        timer.stop(first)
        timer.stop(third)
        timer.stop(third)
        await trio.sleep(100)
        timer.start(first)
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert called == [("second", 13), ("first", 118)]


async def test_who_is_called_may_start_and_stop_others(autojump_clock):  # noqa: ARG001 -- pytest-trio wants it here
    """The end of one job breaks the limits of the others."""
    timer, called = Timer(10), []

    def one() -> None:
        called.append("one")
        timer.stop(other)
        timer.start(late)

    def other() -> None:
        called.append("other")

    def late() -> None:
        called.append("late")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timer.run)
        timer.start(one)
        timer.start(other)
        await trio.sleep(15)
        assert called == ["one"]
        await trio.sleep(15)
        nursery.cancel_scope.cancel()
    assert called == ["one", "late"]
