from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from auxot.router.queue import RELEASED, ConsumerState, JobQueue, QueuedJob
from auxot.router.store import Store, open_store
from auxot.router.sweeper import (
    SETTLE_S,
    AnnounceReleased,
    DropJobs,
    ReleaseEntries,
    RemoveConsumer,
    decide,
    keep_alive,
    run,
    run_once,
)


def state(name: str, n_pending: int) -> ConsumerState:
    return ConsumerState(name=name, n_pending=n_pending)


def test_only_the_dead_lose_their_jobs() -> None:
    """A living router loses its jobs, or a dead one keeps them."""
    consumers = [state("me", 3), state("alive", 2), state("dead", 2), state("gone", 0), state(RELEASED, 0)]
    assert decide(consumers=consumers, live={"alive"}, own_id="me") == [
        ReleaseEntries(consumer="dead"),
        DropJobs(router_id="dead"),
        RemoveConsumer(consumer="dead"),
        DropJobs(router_id="gone"),
        RemoveConsumer(consumer="gone"),
    ]


def test_released_jobs_are_announced_again() -> None:
    """A released job whose announcement was lost waits for the next new one."""
    assert decide(consumers=[state(RELEASED, 1)], live=set(), own_id="me") == [AnnounceReleased()]


@given(
    consumers=st.lists(st.builds(state, st.sampled_from("abcde"), st.integers(0, 3)), unique_by=lambda one: one.name),
    live=st.sets(st.sampled_from("abcde")),
)
def test_every_dead_consumer_is_emptied_before_it_is_removed(consumers: list[ConsumerState], live: set[str]) -> None:
    """A consumer is removed with jobs in it, or the own or a living one is touched."""
    actions = decide(consumers=consumers, live=live, own_id="a")
    dead = [consumer for consumer in consumers if consumer.name != "a" and consumer.name not in live]
    expected: list[object] = []
    for consumer in dead:
        if consumer.n_pending:
            expected.append(ReleaseEntries(consumer=consumer.name))
        expected.append(DropJobs(router_id=consumer.name))
        expected.append(RemoveConsumer(consumer=consumer.name))
    assert actions == expected


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with open_store(None) as store:
        yield store


async def opened(store: Store, router_id: str) -> JobQueue:
    queue = JobQueue(store, router_id=router_id)
    await queue.open()
    return queue


async def test_nothing_to_sweep_is_nothing_done(store: Store) -> None:
    """A sweep disturbs a queue in which everybody lives."""
    assert await run_once(await opened(store, "a")) == []


async def test_the_loop_sweeps_but_not_before_the_others_could_say_that_they_live(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    """After an outage of Redis living routers lose their jobs, or dead ones keep them."""
    assert autojump_clock.autojump_threshold == 0
    start = trio.current_time()
    dead, queue = await opened(store, "dead"), await opened(store, "a")
    await dead.enqueue(QueuedJob(job_id="job-1", data=b"{}", reply_to="a"))
    await dead.claim(1)
    await store.execute("DEL", "auxot:router:dead")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run(queue, interval_s=1))
        while not await queue.claim(1):
            await queue.bell.wait()
        nursery.cancel_scope.cancel()
    assert SETTLE_S <= trio.current_time() - start <= SETTLE_S + 2


async def test_the_loop_goes_on_after_an_error_of_the_store(
    store: Store, autojump_clock: trio.testing.MockClock, capfd: pytest.CaptureFixture[str]
) -> None:
    """One bad answer of Redis ends sweeping for good."""
    assert autojump_clock.autojump_threshold == 0
    queue = await opened(store, "a")
    await store.execute("SET", "auxot:jobs", "not a stream")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run(queue, interval_s=1))
        nursery.start_soon(lambda: keep_alive(queue, interval_s=1))
        await trio.sleep(SETTLE_S + 3)
        await store.execute("DEL", "auxot:jobs")
        await opened(store, "dead")
        await store.execute("DEL", "auxot:router:dead")
        await trio.sleep(2)
        assert [consumer.name for consumer in await queue.consumers()] == ["a"]
        nursery.cancel_scope.cancel()
    errors = capfd.readouterr().err
    assert "sweeper.failed" in errors
    assert "heartbeat.failed" in errors


async def test_heartbeats_go_on_and_come_at_once_after_a_reconnect(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    """A living router is taken for dead."""
    assert autojump_clock.autojump_threshold == 0
    queue = await opened(store, "a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: keep_alive(queue, interval_s=10))
        for pause_s in (0.1, 10.1):
            await trio.sleep(1)
            await store.execute("DEL", "auxot:router:a")
            if pause_s < 1:
                queue.reconnected.ring()
            await trio.sleep(pause_s)
            assert set(await queue.live_routers()) == {"a"}
        nursery.cancel_scope.cancel()
