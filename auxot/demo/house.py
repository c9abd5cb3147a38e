"""A router and a worker in one process, under one nursery: what `auxot demo` and `auxot up` run.

    house
    |- router (front, queue in memory)
    '- worker -> llama-server

The worker is stopped first, so that its llama-server is gone before the router is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio

from auxot.config import RouterConfig, WorkerConfig
from auxot.core.errors import AuxotError, first_error
from auxot.router.service import FrontPhases, Router
from auxot.router.service import serve as serve_router
from auxot.worker.service import serve as serve_worker


@asynccontextmanager
async def running_house(
    router_config: RouterConfig, make_worker_config: Callable[[int], WorkerConfig]
) -> AsyncGenerator[Router, None]:
    """Run a router and one worker for the length of the block; entered when the worker takes jobs.

    Args:
        router_config: the router's settings.
        make_worker_config: the worker's, given the port that the router listens on.

    Raises:
        AuxotError: one of them could not start, or ended by itself.
    """
    error: AuxotError | None = None
    try:
        async with trio.open_nursery() as house_nursery:
            phases = FrontPhases()
            router = await house_nursery.start(partial(serve_router, router_config, phases=phases))
            worker = _Worker(make_worker_config(router.addresses[0][1]))
            await house_nursery.start(worker.run)
            yield router
            worker.quiet.set()
            await worker.gone.wait()
            phases.quiet.set()
    except* AuxotError as group:
        error = first_error(group)
    if error is not None:
        raise error


@attrs.define(eq=False)
class _Worker:
    config: WorkerConfig
    quiet: trio.Event = attrs.field(factory=trio.Event)
    gone: trio.Event = attrs.field(factory=trio.Event)

    async def run(self, *, task_status: trio.TaskStatus[str | None]) -> None:
        try:
            await serve_worker(self.config, quiet=self.quiet, task_status=task_status)
        finally:
            self.gone.set()
