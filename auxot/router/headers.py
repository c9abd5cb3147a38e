"""Headers of our answers, and what is told in them. Pure.

    x-request-id, request-id    the request's id, under the names of both APIs: on every answer
    server-timing               how long the job waited, read its prompt and wrote: on answers to jobs
    x-auxot-worker              which worker had the job
    x-auxot-route               why that one: `prefix` (it holds the beginning of the prompt) or `least-loaded`

Source of the timing header's form: https://www.w3.org/TR/server-timing/
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from auxot.core.jobs import JobRecord

Headers = list[tuple[bytes, bytes]]

MAX_REQUEST_ID_CHARS = 128
# A client's own id is kept if it can stand in a header and a log as it is: printable ASCII, no spaces.
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,%d}" % MAX_REQUEST_ID_CHARS)


def new_request_id() -> str:
    """Return an id for one HTTP request."""
    return f"req_{os.urandom(12).hex()}"


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the id of a request: the one in its `x-request-id` header if it is a sane one, else a new one."""
    for name, value in headers:
        if name == b"x-request-id":
            return value.decode("ascii") if _REQUEST_ID.fullmatch(value) else new_request_id()
    return new_request_id()


def id_headers(request_id: str) -> Headers:
    """Return the headers that every answer has."""
    value = request_id.encode()
    return [(b"x-request-id", value), (b"request-id", value)]


def job_headers(record: JobRecord) -> Headers:
    """Return what is known of a job by now, as headers.

    A stream's head is sent with its first event, so that `generation` and `total` are not known there; one that a
    keep-alive forced out earlier has less still.
    """
    headers: Headers = []
    timing = _server_timing(record)
    if timing:
        headers.append((b"server-timing", timing.encode()))
    if record.worker_id is not None:
        headers.append((b"x-auxot-worker", record.worker_id.encode("ascii", "replace")))
    if record.route:
        headers.append((b"x-auxot-route", record.route.encode("ascii", "replace")))
    return headers


def _server_timing(record: JobRecord) -> str:
    steps = (
        ("queue", record.accepted_at, record.sent_at),
        ("prompt", record.sent_at, record.first_event_at),
        ("generation", record.first_event_at, record.ended_at),
        ("total", record.accepted_at, record.ended_at),
    )
    return ", ".join(
        f"{name};dur={max(end - start, 0) * 1000:.1f}"
        for name, start, end in steps
        if start is not None and end is not None
    )
