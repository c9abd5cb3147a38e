from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.prefixes import Chain
from auxot.worker.llama.facts import LlamaFacts
from auxot.worker.llama.http import LlamaHttp, parse_llama_url
from auxot.worker.seats import MAX_NOTICES, Seats, Station

NOWHERE = LlamaHttp(parse_llama_url("http://127.0.0.1:1"))  # never asked


def station(n_slots: int, name: str = "0") -> Station:
    return Station(name=name, http=NOWHERE, facts=LlamaFacts(model="m", slot_ctx_tokens=1, slots=n_slots))


def open_seats(*stations: Station) -> Seats:
    seats = Seats()
    for one in stations:
        seats.add(one)
    return seats


def refused(seats: Seats, job_id: str) -> bool:
    with pytest.raises(RefusedError) as caught:
        seats.take(job_id)
    return caught.value.code is ErrorCode.UNAVAILABLE


def test_no_more_jobs_than_slots() -> None:
    """A surplus job is run, and all jobs of the worker get slower."""
    seats = Seats()
    assert refused(seats, "early")
    seats.add(station(2))
    first = seats.take("a")
    seats.take("b")
    assert refused(seats, "c")
    seats.leave(first)
    seats.take("c")


def test_a_job_runs_once() -> None:
    """A job that is delivered twice is answered twice."""
    seats = open_seats(station(2))
    seats.take("a")
    assert refused(seats, "a")


def test_slot_is_free_before_the_last_message_is_out() -> None:
    """The job that the router sends right after `complete` is refused."""
    one = station(1)
    seats = open_seats(one)
    first = seats.take("a")
    seats.release(first)
    seats.take("b")
    seats.leave(first)
    assert one.n_running == 1


async def test_cancel_ends_that_job_only() -> None:
    """A cancel for a job that has ended raises, or hits another job."""
    seats = open_seats(station(2))
    first, second = seats.take("a"), seats.take("b")
    await trio.lowlevel.checkpoint()
    assert seats.cancel("a")
    assert not seats.cancel("z")
    assert (first.scope.cancel_called, second.scope.cancel_called) == (True, False)
    seats.take("c")
    assert refused(seats, "d")


async def test_running_down_waits_for_the_last_job(autojump_clock: MockClock) -> None:  # noqa: ARG001 - a clock by name
    """A worker stops while a job still has something to send."""
    seats = open_seats(station(2))
    first, second = seats.take("a"), seats.take("b")
    seats.close(reason="stopping", grace_s=60)
    seats.leave(first)
    with trio.move_on_after(5) as waiting:
        await seats.wait_run_down()
    assert waiting.cancelled_caught
    seats.leave(second)
    with trio.fail_after(5):
        await seats.wait_run_down()
    assert refused(seats, "c")


async def test_who_waits_for_a_long_grace_hears_of_a_shorter_one(autojump_clock: MockClock) -> None:
    """A worker that is replacing its llama-server cannot be stopped until the longest job has ended."""
    seats = open_seats(one := station(1))
    seats.take("a")
    seats.withdraw(one, reason="replaced", grace_s=3600)
    started_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(seats.wait_run_down)
        await wait_all_tasks_blocked()
        seats.close(reason="stopping", grace_s=10)
    assert trio.current_time() - started_at == pytest.approx(10)
    del autojump_clock


async def test_a_closed_table_stays_closed() -> None:
    """A llama-server that becomes ready while the worker stops gets jobs, and is killed under them."""
    await trio.lowlevel.checkpoint()
    seats = open_seats(station(1))
    seats.close(reason="stopping", grace_s=0)
    seats.add(station(1, "1"))
    assert refused(seats, "a")


async def test_the_table_is_open_while_one_station_is() -> None:
    """A worker with two llama-servers leaves its router when one of them dies, or stays when both have."""
    await trio.lowlevel.checkpoint()
    one, other = station(1, "0"), station(1, "1")
    seats = open_seats(one, other)
    seats.withdraw(one, reason="died", grace_s=0)
    assert (seats.closed.is_set(), seats.n_slots, list(seats.notices)) == (False, 1, ["died"])
    assert seats.take("a").station is other
    seats.withdraw(other, reason="died too", grace_s=0)
    assert (seats.closed.is_set(), seats.reason) == (True, "died too")
    seats.add(station(1, "0.2"))
    assert not seats.closed.is_set()


def test_jobs_go_to_the_emptiest_station() -> None:
    """One GPU has a queue while the other is idle."""
    seats = open_seats(station(2, "0"), station(2, "1"))
    names = [seats.take(job_id).station.name for job_id in "abcd"]
    assert sorted(names) == ["0", "0", "1", "1"]
    assert names[0] != names[1]


def test_a_conversation_goes_on_where_its_prompt_is() -> None:
    """The next turn goes to the other GPU, which reads the whole conversation again."""
    seats = open_seats(station(3, "0"), station(3, "1"))
    chain, longer = Chain((1, 2), (10, 20)), Chain((1, 2, 3), (10, 20, 30))
    seats.take("other")
    first = seats.take("a", chain)
    assert first.station.name == "1"
    seats.leave(first)
    for name in ("busy", "busier", "busiest"):
        seats.take(name)
    assert [one.n_free for one in seats.stations] == [1, 1]  # the first of them would be taken
    assert seats.take("b", longer).station is first.station


def test_notices_are_bounded() -> None:
    """A worker that has lost its router collects what it would tell it, for ever."""
    seats = Seats()
    for number in range(3 * MAX_NOTICES):
        seats.notify(str(number))
    assert list(seats.notices)[-1] == str(3 * MAX_NOTICES - 1)
    assert len(seats.notices) == MAX_NOTICES
