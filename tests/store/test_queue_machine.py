"""The queue as a state machine: several routers, any interleaving of their commands, and every fault in between.

The machine decides when each command of each router reaches Redis, when its reply comes back, who is cancelled in the
middle of a call, whose connection is cut, who dies, who is taken for dead by mistake, and when the group is lost.
AUXOT_TEST_EXAMPLES=5000 runs more of it, with other cases each time.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
import trio
import trio.testing
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from auxot.core import logs
from auxot.core.errors import StoreError
from auxot.router import sweeper
from auxot.router.queue import GROUP, RELEASED, ClaimedJob, JobQueue
from auxot.router.store import Store, open_store
from tests.store.harness import bounded, fill, job
from tests.store.loop import Loop
from tests.store.stepped_store import SteppedStore

KEY = "auxot:jobs"
N_ROUTERS = 3
N_EXAMPLES = int(os.environ.get("AUXOT_TEST_EXAMPLES", "0"))
BEGINNINGS = ("claim", "claim", "ack", "release", "sweep")
OLD_MS = 60_000  # how long the entries of a router whose heartbeat ran out have been idle, at least

SETTINGS = settings(
    max_examples=N_EXAMPLES or 200,
    stateful_step_count=40,
    derandomize=not N_EXAMPLES,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)


@attrs.define(eq=False)
class Model:
    """What is known of one job."""

    number: int
    entry_id: bytes | None = None
    owners: set[str] = attrs.field(factory=set)  # routers that got it and have not begun to give it back
    last_attempt: int = 0
    is_certain: bool = False  # it is in the queue until it is settled
    is_settled: bool = False  # acked or withdrawn for certain: nobody may get it again
    may_be_settled: bool = False
    given_up_by: set[str] = attrs.field(factory=set)  # their ack was interrupted: they do not get it again
    is_loose: bool = False  # the group was lost, or its owner taken for dead: it may be delivered twice


@attrs.define(eq=False)
class Call:
    """One call of a router's queue, under way."""

    what: str
    scope: trio.CancelScope
    is_over: bool = False


@attrs.define(eq=False)
class RouterUnderTest:
    queue: JobQueue
    store: SteppedStore
    calls: list[Call] = attrs.field(factory=list)
    is_claiming: bool = False
    settled_before: set[int] = attrs.field(factory=set)  # the jobs that were, when it began to claim as it adds
    was_suspected: bool = False
    is_dead: bool = False

    @property
    def name(self) -> str:
        return self.queue.router_id


