"""What the queue promises, the same on both kinds of store."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from auxot.core.errors import StoreError
from auxot.router import sweeper
from auxot.router.queue import RELEASED, ClaimedJob, Depth, JobQueue, QueuedJob
from auxot.router.store import Store
from tests.store.harness import bounded, crash, eventually, fill, job, numbers, router


async def _is_empty(queue: JobQueue) -> bool:
    return (await queue.depth()) == Depth(waiting=0, claimed=0) and await queue.store.execute("XLEN", "auxot:jobs") == 0


@bounded
async def test_a_job_comes_out_as_it_went_in_and_in_order(store: Store) -> None:
    """Jobs are changed, lost or overtake each other in the queue."""
    async with router(store, "a") as queue:
        data = b'{"prompt":"\xf0\x9f\x90\xa6 \\n"}'
        entry_id = await queue.enqueue(QueuedJob(job_id="job-x", data=data, reply_to="router-b", meta=b"\x00m"))
        assert await queue.claim(5) == [
            ClaimedJob(
                entry_id=entry_id,
                job_id="job-x",
                data=data,
                reply_to="router-b",
                meta=b"\x00m",
                attempt=1,
                is_exhausted=False,
            )
        ]
        await fill(queue, 20)
        assert numbers(await queue.claim(7) + await queue.claim(100)) == list(range(20))
        assert await queue.claim(1) == []


@bounded
async def test_each_job_goes_to_one_claimer(stores: tuple[Store, Store]) -> None:
    """Two routers get the same job, or none of them does."""
    async with router(stores[0], "a") as one, router(stores[1], "b") as other:
        got: list[int] = []

        async def claim_all(queue: JobQueue) -> None:
            while jobs := await queue.claim(3):
                got.extend(numbers(jobs))

        await fill(one, 200)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(claim_all, one)
            nursery.start_soon(claim_all, other)
        assert sorted(got) == list(range(200))


@bounded
async def test_an_acked_job_leaves_nothing_behind(store: Store) -> None:
    """Finished jobs fill the memory of Redis."""
    async with router(store, "a") as queue:
        await fill(queue, 5)
        assert await queue.depth() == Depth(waiting=5, claimed=0)
        jobs = await queue.claim(3)
        assert await queue.depth() == Depth(waiting=2, claimed=3)
        assert [await queue.ack(claimed.entry_id) for claimed in jobs] == [True, True, True]
        assert not await queue.ack(jobs[0].entry_id)
        for claimed in await queue.claim(5):
            await queue.ack(claimed.entry_id)
        assert await _is_empty(queue)


@bounded
async def test_a_released_job_goes_in_front_and_counts_its_deliveries(stores: tuple[Store, Store]) -> None:
    """A released job waits for a sweep, loses its place or forgets how often it was tried."""
    async with router(stores[0], "a", max_attempts=2) as one, router(stores[1], "b", max_attempts=2) as other:
        await fill(one, 6)
        held = await one.claim(3)
        for claimed in (held[2], held[0]):
            assert await one.release(claimed.entry_id)
        assert await one.depth() == Depth(waiting=5, claimed=1)
        other.bell.ring()  # the claimer looks when its bell rings; that release rings it is another test
        await trio.sleep(0.05)
        again = await other.claim(4)
        assert numbers(again) == [0, 2, 3, 4]
        assert [claimed.attempt for claimed in again] == [2, 2, 1, 1]
        assert await other.release(again[0].entry_id)
        [last] = await other.claim(1)
        assert (last.job_id, last.attempt, last.is_exhausted) == ("job-0", 3, True)
        assert last.data == held[0].data


@bounded
async def test_what_a_router_keeps_for_itself_and_cannot_take_is_announced(stores: tuple[Store, Store]) -> None:
    """A job waits a second for a worker of another router, or each job wakes all routers for nothing."""
    async with router(stores[0], "a") as one, router(stores[1], "b") as other:
        await trio.sleep(0.05)  # what the start rings has come
        for queue in (one, other):
            queue.bell.take()
            await queue.claim(1)
        await one.enqueue(job(0), is_announced=False)
        assert one.bell.take()
        assert numbers(await one.claim(2)) == [0]  # it takes all that there is: nothing is left to announce
        await one.announce_left()
        await trio.sleep(0.05)
        assert not other.bell.take()
        for n in (1, 2):
            await one.enqueue(job(n), is_announced=False)
        assert numbers(await one.claim(1)) == [1]
        await one.announce_left()
        await other.bell.wait()
        assert numbers(await other.claim(1)) == [2]


@bounded
async def test_a_job_that_is_claimed_as_it_is_added_cannot_be_taken_by_others(stores: tuple[Store, Store]) -> None:
    """Two routers with free slots take each other's jobs, and every answer crosses Redis."""
    async with router(stores[0], "a") as one, router(stores[1], "b") as other:
        for queue in (one, other):
            assert await queue.claim(1) == []
        await one.enqueue_and_claim(job(0))
        assert one.n_early == 1
        assert one.bell.take()
        assert await other.claim(5) == []
        assert await one.depth() == Depth(waiting=0, claimed=1)
        [claimed] = await one.claim(5)
        assert (claimed.job_id, claimed.attempt, one.n_early) == ("job-0", 1, 0)
        assert await one.ack(claimed.entry_id)
        assert await _is_empty(one)


