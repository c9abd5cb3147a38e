"""One generation request, from its first byte to the last byte of its answer.

    key -> body -> dialect.parse -> relay.open -> queue -> (worker) -> answer -> client

Plain ASGI, because a web framework would double the cost of a short request. Beside the task that answers runs one
that waits for the client to leave and for the request's time to run out: leaving cancels everything, and the worker
is told; a time that has run out is an error like any other, with its status if nothing was sent yet.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import trio

from auxot.core.errors import ErrorCode, RefusedError, StoreError
from auxot.core.jobs import Failed, JobRecord
from auxot.core.keys import Role
from auxot.core.messages import FEATURE_OF_KIND
from auxot.core.protocol import encode
from auxot.router.asgi import ClientGoneError, Headers, Receive, Scope, Send, read_body, send_json
from auxot.router.connection import Connection
from auxot.router.relay import OpenJob
from auxot.router.streaming import CollectedAnswer, StreamingAnswer

if TYPE_CHECKING:
    from auxot.core.logs import Logger
    from auxot.router.auth import KeyVerifier
    from auxot.router.dialects.base import ChatRequest, Dialect
    from auxot.router.pool import Pool

RETRY_AFTER_S = 5  # for a client that is turned away; measured drain rates come with the bounded queue
_LAST_BODY = {"type": "http.response.body", "body": b"", "more_body": False}


@attrs.frozen(kw_only=True)
class Limits:
    """What one request may take: bytes of its body, seconds until a worker has it, seconds in all."""

    max_body_bytes: int
    queue_timeout_s: float
    job_timeout_s: float


@attrs.frozen(kw_only=True)
class Endpoint:
    """One dialect's generation endpoint, as an ASGI application."""

    dialect: Dialect
    find_key: Callable[[Headers], str]
    wrong_key: str  # what the dialect says to one
    pool: Pool
    verifier: KeyVerifier
    limits: Limits
    quiet: trio.Event
    router_id: str
    log: Logger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST. Returns when the response is complete or the client has left."""
        request_id = new_request_id()
        try:
            await self._serve(scope, receive, send, request_id)
        except ClientGoneError:
            return
        except RefusedError as exc:
            await send_error(send, dialect=self.dialect, error=exc, request_id=request_id)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        accepted_at = time.time()
        if self.quiet.is_set():
            raise RefusedError(ErrorCode.UNAVAILABLE, "the router is shutting down", retry_after_s=RETRY_AFTER_S)
        await self.verifier.verify(self.find_key(scope["headers"]), Role.API, refusal=self.wrong_key)
        body = await read_body(scope, receive, limit_bytes=self.limits.max_body_bytes)
        chat = self.dialect.parse(body, job_id=f"chatcmpl-{secrets.token_hex(12)}", now=accepted_at)
        del body  # megabytes, while the answer may take minutes
        connection = writable_connection(scope)
        record = JobRecord(
            job_id=chat.job.job_id, accepted_at=accepted_at, router_id=self.router_id, request_id=request_id
        )
        exchange = _Exchange(
            endpoint=self,
            chat=chat,
            connection=connection,
            answer=_new_answer(self.dialect, chat, connection),
            record=record,
            receive=receive,
            send=send,
        )
        try:
            await exchange.run()
        finally:
            self._log_end(record, stream=chat.stream)

    def _log_end(self, record: JobRecord, *, stream: bool) -> None:
        usage = record.usage
        self.log.info(
            "job.finished",
            job_id=record.job_id,
            request_id=record.request_id,
            dialect=self.dialect.name,
            stream=stream,
            outcome=record.outcome,
            worker_id=record.worker_id,
            attempt=record.attempt,
            queue_ms=_ms(record.accepted_at, record.sent_at),
            first_event_ms=_ms(record.accepted_at, record.first_event_at),
            total_ms=_ms(record.accepted_at, record.ended_at),
            prompt_tokens=usage.prompt_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
        )


@attrs.frozen(kw_only=True)
class _Exchange:
    """A request that was understood, with the job that it became."""

    endpoint: Endpoint
    chat: ChatRequest
    connection: Connection | None
    answer: StreamingAnswer | CollectedAnswer
    record: JobRecord
    receive: Receive
    send: Send

    async def run(self) -> None:
        """Queue the job, send its answer, and leave nothing behind however this ends."""
        limits = self.endpoint.limits
        began = trio.current_time()
        limit = trio.CancelScope(deadline=began + min(limits.queue_timeout_s, limits.job_timeout_s))
        open_job = OpenJob(
            record=self.record,
            answer=self.answer,
            frame=encode(self.chat.job),
            needs=FEATURE_OF_KIND.get(self.chat.job.kind),
            max_tokens=self.chat.job.max_tokens,
            on_started=lambda: setattr(limit, "deadline", began + limits.job_timeout_s),
        )
        try:
            with self.endpoint.pool.relay.open(open_job):
                await self._submit(open_job)
                await self._answer_while_connected(open_job, limit)
        finally:
            await self.endpoint.pool.withdraw(open_job)  # noqa: ASYNC102 -- it shields itself, with a deadline
        await self._send_end()

    async def _submit(self, open_job: OpenJob) -> None:
        try:
            await self.endpoint.pool.submit(open_job)
        except StoreError as exc:
            open_job.record.outcome = ErrorCode.UNAVAILABLE.word
            raise RefusedError(
                ErrorCode.UNAVAILABLE, "the queue cannot be reached", retry_after_s=RETRY_AFTER_S
            ) from exc

    async def _answer_while_connected(self, open_job: OpenJob, limit: trio.CancelScope) -> None:
        """Send the answer, all but its end; raises what ended the job before anything was sent."""
        failure: Failed | None = None
        is_complete = False
        async with trio.open_nursery() as request_nursery:
            request_nursery.start_soon(self._watch, open_job, limit, request_nursery.cancel_scope)
            if isinstance(self.answer, StreamingAnswer):
                failure = await self.answer.run(self.send, response_headers(self.record.request_id))
            else:
                failure = (await self.answer.wait()).failed
            is_complete = open_job.ended
            request_nursery.cancel_scope.cancel()
        if not is_complete:
            raise ClientGoneError
        if failure is not None:
            raise self.endpoint.dialect.refusal(failure)

    async def _watch(self, open_job: OpenJob, limit: trio.CancelScope, request_scope: trio.CancelScope) -> None:
        """Wait for the client to leave; when the time runs out first, fail the job and let its worker go."""
        with limit:
            await _wait_for_disconnect(self.receive)
        if limit.cancelled_caught:
            open_job.fail(self._out_of_time(open_job))
            if open_job.cancel_attempt is not None:
                open_job.cancel_attempt()
            await _wait_for_disconnect(self.receive)
        request_scope.cancel()

    def _out_of_time(self, open_job: OpenJob) -> Failed:
        limits = self.endpoint.limits
        if open_job.record.attempt == 0 and limits.queue_timeout_s <= limits.job_timeout_s:
            return Failed(ErrorCode.UNAVAILABLE, f"no worker was free within {limits.queue_timeout_s:g} s")
        return Failed(ErrorCode.TIMEOUT, f"the job did not end within {limits.job_timeout_s:g} s")

    async def _send_end(self) -> None:
        """Send what ends the response; the watcher is gone, so hypercorn may recycle the connection in peace."""
        if isinstance(self.answer, StreamingAnswer):
            await self.send(_LAST_BODY)
            return
        body = self.endpoint.dialect.response(self.chat, await self.answer.wait())
        if self.connection is not None:
            self.connection.hold()  # head and body in one packet
        await send_json(self.send, status=200, body=body, headers=response_headers(self.record.request_id))
        if self.connection is not None:
            await self.connection.release()


def new_request_id() -> str:
    """Return an id for one HTTP request."""
    return f"req_{secrets.token_hex(12)}"


def response_headers(request_id: str) -> Headers:
    """Return the headers that every response has, under both APIs' names."""
    value = request_id.encode()
    return [(b"x-request-id", value), (b"request-id", value)]


async def send_error(send: Send, *, dialect: Dialect, error: RefusedError, request_id: str) -> None:
    """Send an error in the dialect's form."""
    headers = response_headers(request_id)
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    body = dialect.error_body(error, request_id=request_id)
    await send_json(send, status=error.code.status, body=body, headers=headers)


def writable_connection(scope: Scope) -> Connection | None:
    """Return the client's connection if chunks may be written to it directly: HTTP/1.1 in the clear."""
    if scope["http_version"] != "1.1":
        return None
    connection = scope["state"].get("connection")
    return connection if isinstance(connection, Connection) else None


def _new_answer(
    dialect: Dialect, chat: ChatRequest, connection: Connection | None
) -> StreamingAnswer | CollectedAnswer:
    if chat.stream:
        return StreamingAnswer(lambda: dialect.encoder(chat), connection)
    return CollectedAnswer()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _ms(start: float, end: float | None) -> float | None:
    return None if end is None else round((end - start) * 1000, 1)
