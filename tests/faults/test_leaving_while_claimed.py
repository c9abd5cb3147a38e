"""Clients that leave while their job is between the queue and a worker: claimed, and its router does not know yet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from auxot.router.store import Store, open_store
from tests.daemon.harness import RunningRouter, ScriptedWorker, chat_body, running_router, scripted_worker, until
from tests.faults.harness import CuttingProxy, cutting_proxy, n_tasks, task_names
from tests.faults.test_routers import is_empty
from tests.store.harness import RedisServer, redis_server

CLAIMED = b"reply_to"  # a field that Redis tells of an entry when it is claimed, and at no other time


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


async def n_pending(store: Store) -> int:
    count: int = (await store.execute("XPENDING", "auxot:jobs", "workers"))[0]
    return count


async def ask(router: RunningRouter, **changes: Any) -> None:
    async with router.client() as client:
        await client.post("/v1/chat/completions", json=chat_body(**changes))


@asynccontextmanager
async def left_while_claimed(proxy: CuttingProxy, front: RunningRouter, store: Store) -> AsyncIterator[None]:
    """Have a client leave while its job is claimed and the claimer, behind the proxy, has not been told."""
    proxy.holds = CLAIMED
    async with trio.open_nursery() as client:
        client.start_soon(partial(ask, front, stream=True))
        await proxy.is_holding.wait()
        assert await n_pending(store) == 1
        yield
        client.cancel_scope.cancel()
    await until(lambda: not len(front.router.pool.relay))


async def expect_nothing_left(router: RunningRouter, store: Store, *, n_tasks_before: int) -> None:
    """Wait until the queue is empty, every slot free, and no task is left."""
    await until(partial(is_empty, store))
    pool = router.router.pool
    await until(lambda: not any(session.n_running for session in pool.fleet.members()))
    assert not pool.correspondence.guests
    with trio.move_on_after(10):
        await until(lambda: n_tasks() <= n_tasks_before)
    assert n_tasks() <= n_tasks_before, task_names()


async def answer_next(worker: ScriptedWorker) -> dict[str, Any]:
    job = await worker.next_job()
    await worker.complete(job)
    return job


@pytest.mark.parametrize("is_frozen", [False, True], ids=["withdrawn at once", "withdrawn late"])
async def test_a_job_whose_client_leaves_while_it_is_claimed_is_sent_to_no_worker(redis: RedisServer, is_frozen):
    """A worker generates for nobody, or the entry, a slot or a task is never free again."""
    async with (
        cutting_proxy(redis.socket_path, seed=1) as proxy,
        running_router(redis_url=proxy.url) as router,
        scripted_worker(router) as worker,
        open_store(redis.url) as store,
    ):
        await until(lambda: router.router.pool.fleet.count().total_slots == 1)
        before = n_tasks()
        async with left_while_claimed(proxy, router, store):
            if is_frozen:  # what takes the entry out comes too late as well
                proxy.stand_still()
        if is_frozen:
            assert await n_pending(store) == 1
        else:
            await until(partial(is_empty, store))
        proxy.move()
        await expect_nothing_left(router, store, n_tasks_before=before)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(ask, router, messages=[{"role": "user", "content": "the next one"}]))
            job = await answer_next(worker)
        assert job["messages"][-1]["content"] == "the next one"


async def test_a_job_whose_client_leaves_while_another_router_claims_it_is_stopped(redis: RedisServer):
    """The other router's worker generates to the end for nobody: who has the job was unknown when its client left."""
    async with (
        cutting_proxy(redis.socket_path, seed=1) as proxy,
        running_router(redis_url=redis.url) as front,
        running_router(redis_url=proxy.url) as back,
        scripted_worker(back) as worker,
        open_store(redis.url) as store,
    ):
        await until(lambda: back.router.pool.fleet.count().total_slots == 1)
        before = n_tasks()
        async with left_while_claimed(proxy, front, store):
            pass
        await until(partial(is_empty, store))
        proxy.move()
        job = await worker.next_job()
        while (message := await worker.receive())["type"] != "cancel":
            pass
        assert message["job_id"] == job["job_id"]
        await expect_nothing_left(back, store, n_tasks_before=before)
