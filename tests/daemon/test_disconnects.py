"""Clients that leave where only ASGI tells of it: HTTP/1.0 and HTTP/2 (HTTP/1.1 stands in test_jobs)."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import orjson
import pytest
import trio
import trio.testing

from tests.daemon.harness import API_KEY, RunningRouter, chat_body, running_router, scripted_worker, until

PATH = "/v1/chat/completions"


@asynccontextmanager
async def http_1_0(running: RunningRouter, body: bytes) -> AsyncGenerator[None, None]:
    head = f"POST {PATH} HTTP/1.0\r\nauthorization: Bearer {API_KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    stream = await trio.open_tcp_stream("127.0.0.1", running.port)
    await stream.send_all(head.encode() + body)
    yield
    await stream.aclose()


@asynccontextmanager
async def http_2(running: RunningRouter, body: bytes) -> AsyncGenerator[None, None]:
    command = ["curl", "-sS", "--http2-prior-knowledge", "--data-binary", body.decode()]
    command += ["-H", f"authorization: Bearer {API_KEY}", f"{running.url}{PATH}"]
    curl = await trio.lowlevel.open_process(command, stdout=subprocess.DEVNULL)
    yield
    curl.kill()
    await curl.wait()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("client", [http_1_0, http_2])
async def test_the_worker_is_told_that_the_client_has_left(client, stream):
    """The worker would go on writing for nobody."""
    body = orjson.dumps(chat_body(stream=stream))
    async with running_router() as running, scripted_worker(running) as worker:
        async with client(running, body):
            job = await worker.next_job()
            await worker.say(job, "begin")
            await trio.testing.wait_all_tasks_blocked(0.05)
        with trio.fail_after(5):
            while (message := await worker.receive())["type"] != "cancel":
                pass
        assert message["job_id"] == job["job_id"]
        await until(lambda: _is_free(running))


async def _is_free(running: RunningRouter) -> bool:
    return (await running.health())["active_jobs"] == 0