class QueueMachine(RuleBasedStateMachine):
    def __init__(self, loop: Loop, url: str | None) -> None:
        super().__init__()
        self._loop = loop
        self._url = url
        self._over = trio.Event()
        self._jobs: dict[int, Model] = {}
        self._faults: list[str] = []
        self._n_routers = 0

    # What may happen.

    @initialize(n_jobs=st.integers(0, 12), n_released=st.integers(0, 8))
    def begin(self, n_jobs: int, n_released: int) -> None:
        self._stores: list[Store] = self._loop.run(self._open_stores)
        self._routers = [self._loop.run(self._open_router, index) for index in range(N_ROUTERS)]
        self.enqueue(0, n_jobs, at_once=True)
        self.claim(0, n_released + 1, at_once=True)
        for _ in range(n_released):
            self.release(0, 0, at_once=True)

    @rule(who=st.integers(0, N_ROUTERS - 1), n_jobs=st.integers(1, 3), at_once=st.booleans(), claims=st.booleans())
    def enqueue(self, who: int, n_jobs: int, at_once: bool, claims: bool = False) -> None:
        for _ in range(n_jobs):
            model = Model(len(self._jobs))
            self._jobs[model.number] = model
            self._start(who, "enqueue", partial(self._enqueue, self._routers[who], model, claims), at_once=at_once)

    @rule(who=st.integers(0, N_ROUTERS - 1), count=st.integers(1, 4), at_once=st.booleans())
    def claim(self, who: int, count: int, at_once: bool) -> None:
        router = self._routers[who]
        if not router.is_claiming:
            self._start(who, "claim", partial(self._claim, router, count), at_once=at_once)

    @rule(who=st.integers(0, N_ROUTERS - 1), pick=st.integers(0, 9), at_once=st.booleans(), soon=st.booleans())
    def ack(self, who: int, pick: int, at_once: bool, soon: bool = False) -> None:
        if (model := self._owned_by(who, pick)) is not None:
            ack = partial(self._ack, self._routers[who], model, soon=soon)
            self._start(who, "ack", ack, at_once=at_once)

    @rule(who=st.integers(0, N_ROUTERS - 1), pick=st.integers(0, 9), at_once=st.booleans())
    def release(self, who: int, pick: int, at_once: bool) -> None:
        if (model := self._owned_by(who, pick)) is not None:
            self._start(who, "release", partial(self._release, self._routers[who], model), at_once=at_once)

    @rule(who=st.integers(0, N_ROUTERS - 1), pick=st.integers(0, 9), at_once=st.booleans())
    def withdraw(self, who: int, pick: int, at_once: bool) -> None:
        known = [model for model in self._jobs.values() if model.entry_id is not None and not model.is_settled]
        if known:
            model = known[pick % len(known)]
            self._start(who, "withdraw", partial(self._withdraw, self._routers[who], model), at_once=at_once)

    @rule(who=st.integers(0, N_ROUTERS - 1), at_once=st.booleans())
    def sweep(self, who: int, at_once: bool) -> None:
        self._start(
            who, "sweep", partial(_quietly, partial(sweeper.run_once, self._routers[who].queue)), at_once=at_once
        )

    @rule(
        starts=st.lists(st.tuples(st.sampled_from(BEGINNINGS), st.integers(0, N_ROUTERS - 1)), min_size=1, max_size=5),
        steps=st.lists(st.tuples(st.integers(0, N_ROUTERS - 1), st.booleans()), max_size=20),
        fault=st.sampled_from(["none", "cut", "cancel", "cancel unsent"]),
    )
    def interleave(self, starts: list[tuple[str, int]], steps: list[tuple[int, bool]], fault: str) -> None:
        """Begin several calls, then run commands and deliver replies in that order; then there may be a fault."""
        for what, who in starts:
            match what:
                case "claim":
                    self.claim(who, 2, at_once=False)
                case "ack":
                    self.ack(who, 0, at_once=False, soon=who == 0)
                case "release":
                    self.release(who, 0, at_once=False)
                case "sweep":
                    self.sweep(who, at_once=False)
        for who, is_delivery in steps:
            store = self._routers[who].store
            self._loop.run(self._step, store.deliver_next if is_delivery else store.run_next)
        who = starts[-1][1]
        if fault == "cut":
            self.cut(who)
        elif fault != "none":
            self.cancel(who, len(self._routers[who].calls) - 1, is_sent=fault == "cancel")

    @rule(who=st.integers(0, N_ROUTERS - 1))
    def cut(self, who: int) -> None:
        self._loop.run(self._cut, self._routers[who])

    @rule(who=st.integers(0, N_ROUTERS - 1), pick=st.integers(0, 9), is_sent=st.booleans())
    def cancel(self, who: int, pick: int, is_sent: bool) -> None:
        router = self._routers[who]
        if router.calls:
            router.store.forgets_cancelled = not is_sent
            self._loop.run(self._cancel, router.calls[pick % len(router.calls)])

    @rule(who=st.integers(0, N_ROUTERS - 1))
    def crash(self, who: int) -> None:
        self._loop.run(self._crash, self._routers[who])
        self._routers[who] = self._loop.run(self._open_router, who)

    @rule(who=st.integers(0, N_ROUTERS - 1))
    def close(self, who: int) -> None:
        self._loop.run(self._close, self._routers[who])
        self._routers[who] = self._loop.run(self._open_router, who)

    @rule(who=st.integers(0, N_ROUTERS - 1))
    def take_for_dead(self, who: int) -> None:
        self._loop.run(self._suspect, self._routers[who])

    @rule(who=st.integers(0, N_ROUTERS - 1), at_once=st.booleans())
    def heartbeat(self, who: int, at_once: bool) -> None:
        self._start(who, "heartbeat", partial(_quietly, self._routers[who].queue.heartbeat), at_once=at_once)

    @precondition(lambda self: len(self._jobs) > 3)
    @rule()
    def lose_group(self) -> None:
        self._loop.run(self._stores[0].execute, "XGROUP", "DESTROY", KEY, GROUP)
        for model in self._jobs.values():
            model.is_loose = True

    def teardown(self) -> None:
        if hasattr(self, "_routers"):
            try:
                if not self._faults:
                    self._loop.run(self._drain)
            finally:
                self._loop.run(self._end)

    # How it is done, in the loop.

    async def _open_stores(self) -> list[Store]:
        stores = [await self._loop.nursery.start(self._hold_store) for _ in range(N_ROUTERS if self._url else 1)]
        await stores[0].execute("FLUSHALL")
        return stores

    async def _hold_store(self, task_status: trio.TaskStatus[Store]) -> None:
        async with open_store(self._url) as store:
            task_status.started(store)
            await self._over.wait()

    async def _open_router(self, index: int) -> RouterUnderTest:
        self._n_routers += 1
        store = SteppedStore(self._stores[index % len(self._stores)])
        queue = JobQueue(store, router_id=f"r{self._n_routers}", heartbeat_ttl_s=3600)
        await queue.open()
        store.is_free = False
        return RouterUnderTest(queue, store)

    def _start(self, who: int, what: str, function: Callable[[], Awaitable[None]], *, at_once: bool) -> None:
        self._loop.run(self._begin_call, self._routers[who], what, function, at_once)
        assert not self._faults, self._faults

    async def _begin_call(
        self, router: RouterUnderTest, what: str, function: Callable[[], Awaitable[None]], at_once: bool
    ) -> None:
        call = Call(what, trio.CancelScope())
        router.calls.append(call)
        self._loop.nursery.start_soon(self._run_call, router, call, function)
        await trio.testing.wait_all_tasks_blocked()
        while at_once and not call.is_over and await router.store.pass_next():
            await self._settle_down()

    async def _run_call(self, router: RouterUnderTest, call: Call, function: Callable[[], Awaitable[None]]) -> None:
        try:
            with call.scope:
                await function()
        except Exception as exc:  # noqa: BLE001 -- told where the machine sees it
            self._faults.append(f"{router.name} {call.what}: {exc!r}")
        finally:
            call.is_over = True
            router.calls.remove(call)

    async def _step(self, step: Callable[[], Awaitable[Any]]) -> None:
        await step()
        await self._settle_down()

    async def _settle_down(self) -> None:
        """Wait until what was published has rung, and everybody waits."""
        for store in self._stores if self._url else ():
            await store.execute("PING")
        await trio.testing.wait_all_tasks_blocked()
        assert not self._faults, self._faults

    async def _cut(self, router: RouterUnderTest) -> None:
        router.store.cut()
        await self._settle_down()

    async def _cancel(self, call: Call) -> None:
        call.scope.cancel()
        await self._settle_down()

    async def _crash(self, router: RouterUnderTest) -> None:
        router.is_dead = True
        for call in router.calls:
            call.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        for model in self._jobs.values():
            model.owners.discard(router.name)
        await self._let_heartbeat_run_out(router)

    async def _suspect(self, router: RouterUnderTest) -> None:
        router.was_suspected = True
        for model in self._jobs.values():
            if router.name in model.owners:
                model.is_loose = True
        await self._let_heartbeat_run_out(router)

    async def _let_heartbeat_run_out(self, router: RouterUnderTest) -> None:
        store = self._stores[0]
        await store.execute("DEL", f"auxot:router:{router.name}")
        try:
            rows = await store.execute("XPENDING", KEY, GROUP, "-", "+", 1000, router.name)
        except StoreError:
            return  # the group is lost
        for entry_id in (row[0] for row in rows):
            await store.execute("XCLAIM", KEY, GROUP, router.name, 0, entry_id, "IDLE", OLD_MS, "JUSTID")

    async def _close(self, router: RouterUnderTest) -> None:
        """Leave in order: calls end first, as in the router, where whoever calls has ended before."""
        await self._pass_everything(router)
        router.store.is_free = True
        for model in self._jobs.values():
            model.owners.discard(router.name)
        router.is_dead = True
        await router.queue.close()

    async def _pass_everything(self, router: RouterUnderTest) -> None:
        while await router.store.pass_next():
            await self._settle_down()

    async def _enqueue(self, router: RouterUnderTest, model: Model, claims: bool) -> None:
        if claims and not router.queue.n_early:
            router.settled_before = {model.number for model in self._jobs.values() if model.is_settled}
        try:
            model.entry_id = await (router.queue.enqueue_and_claim if claims else router.queue.enqueue)(
                job(model.number)
            )
            model.is_certain = True
        except StoreError:
            pass

    async def _claim(self, router: RouterUnderTest, count: int) -> None:
        settled = {model.number for model in self._jobs.values() if model.is_settled}
        is_late = router.queue.n_early > 0  # what was claimed as it was added is told only now
        settled = router.settled_before & settled if is_late else settled
        router.is_claiming = True
        try:
            claimed_jobs = await router.queue.claim(count)
        except StoreError:
            return
        finally:
            router.is_claiming = False
        assert len(claimed_jobs) <= count
        for claimed in claimed_jobs:
            self._take(router, claimed, settled)
        first_claims = [claimed.entry_id for claimed in claimed_jobs if claimed.attempt == 1]
        was_lost = any(model.is_loose for model in self._jobs.values())
        assert (is_late and was_lost) or first_claims == sorted(first_claims, key=_place), "not first in, first out"

    def _take(self, router: RouterUnderTest, claimed: ClaimedJob, settled: set[int]) -> None:
        model = self._jobs[int(claimed.job_id.removeprefix("job-"))]
        number = model.number
        assert claimed.data == b'{"n":%d}' % number
        assert number not in settled, f"job {number} came back after it was settled"
        model.is_loose = model.is_loose or router.was_suspected
        if not model.is_loose:
            assert not model.owners, f"job {number} is with {model.owners}, and now with {router.name}"
            assert claimed.attempt > model.last_attempt, f"job {number} forgot deliveries"
            assert router.name not in model.given_up_by, f"job {number} came back to who acked it"
        model.entry_id = claimed.entry_id
        model.last_attempt = claimed.attempt
        model.owners.add(router.name)

    async def _ack(self, router: RouterUnderTest, model: Model, *, soon: bool) -> None:
        assert model.entry_id is not None
        model.owners.discard(router.name)
        model.may_be_settled = True
        model.given_up_by.add(router.name)
        with suppress(StoreError):
            if soon:
                router.queue.ack_soon(model.entry_id)
                await router.queue.flush()
            else:
                await router.queue.ack(model.entry_id)
            model.is_settled = True

    async def _release(self, router: RouterUnderTest, model: Model) -> None:
        assert model.entry_id is not None
        model.owners.discard(router.name)
        await _quietly(partial(router.queue.release, model.entry_id))

    async def _withdraw(self, router: RouterUnderTest, model: Model) -> None:
        assert model.entry_id is not None
        model.may_be_settled = True
        try:
            await router.queue.withdraw(model.entry_id)
            model.is_settled = True
        except StoreError:
            pass

    async def _drain(self) -> None:
        """No more faults: what was not settled must come out, once, and nothing is left in Redis."""
        for router in self._routers:
            await self._pass_everything(router)
            router.store.is_free = True
            await router.queue.heartbeat()
        await sweeper.run_once(self._routers[0].queue)
        while any([await self._claim_and_ack_all(router) for router in self._routers]):
            pass
        owed = {model.number for model in self._jobs.values() if model.is_certain and not model.may_be_settled}
        assert not owed, f"lost: {owed}"
        last = self._routers[-1]
        assert await last.store.execute("XLEN", KEY) == 0
        assert (await last.store.execute("XPENDING", KEY, GROUP))[0] == 0
        live = {router.name for router in self._routers}
        assert {consumer.name for consumer in await last.queue.consumers()} <= live | {RELEASED}

    async def _claim_and_ack_all(self, router: RouterUnderTest) -> bool:
        """Settle what a router has and can get; False if that was nothing."""
        await self._claim(router, 7)
        owned = [model for model in self._jobs.values() if router.name in model.owners]
        for model in owned:
            await self._ack(router, model, soon=False)
        return bool(owned)

    async def _end(self) -> None:
        for router in self._routers:
            for call in router.calls:
                call.scope.cancel()
        self._over.set()
        await trio.testing.wait_all_tasks_blocked()

    def _owned_by(self, who: int, pick: int) -> Model | None:
        name = self._routers[who].name
        owned = [model for model in self._jobs.values() if name in model.owners]
        return owned[pick % len(owned)] if owned else None


