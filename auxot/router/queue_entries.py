"""PURE: what goes into the job queue and comes out of it, and how Redis writes it down.

An entry of the stream has the fields job_id, data, reply_to and meta; Redis gives them back as a flat list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class QueuedJob:
    """A job as it enters the queue.

    Attributes:
        data: the `job` message, byte for byte what a worker will read; never parsed here.
        reply_to: the id of the router whose client waits for the answer.
        meta: a few bytes for whoever claims it, opaque here.
    """

    job_id: str
    data: bytes = attrs.field(repr=False)
    reply_to: str
    meta: bytes = attrs.field(default=b"", repr=False)


@attrs.frozen(kw_only=True)
class ClaimedJob:
    """A job as it leaves the queue: a `QueuedJob` with its place and its delivery.

    Attributes:
        entry_id: its place in the stream: what `ack` and `release` want.
        attempt: 1 for the first delivery.
        is_exhausted: it has been delivered more often than `max_attempts` allows: fail it to its client, then ack it.
    """

    entry_id: bytes
    job_id: str
    data: bytes = attrs.field(repr=False)
    reply_to: str
    meta: bytes = attrs.field(repr=False)
    attempt: int
    is_exhausted: bool


@attrs.frozen(kw_only=True)
class Depth:
    """How many jobs are `waiting` to be claimed (released ones included), and how many `claimed` and not acked."""

    waiting: int
    claimed: int


@attrs.frozen(kw_only=True)
class ConsumerState:
    """A consumer of the group: `name` is a router's id, or RELEASED; `n_pending` entries are with it."""

    name: str
    n_pending: int


@attrs.frozen
class Pending:
    """A row of XPENDING: an entry that is with a consumer."""

    entry_id: bytes
    idle_ms: int
    n_deliveries: int


def entry_fields(job: QueuedJob) -> tuple[str | bytes, ...]:
    """Return a job as the flat list of names and values that XADD wants."""
    return ("job_id", job.job_id, "data", job.data, "reply_to", job.reply_to, "meta", job.meta)


def read_entry(entry: Sequence[Any], *, attempt: int, max_attempts: int) -> ClaimedJob:
    """Read an entry as XREADGROUP and XCLAIM give it: its id, then names and values.

    Raises:
        ValueError: a field is missing or is not UTF-8; names the field.
    """
    entry_id, flat = entry
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    return ClaimedJob(
        entry_id=entry_id,
        job_id=_field(fields, "job_id").decode(),
        data=_field(fields, "data"),
        reply_to=_field(fields, "reply_to").decode(),
        meta=_field(fields, "meta"),
        attempt=attempt,
        is_exhausted=attempt > max_attempts,
    )


def _field(fields: Mapping[bytes, bytes], name: str) -> bytes:
    try:
        return fields[name.encode()]
    except KeyError:
        raise ValueError(f"no field {name}") from None


def read_pending(row: Sequence[Any]) -> Pending:
    """Read a row of the long form of XPENDING."""
    entry_id, _, idle_ms, n_deliveries = row
    return Pending(entry_id, int(idle_ms), int(n_deliveries))


def read_summary(summary: Sequence[Any]) -> dict[str, int]:
    """Read the short form of XPENDING; its last item is None when nothing is pending."""
    return {name.decode(): int(n_pending) for name, n_pending in summary[3] or ()}


def read_consumer_name(row: dict[Any, Any]) -> str:
    """Read a row of XINFO CONSUMERS; a server names the fields in bytes, the embedded store in text."""
    name: bytes = row[b"name"] if b"name" in row else row["name"]
    return name.decode()
