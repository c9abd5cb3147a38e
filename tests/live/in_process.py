"""The whole worker with a real llama-server, in the test's own process, against a router that the test plays."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from auxot.config import WorkerConfig
from auxot.core.jobs import Job
from auxot.core.messages import Complete, Config, Error, HelloAck, Token, WorkerMessage
from auxot.worker.llama.server import LlamaServer, open_llama
from auxot.worker.replica import Start
from auxot.worker.service import worker_settings
from auxot.worker.supervise import Worker, WorkerSettings
from tests.daemon.worker_harness import POLICY, WELCOME, RouterEnd, StandInRouter, stand_in_router

ENDLESS = {"ignore_eos": True, "chat_template_kwargs": {"enable_thinking": False}}
LONG_POLICY = attrs.evolve(POLICY, context_size=131_072)
LONG_WELCOME = attrs.evolve(WELCOME, policy=LONG_POLICY)
TIMEOUT_S = 180  # also of a machine that does something else


@attrs.define(eq=False)
class Running:
    """A worker that serves, and the router's end of its connection."""

    router: StandInRouter
    end: RouterEnd
    quiet: trio.Event
    stopped: trio.Event

    async def answer(self, one: Job) -> list[WorkerMessage]:
        await self.end.send(one)
        return await self.end.answer_to(one.job_id)


@asynccontextmanager
async def running(
    config: WorkerConfig, *, welcome: HelloAck = LONG_WELCOME, **changes: Any
) -> AsyncGenerator[Running, None]:
    """Run a worker until the end of the block, then stop it in order."""
    quiet, stopped = trio.Event(), trio.Event()
    with trio.fail_after(TIMEOUT_S):
        async with stand_in_router(lambda _: welcome) as router, trio.open_nursery() as nursery:
            settings = attrs.evolve(worker_settings(attrs.evolve(config, router_url=router.url)), **changes)
            nursery.start_soon(_work, settings, quiet, stopped)
            end = await router.next_worker()
            assert isinstance(await end.receive(), Config)
            yield Running(router, end, quiet, stopped)
            quiet.set()


async def _work(settings: WorkerSettings, quiet: trio.Event, stopped: trio.Event) -> None:
    worker = Worker(settings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.stop_on, quiet, nursery.cancel_scope)
        await worker.run()
        nursery.cancel_scope.cancel()
    stopped.set()


def text_of(messages: list[WorkerMessage], *, reasoning: bool = False) -> str:
    return "".join(m.token for m in messages if isinstance(m, Token) and m.reasoning is reasoning)


def complete(messages: list[WorkerMessage]) -> Complete:
    assert isinstance(messages[-1], Complete), messages[-1]
    return messages[-1]


def error(messages: list[WorkerMessage]) -> Error:
    assert isinstance(messages[-1], Error), messages[-1]
    return messages[-1]


async def until_token(end: RouterEnd, job_id: str) -> None:
    while not isinstance(message := await end.receive(), Token) or message.job_id != job_id:
        pass


@asynccontextmanager
async def noting(servers: list[LlamaServer], start: Start) -> AsyncGenerator[LlamaServer, None]:
    """Open a llama-server, and write it down."""
    async with open_llama(start) as server:
        servers.append(server)
        yield server
