import attrs
from hypothesis import given
from hypothesis import strategies as st

from auxot.router.bell import Bell
from auxot.router.fleet import Fleet


@attrs.define(eq=False)
class Worker:
    """What the fleet sees of a session."""

    worker_id: str
    n_slots: int
    n_running: int = 0
    features: tuple[str, ...] = ()


def test_jobs_go_to_the_worker_with_the_fewest():
    """One worker would be filled while another is idle."""
    fleet: Fleet[Worker] = Fleet(Bell())
    workers = [Worker("a", 2), Worker("b", 4)]
    for each in workers:
        fleet.update(each)
    chosen = []
    while (worker := fleet.choose()) is not None:
        chosen.append(worker.worker_id)
        worker.n_running += 1
        fleet.update(worker)
    assert sorted(chosen[:2]) == ["a", "b"]
    assert chosen.count("a") == 2
    assert chosen.count("b") == 4


def test_equally_loaded_workers_take_turns():
    """The first worker would get every job of a quiet day."""
    fleet: Fleet[Worker] = Fleet(Bell())
    workers = [Worker("a", 1), Worker("b", 1), Worker("c", 1)]
    for each in workers:
        fleet.update(each)
    chosen = []
    for _ in range(6):
        worker = fleet.choose()
        assert worker is not None
        chosen.append(worker.worker_id)
        worker.n_running = 1
        fleet.update(worker)
        worker.n_running = 0
        fleet.update(worker)
    assert chosen == ["a", "b", "c", "a", "b", "c"]


def test_a_worker_without_slots_is_not_counted_and_gets_nothing():
    """A policy connection would be shown as a worker and be given jobs."""
    fleet: Fleet[Worker] = Fleet(Bell())
    fleet.update(Worker("a", 0))
    assert fleet.choose() is None
    assert fleet.count().workers == 0


def test_the_bell_rings_for_a_slot_that_was_not_free_before():
    """A freed slot would wait for the next poll, or every event would wake the dispatcher for nothing."""
    bell = Bell()
    fleet: Fleet[Worker] = Fleet(bell)
    worker = Worker("a", 2)
    fleet.update(worker)
    assert bell.take()
    for n_running in (1, 2):
        worker.n_running = n_running
        fleet.update(worker)
    assert not bell.take()
    worker.n_running = 1
    fleet.update(worker)
    assert bell.take()


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3), st.integers(0, 4), st.booleans()), max_size=40))
def test_the_buckets_agree_with_a_plain_count(steps):
    """A slot would be lost or counted twice after some order of changes."""
    fleet: Fleet[Worker] = Fleet(Bell())
    workers = {name: Worker(name, 0) for name in "abcd"}
    present = set()
    for name, n_slots, n_running, leaves in steps:
        worker = workers[name]
        worker.n_slots, worker.n_running = n_slots, n_running
        if leaves:
            fleet.remove(worker)
            present.discard(name)
        else:
            fleet.update(worker)
            present.add(name)
        free = {n: max(0, workers[n].n_slots - workers[n].n_running) for n in present}
        assert fleet.n_free_slots(at_most=1000) == sum(free.values())
        chosen = fleet.choose()
        candidates = [n for n in present if free[n]]
        if chosen is None:
            assert not candidates
        else:
            assert chosen.n_running == min(workers[n].n_running for n in candidates)
