"""Which of several workers gets a conversation's next turn, seen from both ends of a real router."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
import trio

from tests.daemon.harness import RunningRouter, ScriptedWorker, chat_body, running_router, scripted_worker, until
from tests.daemon.test_jobs import abort, answer, ask
from tests.daemon.test_two_routers import queue_is_empty, two_routers
from tests.store.harness import redis_server

LONG = "What I told you before. " * 100  # longer than any gain that is ignored


def history(name: str, n_turns: int) -> list[dict[str, Any]]:
    """Return a conversation before its next answer."""
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"{name} {n} {LONG}"} for n in range(2 * n_turns - 1)]
    return [{"role": "system", "content": "be brief"}, *turns]


@asynccontextmanager
async def working(running: RunningRouter, *, n_workers: int, features: tuple[str, ...] = ()):
    """Connect workers of one slot that answer everything at once."""
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(scripted_worker(running, features=features)) for _ in range(n_workers)
        ]
        async with trio.open_nursery() as nursery:
            for worker in workers:
                nursery.start_soon(work, worker)
            yield
            nursery.cancel_scope.cancel()


async def work(worker: ScriptedWorker) -> None:
    while True:
        job = await worker.next_job()
        await worker.say(job, "yes")
        await worker.complete(job)


def came_from(response: httpx.Response) -> tuple[str, str]:
    assert response.status_code == 200, response.text
    return response.headers["x-auxot-worker"], response.headers["x-auxot-route"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_conversation_stays_with_its_worker(stream):
    """Each turn of a conversation goes to the next worker, which reads all of it anew."""
    async with running_router() as running, working(running, n_workers=3), running.client() as client:
        homes: dict[str, str] = {}
        for n_turns in range(1, 5):
            for name in "dcba":
                body = chat_body(messages=history(name, n_turns), stream=stream)
                worker_id, route = came_from(await client.post("/v1/chat/completions", json=body))
                assert route == ("prefix" if n_turns > 1 else "least-loaded")
                assert homes.setdefault(name, worker_id) == worker_id
        assert len(set(homes.values())) == 3


@pytest.mark.parametrize(
    ("path", "extra"),
    [
        ("/v1/messages", {"max_tokens": 5, "messages": history("a", 3)}),
        ("/v1/responses", {"input": LONG}),
        ("/v1/completions", {"prompt": LONG}),
    ],
)
async def test_every_api_tells_the_route(path, extra):
    """An API is forgotten: its conversations wander, or its answers do not say why they came from where."""
    async with (
        running_router() as running,
        working(running, n_workers=2, features=("deltas", "params", "completion")),
        running.client() as client,
    ):
        first, second, third = [came_from(await client.post(path, json={"model": "any", **extra})) for _ in range(3)]
    assert first[1] == "least-loaded"
    assert second == third == (first[0], "prefix")


async def test_without_affinity_nothing_is_looked_for():
    """An operator who has switched it off gets it all the same."""
    async with (
        running_router(affinity=False) as running,
        working(running, n_workers=2),
        running.client() as client,
    ):
        came = [
            came_from(await client.post("/v1/chat/completions", json=chat_body(messages=history("a", n + 1))))
            for n in range(4)
        ]
        assert {route for _, route in came} == {"least-loaded"}
        assert len({worker_id for worker_id, _ in came}) == 2


async def test_a_conversation_goes_on_elsewhere_when_its_worker_is_gone():
    """A job waits for, or is given to, a worker that has left with the prompt in its cache."""
    async with (
        running_router(affinity_wait_s=20.0) as running,
        scripted_worker(running) as lost,
        running.client() as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(answer, lost, "yes")
        first = came_from(await client.post("/v1/chat/completions", json=chat_body(messages=history("a", 1))))
        async with working(running, n_workers=1):
            abort(lost)
            await until(lambda: has_workers(running, 1))
            second = came_from(await client.post("/v1/chat/completions", json=chat_body(messages=history("a", 2))))
        assert second[0] != first[0]
        assert second[1] == "least-loaded"


async def has_workers(running: RunningRouter, n_workers: int) -> bool:
    return bool((await running.health())["workers"] == n_workers)


@asynccontextmanager
async def warm_and_busy(**changes: Any):
    """Run two workers: `warm` holds conversation a and is busy with b, `idle` is free; yields them, and b's job."""
    async with (
        running_router(**changes) as running,
        scripted_worker(running) as warm,
        running.client() as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(answer, warm, "yes")
        await ask(client, messages=history("a", 1))
        nursery.start_soon(partial(ask, client, messages=history("b", 1)))
        job = await warm.next_job()
        async with scripted_worker(running) as idle:
            yield running, client, warm, idle, job
            await warm.complete(job)


async def test_a_busy_warm_worker_is_not_waited_for_by_default():
    """A job waits while a worker is idle."""
    async with warm_and_busy() as (_, client, warm, idle, _), trio.open_nursery() as nursery:
        nursery.start_soon(answer, idle, "yes")
        response = await ask(client, messages=history("a", 2))
        assert came_from(response) == (idle.ack["gpu_id"], "least-loaded")
        assert warm.ack["gpu_id"] != idle.ack["gpu_id"]


async def test_a_busy_warm_worker_is_waited_for_when_that_is_allowed():
    """AUXOT_AFFINITY_WAIT changes nothing, or jobs that need not wait are held up by one that does."""
    responses = []

    async def request(client: httpx.AsyncClient) -> None:
        responses.append(await ask(client, messages=history("a", 2)))

    async with (
        warm_and_busy(affinity_wait_s=20.0) as (running, client, warm, idle, job),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(request, client)
        await until(lambda: any(held.warm_by for held in open_jobs(running)))
        nursery.start_soon(answer, idle, "no")
        other = await ask(client, messages=history("c", 1))  # behind it, and not held
        assert came_from(other)[0] == idle.ack["gpu_id"]
        assert not responses
        await warm.complete(job)
        await answer(warm, "yes")
        await until(lambda: bool(responses))
        assert came_from(responses[0]) == (warm.ack["gpu_id"], "prefix")


async def test_no_job_is_held_longer_than_allowed():
    """A job is held for as long as its warm worker is busy, while another is idle."""
    async with warm_and_busy(affinity_wait_s=0.2) as (running, client, _, idle, _), trio.open_nursery() as nursery:
        began = trio.current_time()
        nursery.start_soon(answer, idle, "yes")
        response = await ask(client, messages=history("a", 2))
        assert came_from(response) == (idle.ack["gpu_id"], "least-loaded")
        assert trio.current_time() - began >= 0.2
        assert not any(held.warm_by for held in open_jobs(running))


async def test_a_job_that_has_waited_gets_the_first_slot():
    """A job whose wait is over finds all slots taken by later ones, is put back, and is given up in the end."""
    responses = []

    async def request(client: httpx.AsyncClient) -> None:
        responses.append(await ask(client, messages=history("a", 2)))

    async with (
        warm_and_busy(affinity_wait_s=0.2, max_attempts=1) as (running, client, _, idle, _),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(request, client)
        await until(lambda: any(held.warm_by for held in open_jobs(running)))
        for name in "cd":
            nursery.start_soon(partial(ask, client, messages=history(name, 1)))
        job = await idle.next_job()
        await trio.sleep(0.5)  # longer than the wait
        assert not responses
        await idle.complete(job)
        job = await idle.next_job()
        assert len(job["messages"]) == len(history("a", 2))
        assert job["attempt"] == 1
        await idle.complete(job)
        await answer(idle, "last")


def open_jobs(running: RunningRouter) -> list[Any]:
    return list(running.router.pool.relay._jobs.values())


async def test_a_job_of_another_router_finds_its_prompt_too():
    """Behind two routers a conversation wanders, or its client is not told why it went where it went."""
    with redis_server() as redis:
        async with (
            two_routers(redis) as (front, back),
            working(back, n_workers=3),
            front.client() as client,
        ):
            came = [
                came_from(await client.post("/v1/chat/completions", json=chat_body(messages=history("a", n))))
                for n in range(1, 4)
            ]
            await until(lambda: queue_is_empty(front))
    assert [route for _, route in came] == ["least-loaded", "prefix", "prefix"]
    assert len({worker_id for worker_id, _ in came}) == 1
