"""The mail between routers that share a Redis: each reads a stream of its own, `auxot:mail:<router id>`.

    post (never blocks) -> one numbered batch an addressee -> XADD, PUBLISH      writer task
    bell -> XREAD behind the last entry read -> deliver -> XDEL                  reader task

Letters of one router to another arrive once and in order, or their loss is noticed: a batch whose reply was lost with
the connection is written again under its number, the reader skips numbers that it has had, and a gap in them (Redis
has forgotten something) is told to `on_gap`. A stream that nobody reads any more ends with its time to live.
"""

from __future__ import annotations

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
READ_BATCHES = 64
TIME_TO_LIVE_MS = 10 * 60 * 1000

_log = get_logger()


class MailboxFullError(Exception):
    """Redis has been away for too long; the job whose events cannot be kept is given up by its worker's router."""


@attrs.define(eq=False)
class _Outgoing:
    """What waits for one router. `batch`: what is being written, kept until Redis has said that it has it."""

    letters: list[Letter] = attrs.field(factory=list)
    batch: Batch | None = None
    n_batches: int = 0

    def next_batch(self, sender: str) -> Batch | None:
        if self.batch is None and self.letters:
            self.n_batches += 1
            self.batch = Batch(sender=sender, number=self.n_batches, letters=tuple(self.letters))
            self.letters.clear()
        return self.batch


class Mailbox:
    """One router's mail. `run_writer` and `run_reader` must be running.

    Args:
        store: kept open by the caller.
        router_id: whose mail this is.
        on_letter: called with the sender and each letter, in order; must not block.
        on_gap: called with the sender when some of its letters are lost.
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
        self._outgoing: dict[str, _Outgoing] = {}
        self._written = Bell()
        self._arrived = Bell()
        self._last_read: bytes | str = "0"
        self._numbers: dict[str, int] = {}  # sender -> number of its last batch

    def post(self, router_id: str, letter: Letter) -> None:
        """Write a letter; it leaves with the next batch.

        Raises:
            MailboxFullError: too many wait for that router.
        """
        outgoing = self._outgoing.setdefault(router_id, _Outgoing())
        if len(outgoing.letters) >= MAX_WAITING_LETTERS:
            raise MailboxFullError
        outgoing.letters.append(letter)
        self._written.ring()

    def forget(self, router_id: str) -> None:
        """Drop what waits for a router that is gone."""
        self._outgoing.pop(router_id, None)

    async def run_writer(self) -> None:
        """Send letters for ever."""
        while True:
            await self._written.wait()
            while await self._write_batches():
                pass

    async def run_reader(self) -> None:
        """Deliver letters for ever."""
        await self._store.subscribe(_key(self._router_id), self._arrived)
        while True:
            with trio.move_on_after(POLL_S):
                await self._arrived.wait()
            try:
                while await self._read_batches():
                    pass
            except StoreError as exc:
                _log.debug("mail.unreadable", error=str(exc))
                await trio.sleep(RETRY_S)

    async def _write_batches(self) -> bool:
        """Write one batch to each router that has letters; False if none has."""
        batches = {
            router_id: batch
            for router_id, outgoing in self._outgoing.items()
            if (batch := outgoing.next_batch(self._router_id))
        }
        for router_id, batch in batches.items():
            await self._write(router_id, batch)
        return bool(batches)

    async def _write(self, router_id: str, batch: Batch) -> None:
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
            break
        if (outgoing := self._outgoing.get(router_id)) is not None:
            outgoing.batch = None

    async def _read_batches(self) -> bool:
        """Read and deliver some batches; False if there was none."""
        key = _key(self._router_id)
        streams = await self._store.execute("XREAD", "COUNT", READ_BATCHES, "STREAMS", key, self._last_read)
        if not streams:
            return False
        [entries] = streams.values()
        for entry_id, (_, content) in entries:
            self._last_read = entry_id
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
        if last and batch.number != last + 1:
            _log.error("mail.gap", sender=batch.sender, n_missing=batch.number - last - 1)
            self._on_gap(batch.sender)
        self._numbers[batch.sender] = batch.number
        for letter in batch.letters:
            self._on_letter(batch.sender, letter)


def _key(router_id: str) -> str:
    return f"auxot:mail:{router_id}"
