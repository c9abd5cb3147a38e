"""Forwarded endpoints: a request becomes a FORWARD job, and llama-server's answer is passed on as it came.

    JSON          collected, then sent whole: the job can move to another worker until its last byte
    event stream  passed on piece by piece, where the request says `stream`

Everything else (keys, limits, time, clients that leave) is what it is for every endpoint: see `exchange`.
"""

from __future__ import annotations

import secrets

import attrs

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.forwarded import ForwardedEndpoint
from auxot.core.jobs import Failed, Finished, Job, JobEvent, Payload, PayloadHead, Transcript
from auxot.router.asgi import Scope, header
from auxot.router.dialects.base import Dialect
from auxot.router.exchange import Asked, Endpoint, writable_connection
from auxot.router.forward_table import read
from auxot.router.streaming import CollectedAnswer, WholeAnswer

_EVENT_END = b"\n\n"
_ERROR_STATUS = 400


@attrs.frozen(kw_only=True)
class ForwardEndpoint(Endpoint):
    """One forwarded endpoint. `dialect` gives its errors their form."""

    row: ForwardedEndpoint

    @property
    def name(self) -> str:
        """A word for logs."""
        return f"forward:{self.row.path}"

    def ask(self, scope: Scope, body: bytes, *, now: float) -> Asked:  # noqa: ARG002 -- nothing of it has a date
        """Read a request; see `Endpoint.ask`."""
        content_type = header(scope, b"content-type") or b""
        request = read(self.row, body, content_type=content_type.decode("latin-1"))
        if request.model:
            self.catalog.check(request.model)
        job_id = f"fwd-{secrets.token_hex(12)}"
        job = Job(job_id=job_id, messages=(), model=request.model, forward=request.forward)
        connection = writable_connection(scope)
        answer = (
            self.streaming(lambda: EventPassage(self.dialect), connection, job_id=job_id)
            if request.stream
            else CollectedAnswer(self._write, connection)
        )
        return Asked(job=job, answer=answer, stream=request.stream, needs=self.row.needs)

    def _write(self, transcript: Transcript) -> WholeAnswer:
        head = transcript.head
        if head is None:  # it ended well and said nothing: no worker of ours does that
            error = RefusedError(ErrorCode.WORKER_FAILED, "the worker sent no answer")
            return WholeAnswer(self.dialect.error_body(error, request_id=""), self.dialect.status(error.code))
        return WholeAnswer(b"".join(transcript.payload), head.status, head.content_type)


class EventPassage:
    """An event stream on its way through; a `StreamEncoder`. `dialect` gives an error in the middle its form."""

    def __init__(self, dialect: Dialect) -> None:
        self.begun = False
        self._dialect = dialect
        self._tail = _EVENT_END  # the last bytes that were passed on: keep-alives go between events only
        self._is_over = False

    def feed(self, event: JobEvent) -> bytes:
        """Take the next event of the job; return what the client gets."""
        if self._is_over:
            return b""
        if isinstance(event, Payload):
            self.begun = True
            self._tail = (self._tail + event.body)[-len(_EVENT_END) :]
            return event.body
        if isinstance(event, Failed):
            return self._error(event)
        if isinstance(event, PayloadHead) and event.status >= _ERROR_STATUS:  # a worker of ours says Failed instead
            return self._error(Failed(ErrorCode.WORKER_FAILED, f"the worker answered with status {event.status}"))
        self._is_over = isinstance(event, Finished)
        return b""

    def keep_alive(self, note: str = "") -> bytes:
        """Return a comment, or nothing while an event is under way."""
        return b": %b\n\n" % (note or "keep-alive").encode() if self._tail == _EVENT_END else b""

    def _error(self, failed: Failed) -> bytes:
        self.begun = self._is_over = True
        border = b"" if self._tail == _EVENT_END else _EVENT_END
        body = self._dialect.error_body(self._dialect.refusal(failed), request_id="")
        return b"%bdata: %b\n\n" % (border, body)
