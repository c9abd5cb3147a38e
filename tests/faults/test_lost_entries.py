"""Entries that the queue has lost while their clients wait: found, queued again, and answered once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import httpx
import pytest
import trio

from auxot.router.queue import GROUP
from auxot.router.store import Store, open_store
from auxot.router.sweeper import SETTLE_S
from tests.daemon.harness import RunningRouter, running_router, scripted_worker, until
from tests.daemon.test_jobs import ask, text_of
from tests.store.harness import RedisServer, redis_server


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@attrs.frozen
class Setup:
    """A router with a client that waits, one for workers, and a way to their Redis."""

    front: RunningRouter
    back: RunningRouter
    store: Store
    answers: list[httpx.Response]

    async def entries(self) -> list[bytes]:
        return [entry_id for entry_id, _ in await self.store.execute("XRANGE", "auxot:jobs", "-", "+")]

    async def is_empty(self) -> bool:
        depth = await self.front.router.pool.queue.depth()
        return (depth.waiting, depth.claimed) == (0, 0)


@asynccontextmanager
async def one_waiting(redis: RedisServer) -> AsyncIterator[Setup]:
    """Open two routers that have settled; a client's job waits for a worker."""
    answers: list[httpx.Response] = []

    async def one(client: httpx.AsyncClient) -> None:
        answers.append(await ask(client, stream=True))

    async with (
        running_router(redis_url=redis.url) as front,
        running_router(redis_url=redis.url) as back,
        open_store(redis.url) as store,
        front.client() as client,
        trio.open_nursery() as nursery,
    ):
        setup = Setup(front, back, store, answers)
        await trio.sleep(SETTLE_S + 1)  # whoever is new doubts
        nursery.start_soon(one, client)
        await until(partial(_has_entries, setup, 1))
        yield setup


async def _has_entries(setup: Setup, expected: int) -> bool:
    return len(await setup.entries()) == expected


async def answer_once(setup: Setup, running: RunningRouter) -> dict[str, Any]:
    """Answer the job on a worker of that router; check what the client got."""
    async with scripted_worker(running) as worker:
        job = await worker.next_job()
        await worker.say(job, "once")
        await worker.complete(job)
        await until(lambda: bool(setup.answers))
        assert text_of(setup.answers[0]) == "once"
        await until(setup.is_empty)
    return job


async def test_what_a_flush_has_removed_is_queued_again_and_answered_once(redis: RedisServer) -> None:
    """Its client would wait until the time limit: no connection was lost, only the data."""
    async with one_waiting(redis) as setup:
        [old] = await setup.entries()
        await setup.store.execute("FLUSHALL")
        await until(partial(_has_entries, setup, 1))
        assert await setup.entries() != [old]
        await answer_once(setup, setup.back)


async def test_what_a_router_dropped_that_took_this_one_for_dead_is_queued_again(redis: RedisServer) -> None:
    """A router that stood still for a while would let its clients wait for jobs that others have dropped."""
    async with one_waiting(redis) as setup:
        queue = setup.front.router.pool.queue
        [old] = await setup.entries()
        await setup.store.execute("DEL", f"auxot:router:{queue.router_id}")
        await setup.store.execute("XDEL", queue.key, old)
        await queue.heartbeat()
        await until(partial(_has_entries, setup, 1))
        await answer_once(setup, setup.front)


async def test_an_entry_that_was_read_and_is_with_nobody_is_replaced(redis: RedisServer) -> None:
    """A sweeper that dies between removing a consumer and giving back its entries would leave them to nobody."""
    async with one_waiting(redis) as setup:
        queue = setup.front.router.pool.queue
        [old] = await setup.entries()
        await setup.store.execute("XREADGROUP", "GROUP", GROUP, "dead", "COUNT", 1, "STREAMS", queue.key, ">")
        await setup.store.execute("XGROUP", "DELCONSUMER", queue.key, GROUP, "dead")
        setup.back.phases.quiet.set()  # as any router that goes, it makes the others look
        await until(partial(_is_replaced, setup, old))
        await answer_once(setup, setup.front)


async def _is_replaced(setup: Setup, old: bytes) -> bool:
    entries = await setup.entries()
    return len(entries) == 1 and entries != [old]


async def test_late_words_of_an_entry_that_was_taken_for_lost_are_not_heard(redis: RedisServer) -> None:
    """The client would get two answers in one."""
    async with (
        one_waiting(redis) as setup,
        scripted_worker(setup.back) as first,
    ):
        old = await first.next_job()
        pool = setup.front.router.pool
        open_job = pool.relay.find(old["job_id"])
        assert open_job is not None
        await until(lambda: open_job.record.attempt == 1)
        await pool.queue_again(open_job)  # by mistake: the worker is alive
        await first.say(old, "old words")
        while (message := await first.receive())["type"] != "cancel":
            pass
        assert message["job_id"] == old["job_id"]
        again = await first.next_job()
        assert again["attempt"] > old["attempt"]
        await first.say(again, "once")
        await first.complete(again)
        await until(lambda: bool(setup.answers))
        assert text_of(setup.answers[0]) == "once"
        await until(setup.is_empty)
        assert not setup.back.router.pool.correspondence.guests


async def test_a_job_whose_runner_and_entry_are_gone_runs_again(redis: RedisServer) -> None:
    """Redis and a router that fail together would leave a client without an end."""
    async with one_waiting(redis) as setup:
        async with scripted_worker(setup.back) as worker:
            job = await worker.next_job()
            open_job = setup.front.router.pool.relay.find(job["job_id"])
            assert open_job is not None
            await until(lambda: open_job.record.attempt == 1)
            correspondence = setup.front.router.pool.correspondence
            correspondence._runners[job["job_id"]] = ("a router that is gone", 1)
            await setup.store.execute("FLUSHALL")
        assert (await answer_once(setup, setup.front))["attempt"] == 2
