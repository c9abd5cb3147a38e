"""The idle timer of one HTTP connection, in place of hypercorn's TrioSingleTask.

hypercorn starts and cancels a task with every request, which costs 100 us of CPU; here one task a connection looks at
a date that requests move. The methods `restart` and `stop` are hypercorn 0.18's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

IDLE_TIMEOUT_S = 75.0  # keep-alive: longer than the 60 s of common load balancers, which must be first to close
LINGER_S = 0.3  # the same once the router leaves: in which a client that uses its connection all the time asks again


class IdleTimer:
    """Rings when a connection has been idle for IDLE_TIMEOUT_S, or for LINGER_S once the router leaves.

    It rings again every LINGER_S, until a request comes or `end`.

    Args:
        leaving: set when the listeners close. Whoever asks from then on is told that the connection ends, so that
            nobody who is about to ask loses it without a word.
    """

    def __init__(self, leaving: trio.Event) -> None:
        self._leaving = leaving
        self._scope = trio.CancelScope()
        self._sleep = trio.CancelScope()
        self._is_started = False
        self._is_hurried = False  # we know that the router leaves
        self._rings_at: float | None = None  # None: a request is being answered

    async def restart(self, task_group: Any, ring: Callable[[], Awaitable[None]]) -> None:
        """Note that the connection is idle from now on."""
        self._rings_at = trio.current_time() + (LINGER_S if self._leaving.is_set() else IDLE_TIMEOUT_S)
        if not self._is_started:
            self._is_started = True
            task_group.spawn(self._watch, ring)

    async def stop(self) -> None:
        """Note that a request has come."""
        self._rings_at = None

    def ring_in(self, delay_s: float) -> None:
        """Ring so many seconds from now, whatever the connection does."""
        self._rings_at = self._sleep.deadline = trio.current_time() + delay_s

    def end(self) -> None:
        """Watch no longer."""
        self._scope.cancel()

    async def _watch(self, ring: Callable[[], Awaitable[None]]) -> None:
        with self._scope:
            while True:
                while not self._is_due():
                    await self._wait()
                self._rings_at = trio.current_time() + LINGER_S
                await ring()

    async def _wait(self) -> None:
        """Sleep until it may be time to ring."""
        if self._leaving.is_set() and not self._is_hurried:
            self._is_hurried = True
            if self._rings_at is not None:
                self._rings_at = min(self._rings_at, trio.current_time() + LINGER_S)
        look_s = LINGER_S if self._is_hurried else IDLE_TIMEOUT_S
        with trio.CancelScope(deadline=self._rings_at or trio.current_time() + look_s) as self._sleep:
            if self._is_hurried:
                await trio.sleep_forever()
            await self._leaving.wait()

    def _is_due(self) -> bool:
        return self._rings_at is not None and self._rings_at <= trio.current_time()
