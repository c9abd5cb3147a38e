from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot.router.fair_queue import BATCH_TURN, FairQueue
from auxot.router.keyring import Principal, Priority

A, B, HEAVY = Principal(name="a"), Principal(name="b"), Principal(name="heavy", weight=3)
BATCH = Principal(name="batch", priority=Priority.BATCH)
PRINCIPALS = [A, B, HEAVY, BATCH]


def fill(queue: FairQueue[str], principal: Principal, n_jobs: int) -> None:
    for n in range(n_jobs):
        job_id = f"{principal.name}{n}"
        queue.push(job_id, job_id, principal)


def test_a_single_job_does_not_stand_behind_a_thousand_of_another_key():
    """One key's flood would be everybody's delay."""
    queue: FairQueue[str] = FairQueue()
    fill(queue, A, 1000)
    for _ in range(500):
        queue.pop()
    fill(queue, B, 1)
    assert "b0" in (queue.pop(), queue.pop())


def test_keys_share_by_weight():
    """A weight would have no effect."""
    queue: FairQueue[str] = FairQueue()
    fill(queue, A, 400)
    fill(queue, HEAVY, 400)
    served = Counter(queue.pop()[0] for _ in range(400))
    assert abs(served["h"] - 300) <= 3


def test_a_key_that_was_away_has_saved_nothing_and_one_that_comes_and_goes_gains_nothing():
    """A key would win by sending its jobs one by one, or by waiting."""
    queue: FairQueue[str] = FairQueue()
    fill(queue, A, 100)
    served: Counter[str] = Counter()
    for n in range(100):
        if not queue.discard(f"b{n}"):
            queue.push(f"b{n}", f"b{n}", B)
        served[queue.pop()[0]] += 1
        for one in range(n + 1):
            queue.discard(f"b{one}")
    assert abs(served["a"] - served["b"]) <= 2


def test_interactive_jobs_go_first_and_batch_jobs_are_not_starved():
    """People would wait for batches, or a batch would never move while people work."""
    queue: FairQueue[str] = FairQueue()
    fill(queue, BATCH, 50)
    fill(queue, A, 50)
    order = [queue.pop() for _ in range(2 * BATCH_TURN)]
    assert order[: BATCH_TURN - 1] == [f"a{n}" for n in range(BATCH_TURN - 1)]
    assert sum(job.startswith("batch") for job in order) == 2


def test_an_empty_queue_has_no_next():
    """A releaser would wait for ever inside of it."""
    with pytest.raises(IndexError):
        FairQueue[str]().pop()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from(PRINCIPALS)),
        st.tuples(st.just("pop"), st.none()),
        st.tuples(st.just("discard"), st.integers(0, 60)),
    ),
    max_size=120,
)


@given(steps)
def test_nothing_is_lost_doubled_or_overtaken_within_its_key(taken_steps):
    """A job would vanish from the line, run twice, or be overtaken by a later one of its key."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    waiting: dict[int, str] = {}
    n_pushed = 0
    for step, what in taken_steps:
        if step == "push":
            queue.push(str(n_pushed), (what.name, n_pushed), what)
            waiting[n_pushed] = what.name
            n_pushed += 1
        elif step == "discard":
            assert queue.discard(str(what)) == (what in waiting)
            waiting.pop(what, None)
        elif waiting:
            name, number = queue.pop()
            assert number == min(n for n, key in waiting.items() if key == name)
            del waiting[number]
        assert len(queue) == len(waiting)
    for number in waiting:
        assert 0 <= (queue.n_ahead(str(number), at_most=1000) or 0) < len(waiting)
    assert queue.n_ahead("none", at_most=1000) is None
    assert sorted(queue.pop()[1] for _ in range(len(queue))) == sorted(waiting)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 5))
def test_the_told_place_is_the_one_that_comes_true(n_a, n_b, weight):
    """A client would be told a place that has nothing to do with its turn."""
    queue: FairQueue[str] = FairQueue()
    fill(queue, A, n_a)
    fill(queue, Principal(name="b", weight=weight), n_b)
    last = f"b{n_b - 1}"
    told = queue.n_ahead(last, at_most=1000)
    n_before = 0
    while queue.pop() != last:
        n_before += 1
    assert told is not None
    assert abs(told - n_before) <= 1
