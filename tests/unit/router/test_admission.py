from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import JobRecord
from auxot.router.admission import Admission, Place, declared_bytes
from auxot.router.keyring import Principal
from auxot.router.quotas import MAX_RETRY_S, UNKNOWN_RETRY_S, DrainRate, Quotas
from auxot.router.relay import OpenJob

A, B = Principal(name="a"), Principal(name="b")
NOBODY: Any = None


@pytest.fixture
def clock():
    return SimpleNamespace(now=1000.0)


@pytest.fixture
def door(clock):
    return make_door(clock)


def make_door(clock, **changes: Any) -> Admission:
    settings: dict[str, Any] = {"max_jobs": 100, "max_bytes": 10_000, "n_slots": lambda: 2}
    return Admission(clock=lambda: clock.now, **{**settings, **changes})


def submit(door: Admission, place: Place, job_id: str) -> OpenJob:
    job = OpenJob(record=JobRecord(job_id=job_id, accepted_at=0.0), answer=NOBODY, frame=b"", place=place)
    if not door.pass_now(place, job_id):
        door.line_up(place, job)
    return job


@contextmanager
def held(quotas: Quotas, principal: Principal, *, now: float) -> Iterator[None]:
    quotas.enter(principal, now=now)
    try:
        yield
    finally:
        quotas.leave(principal)


def refusal_of(door: Admission, principal: Principal, n_bytes: int = 0) -> RefusedError:
    with pytest.raises(RefusedError) as excinfo, door.enter(principal, n_bytes=n_bytes):
        pass
    return excinfo.value


def test_a_full_line_refuses_and_has_room_again_when_one_leaves(door):
    """The line would grow without end, or stay shut for ever."""
    with ExitStack() as stack:
        places = [stack.enter_context(door.enter(A, n_bytes=1)) for _ in range(100)]
        refusal = refusal_of(door, A)
        assert (refusal.code, refusal.retry_after_s) == (ErrorCode.OVERLOADED, UNKNOWN_RETRY_S)
        door.on_started(places[0])
        door.on_started(places[0])
        with door.enter(A, n_bytes=1):
            refusal_of(door, A)
    assert (door.waiting.n_jobs, door.waiting.n_bytes) == (0, 0)


def test_bytes_are_bounded_before_and_after_the_body_is_read(door):
    """A few large requests would fill the memory that many small ones may not."""
    with door.enter(A, n_bytes=6000) as first, door.enter(A, n_bytes=0) as second:
        assert refusal_of(door, A, 4001).code is ErrorCode.OVERLOADED
        with pytest.raises(RefusedError):
            door.resize(second, 4001)
        door.resize(second, 4000)
        door.resize(first, 10)
        with door.enter(A, n_bytes=5990):
            pass
    assert door.waiting.n_bytes == 0


def test_a_large_job_that_is_alone_is_let_in(door):
    """A request that the body limit allows could never be served."""
    with door.enter(A, n_bytes=50_000) as place:
        door.resize(place, 60_000)


def test_one_of_several_keys_leaves_room_for_the_others(door):
    """A key could fill the line, and the others would be refused because of it."""
    door.know_keys(["a", "b"])
    with ExitStack() as stack:
        for _ in range(90):
            stack.enter_context(door.enter(A, n_bytes=1))
        assert refusal_of(door, A).code is ErrorCode.OVERLOADED
        stack.enter_context(door.enter(B, n_bytes=1))


def test_jobs_of_two_keys_alternate_from_the_moment_that_the_second_comes(door):
    """A key's thousand jobs would all stand in the shared queue before another key's one."""
    with ExitStack() as stack:
        for n in range(50):
            submit(door, stack.enter_context(door.enter(A, n_bytes=1)), f"a{n}")
        place = stack.enter_context(door.enter(B, n_bytes=1))
        submit(door, place, "b")
        assert door.next_job() is None  # two slots: two stand in the queue
        assert door.n_ahead("a0") == 0
        assert door.n_ahead("b") in (2, 3)
        door.left_queue("a0")
        door.left_queue("a1")
        let_in = [job.record.job_id for job in (door.next_job(), door.next_job()) if job is not None]
        assert "b" in let_in
        assert door.next_job() is None


def test_a_client_that_leaves_frees_its_place_wherever_its_job_stands(door):
    """Jobs that nobody waits for would hold the window shut."""
    with ExitStack() as stack:
        with ExitStack() as leaving:
            for n in range(4):
                submit(door, leaving.enter_context(door.enter(A, n_bytes=1)), f"a{n}")
            submit(door, stack.enter_context(door.enter(B, n_bytes=1)), "b")
        job = door.next_job()
        assert job is not None
        assert job.record.job_id == "b"
        assert door.waiting.n_jobs == 1


def test_a_job_that_has_ended_in_line_is_not_let_in(door):
    """A request whose time is over would take a slot."""
    with ExitStack() as stack:
        jobs = [submit(door, stack.enter_context(door.enter(A, n_bytes=1)), f"a{n}") for n in range(4)]
        jobs[2].ended = True
        door.left_queue("a0")
        assert door.next_job() is jobs[3]


def test_concurrent_requests_of_a_key_are_limited():
    """A key's limit would not be held, or requests that have ended would count."""
    quotas, key = Quotas(), Principal(name="k", max_concurrent=2)
    with held(quotas, key, now=0):
        with held(quotas, key, now=0), pytest.raises(RefusedError) as excinfo, held(quotas, key, now=0):
            pass
        with held(quotas, key, now=0):
            pass
    assert excinfo.value.code is ErrorCode.RATE_LIMITED
    assert excinfo.value.retry_after_s


def test_requests_a_minute_are_limited():
    """A key's rate would not be held, or its Retry-After would be too early."""
    quotas, key = Quotas(), Principal(name="k", requests_per_minute=6)
    for _ in range(6):
        with held(quotas, key, now=0):
            pass
    with pytest.raises(RefusedError) as excinfo, held(quotas, key, now=1):
        pass
    assert excinfo.value.retry_after_s == 9
    with held(quotas, key, now=1 + 9):
        pass
    with pytest.raises(RefusedError), held(quotas, key, now=11):
        pass


@given(st.floats(0.02, 50), st.integers(0, 10_000))
def test_retry_after_follows_the_drain_within_bounds(rate, n_waiting):
    """Clients would come back much too early, or be sent away for hours."""
    drain = DrainRate(0.0)
    n_jobs = int(120 * rate)
    for n in range(n_jobs):
        drain.note(now=n / rate)
    told = drain.retry_after_s(n_waiting, now=120.0)
    assert 1 <= told <= MAX_RETRY_S
    if n_jobs > 100 and 2 < n_waiting / rate < MAX_RETRY_S:
        assert told == pytest.approx(n_waiting / rate, rel=0.1, abs=1)


@pytest.mark.parametrize(
    ("value", "n_bytes"), [(b"12", 12), (b"-1", 0), (b"x", 0), (b"9" * 5000, 100), (b"", 0), (b"\xb2", 0)]
)
def test_a_declared_length_is_taken_as_far_as_it_makes_sense(value, n_bytes):
    """A header could reserve the whole line, or end in a crash."""
    assert declared_bytes([(b"host", b"x"), (b"content-length", value)], at_most=100) == n_bytes