@bounded
async def test_older_jobs_go_before_one_that_is_claimed_as_it_is_added(store: Store) -> None:
    """A job that waits is overtaken, or the newcomer is forgotten for a second."""
    async with router(store, "a") as queue:
        assert await queue.claim(1) == []
        await fill(queue, 1)
        await queue.enqueue_and_claim(job(1))
        assert numbers(await queue.claim(2)) == [0, 1]


@bounded
async def test_what_was_claimed_as_it_was_added_is_no_orphan(store: Store) -> None:
    """A job runs twice when its router looks for what it has forgotten, or what it forgot is never found."""
    async with router(store, "a") as queue:
        assert await queue.claim(1) == []
        await queue.enqueue_and_claim(job(0))
        with trio.CancelScope() as scope:
            scope.cancel()
            await queue.enqueue_and_claim(job(1))
        await queue.enqueue_and_claim(job(2))
        claimed = []
        while jobs := await queue.claim(5):
            claimed += numbers(jobs)
        assert sorted(claimed) in ([0, 2], [0, 1, 2])  # the cancelled one may have been added or not
        assert await queue.depth() == Depth(waiting=0, claimed=len(claimed))


@bounded
async def test_a_job_is_added_though_the_group_was_lost(store: Store) -> None:
    """Requests fail, or wait a second, after Redis has forgotten everything."""
    async with router(store, "a") as queue:
        assert await queue.claim(1) == []
        await store.execute("DEL", queue.key)
        await queue.enqueue_and_claim(job(0))
        assert queue.bell.take()
        assert numbers(await queue.claim(1)) == [0]


@bounded
async def test_a_release_wakes_the_claimers_of_all_routers(stores: tuple[Store, Store]) -> None:
    """A job whose worker died waits until somebody happens to look."""
    async with router(stores[0], "a") as one, router(stores[1], "b") as other:
        await fill(one, 1)
        [claimed] = await one.claim(1)
        await other.bell.wait()
        assert await other.claim(1) == []
        other.bell.ring()  # from the enqueue, if it comes late
        await other.bell.wait()
        await one.release(claimed.entry_id)
        await other.bell.wait()
        while not (jobs := await other.claim(1)):
            await other.bell.wait()
        assert numbers(jobs) == [0]


@bounded
async def test_new_jobs_wake_the_claimers_of_all_routers(stores: tuple[Store, Store]) -> None:
    """A job waits for the next poll of a router with free slots."""
    async with router(stores[0], "a") as one, router(stores[1], "b") as other, trio.open_nursery() as nursery:
        for queue in (one, other):
            await queue.bell.wait()
            nursery.start_soon(queue.bell.wait)
        await trio.testing.wait_all_tasks_blocked(0.02)
        await fill(one, 1)


