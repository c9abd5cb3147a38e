"""A Trio loop beside a synchronous test: hypothesis draws in one thread, what it drew happens in another."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import partial
from typing import Any, TypeVar

import outcome
import trio

T = TypeVar("T")


class Loop:
    """A Trio loop in a thread of its own, and a nursery that lives as long."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._ended: outcome.Outcome[None] | None = None

    def run(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Run an async function in the loop; the test waits."""
        return trio.from_thread.run(function, *args, trio_token=self._token)

    @contextmanager
    def running(self) -> Iterator[Loop]:
        """Run the loop for the length of the block. A crash of what runs in it is raised at the end."""
        thread = threading.Thread(target=self._run, name="loop")
        thread.start()
        self._ready.wait()
        try:
            yield self
        finally:
            if self._ended is None:
                self._token.run_sync_soon(self._stop.set)
            thread.join()
        assert self._ended is not None
        self._ended.unwrap()

    @contextmanager
    def holding(self, context: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """Hold an async context open in the loop, in one task, for the length of the block."""
        stop, closed = trio.Event(), trio.Event()

        async def hold(*, task_status: trio.TaskStatus[T]) -> None:
            try:
                async with context as held:
                    task_status.started(held)
                    await stop.wait()
            finally:
                closed.set()

        yield self.run(partial(self._start, hold))
        self._token.run_sync_soon(stop.set)
        self.run(closed.wait)

    async def _start(self, function: Callable[..., Awaitable[Any]]) -> Any:
        return await self.nursery.start(function)

    def _run(self) -> None:
        self._ended = outcome.capture(trio.run, self._main)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self.nursery:
            self._stop = trio.Event()
            self._ready.set()
            await self._stop.wait()
            self.nursery.cancel_scope.cancel()
