from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from auxot.core.errors import ErrorCode, RefusedError
from auxot.worker.seats import Seats


def refused(seats: Seats, job_id: str) -> bool:
    with pytest.raises(RefusedError) as caught:
        seats.take(job_id)
    return caught.value.code is ErrorCode.UNAVAILABLE


def test_no_more_jobs_than_slots() -> None:
    """A surplus job is run, and all jobs of the worker get slower."""
    seats = Seats()
    assert refused(seats, "early")
    seats.open(2)
    first = seats.take("a")
    seats.take("b")
    assert refused(seats, "c")
    seats.leave(first)
    seats.take("c")


def test_a_job_runs_once() -> None:
    """A job that is delivered twice is answered twice."""
    seats = Seats()
    seats.open(2)
    seats.take("a")
    assert refused(seats, "a")


def test_slot_is_free_before_the_last_message_is_out() -> None:
    """The job that the router sends right after `complete` is refused."""
    seats = Seats()
    seats.open(1)
    first = seats.take("a")
    seats.release(first)
    seats.take("b")
    seats.leave(first)
    assert seats.n_running == 1


async def test_cancel_ends_that_job_only() -> None:
    """A cancel for a job that has ended raises, or hits another job."""
    seats = Seats()
    seats.open(2)
    first, second = seats.take("a"), seats.take("b")
    await trio.lowlevel.checkpoint()
    assert seats.cancel("a")
    assert not seats.cancel("z")
    assert (first.scope.cancel_called, second.scope.cancel_called) == (True, False)
    seats.take("c")
    assert refused(seats, "d")


async def test_wait_idle_waits_for_the_last_job(autojump_clock: MockClock) -> None:  # noqa: ARG001 - a clock by name
    """A worker stops while a job still has something to send."""
    seats = Seats()
    await seats.wait_idle()
    seats.open(2)
    first, second = seats.take("a"), seats.take("b")
    seats.close("stopping")
    seats.leave(first)
    with trio.move_on_after(5) as waiting:
        await seats.wait_idle()
    assert waiting.cancelled_caught
    seats.leave(second)
    with trio.fail_after(5):
        await seats.wait_idle()
    assert refused(seats, "c")
