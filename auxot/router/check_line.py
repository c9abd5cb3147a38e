"""Where keys stand in line to be checked by Argon2: bounded, shared fairly among addresses, in threads that give way.

    waiting -> served                   each address has a lane, and they take turns
            -> sent away                the line is full, and the longest lane makes room for a shorter one
    no room, in the longest lane        not let in: "try again" (503)

So a stranger who sends invented keys without end stands in his own way, and a right key that comes for the first time
is checked after two others or so. Who comes through a proxy shares its address; of IPv6 a /64 counts as one, for
anybody has so many.

Owner: the `KeyVerifier`. Its state changes between two awaits.
"""

from __future__ import annotations

import enum
import ipaddress
import os
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress

import attrs
import trio

from auxot.core.errors import ErrorCode, InvalidKeyError, RefusedError
from auxot.core.keys import verify_key
from auxot.core.logs import get_logger

RETRY_AFTER_S = 2
NICENESS = 10  # of a verification: a tenth of an ordinary thread's share where all cores are busy
_NETWORK_BITS = 64  # of an IPv6 address: the rest is its owner's to choose

_log = get_logger()


class _State(enum.Enum):
    """How far a turn is."""

    WAITING = "waiting"
    SERVED = "served"
    SENT_AWAY = "sent away"


@attrs.define(eq=False)
class _Turn:
    """A key in line."""

    source: str
    state: _State = _State.WAITING
    called: trio.Event = attrs.field(factory=trio.Event)

    def call(self, state: _State) -> None:
        """End the wait."""
        self.state = state
        self.called.set()


class CheckLine:
    """Finds the hash that is a key's, for some at once."""

    def __init__(self, *, n_threads: int, max_checks: int) -> None:
        """Prepare.

        Args:
            n_threads: checks at once.
            max_checks: keys being checked or in line.
        """
        self._n_threads = n_threads
        self._max_checks = max_checks
        self._n_served = 0
        self._lanes: OrderedDict[str, deque[_Turn]] = OrderedDict()  # who waits, by source; the first is next

    async def find(self, key: str, hashes: Callable[[], list[str]], *, address: str) -> str | None:
        """Return the hash that is this key's, or None.

        Cancelled: who waits leaves at once; a check that has begun runs to its end first (0.3 s a hash).

        Args:
            key: what the caller showed.
            hashes: which ones to try, asked when it is this key's turn.
            address: the caller's, "" if unknown.

        Raises:
            RefusedError: UNAVAILABLE: there is no room, or no longer; or Argon2 got no memory or threads.
        """
        turn = self._enter(_source_of(address))
        try:
            self._call_next()
            await turn.called.wait()
            if turn.state is _State.SENT_AWAY:
                raise too_busy()
            return await _find_in_thread(key, hashes())
        finally:
            self._leave(turn)

    def _enter(self, source: str) -> _Turn:
        if self._n_served + sum(map(len, self._lanes.values())) >= self._max_checks:
            self._make_room_for(source)
        turn = _Turn(source)
        self._lanes.setdefault(source, deque()).append(turn)
        return turn

    def _make_room_for(self, source: str) -> None:
        """Send the latest of the longest lane away; raises RefusedError if this one's would be as long."""
        longest = max(self._lanes, key=lambda source: len(self._lanes[source]), default=source)
        if len(self._lanes.get(longest, ())) <= len(self._lanes.get(source, ())) + 1:
            raise too_busy()
        self._lanes[longest].pop().call(_State.SENT_AWAY)

    def _call_next(self) -> None:
        while self._lanes and self._n_served < self._n_threads:
            source, lane = self._lanes.popitem(last=False)
            lane.popleft().call(_State.SERVED)
            self._n_served += 1
            if lane:
                self._lanes[source] = lane  # behind the others

    def _leave(self, turn: _Turn) -> None:
        if turn.state is _State.SERVED:
            self._n_served -= 1
            self._call_next()
        elif turn.state is _State.WAITING:  # cancelled
            lane = self._lanes[turn.source]
            lane.remove(turn)
            if not lane:
                del self._lanes[turn.source]


def too_busy() -> RefusedError:
    """Return what is said to a key that cannot be checked now."""
    message = "too many keys are being checked, try again in a moment"
    return RefusedError(ErrorCode.UNAVAILABLE, message, retry_after_s=RETRY_AFTER_S)


def _source_of(address: str) -> str:
    """Return what stands for everybody who may have that address."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(known, ipaddress.IPv4Address):
        return address
    mapped = known.ipv4_mapped
    return str(mapped or ipaddress.ip_network((known.packed, _NETWORK_BITS), strict=False))


async def _find_in_thread(key: str, hashes: list[str]) -> str | None:
    if not hashes:
        return None
    try:
        return await trio.to_thread.run_sync(_first_match_in_background, key, hashes)
    except InvalidKeyError as exc:  # the hash is well-formed, so Argon2 got no memory or no threads
        _log.error("auth.check_failed", error=exc)
        raise too_busy() from exc


def _first_match_in_background(key: str, hashes: list[str]) -> str | None:
    """Find the hash in a thread of its own that gives way to others, above all to the one that serves everybody.

    Argon2 starts four threads for a key, which inherit the priority; it cannot be raised again, so no thread of a pool
    is used. Only Linux has priorities of threads.
    """
    outcome: Future[str | None] = Future()

    def find() -> None:
        if sys.platform == "linux":
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            outcome.set_result(_first_match(key, hashes))
        except Exception as exc:  # noqa: BLE001 -- it is raised where the outcome is asked for
            outcome.set_exception(exc)

    threading.Thread(target=find, name="auxot-key", daemon=True).start()
    return outcome.result()


def _first_match(key: str, hashes: Iterable[str]) -> str | None:
    return next((phc for phc in hashes if verify_key(key, phc)), None)
