"""A store whose commands are run, answered, cut off or forgotten exactly when a test says so.

    caller -> line of calls -> `run_next`: the oldest is run -> `deliver_next`: its caller gets the reply
                            '-> `cut`: all callers get StoreLostError, what was not run never is

It is a `Store` in front of a real one, so that a machine can put every interleaving of several routers together and
shrink one that fails. Like a connection it runs the commands of one router in their order. Those of a caller that was
cancelled run as well, like bytes that have left, or do not, like those that had not: `forgets_cancelled`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import outcome
import trio

from auxot.core.errors import StoreLostError
from auxot.router.store import Argument, Command, Ringable, Store


@attrs.define(eq=False)
class _Call:
    run: Callable[[], Awaitable[Any]]
    answer: outcome.Outcome[Any] | None = None
    answered: trio.Event = attrs.field(factory=trio.Event)


class SteppedStore:
    """A store that is moved by hand once `is_free` is False."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._line: deque[_Call] = deque()
        self._bells: list[Ringable] = []
        self.is_free = True
        self.forgets_cancelled = False

    @property
    def address(self) -> str:
        return self._store.address

    @property
    def connected_at(self) -> float | None:
        return self._store.connected_at

    async def execute(self, *args: Argument) -> Any:
        return await self._call(lambda: self._store.execute(*args))

    async def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        replies: list[Any] = await self._call(lambda: self._store.pipeline(commands))
        return replies

    async def try_each(self, commands: Sequence[Command]) -> list[Any]:
        replies: list[Any] = await self._call(lambda: self._store.try_each(commands))
        return replies

    async def transaction(self, commands: Sequence[Command]) -> list[Any]:
        replies: list[Any] = await self._call(lambda: self._store.transaction(commands))
        return replies

    async def subscribe(self, channel: str, bell: Ringable) -> None:
        await self._store.subscribe(channel, bell)
        self._bells.append(bell)

    async def run_next(self) -> None:
        """Run the oldest call that was not; its caller does not know yet."""
        for call in self._line:
            if call.answer is None:
                call.answer = await outcome.acapture(call.run)
                return

    async def deliver_next(self) -> None:
        """Give the oldest call its reply, if it was run."""
        if self._line and (answer := self._line[0].answer) is not None:
            self._line.popleft().answered.set()
            del answer

    async def pass_next(self) -> bool:
        """Run the oldest call and give it its reply; False if there is none."""
        await self.run_next()
        is_there = bool(self._line)
        await self.deliver_next()
        return is_there

    def cut(self) -> None:
        """Lose the connection, and have another one at once."""
        while self._line:
            call = self._line.popleft()
            call.answer = outcome.Error(StoreLostError("cut by the test"))
            call.answered.set()
        for bell in self._bells:
            bell.ring()

    async def _call(self, run: Callable[[], Awaitable[Any]]) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.is_free:
            return await run()
        call = _Call(run)
        self._line.append(call)
        try:
            await call.answered.wait()
        except trio.Cancelled:
            if self.forgets_cancelled and call.answer is None and call in self._line:
                self._line.remove(call)
            raise
        assert call.answer is not None
        return call.answer.unwrap()