async def _quietly(function: Callable[[], Awaitable[object]]) -> None:
    """A lost connection, or a group lost between two commands, interrupts a call; that is no fault."""
    with suppress(StoreError):
        await function()


def _place(entry_id: bytes) -> tuple[int, ...]:
    return tuple(map(int, entry_id.split(b"-")))


def test_no_interleaving_loses_or_doubles_a_job(url: str | None) -> None:
    """Some order of commands, faults and replies loses a job, runs it twice or leaves it in Redis for ever."""
    logs.configure(level=logs.Level.ERROR)  # thousands of routers die here
    try:
        with Loop().running() as loop:
            make: Any = lambda: QueueMachine(loop, url)  # noqa: E731 -- hypothesis declares a class, and takes this
            run_state_machine_as_test(make, settings=SETTINGS)
    finally:
        logs.configure()


@bounded
async def test_an_ack_that_is_interrupted_while_a_claim_looks_for_orphans_is_not_taken_for_one(store: Store) -> None:
    """A job that was answered runs again, on the router that answered it."""
    stepped = SteppedStore(store)
    queue = JobQueue(stepped, router_id="a")
    await queue.open()
    await fill(queue, 1)
    [claimed] = await queue.claim(1)
    stepped.is_free = False
    stepped.forgets_cancelled = True
    got: list[ClaimedJob] = []
    ack_scope = trio.CancelScope()

    async def claim() -> None:
        got.extend(await queue.claim(1))

    async def ack() -> None:
        with ack_scope:
            await queue.ack(claimed.entry_id)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_quietly, claim)
        await trio.testing.wait_all_tasks_blocked()
        stepped.cut()  # from now on the router looks for what it may have been given
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(claim)
        await trio.testing.wait_all_tasks_blocked()
        await stepped.run_next()  # the list of what is ours
        nursery.start_soon(ack)
        await trio.testing.wait_all_tasks_blocked()
        ack_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        while await stepped.pass_next():
            await trio.testing.wait_all_tasks_blocked()
        stepped.is_free = True
    assert got == []
    assert await queue.claim(1) == []
    assert await store.execute("XLEN", KEY) == 0


