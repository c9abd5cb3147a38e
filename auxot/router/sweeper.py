"""Gives back the jobs of routers that died, and keeps this router from being taken for one.

    keep_alive   a heartbeat every few seconds, and at once after a reconnect or when there is news of this router
    run          when the next heartbeat would run out, and every interval: look at the consumers, decide, act

`decide` is pure: the consumers and who lives, in; actions, out. Sweepers of several routers may run at the same time
and need not know of each other: each entry is moved by a compare-and-set, and moving a released one changes nothing.

A router whose heartbeat ran out because Redis was away is not dead. All routers send one as soon as they are back, so
nobody sweeps in the first SETTLE_S of a connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import attrs
import trio

from auxot.core.errors import StoreError, StoreLostError
from auxot.core.logs import get_logger
from auxot.router.queue import RELEASED, ConsumerState, JobQueue
from auxot.router.queue_repair import drop_jobs_of

NEWS_S = 1.0  # how often it is looked whether a router has news of itself
EXPIRY_MARGIN_S = 0.05  # a heartbeat has run out for certain
SETTLE_S = 5.0  # more than the store's longest back-off, so that all routers are back and have said so

_log = get_logger()


@attrs.frozen(kw_only=True)
class ReleaseEntries:
    """Release everything that this dead consumer has."""

    consumer: str


@attrs.frozen(kw_only=True)
class DropJobs:
    """Drop the jobs that this dead router accepted: its clients are gone."""

    router_id: str


@attrs.frozen(kw_only=True)
class RemoveConsumer:
    """Remove this dead consumer, which has nothing any more."""

    consumer: str


@attrs.frozen
class AnnounceReleased:
    """Ring for released entries: the announcement may have died with the router that released them."""


Action = ReleaseEntries | DropJobs | RemoveConsumer | AnnounceReleased


def decide(*, consumers: Sequence[ConsumerState], live: AbstractSet[str], own_id: str) -> list[Action]:
    """Say what is to be done, in this order.

    Args:
        consumers: of the group, with what each has.
        live: ids of the routers that live. This router counts as alive whatever it says: it is running this.
        own_id: this router's.
    """
    actions: list[Action] = []
    for consumer in consumers:
        if consumer.name == RELEASED:
            if consumer.n_pending:
                actions.append(AnnounceReleased())
        elif consumer.name != own_id and consumer.name not in live:
            if consumer.n_pending:
                actions.append(ReleaseEntries(consumer=consumer.name))
            actions.append(DropJobs(router_id=consumer.name))
            actions.append(RemoveConsumer(consumer=consumer.name))
    return actions


async def run_once(queue: JobQueue) -> list[Action]:
    """Look once, act, and return what was done.

    Cancelled, StoreLostError or StoreError: done in part; every step stands by itself and the next sweep goes on.
    """
    consumers = await queue.consumers()
    live = await queue.roster.live_among({consumer.name for consumer in consumers})
    actions = decide(consumers=consumers, live=live.keys(), own_id=queue.router_id)
    for action in actions:
        await _act(queue, action)
    return actions


async def run(queue: JobQueue, *, interval_s: float) -> None:
    """Sweep until cancelled: every `interval_s`, and as soon as another router's heartbeat has run out.

    An error of the store is logged and the next sweep tries again.
    """
    pause_s = min(interval_s, NEWS_S)
    while True:
        await trio.sleep(pause_s)
        pause_s = min(interval_s, NEWS_S)
        try:
            if is_settled(queue):
                await run_once(queue)
                pause_s = await _pause_s(queue, interval_s)
        except StoreLostError:
            continue  # the store has logged it, once
        except StoreError as exc:
            _log.warning("sweeper.failed", reason=str(exc))


async def keep_alive(queue: JobQueue, *, interval_s: float) -> None:
    """Send this router's heartbeat every `interval_s`, at once after a reconnect, soon when its status changes.

    Args:
        queue: opened.
        interval_s: a third of the heartbeat's TTL or less, so that one may be lost.
    """
    while True:
        told, due_at = queue.roster.describe(), trio.current_time() + interval_s
        try:
            await queue.heartbeat()
        except StoreLostError:
            pass  # the store has logged it; `reconnected` rings when it is back
        except StoreError as exc:
            _log.warning("heartbeat.failed", reason=str(exc))
        while trio.current_time() < due_at and queue.roster.describe() == told:
            with trio.move_on_at(min(due_at, trio.current_time() + NEWS_S)):
                await queue.reconnected.wait()
                break


async def _pause_s(queue: JobQueue, interval_s: float) -> float:
    """Return how long the next sweep can wait: until a router of now, or one that comes meanwhile, may be dead."""
    others = {consumer.name for consumer in await queue.consumers()} - {RELEASED, queue.router_id}
    return min(interval_s, await queue.roster.first_expiry_s(others) + EXPIRY_MARGIN_S)


async def _act(queue: JobQueue, action: Action) -> None:
    match action:
        case ReleaseEntries(consumer=consumer):
            n_released = await queue.release_all_of(consumer)
            _log.warning("sweeper.released", router_id=consumer, n_entries=n_released)
        case DropJobs(router_id=router_id):
            n_dropped = await drop_jobs_of(queue, router_id)
            if n_dropped:
                _log.warning("sweeper.dropped", router_id=router_id, n_jobs=n_dropped)
        case RemoveConsumer(consumer=consumer):
            await queue.remove_consumer(consumer)
            _log.info("sweeper.consumer_removed", router_id=consumer)
        case AnnounceReleased():
            await queue.announce_released()


def is_settled(queue: JobQueue) -> bool:
    """Whether a missing heartbeat means that a router is dead."""
    connected_at = queue.store.connected_at
    return connected_at is not None and trio.current_time() - connected_at >= SETTLE_S
