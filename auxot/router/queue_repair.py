"""What is done to the queue's stream when routers have died or Redis has forgotten something. Seldom: it reads jobs.

    drop_jobs_of   the jobs of a dead router that wait, wherever they stand
    find_gone      which of a router's own jobs will never be delivered

An entry that was read by nobody has an id greater than the group's last delivered one; one that was read is pending
until it is settled. What is neither, or is not in the stream, comes to nobody any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from auxot.router.queue import GROUP, RELEASED, JobQueue
from auxot.router.store import Command

PAGE = 8  # entries read at once; each can be megabytes


async def drop_jobs_of(queue: JobQueue, router_id: str) -> int:
    """Remove the entries that a dead router has put into the queue and that nobody runs; return how many.

    Those that are being run are left to who runs them. Cancelled or StoreLostError: some are left; who claims them
    finds that their router is dead.
    """
    n_dropped, start = 0, b"-"
    while entries := await queue.store.execute("XRANGE", queue.key, start, b"+", "COUNT", PAGE):
        for entry_id, flat in entries:
            if _reply_to(flat) == router_id.encode() and await _drop(queue, entry_id):
                n_dropped += 1
        start = b"(" + entries[-1][0]
    return n_dropped


async def find_gone(queue: JobQueue, entry_ids: Sequence[bytes]) -> list[bytes]:
    """Return those entries that nobody has and that will not be delivered to anybody."""
    if not entry_ids:
        return []
    looks: list[Command] = [("XPENDING", queue.key, GROUP, one, one, 1) for one in entry_ids]
    *pending, groups = await queue.store.transaction([*looks, ("XINFO", "GROUPS", queue.key)])
    delivered = _last_delivered(groups)
    gone = []
    for entry_id, rows in zip(entry_ids, pending, strict=True):
        if rows:
            continue
        waits = _order(entry_id) > delivered and await queue.store.execute("XRANGE", queue.key, entry_id, entry_id)
        if not waits:
            gone.append(entry_id)
    return gone


async def _drop(queue: JobQueue, entry_id: bytes) -> bool:
    """Remove an entry unless somebody has it. Claimed between the look and the removal it is dropped all the same."""
    rows = await queue.store.execute("XPENDING", queue.key, GROUP, entry_id, entry_id, 1)
    if rows and rows[0][1] != RELEASED.encode():
        return False
    await queue.withdraw(entry_id)
    return True


def _reply_to(flat: Sequence[bytes]) -> bytes | None:
    return dict(zip(flat[::2], flat[1::2], strict=True)).get(b"reply_to")


def _last_delivered(groups: Sequence[dict[Any, Any]]) -> tuple[int, int]:
    for group in groups:
        fields = {_text(name): value for name, value in group.items()}
        if _text(fields["name"]) == GROUP:
            return _order(fields["last-delivered-id"])
    return (0, 0)


def _text(said: bytes | str) -> str:
    return said.decode() if isinstance(said, bytes) else said


def _order(entry_id: bytes | str) -> tuple[int, int]:
    """Return what entry ids are sorted by: milliseconds, number."""
    milliseconds, _, number = _text(entry_id).partition("-")
    return int(milliseconds), int(number)