@bounded
async def test_a_group_that_another_router_has_made_again_meanwhile_is_used(store: Store) -> None:
    """A claim fails because two routers noticed at once that the group was lost."""
    stepped = SteppedStore(store)
    queue = JobQueue(stepped, router_id="a")
    await queue.open()
    await fill(queue, 1)
    await store.execute("XGROUP", "DESTROY", KEY, GROUP)
    stepped.is_free = False
    got: list[ClaimedJob] = []

    async def claim() -> None:
        got.extend(await queue.claim(1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(claim)
        await trio.testing.wait_all_tasks_blocked()
        await stepped.pass_next()
        await store.execute("XGROUP", "CREATE", KEY, GROUP, 0)
        while not got:
            await trio.testing.wait_all_tasks_blocked()
            await stepped.pass_next()
    assert len(got) == 1


@bounded
async def test_what_is_held_does_not_hide_what_waits_after_the_group_was_lost(store: Store) -> None:
    """New jobs wait for one look of the claimer for each job that runs."""
    queue = JobQueue(store, router_id="a")
    await queue.open()
    await fill(queue, 6)
    await queue.claim(5)
    await store.execute("XGROUP", "DESTROY", KEY, GROUP)
    assert [claimed.job_id for claimed in await queue.claim(1)] == ["job-5"]


@bounded
async def test_removing_a_consumer_keeps_all_that_it_claimed_at_the_last_moment(store: Store) -> None:
    """What a consumer has beyond the first page vanishes with it."""
    one, other = JobQueue(store, router_id="a"), JobQueue(store, router_id="b")
    for queue in (one, other):
        await queue.open()
    await fill(one, 250)
    await one.claim(250)
    await other.remove_consumer("a")
    got: list[ClaimedJob] = []
    while jobs := await other.claim(100):
        got += jobs
    assert [claimed.job_id for claimed in got] == [f"job-{number}" for number in range(250)]


@bounded
async def test_each_delivery_has_a_number_of_its_own(store: Store) -> None:
    """Words of an older delivery are taken for those of the present one."""
    stepped = SteppedStore(store)
    one, other = JobQueue(stepped, router_id="a"), JobQueue(store, router_id="b")
    for queue in (one, other):
        await queue.open()
    await fill(one, 1)
    [first] = await other.claim(1)
    await other.release(first.entry_id)
    stepped.is_free = False
    got: list[ClaimedJob] = []

    async def claim() -> None:
        got.extend(await one.claim(1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(claim)
        for _ in range(2):  # what may be ours by mistake, and what was released
            await trio.testing.wait_all_tasks_blocked()
            await stepped.pass_next()
        [second] = await other.claim(1)
        await other.release(second.entry_id)
        while not got:
            await trio.testing.wait_all_tasks_blocked()
            await stepped.pass_next()
    assert [first.attempt, second.attempt, got[0].attempt] == [1, 2, 3]
