"""What routers that share a Redis tell each other about a job that one accepted and another runs. Pure.

    runner -> acceptor    Started      a worker has the job
                          Happened     events of the job, in order
                          Lost         the worker is gone; the job is in the queue again
    acceptor -> runner    Cancel       nobody waits for the answer any more

Every letter names the attempt that it speaks of, and the issue of the job's queue entry: what an older one still says
is thrown away. The form is JSON
between routers of the same version; it is no part of the workers' protocol.
"""

from __future__ import annotations

from typing import Any

import attrs
from cattrs.preconf.orjson import OrjsonConverter, make_converter
from cattrs.strategies import configure_tagged_union

from auxot.core.errors import ErrorCode, ProtocolError
from auxot.core.jobs import JobEvent


@attrs.frozen(kw_only=True)
class Started:
    """A worker has the job."""

    job_id: str
    attempt: int
    worker_id: str
    route: str = ""  # see JobRecord
    issue: int = 0


@attrs.frozen(kw_only=True)
class Happened:
    """Events of the job."""

    job_id: str
    attempt: int
    events: tuple[JobEvent, ...]
    issue: int = 0


@attrs.frozen(kw_only=True)
class Lost:
    """The attempt has ended without an answer."""

    job_id: str
    attempt: int
    issue: int = 0


@attrs.frozen(kw_only=True)
class Cancel:
    """Stop the job."""

    job_id: str
    issue: int = 0


Letter = Started | Happened | Lost | Cancel


@attrs.frozen(kw_only=True)
class Batch:
    """The letters that one router wrote to another in one go; `number` counts them from 1."""

    sender: str
    number: int
    letters: tuple[Letter, ...]


def encode_batch(batch: Batch) -> bytes:
    """Return a batch as the bytes of one stream entry."""
    return _CONVERTER.dumps(batch)


def decode_batch(content: bytes) -> Batch:
    """Read what `encode_batch` wrote.

    Raises:
        ProtocolError: it was written by something else.
    """
    try:
        return _CONVERTER.loads(content, Batch)
    except Exception as exc:  # cattrs raises many kinds
        raise ProtocolError(f"malformed letters: {type(exc).__name__}") from exc


def _converter() -> OrjsonConverter:
    converter = make_converter(detailed_validation=False)
    converter.register_unstructure_hook(ErrorCode, lambda code: code.word)
    converter.register_structure_hook(ErrorCode, lambda word, _: ErrorCode.from_word(word))
    unions: tuple[Any, ...] = (JobEvent, Letter)
    for union in unions:
        configure_tagged_union(union, converter)
    return converter


_CONVERTER = _converter()
