"""What requests leave to the garbage collector: nothing, so that it need not run while answers are on their way."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio
import trio.testing

from tests.daemon.harness import RunningRouter, ScriptedWorker, chat_body, running_router, scripted_worker, until

N_REQUESTS = 10
MESSAGES = {"model": "any", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", chat_body()),
    "chat, streamed": ("/v1/chat/completions", chat_body(stream=True)),
    "completion": ("/v1/completions", {"model": "any", "prompt": "hi", "stream": True}),
    "messages": ("/v1/messages", MESSAGES),
    "messages, streamed": ("/v1/messages", {**MESSAGES, "stream": True}),
    "response": ("/v1/responses", {"model": "any", "input": "hi"}),
    "response, streamed": ("/v1/responses", {"model": "any", "input": "hi", "stream": True}),
    "refused": ("/v1/chat/completions", {"messages": 3}),
}


@contextmanager
def garbage() -> Iterator[Counter[str]]:
    """Count, by type, the objects of ours and of the HTTP server's that became garbage in the block."""
    counts: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield counts
        gc.collect()
        kinds = (type(found) for found in gc.garbage)
        counts.update(kind.__qualname__ for kind in kinds if kind.__module__.startswith(("auxot.", "hypercorn.")))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[RunningRouter, ScriptedWorker]]:
    features = ("deltas", "completion")
    async with running_router() as running, scripted_worker(running, features=features) as worker:
        yield running, worker


async def answer_all(worker: ScriptedWorker) -> None:
    while True:
        job = await worker.next_job()
        await worker.say(job, "one", "two")
        await worker.complete(job)


async def is_idle(running: RunningRouter) -> bool:
    return (await running.health())["active_jobs"] == 0


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_request_leaves_no_garbage(name):
    """Prompts of megabytes would stay in memory until a full collection, which stops all streams for 100 ms."""
    path, body = REQUESTS[name]
    async with serving() as (running, worker), trio.open_nursery() as nursery, running.client() as client:
        nursery.start_soon(answer_all, worker)
        status = (await client.post(path, json=body)).status_code
        assert status == (400 if name == "refused" else 200)
        with garbage() as counts:
            for _ in range(N_REQUESTS):
                await client.post(path, json=body)
        nursery.cancel_scope.cancel()
    assert counts == {}


@pytest.mark.parametrize("name", ["chat", "chat, streamed"])
@pytest.mark.parametrize("runs", [True, False])
async def test_a_client_that_leaves_takes_its_request_with_it(name, runs):
    """What a client that hung up has sent would stay until a full collection."""
    path, body = REQUESTS[name]
    async with serving() as (running, worker), running.client() as client:
        await is_idle(running)
        if not runs:
            await client.get("/health")
        with garbage() as counts:
            for _ in range(N_REQUESTS):
                async with trio.open_nursery() as request_nursery:
                    request_nursery.start_soon(lambda: client.post(path, json=body))
                    job = await worker.next_job()
                    if runs:
                        await worker.say(job, "one")
                        await trio.testing.wait_all_tasks_blocked(0.01)
                    request_nursery.cancel_scope.cancel()
                await worker.complete(job)
                await until(lambda: is_idle(running))
    assert counts == {}
