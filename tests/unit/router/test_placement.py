import attrs
from hypothesis import given
from hypothesis import strategies as st

from auxot.core.prefixes import Chain
from auxot.router.bell import Bell
from auxot.router.fleet import Fleet
from auxot.router.placement import LEAST_LOADED, MIN_GAIN_BYTES, PREFIX, Placement, Wish


@attrs.define(eq=False)
class Worker:
    """What the fleet sees of a session."""

    worker_id: str
    n_slots: int
    n_running: int = 0
    features: tuple[str, ...] = ()


def path(word: str, *, size: int = MIN_GAIN_BYTES) -> Chain:
    """Return the chain of a prompt whose blocks are letters."""
    return Chain(tuple(hash(word[: n + 1]) for n in range(len(word))), tuple(size * (n + 1) for n in range(len(word))))


def house(*workers: Worker, is_on: bool = True) -> Placement[Worker]:
    fleet: Fleet[Worker] = Fleet(Bell())
    for worker in workers:
        fleet.update(worker)
    return Placement(fleet=fleet, is_on=is_on)


def place(placement: Placement[Worker], *wishes: Wish) -> list[tuple[str, str] | None]:
    """Start what can be started; return worker and reason of each job."""
    plan = placement.plan(wishes)
    placed: list[tuple[str, str] | None] = []
    for wish in wishes:
        choice = plan.take(wish)
        if choice is None:
            placed.append(None)
            continue
        worker, route = choice
        placement.started(wish.chain, worker.worker_id)
        worker.n_running += 1
        placement.fleet.update(worker)
        placed.append((worker.worker_id, route))
    return placed


def test_the_longest_prefix_wins():
    """A conversation goes to a worker that has less of it."""
    placement = house(Worker("a", 2), Worker("b", 2, n_running=1), Worker("c", 2))
    placement.ended(path("xx"), "a")
    placement.ended(path("xxx"), "b")
    assert place(placement, Wish(job_id="1", chain=path("xxxx"))) == [("b", PREFIX)]


def test_the_best_pairs_are_made_and_not_the_first():
    """A job that shares a greeting takes the slot that holds another job's whole history."""
    placement = house(Worker("a", 1), Worker("b", 1))
    placement.ended(path("xyyy"), "a")
    wishes = [Wish(job_id="1", chain=path("xz")), Wish(job_id="2", chain=path("xyyyy"))]
    assert place(placement, *wishes) == [("b", LEAST_LOADED), ("a", PREFIX)]


def test_a_job_is_not_passed_over_for_one_behind_it():
    """The only worker that can do a job is kept for a later one."""
    placement = house(Worker("a", 1, features=("f",)), Worker("b", 1))
    placement.ended(path("xx"), "a")
    wishes = [Wish(job_id="1", needs="f"), Wish(job_id="2", chain=path("xxx"))]
    assert place(placement, *wishes) == [("a", LEAST_LOADED), ("b", LEAST_LOADED)]


def test_a_short_prefix_does_not_crowd_one_worker():
    """Every conversation that begins alike is put on one worker while others are idle."""
    placement = house(Worker("a", 4, n_running=1), Worker("b", 4))
    placement.ended(path("x", size=10), "a")
    assert place(placement, Wish(job_id="1", chain=path("x", size=10))) == [("b", LEAST_LOADED)]
    placement = house(Worker("b", 4), Worker("a", 4))
    placement.ended(path("x", size=10), "a")
    assert place(placement, Wish(job_id="1", chain=path("x", size=10))) == [("a", PREFIX)]


def test_a_burst_that_begins_alike_is_spread():
    """Four agents that start at once, with the same long instructions, share one worker while three are idle."""
    placement = house(*(Worker(name, 4) for name in "abcd"))
    placement.ended(path("xxxx1"), "a")
    placed = place(placement, *(Wish(job_id=str(n), chain=path(f"xxxx{n}")) for n in range(2, 6)))
    assert {choice[0] for choice in placed if choice} == set("abcd")


def test_only_busy_workers_with_the_prompt_are_waited_for():
    """A job waits for a worker that is gone or cannot do it, or though another has its prompt and is free."""
    busy = Worker("a", 1, n_running=1, features=("f",))
    placement = house(busy, Worker("b", 1, features=("f",)))
    placement.ended(path("xx"), "a")
    placement.ended(path("yy"), "gone")
    wishes = [
        Wish(job_id="1", chain=path("xxx")),
        Wish(job_id="2", chain=path("yyy")),
        Wish(job_id="3", chain=path("xxx"), needs="g"),
        Wish(job_id="4", chain=path("xxx"), needs="f"),
        Wish(job_id="5", chain=path("zzz")),
    ]
    plan = placement.plan(wishes)
    assert [wish.job_id for wish in wishes if plan.may_wait(wish)] == ["1", "4"]
    placement.ended(path("x"), "b")  # less of it, but it is free
    plan = placement.plan(wishes[:1])
    assert not plan.may_wait(wishes[0])


def test_without_affinity_the_least_busy_gets_each_job():
    """An operator who has switched it off gets it all the same."""
    placement = house(Worker("b", 2, n_running=1), Worker("a", 2), is_on=False)
    placement.ended(path("xx"), "b")
    assert place(placement, Wish(job_id="1", chain=path("xx"))) == [("a", LEAST_LOADED)]


workers = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from([(), ("f",)])), min_size=1, max_size=5
)
prompts = st.text("ab", min_size=1, max_size=5)


@given(
    workers, st.lists(st.tuples(st.integers(0, 6), prompts), max_size=20), st.lists(st.tuples(prompts, st.booleans()))
)
def test_no_plan_breaks_the_rules(
    fleet: list[tuple[int, int, tuple[str, ...]]], held: list[tuple[int, str]], jobs: list[tuple[str, bool]]
):
    """A job goes to a worker without a slot, without its feature or that is gone, or waits while one is free."""
    members = [
        Worker(str(n), slots, min(running, slots), features) for n, (slots, running, features) in enumerate(fleet)
    ]
    placement = house(*members)
    for n, word in held:
        placement.ended(path(word), str(n))  # some of these have gone
    wishes = [Wish(job_id=str(n), needs="f" if f else None, chain=path(w)) for n, (w, f) in enumerate(jobs)]
    plan = placement.plan(wishes)
    for wish in wishes:
        able = [m for m in members if m.n_running < m.n_slots and (not wish.needs or wish.needs in m.features)]
        choice = plan.take(wish)
        assert (choice is None) == (not able)
        if choice is not None:
            assert choice[0] in able
            choice[0].n_running += 1
            placement.fleet.update(choice[0])
