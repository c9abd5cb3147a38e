"""The mail between routers that share a Redis: each reads a stream of its own, `auxot:mail:<router id>`.

    post (never blocks) -> one numbered batch an addressee -> XADD, PUBLISH      writer task
    bell -> XREAD -> deliver -> XDEL                                             reader task

Letters of one router to another arrive once and in order, or their loss is told: a batch whose reply was lost with the
connection is written again under its number, the reader skips numbers that it has had, and a gap in them (Redis has
forgotten something, or too much was waiting) goes to `on_gap`. So that the loss of the last letters is noticed as
well, a few empty batches follow them. A stream that nobody reads any more ends with its time to live.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import trio

from auxot.core.errors import ProtocolError, StoreError, StoreLostError
from auxot.core.logs import get_logger
from auxot.router.bell import Bell
from auxot.router.letters import Batch, Letter, decode_batch, encode_batch

if TYPE_CHECKING:
    from auxot.router.store import Store

POLL_S = 1.0  # the backstop of the bell
RETRY_S = 0.2
MAX_WAITING_LETTERS = 100_000  # to one router, while Redis is away: some 30 s of the fastest answers
MAX_BATCH_LETTERS = 100  # some 100 KB: also a link that breaks again and again gets them through
READ_BATCHES = 8
TIME_TO_LIVE_MS = 10 * 60 * 1000
FOLLOW_UP_S = 3.0
FOLLOW_UPS = 3  # together longer than the store takes to come back after a restart of Redis

_log = get_logger()


@attrs.define(eq=False)
class _Outgoing:
    """What waits for one router.

    `batch` is what is being written, kept until Redis has said that it has it. `n_batches` lives as long as this
    router: an addressee would take numbers that begin again for batches that it has had.
    """

    letters: deque[Letter] = attrs.field(factory=deque)
    batch: Batch | None = None
    n_batches: int = 0
    n_follow_ups: int = 0  # still to come
    follows_up: bool = False  # one is due
    is_full: bool = False

    def add(self, letter: Letter) -> bool:
        """Put a letter behind the others; False if it was dropped, which makes a gap in the numbers."""
        self.is_full = len(self.letters) >= MAX_WAITING_LETTERS
        if self.is_full:
            self.n_batches += 1
            return False
        self.letters.append(letter)
        self.n_follow_ups = FOLLOW_UPS
        return True

    def follow_up(self) -> None:
        """Let an empty batch follow if few have."""
        if self.n_follow_ups:
            self.n_follow_ups -= 1
            self.follows_up = True

    def next_batch(self, sender: str) -> Batch | None:
        """Return what is to be written now; the same one until `batch` is None."""
        if self.batch is None and (self.letters or self.follows_up):
            self.n_batches += 1
            n_letters = min(len(self.letters), MAX_BATCH_LETTERS)
            letters = tuple(self.letters.popleft() for _ in range(n_letters))
            self.batch = Batch(sender=sender, number=self.n_batches, letters=letters)
            self.follows_up = False
        return self.batch


class Mailbox:
    """One router's mail. `run_writer` and `run_reader` must be running.

    Args:
        store: kept open by the caller.
        router_id: whose mail this is.
        on_letter: called with the sender and each letter, in order; must not block.
        on_gap: called with the sender when some of its letters are lost, before those behind them.
    """

    def __init__(
        self,
        store: Store,
        *,
        router_id: str,
        on_letter: Callable[[str, Letter], None],
        on_gap: Callable[[str], None],
    ) -> None:
        self._store = store
        self._router_id = router_id
        self._on_letter = on_letter
        self._on_gap = on_gap
        self._outgoing: dict[str, _Outgoing] = {}  # a few words for each router that was ever written to
        self._written = Bell()
        self._arrived = Bell()
        self._all_written = trio.Event()
        self._numbers: dict[str, int] = {}  # sender -> number of its last batch

    def post(self, router_id: str, letter: Letter) -> None:
        """Write a letter; it leaves with the next batch. Where too many wait it is dropped: a gap, for the reader."""
        outgoing = self._outgoing.setdefault(router_id, _Outgoing())
        was_full = outgoing.is_full
        if not outgoing.add(letter) and not was_full:
            _log.error("mail.full", addressee=router_id)
        self._written.ring()

    async def run_writer(self) -> None:
        """Send letters for ever."""
        follow_up_at = trio.current_time() + FOLLOW_UP_S
        while True:
            with trio.move_on_at(follow_up_at):
                await self._written.wait()
            if trio.current_time() >= follow_up_at:
                follow_up_at = trio.current_time() + FOLLOW_UP_S
                for outgoing in self._outgoing.values():
                    outgoing.follow_up()
            while await self._write_batches():
                pass
            self._all_written.set()

    async def wait_written(self) -> None:
        """Wait until every letter is in Redis; `run_writer` must be running."""
        while any(outgoing.letters or outgoing.batch for outgoing in self._outgoing.values()):
            self._all_written = trio.Event()
            await self._all_written.wait()

    async def run_reader(self) -> None:
        """Deliver letters for ever."""
        is_subscribed = False
        while True:
            try:
                if not is_subscribed:
                    await self._store.subscribe(_key(self._router_id), self._arrived)
                    is_subscribed = True
                while await self._read_batches():
                    pass
            except StoreError as exc:
                _log.debug("mail.unreadable", error=str(exc))
                await trio.sleep(RETRY_S)
                continue
            with trio.move_on_after(POLL_S):
                await self._arrived.wait()

    async def _write_batches(self) -> bool:
        """Write one batch to each router that has letters; False if none has."""
        batches = {
            router_id: batch
            for router_id, outgoing in self._outgoing.items()
            if (batch := outgoing.next_batch(self._router_id))
        }
        for router_id, batch in batches.items():
            await self._write(router_id, batch)
            self._outgoing[router_id].batch = None
        return bool(batches)

    async def _write(self, router_id: str, batch: Batch) -> None:
        """Write a batch, as often as it takes."""
        key = _key(router_id)
        commands = (
            ("XADD", key, "*", "batch", encode_batch(batch)),
            ("PEXPIRE", key, TIME_TO_LIVE_MS),
            ("PUBLISH", key, "mail"),
        )
        while True:
            try:
                await self._store.pipeline(commands)
            except StoreLostError:
                await trio.sleep(RETRY_S)
                continue
            except StoreError as exc:  # out of memory, read-only: the gap is noticed at the other end
                _log.error("mail.lost", addressee=router_id, error=str(exc))
            return

    async def _read_batches(self) -> bool:
        """Read and deliver some batches; False if there was none. What was read and not deleted comes again."""
        key = _key(self._router_id)
        streams = await self._store.execute("XREAD", "COUNT", READ_BATCHES, "STREAMS", key, 0)
        if not streams:
            return False
        [entries] = streams.values()
        for _, (_, content) in entries:
            self._deliver(content)
        await self._store.execute("XDEL", key, *(entry_id for entry_id, _ in entries))
        return True

    def _deliver(self, content: bytes) -> None:
        try:
            batch = decode_batch(content)
        except ProtocolError as exc:
            _log.error("mail.bad_batch", reason=exc.reason)
            return
        last = self._numbers.get(batch.sender, 0)
        if batch.number <= last:
            return
        if batch.number != last + 1:
            _log.error("mail.gap", sender=batch.sender, n_missing=batch.number - last - 1)
            self._on_gap(batch.sender)
        self._numbers[batch.sender] = batch.number
        for letter in batch.letters:
            self._on_letter(batch.sender, letter)


def _key(router_id: str) -> str:
    return f"auxot:mail:{router_id}"
