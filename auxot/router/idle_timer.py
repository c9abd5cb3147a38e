"""The idle timer of one HTTP connection, in place of hypercorn's TrioSingleTask.

hypercorn starts and cancels a task with every request, which costs 100 us of CPU; here one task a connection looks at
a date that requests move. The methods `restart` and `stop` are hypercorn 0.18's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

IDLE_TIMEOUT_S = 75.0  # keep-alive: longer than the 60 s of common load balancers, which must be first to close


class IdleTimer:
    """Closes a connection once it has been idle for IDLE_TIMEOUT_S, or is idle when the listeners close.

    Args:
        terminated: an event of hypercorn's WorkerContext: the listeners have closed.
    """

    def __init__(self, terminated: Any) -> None:
        self._terminated = terminated
        self._scope = trio.CancelScope()
        self._is_started = False
        self._idle_until: float | None = None  # None: a request is being answered

    async def restart(self, task_group: Any, close: Callable[[], Awaitable[None]]) -> None:
        """Note that the connection is idle from now on."""
        self._idle_until = trio.current_time() + IDLE_TIMEOUT_S
        if not self._is_started:
            self._is_started = True
            task_group.spawn(self._watch, close)

    async def stop(self) -> None:
        """Note that a request has come."""
        self._idle_until = None

    def end(self) -> None:
        """Watch no longer."""
        self._scope.cancel()

    async def _watch(self, close: Callable[[], Awaitable[None]]) -> None:
        with self._scope:
            while not self._terminated.is_set() and not self._has_run_out():
                with trio.move_on_at(self._idle_until or trio.current_time() + IDLE_TIMEOUT_S):
                    await self._terminated.wait()
            if self._idle_until is not None:  # else hypercorn closes it after the answer
                await close()

    def _has_run_out(self) -> bool:
        return self._idle_until is not None and self._idle_until <= trio.current_time()
