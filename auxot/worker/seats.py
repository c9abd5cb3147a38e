"""The jobs that a worker runs, at most one a slot of llama-server. No I/O: whoever receives jobs asks here first.

    take -> Seat --release (its answer is complete)--> leave (nothing more will be sent)
              '----------- cancel ---------------------^

A released seat can be taken by the next job while the last messages of the one before are still on their way: the
router may send a new job the moment it reads `complete`.

Owner: the worker; one table for its whole life, open while there is a llama-server to run jobs on.
"""

from __future__ import annotations

import attrs
import trio

from auxot.core.errors import ErrorCode, RefusedError


@attrs.define(eq=False)
class Seat:
    """The place of one running job. Cancelling `scope` ends the job without a word."""

    job_id: str
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    is_released: bool = False


class Seats:
    """The jobs that run now. Closed at first: every job is refused until `open`."""

    def __init__(self) -> None:
        self.closed = trio.Event()  # a new one each time the table is opened
        self.closed.set()
        self._reason = "this worker is starting"
        self._n_slots = 0
        self._seats: dict[str, Seat] = {}
        self._idle = trio.Event()
        self._idle.set()

    def open(self, n_slots: int) -> None:
        """Take jobs from now on, up to `n_slots` at once."""
        self._n_slots = n_slots
        self.closed = trio.Event()

    def close(self, reason: str) -> None:
        """Take no more jobs; the running ones go on. `reason` is told to the router."""
        self._reason = reason
        self.closed.set()

    @property
    def reason(self) -> str:
        """Why the table is closed."""
        return self._reason

    @property
    def n_running(self) -> int:
        """How many jobs hold a slot."""
        return sum(not seat.is_released for seat in self._seats.values())

    def take(self, job_id: str) -> Seat:
        """Give a job a seat; `leave` must follow.

        Raises:
            RefusedError: UNAVAILABLE: closed, full, or a job with this id is here already.
        """
        if self.closed.is_set():
            raise RefusedError(ErrorCode.UNAVAILABLE, self._reason)
        if job_id in self._seats:
            raise RefusedError(ErrorCode.UNAVAILABLE, "this worker is running a job with this id")
        if self.n_running >= self._n_slots:
            raise RefusedError(ErrorCode.UNAVAILABLE, f"all {self._n_slots} slots of this worker are taken")
        seat = self._seats[job_id] = Seat(job_id)
        self._idle = trio.Event() if self._idle.is_set() else self._idle
        return seat

    def cancel(self, job_id: str) -> bool:
        """End a job without a word; return whether it was here. Its slot is free at once, as the router takes it."""
        seat = self._seats.get(job_id)
        if seat is not None:
            seat.is_released = True
            seat.scope.cancel()
        return seat is not None

    def release(self, seat: Seat) -> None:
        """Free the slot: llama-server is done with the job."""
        seat.is_released = True

    def leave(self, seat: Seat) -> None:
        """Forget the job: everything about it has been sent, or will not be."""
        seat.is_released = True
        del self._seats[seat.job_id]
        if not self._seats:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no job is left; the caller sets the deadline."""
        await self._idle.wait()
