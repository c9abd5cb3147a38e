"""The job queue over a Redis stream and its consumer group; its commands: here, `queue_group`, `queue_repair`.

    auxot:jobs            stream: job_id, data (the `job` message as the worker reads it), reply_to, meta
    workers               its consumer group; a consumer is a router, and RELEASED
    auxot:jobs:queued     channel: entries were added            auxot:jobs:released    channel: entries were released
    auxot:jobs:remade     channel: the group was lost       auxot:router:<id>     a router's heartbeat, see `roster`

    enqueue -> waiting -> claim -> claimed -> ack -> gone
                  ^                    '-> release, or its router died and a sweeper released it -> waiting, in front
                  '-> withdraw -> gone

A released entry belongs to the pseudo consumer RELEASED, with an idle time of 30 days. Who claims it asks for entries
idle for 15 days: a compare-and-set, because claiming sets the idle time to nothing and one router wins. It keeps its
delivery count, and its place in the stream puts it in front of every entry that was never delivered.

Invariants: XACK and XDEL go together in one step, so the stream holds what waits and what is claimed and nothing
else; no entry is deleted while it is pending or trimmed ever. Only `claim` delivers, and one task calls it. A claim
whose reply was lost (cancelled, connection lost) leaves entries that belong to this router and that it does not know:
the next claim finds and releases them. An ack that was lost is repeated by the next claim.

A queue that is polled costs one command a look: RELEASED is read only when a bell says that something may be there.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from auxot.core.errors import StoreError
from auxot.core.logs import get_logger
from auxot.router.bell import Bell, Doubt, MarkingBell
from auxot.router.declined import Declined
from auxot.router.queue_entries import (
    ClaimedJob,
    ConsumerState,
    Depth,
    QueuedJob,
    entry_fields,
    read_consumer_name,
    read_entry,
    read_pending,
    read_summary,
)
from auxot.router.queue_group import CLAIMABLE_IDLE_MS, GROUP, PAGE, RELEASED, ConsumerGroup
from auxot.router.roster import Roster, RouterStatus, router_key
from auxot.router.store import Command, Store

ALL = 1_000_000  # more than one router can have claimed

__all__ = ["GROUP", "RELEASED", "ClaimedJob", "ConsumerState", "Depth", "JobQueue", "QueuedJob"]

_log = get_logger()


class JobQueue:
    """The queue of one pool, as one router sees it.

    Every method raises StoreLostError and StoreError as `Store` tells; what is then the case is told here. A lost
    consumer group is made again on the way: entries that were claimed are then delivered once more, except to the
    router that still has them.

    Args:
        store: kept open by the caller for longer than the queue.
        router_id: the name of this process among the routers, unique; its consumer.
        name: of the pool's queue; `jobs` is the stream `auxot:jobs`, another one is `auxot:jobs:<name>`.
        max_attempts: deliveries of one job, at least 1.
        heartbeat_ttl_s: how long this router counts as alive after a heartbeat.

    Attributes:
        bell: rung when there may be something to claim, and after a reconnect. Published rings can be lost with a
            connection: look once a second anyway.
        reconnected: rung when the store has a new connection: time for a heartbeat.
        doubt: marked when entries may be lost: after a reconnect, after the group was lost, after this router was taken
            for dead, after another one has gone.
        roster: who lives.
        key: of the stream.
    """

    def __init__(
        self,
        store: Store,
        *,
        router_id: str,
        name: str = "jobs",
        max_attempts: int = 3,
        heartbeat_ttl_s: float = 45.0,
    ) -> None:
        if router_id == RELEASED:
            raise ValueError(f"{RELEASED!r} cannot be a router's id")
        self.router_id = router_id
        self.store = store
        self.bell = Bell()
        self.reconnected = Bell()
        self._released_bell = MarkingBell(self.bell)  # released entries may exist
        self._queued_bell = MarkingBell(self.bell)  # new entries may exist that were added by others, or before ours
        self.doubt = Doubt(self.reconnected)
        self.roster = Roster(store, router_id=router_id, ttl_s=heartbeat_ttl_s)
        self.key = "auxot:jobs" if name == "jobs" else f"auxot:jobs:{name}"
        self._queued_channel = f"{self.key}:queued"
        self._released_channel = f"{self.key}:released"
        self._group = ConsumerGroup(store=store, key=self.key, router_id=router_id, remade_channel=f"{self.key}:remade")
        self._max_attempts = max_attempts
        self._held: set[bytes] = set()  # delivered to us, not settled; at most the slots of our workers
        self._declined = Declined()
        self._unacked: set[bytes] = set()  # settled, but whether Redis knows is unknown
        self._may_have_orphans = True  # entries that are ours in Redis, but that we do not hold
        self._is_claiming = False
        self._is_recovering = False
        self._has_unannounced = False  # entries of ours that only we know of: others look once a second
        self._early: list[ClaimedJob | bytes] = []  # claimed by `enqueue_and_claim`, for the next `claim`
        self._n_reading = 0  # calls of it that wait for their reply

    async def open(self) -> None:
        """Say that this router lives, make stream, group and consumer if they are missing, and hang up the bells."""
        await self._group.create()
        await self.heartbeat()  # this makes the consumer: one without a heartbeat would be swept
        await self.store.subscribe(router_key(self.router_id), self.doubt)
        await self.store.subscribe(self._group.remade_channel, self.doubt)
        await self.store.subscribe(self._queued_channel, self._queued_bell)
        await self.store.subscribe(self._released_channel, self._released_bell)

    async def close(self) -> None:
        """Leave the group: give back all that this router still has, then take back its heartbeat and consumer.

        What fails here is done by another router's sweeper once the heartbeat has run out.
        """
        await self.flush()
        await self.release_all_of(self.router_id)
        self._held.clear()
        await self.store.execute("DEL", router_key(self.router_id))
        await self.remove_consumer(self.router_id)

    async def heartbeat(self) -> None:
        """Say that this router lives for another `heartbeat_ttl_s`, and what it has."""
        last, _ = await self._group.ask(
            self.roster.heartbeat(), ("XGROUP", "CREATECONSUMER", self.key, GROUP, self.router_id)
        )
        if last is None:
            self.doubt.mark()

    async def enqueue(self, job: QueuedJob, *, is_announced: bool = True) -> bytes:
        """Put a job at the end and ring the bells of all routers; return its entry id.

        Cancelled or StoreLostError: the job may be in the queue or not. Whoever claims it asks the router in
        `reply_to` whether anybody still waits for it.

        Args:
            job: what to put there.
            is_announced: ring them all; else ours alone, because we want to claim it ourselves: an answer that passes
                from one router to another costs four times the CPU. If we cannot, `announce_left` tells the others.
        """
        add = ("XADD", self.key, "*", *entry_fields(job))
        if is_announced:
            replies = await self.store.pipeline((add, ("PUBLISH", self._queued_channel, job.job_id)))
        else:
            self._has_unannounced = True
            try:
                replies = await self.store.pipeline((add,))
            finally:
                self.bell.ring()
        entry_id: bytes = replies[0]
        return entry_id

    @property
    def n_early(self) -> int:
        """How many jobs the next `claim` has for certain, or may have: of `enqueue_and_claim`."""
        return len(self._early) + self._n_reading

    async def enqueue_and_claim(self, job: QueuedJob) -> bytes:
        """Put a job at the end, and claim the first one in the same go; return the entry id of ours.

        That is our own where no older one waits. Between an `enqueue` and a claim of ours others could take it, which
        have a free slot as well, and then we take theirs. The caller must see to it that the next `claim` is called
        with a count of at least `n_early`. Cancelled or StoreLostError: as `enqueue` and `claim`.
        """
        if self._is_recovering or self._may_have_orphans:  # what we claim now could be taken for an orphan
            return await self.enqueue(job, is_announced=False)
        add = ("XADD", self.key, "*", *entry_fields(job))
        held = self._held | self._unacked
        self._n_reading += 1
        try:
            entry_id, streams = await self.store.try_each((add, self._read_new(1)))
        except BaseException:
            self._may_have_orphans = self._has_unannounced = True
            raise
        finally:
            self._n_reading -= 1
            self.bell.ring()
        if isinstance(entry_id, StoreError):
            self._may_have_orphans = True  # what was claimed all the same is given back
            raise entry_id
        self._take_early(streams, added=entry_id, held=held)
        return bytes(entry_id)

    def _take_early(self, streams: Any, *, added: bytes, held: set[bytes]) -> None:
        """Note what `enqueue_and_claim` has claimed, a StoreError if that has failed."""
        if isinstance(streams, StoreError) or not streams:  # the next claim sees to it
            self._has_unannounced = self._queued_bell.is_rung = True
            return
        [[entry]] = streams.values()
        if entry[0] in held:
            self._may_have_orphans = True  # as in `_claim_new`
        else:
            self._held.add(entry[0])
            self._early.append(self._read(entry, 1))
        if entry[0] != added:
            self._has_unannounced = self._queued_bell.is_rung = True

    async def announce_left(self) -> None:
        """Ring the bells of all routers if entries that were not announced may be left; to be called after claims."""
        if self._has_unannounced:
            self._has_unannounced = False
            await self.store.execute("PUBLISH", self._queued_channel, self.router_id)

    async def claim(self, count: int) -> list[ClaimedJob]:
        """Take up to `count` jobs, released ones first, then the oldest; never waits for one to come.

        Each entry goes to one claimer. What it gives belongs to this router until `ack` or `release`. An entry that
        cannot be read is logged as `queue.unreadable_entry` and acked. Cancel-safe: what was taken is released by the
        next claim or by `close`.

        Args:
            count: at least 1; the free slots.

        Returns:
            The jobs. Where there are fewer than `count`, either no more wait or the bell has been rung.
        """
        if self._is_claiming:
            raise RuntimeError("two tasks claim from one queue")
        self._is_claiming = True
        try:
            return await self._claim(count)
        except BaseException:  # what the lost replies would have given is found by the next claim
            self._may_have_orphans = self._has_unannounced = True
            self._released_bell.is_rung = self._queued_bell.is_rung = True
            raise
        finally:
            self._is_claiming = False

    async def _claim(self, count: int) -> list[ClaimedJob]:
        if self._may_have_orphans and not self._n_reading:  # then the bell is going to be rung
            self._is_recovering = True
            try:
                await self._recover()
            finally:
                self._is_recovering = False
        jobs = self._early[:count]  # they are taken out once nothing can go wrong any more
        n_early = len(jobs)
        has_news = self._queued_bell.is_rung or self._released_bell.is_rung
        if jobs and not has_news:  # nobody else's wait, or their bells are still to ring
            return await self._readable(jobs, n_early=n_early)
        if self._released_bell.is_rung and len(jobs) < count:
            jobs += await self._claim_released(count - len(jobs))
        if len(jobs) < count:
            self._queued_bell.is_rung = False
            had_unannounced, self._has_unannounced = self._has_unannounced, False
            jobs += await self._claim_new(count - len(jobs))
            self._has_unannounced |= had_unannounced and len(jobs) >= count
        if len(jobs) >= count:
            self._queued_bell.is_rung = True  # more may wait than there were slots for
        return await self._readable(jobs, n_early=n_early)

    async def _readable(self, jobs: Sequence[ClaimedJob | bytes], *, n_early: int) -> list[ClaimedJob]:
        """Take the entries that cannot be read out of the queue; return the others. So many are of the early ones."""
        # An ack that fails leaves the early ones to nobody: the next claim finds and releases them.
        del self._early[:n_early]
        self._held.difference_update(job.entry_id for job in jobs[:n_early] if isinstance(job, ClaimedJob))
        for unreadable in (job for job in jobs if isinstance(job, bytes)):
            await self.ack(unreadable)
            self.bell.ring()
        readable = [job for job in jobs if isinstance(job, ClaimedJob)]
        self._held.update(job.entry_id for job in readable)
        return readable

    async def ack(self, entry_id: bytes) -> bool:
        """Take a claimed job out of the queue for good: it has been answered, or nobody wants the answer.

        Cancelled or StoreLostError: it will not be delivered again by this router, and the next claim repeats the ack.

        Returns:
            False if it was not claimed any more: Redis lost it, or somebody else has settled it.
        """
        try:
            replies = await self.store.transaction(self._group.removal(entry_id))
        except BaseException:
            self._unacked.add(entry_id)
            self._may_have_orphans = True
            raise
        finally:
            self._held.discard(entry_id)
        return bool(replies[0])

    def ack_soon(self, entry_id: bytes) -> None:
        """Take a claimed job out of the queue with the next `flush`, for which the bell is rung.

        It costs no task of its own, and what ended together goes in one command. This router does not get it again.
        """
        self._unacked.add(entry_id)
        self._held.discard(entry_id)
        self.bell.ring()

    async def flush(self) -> None:
        """Do the acks that are due. Cancelled or StoreLostError: the next claim, or flush, repeats them."""
        try:
            while self._unacked:
                entry_ids = list(itertools.islice(self._unacked, PAGE))
                await self.store.transaction(self._group.removal(*entry_ids))
                self._unacked.difference_update(entry_ids)
        except BaseException:
            self._may_have_orphans = True
            raise

    async def release(self, entry_id: bytes, *, declines: bool = False) -> bool:
        """Give a claimed job back, in front of all that is new: any router may claim it at once.

        Its delivery count stays: the next claim says `attempt` + 1; unless this router `declines` it: that was no
        delivery, and it does not claim it again for 5 s. Cancelled or StoreLostError: the next claim of this router
        releases it, if it is still ours.

        Returns:
            False if it is not ours any more: a sweeper has taken it from us, or it is gone.
        """
        if declines:
            self._declined.add(entry_id)
        try:
            rows = await self._group.pending_of(self.router_id, start=entry_id, end=entry_id)
            options = ("RETRYCOUNT", rows[0].n_deliveries - 1) if rows and declines else ()
            n_moved = (
                await self._group.move_to_released(rows, min_idle_ms=rows[0].idle_ms, options=options) if rows else 0
            )
            await self._announce_released(n_moved)
        except BaseException:
            self._may_have_orphans = True
            raise
        finally:
            self._held.discard(entry_id)
        return n_moved > 0

    async def withdraw(self, entry_id: bytes) -> bool:
        """Take out a job whose client has left.

        It is removed also when somebody has claimed it meanwhile: whoever runs it is not stopped by this and must be
        told, but it will not be delivered again. Cancelled or StoreLostError: it may still be in the queue.

        Returns:
            True if it had never been claimed: it never runs.
        """
        n_acked, n_deleted = await self.store.transaction(self._group.removal(entry_id))
        return not n_acked and bool(n_deleted)

    async def depth(self) -> Depth:
        """Count the jobs in the queue, those of all routers."""
        n_entries, summary = await self._group.ask(("XLEN", self.key), ("XPENDING", self.key, GROUP))
        n_released = read_summary(summary).get(RELEASED, 0)
        n_claimed = summary[0] - n_released
        return Depth(waiting=n_entries - n_claimed, claimed=n_claimed)

    async def consumers(self) -> list[ConsumerState]:
        """Return every consumer of the group, RELEASED included if it exists."""
        rows, summary = await self._group.ask(("XINFO", "CONSUMERS", self.key, GROUP), ("XPENDING", self.key, GROUP))
        n_pending = read_summary(summary)
        return [ConsumerState(name=name, n_pending=n_pending.get(name, 0)) for name in map(read_consumer_name, rows)]

    async def live_routers(self) -> Mapping[str, RouterStatus]:
        """Return all routers of this queue that live, by id, with what they say of themselves."""
        return await self.roster.live_among({consumer.name for consumer in await self.consumers()} - {RELEASED})

    async def release_all_of(self, consumer: str) -> int:
        """Release every entry of a consumer, however many there are; return how many.

        An entry that somebody claims meanwhile is left to them: it is moved only if it has been idle for as long as it
        was when it was listed.
        """
        n_moved, start = 0, b"-"
        while rows := await self._group.pending_of(consumer, start=start):
            min_idle_ms = max(1, min(row.idle_ms for row in rows))
            n_moved += await self._group.move_to_released(rows, min_idle_ms=min_idle_ms)
            start = b"(" + rows[-1].entry_id
        await self._announce_released(n_moved)
        return n_moved

    async def remove_consumer(self, consumer: str) -> None:
        """Remove a consumer from the group. What it has claimed up to this moment is released, not dropped."""
        rows, _ = await self.store.transaction(
            (
                ("XPENDING", self.key, GROUP, "-", "+", ALL, consumer),  # DELCONSUMER drops them, so know them
                ("XGROUP", "DELCONSUMER", self.key, GROUP, consumer),
            )
        )
        for row in map(read_pending, rows):
            await self._group.move_to_released([row], min_idle_ms=0, options=("RETRYCOUNT", row.n_deliveries, "FORCE"))
        await self._announce_released(len(rows))

    async def announce_released(self) -> None:
        """Ring the bells of all routers for released entries, for the case that an announcement was lost."""
        await self._announce_released(1)

    async def _recover(self) -> None:
        """Repeat lost acks and release the entries that are ours in Redis but not here."""
        self._may_have_orphans = False
        await self.flush()
        start = b"-"
        while rows := await self._group.pending_of(self.router_id, start=start):
            ours = self._held | self._unacked  # an ack may have been interrupted while we were asking
            orphans = [row for row in rows if row.entry_id not in ours]
            for row in orphans:
                await self._group.move_to_released([row], min_idle_ms=row.idle_ms)
            await self._announce_released(len(orphans))
            start = b"(" + rows[-1].entry_id

    async def _claim_released(self, count: int) -> list[ClaimedJob | bytes]:
        self._released_bell.is_rung = False
        declined = self._declined.current()
        rows = await self._group.pending_of(RELEASED, count=count + len(declined))
        if len(rows) >= count or declined:
            self._released_bell.ring()  # there may be more than we can take, and others may take these
        rows = [row for row in rows if row.entry_id not in declined][:count]
        if not rows:
            return []
        ids = [row.entry_id for row in rows]
        entries, ours = await self.store.transaction(
            (
                ("XCLAIM", self.key, GROUP, self.router_id, CLAIMABLE_IDLE_MS, *ids),
                # Counted now: since we looked another router may have claimed and released it.
                ("XPENDING", self.key, GROUP, ids[0], ids[-1], ALL, self.router_id),
            )
        )
        won = {entry[0]: entry for entry in entries}  # XCLAIM promises no order
        rows = [row for row in map(read_pending, ours) if row.entry_id in won]
        return [self._read(won[row.entry_id], row.n_deliveries) for row in rows]

    async def _claim_new(self, count: int) -> list[ClaimedJob | bytes]:
        while True:
            held = self._held | self._unacked
            [streams] = await self._group.ask(self._read_new(count))
            if not streams:
                return []
            [entries] = streams.values()
            # What we hold comes again when the group was lost and made anew; it is ours already.
            fresh = [entry for entry in entries if entry[0] not in held]
            if len(fresh) < len(entries):
                self._may_have_orphans = True  # it may have been released meanwhile
            if fresh:
                return [self._read(entry, 1) for entry in fresh]

    def _read_new(self, count: int) -> Command:
        """Return the command that claims so many entries that were never delivered."""
        return ("XREADGROUP", "GROUP", GROUP, self.router_id, "COUNT", count, "STREAMS", self.key, ">")

    def _read(self, entry: Sequence[Any], attempt: int) -> ClaimedJob | bytes:
        """Return the job of an entry, or the entry's id if it cannot be read."""
        try:
            return read_entry(entry, attempt=attempt, max_attempts=self._max_attempts)
        except ValueError as exc:
            entry_id: bytes = entry[0]
            _log.error("queue.unreadable_entry", entry_id=entry_id, reason=str(exc))
            return entry_id

    async def _announce_released(self, n_moved: int) -> None:
        if n_moved:
            self._released_bell.ring()
            await self.store.execute("PUBLISH", self._released_channel, self.router_id)