@bounded
async def test_a_released_job_goes_to_one_of_many_claimers(stores: tuple[Store, Store]) -> None:
    """Two routers that see the same released job both get it."""
    async with router(stores[0], "a") as one, router(stores[1], "b") as other:
        await fill(one, 40)
        for claimed in await one.claim(40):
            await one.release(claimed.entry_id)
        await trio.sleep(0.05)  # the news has reached the other router
        got: list[int] = []

        async def claim_all(queue: JobQueue) -> None:
            for _ in range(30):
                got.extend(numbers(await queue.claim(3)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(claim_all, one)
            nursery.start_soon(claim_all, other)
        assert sorted(got) == list(range(40))


@bounded
async def test_more_than_a_page_of_released_jobs_keeps_its_order(store: Store) -> None:
    """Released jobs beyond the first page are forgotten."""
    async with router(store, "a") as queue:
        await fill(queue, 250)
        for claimed in reversed(await queue.claim(250)):
            await queue.release(claimed.entry_id)
        assert await queue.depth() == Depth(waiting=250, claimed=0)
        got: list[int] = []
        while jobs := await queue.claim(64):
            got += numbers(jobs)
        assert got == list(range(250))


@bounded
async def test_a_withdrawn_job_is_gone_claimed_or_not(stores: tuple[Store, Store]) -> None:
    """The job of a client that left runs, or a withdrawal breaks the queue."""
    async with router(stores[0], "a") as one, router(stores[1], "b") as other:
        entry_ids = await fill(one, 3)
        assert await one.withdraw(entry_ids[1])
        assert not await one.withdraw(entry_ids[1])
        jobs = await other.claim(3)
        assert numbers(jobs) == [0, 2]
        assert not await one.withdraw(jobs[0].entry_id)  # claimed by the other router: gone, but it runs
        assert not await other.ack(jobs[0].entry_id)
        assert not await one.withdraw(jobs[1].entry_id)
        assert not await other.release(jobs[1].entry_id)
        assert await other.claim(3) == []
        assert await _is_empty(one)


@bounded
async def test_a_withdrawn_job_that_was_released_does_not_come_back(store: Store) -> None:
    """A job is delivered after its client has left while it waited for another worker."""
    async with router(store, "a") as queue:
        await fill(queue, 1)
        [claimed] = await queue.claim(1)
        await queue.release(claimed.entry_id)
        await queue.withdraw(claimed.entry_id)
        assert await queue.claim(1) == []
        assert await _is_empty(queue)


@bounded
async def test_an_entry_that_cannot_be_read_is_taken_out_and_logged(
    store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    """An entry of somebody else blocks the queue, or vanishes without a trace."""
    async with router(store, "a") as queue:
        await fill(queue, 1)
        await store.execute("XADD", "auxot:jobs", "*", "job_id", "job-7", "data", "{}")
        await queue.enqueue(job(1))
        assert numbers(await queue.claim(5)) == [0, 1]
        assert await queue.depth() == Depth(waiting=0, claimed=2)
        assert "queue.unreadable_entry" in capfd.readouterr().err


@bounded
async def test_pools_do_not_share_their_jobs(store: Store) -> None:
    """A worker gets a job of another pool."""
    async with router(store, "a") as jobs, router(store, "a", name="other") as other:
        await fill(jobs, 1)
        assert await other.claim(1) == []
        assert numbers(await jobs.claim(1)) == [0]


@bounded
async def test_jobs_of_a_crashed_router_come_back_beyond_the_first_page(stores: tuple[Store, Store]) -> None:
    """Jobs of a router that was killed are lost, all of them or those beyond the first page."""
    async with router(stores[0], "a") as one, router(stores[1], "b") as other:
        await fill(one, 1000)
        await one.claim(1000)
        assert await sweeper.run_once(other) == []
        await crash(one)
        await sweeper.run_once(other)
        assert {consumer.name for consumer in await other.consumers()} == {"b", RELEASED}
        got: list[int] = []
        while jobs := await other.claim(50):
            assert {claimed.attempt for claimed in jobs} == {2}
            got += numbers(jobs)
        assert got == list(range(1000))


@bounded
async def test_sweepers_that_race_lose_and_double_nothing(stores: tuple[Store, Store]) -> None:
    """Two routers that sweep and claim at once run a job twice or never."""
    async with router(stores[0], "dead") as dead, router(stores[0], "a") as one, router(stores[1], "b") as other:
        await fill(dead, 300)
        await dead.claim(300)
        await crash(dead)
        await trio.sleep(0.2)  # longer than the race below takes: what is claimed in it is younger than what is swept
        got: list[int] = []

        async def sweep_and_claim(queue: JobQueue) -> None:
            for _ in range(4):
                await sweeper.run_once(queue)
                got.extend(numbers(await queue.claim(50)))

        async with trio.open_nursery() as nursery:
            for queue in (one, other):
                nursery.start_soon(sweep_and_claim, queue)
        while jobs := await one.claim(50):
            got.extend(numbers(jobs))
        assert sorted(got) == list(range(300))


@bounded
async def test_a_router_that_was_swept_while_it_slept_cannot_take_its_job_back(stores: tuple[Store, Store]) -> None:
    """A router that was taken for dead gives the job away that another one runs by now."""
    async with router(stores[0], "a") as one, router(stores[1], "b") as other:
        await fill(one, 1)
        [old] = await one.claim(1)
        await crash(one)
        await sweeper.run_once(other)
        [new] = await other.claim(1)
        assert not await one.release(old.entry_id)
        assert await one.claim(1) == []
        assert await other.ack(new.entry_id)


@bounded
async def test_an_idle_dead_consumer_is_removed_and_comes_back_when_it_wakes(stores: tuple[Store, Store]) -> None:
    """Routers of the past pile up, or one that was removed by mistake cannot go on."""
    async with router(stores[0], "a") as one, router(stores[1], "b") as other:
        assert set(await other.live_routers()) == {"a", "b"}
        await crash(one)
        await sweeper.run_once(other)
        assert set(await other.live_routers()) == {"b"}
        assert [consumer.name for consumer in await other.consumers()] == ["b"]
        await one.heartbeat()
        assert set(await other.live_routers()) == {"a", "b"}


@bounded
async def test_removing_a_consumer_keeps_what_it_claimed_at_the_last_moment(store: Store) -> None:
    """A consumer that claims between the look and the removal takes its jobs into nothing."""
    async with router(store, "a") as one, router(store, "b") as other:
        await fill(one, 3)
        await one.claim(2)
        await other.remove_consumer("a")
        jobs = await other.claim(3)
        assert numbers(jobs) == [0, 1, 2]
        assert [claimed.attempt for claimed in jobs] == [2, 2, 1]


@bounded
@pytest.mark.parametrize("loss", [("DEL", "auxot:jobs"), ("XGROUP", "DESTROY", "auxot:jobs", "workers")])
async def test_a_lost_group_is_made_again(store: Store, loss: tuple[str, ...]) -> None:
    """After FLUSHALL, or without its group, the queue stands still for ever."""
    async with router(store, "a") as queue:
        await fill(queue, 2)
        [running] = await queue.claim(1)
        await store.execute(*loss)
        await trio.sleep(0.005)  # an entry's id is its millisecond: the next stream's are others
        await queue.enqueue(job(5))
        assert numbers(await queue.claim(9)) in ([5], [1, 5])  # not job 0: it is running here
        assert await queue.ack(running.entry_id) == (loss[0] != "DEL")
        for use in (queue.depth, queue.consumers, queue.heartbeat):
            await store.execute("DEL", "auxot:jobs")
            await use()


@bounded
async def test_a_claim_that_was_cancelled_loses_nothing(stores: tuple[Store, Store]) -> None:
    """A job that Redis delivered to a cancelled claim belongs to nobody."""
    async with router(stores[0], "a") as one, router(stores[1], "b") as other:
        got: set[int] = set()
        for number in range(60):
            await one.enqueue(job(number))
            with trio.move_on_after(0.000_05 * (number % 10)):
                got.update(numbers(await one.claim(1)))
        while jobs := await one.claim(10):
            assert got.isdisjoint(numbers(jobs))
            got.update(numbers(jobs))
        got.update(numbers(await other.claim(10)))
        assert got == set(range(60))


@bounded
async def test_jobs_that_are_acked_soon_leave_with_the_next_flush(store: Store) -> None:
    """Finished jobs stay in the queue because their acks wait for each other."""
    async with router(store, "a") as queue:
        await fill(queue, 250)
        queue.bell.take()
        for claimed in await queue.claim(250):
            queue.ack_soon(claimed.entry_id)
        assert queue.bell.take()  # whoever flushes sleeps on it
        await queue.flush()
        assert await _is_empty(queue)


@bounded
async def test_a_job_that_is_acked_soon_does_not_run_again(store: Store) -> None:
    """A finished job runs again because the group was lost just before its ack."""
    async with router(store, "a") as queue:
        await fill(queue, 1)
        [claimed] = await queue.claim(1)
        queue.ack_soon(claimed.entry_id)
        await store.execute("XGROUP", "DESTROY", "auxot:jobs", "workers")
        assert await queue.claim(1) == []
        await queue.flush()
        assert await _is_empty(queue)


@bounded
async def test_an_ack_that_was_cancelled_is_repeated(store: Store) -> None:
    """A finished job runs again because its ack was interrupted."""
    async with router(store, "a") as queue:
        await fill(queue, 30)
        for number, claimed in enumerate(await queue.claim(30)):
            with trio.move_on_after(0.000_03 * (number % 10)):
                await queue.ack(claimed.entry_id)
        assert await queue.claim(5) == []
        assert await _is_empty(queue)


@bounded
async def test_a_release_that_was_cancelled_is_repeated(store: Store) -> None:
    """A job whose worker died is lost because its release was interrupted."""
    async with router(store, "a") as queue:
        await fill(queue, 30)
        for number, claimed in enumerate(await queue.claim(30)):
            with trio.move_on_after(0.000_03 * (number % 10)):
                await queue.release(claimed.entry_id)
        got: list[int] = []
        while jobs := await queue.claim(7):
            got += numbers(jobs)
        assert sorted(got) == list(range(30))


@bounded
async def test_closing_gives_everything_back_and_leaves_no_trace(stores: tuple[Store, Store]) -> None:
    """Jobs of a router that stopped in order wait until its heartbeat runs out."""
    async with router(stores[0], "a") as one, router(stores[1], "b") as other:
        await fill(one, 5)
        await one.claim(3)
        await one.close()
        assert set(await other.live_routers()) == {"b"}
        assert [consumer.name for consumer in await other.consumers() if consumer.name != RELEASED] == ["b"]
        await trio.sleep(0.05)
        jobs = await other.claim(9)
        assert numbers(jobs) == [0, 1, 2, 3, 4]
        assert [claimed.attempt for claimed in jobs] == [2, 2, 2, 1, 1]


@bounded
async def test_a_router_that_starts_again_under_its_old_name_gets_its_jobs_back(store: Store) -> None:
    """Jobs that a router had when it was killed are kept from it by its own heartbeat."""
    async with router(store, "a") as before:
        await fill(before, 2)
        await before.claim(2)
    async with router(store, "a") as after:
        jobs = await after.claim(5)
        assert numbers(jobs) == [0, 1]
        assert [claimed.attempt for claimed in jobs] == [2, 2]


@bounded
async def test_two_tasks_cannot_claim_at_once(store: Store) -> None:
    """Two claimers of one router release each other's jobs unnoticed."""
    async with router(store, "a") as queue:
        queue._is_claiming = True  # as the first of the two has set it
        with pytest.raises(RuntimeError, match="two tasks claim"):
            await queue.claim(1)


@bounded
async def test_a_heartbeat_runs_out(store: Store) -> None:
    """A router that died counts as alive for ever."""
    async with router(store, "a", heartbeat_ttl_s=0.05), router(store, "b") as other:

        async def is_gone() -> bool:
            return set(await other.live_routers()) == {"b"}

        await eventually(is_gone)


@bounded
async def test_a_key_of_another_kind_is_an_error_at_the_start(store: Store) -> None:
    """A queue that cannot work is opened all the same."""
    await store.execute("SET", "auxot:jobs", "text")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await JobQueue(store, router_id="a").open()


@bounded
async def test_a_large_job_passes(store: Store) -> None:
    """A job with images does not fit into the queue."""
    async with router(store, "a") as queue:
        large = QueuedJob(job_id="job-1", data=bytes(20_000_000), reply_to="a")
        await queue.enqueue(large)
        [claimed] = await queue.claim(1)
        await queue.release(claimed.entry_id)
        [claimed] = await queue.claim(1)
        assert (claimed.data, claimed.attempt) == (large.data, 2)
