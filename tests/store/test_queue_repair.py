"""What is done to the queue when routers have died or Redis has forgotten something."""

from __future__ import annotations

import attrs
import trio

from auxot.router import sweeper
from auxot.router.queue import GROUP
from auxot.router.queue_repair import drop_jobs_of, find_gone
from auxot.router.store import Store
from tests.store.harness import bounded, crash, fill, job, numbers, router


@bounded
async def test_jobs_of_a_dead_router_are_dropped_wherever_they_wait(stores: tuple[Store, Store]) -> None:
    """Jobs of clients that are gone take places and slots, or somebody else's jobs go with them."""
    async with router(stores[0], "dead") as dead, router(stores[1], "b") as other:
        for number in range(40):
            await dead.enqueue(attrs.evolve(job(number), reply_to="dead" if number % 2 else "b"))
        claimed = await dead.claim(4)
        assert numbers(claimed) == [0, 1, 2, 3]
        [running] = await other.claim(1)
        await crash(dead)
        actions = await sweeper.run_once(other)
        assert sweeper.DropJobs(router_id="dead") in actions
        left = [job for _ in range(9) for job in await other.claim(9)]
        assert numbers(left) == [0, 2, *range(6, 40, 2)]
        assert numbers([running]) == [4]
        await drop_jobs_of(other, "b")
        assert (await other.depth()).claimed == 20  # who runs them settles them


@bounded
async def test_gone_is_what_nobody_has_and_nobody_will_get(store: Store) -> None:
    """A job is queued twice, or its client waits until its time is over."""
    async with router(store, "a") as queue:
        acked, held, released, lost, waiting = await fill(queue, 5)
        taken = await queue.claim(4)
        assert [claimed.entry_id for claimed in taken] == [acked, held, released, lost]
        await queue.ack(acked)
        await queue.release(released)
        await store.execute("XACK", queue.key, GROUP, lost)  # in the stream, delivered, and with nobody
        assert await find_gone(queue, [acked, held, released, lost, waiting]) == [acked, lost]
        await store.execute("DEL", queue.key)
        await trio.sleep(0.002)  # a stream that begins again in the same millisecond would give the same ids again
        await fill(queue, 1)
        await queue.claim(1)
        assert await find_gone(queue, [held, released, waiting]) == [held, released, waiting]
        assert await find_gone(queue, []) == []


@bounded
async def test_a_declined_job_is_for_others_and_was_no_delivery(stores: tuple[Store, Store]) -> None:
    """A router takes a job that it cannot do again and again until it is given up."""
    async with router(stores[0], "a") as unable, router(stores[1], "b") as able:
        await fill(unable, 2)
        [first, second] = await unable.claim(2)
        assert await unable.release(first.entry_id, declines=True)
        assert await unable.claim(5) == []
        [taken] = await able.claim(5)
        assert (taken.entry_id, taken.attempt) == (first.entry_id, 1)
        await able.release(taken.entry_id)
        await unable.release(second.entry_id)
        [again] = await unable.claim(5)  # the declined one stands before it
        assert (again.entry_id, again.attempt) == (second.entry_id, 2)
