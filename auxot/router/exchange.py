"""One request that becomes a job, from its first byte to the last byte of its answer.

    key -> place in line -> body -> ask (dialect.parse) -> images -> relay.open -> queue -> (worker) -> answer

Plain ASGI, because a web framework would double the cost of a short request, and one task, because a second one that
watches would add a third. A client that leaves cancels everything, and the worker is told; a time that has run out is
an error like any other, with its status if nothing was sent yet.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import attrs
import trio

from auxot.core.errors import ErrorCode, RefusedError, StoreError
from auxot.core.jobs import Failed, Job, JobRecord, Transcript
from auxot.core.keys import Role
from auxot.core.messages import FEATURE_OF_KIND
from auxot.core.protocol import encode
from auxot.router.admission import Place, declared_bytes
from auxot.router.asgi import (
    REQUEST_ID,
    ClientGoneError,
    Receive,
    Scope,
    Send,
    address_of,
    discard_body,
    read_body,
    send_json,
)
from auxot.router.connection import Connection
from auxot.router.draft import Draft, can_be_continued
from auxot.router.headers import Headers, job_headers
from auxot.router.images import has_web_images
from auxot.router.relay import OpenJob
from auxot.router.streaming import ClientAnswer, CollectedAnswer, StreamingAnswer, WholeAnswer
from auxot.router.timer import Timer

if TYPE_CHECKING:
    from auxot.core.logs import Logger
    from auxot.router.auth import KeyVerifier
    from auxot.router.dialects.base import Dialect, StreamEncoder
    from auxot.router.images import Images
    from auxot.router.keyring import Principal
    from auxot.router.models import Catalog
    from auxot.router.pool import Pool

RETRY_AFTER_S = 5  # for a client that is turned away for another reason than a full queue
_TRY_AGAIN = (ErrorCode.UNAVAILABLE, ErrorCode.RATE_LIMITED)


@attrs.frozen(kw_only=True)
class Limits:
    """What one request may take: bytes of its body, time until a worker has it, time in all, and seconds of silence."""

    max_body_bytes: int
    until_started: Timer
    in_all: Timer
    keep_alive_s: float


@attrs.frozen(kw_only=True)
class Asked:
    """What a request asks for: a job, and the way of its answer to the client."""

    job: Job
    answer: ClientAnswer
    stream: bool  # for the log
    needs: str | None = None  # a feature that the worker must have, if it is not the one of the job's kind


@attrs.frozen(kw_only=True)
class Endpoint:
    """One dialect's generation endpoint, as an ASGI application. `ask` is what other kinds of endpoints replace."""

    dialect: Dialect
    find_key: Callable[[Headers], str]
    wrong_key: str  # what the dialect says to one
    pool: Pool
    catalog: Catalog
    verifier: KeyVerifier
    images: Images
    limits: Limits
    refusing: trio.Event
    router_id: str
    log: Logger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST. Returns when the response is complete or the client has left."""
        try:
            await self._serve(scope, receive, send)
        except ClientGoneError:
            return
        except RefusedError as exc:
            await send_error(send, dialect=self.dialect, error=exc, request_id=scope[REQUEST_ID])

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        accepted_at = time.time()
        if self.refusing.is_set():
            raise RefusedError(ErrorCode.UNAVAILABLE, "the router is shutting down", retry_after_s=RETRY_AFTER_S)
        key, address = self.find_key(scope["headers"]), address_of(scope)
        principal = await self.verifier.verify(key, Role.API, address=address, refusal=self.wrong_key)
        n_bytes = declared_bytes(scope["headers"], at_most=self.limits.max_body_bytes)
        place = self._enter(principal, n_bytes)
        if isinstance(place, RefusedError):
            await discard_body(receive)  # or a client that is still sending would see a reset, not the refusal
            raise place
        with place:
            await self._serve_admitted(scope, receive, send, place=place, accepted_at=accepted_at)

    def _enter(self, principal: Principal, n_bytes: int) -> Place | RefusedError:
        try:
            return self.pool.admission.enter(principal, n_bytes=n_bytes)
        except RefusedError as exc:
            return exc

    async def _serve_admitted(
        self, scope: Scope, receive: Receive, send: Send, *, place: Place, accepted_at: float
    ) -> None:
        body = await read_body(scope, receive, limit_bytes=self.limits.max_body_bytes)
        asked = self.ask(scope, body, now=accepted_at)
        n_body_bytes = len(body)
        del body  # megabytes, while the answer may take minutes
        await self._fetch_images(asked.job, receive, place=place, n_body_bytes=n_body_bytes)
        record = JobRecord(
            job_id=asked.job.job_id,
            accepted_at=accepted_at,
            router_id=self.router_id,
            request_id=scope[REQUEST_ID],
            key_name=place.principal.name,
        )
        open_job, answer, stream = _open_job(asked, record, place), asked.answer, asked.stream
        del asked  # as above
        exchange = _Exchange(
            endpoint=self,
            open_job=open_job,
            answer=answer,
            place=place,
            receive=receive,
            send=send,
            connection=writable_connection(scope),
        )
        try:
            await exchange.run()
        except RefusedError as exc:
            headers = job_headers(record)
            await send_error(send, dialect=self.dialect, error=exc, request_id=record.request_id, headers=headers)
        finally:
            self._log_end(record, stream=stream)

    async def _fetch_images(self, job: Job, receive: Receive, *, place: Place, n_body_bytes: int) -> None:
        """Put the images that a job names by address into it, as long as the client is there."""
        if not has_web_images(job):
            return
        admission = self.pool.admission
        admission.resize(place, n_body_bytes)
        failure: RefusedError | None = None
        is_done = False
        async with trio.open_nursery() as request_nursery:
            request_nursery.start_soon(_watch, receive, request_nursery.cancel_scope.cancel)
            try:
                await self.images.put_in(job, grow=lambda n_bytes: admission.resize(place, place.n_bytes + n_bytes))
            except RefusedError as exc:
                failure = exc
            is_done = True
            request_nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if not is_done:
            raise ClientGoneError

    def ask(self, scope: Scope, body: bytes, *, now: float) -> Asked:
        """Read a request.

        Raises:
            RefusedError: it cannot be understood, or asks for what is not served.
        """
        dialect, connection = self.dialect, writable_connection(scope)
        chat = dialect.parse(body, job_id=f"chatcmpl-{os.urandom(12).hex()}", now=now)
        job = chat.job
        self.catalog.check(chat.model)
        # What writes the answer lives as long as that, and needs nothing of the prompt.
        chat = attrs.evolve(chat, request_id=scope[REQUEST_ID], job=Job(job_id=job.job_id, messages=()))

        def write(transcript: Transcript) -> WholeAnswer:
            return WholeAnswer(dialect.response(chat, transcript))

        answer = (
            self.streaming(lambda: dialect.encoder(chat), connection, job_id=job.job_id)
            if chat.stream
            else CollectedAnswer(write, connection)
        )
        return Asked(job=job, answer=answer, stream=chat.stream)

    def streaming(
        self, make_encoder: Callable[[], StreamEncoder], connection: Connection | None, *, job_id: str
    ) -> StreamingAnswer:
        """Return a streaming answer for a job; see there."""
        return StreamingAnswer(
            make_encoder,
            connection,
            keep_alive_s=self.limits.keep_alive_s,
            n_ahead=lambda: self.pool.n_ahead(job_id),
        )

    @property
    def name(self) -> str:
        """A word for logs."""
        return self.dialect.name

    def _log_end(self, record: JobRecord, *, stream: bool) -> None:
        usage = record.usage
        self.log.info(
            "job.finished",
            job_id=record.job_id,
            request_id=record.request_id,
            key_name=record.key_name,
            dialect=self.name,
            stream=stream,
            outcome=record.outcome,
            worker_id=record.worker_id,
            route=record.route,
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
    open_job: OpenJob
    answer: ClientAnswer
    place: Place
    receive: Receive
    send: Send
    connection: Connection | None  # the client's, if it can be watched and written directly

    async def run(self) -> None:
        """Queue the job, send its answer, and leave nothing behind however this ends."""
        open_job, limits = self.open_job, self.endpoint.limits
        admission, place = self.endpoint.pool.admission, self.place
        admission.resize(place, len(open_job.frame))

        def on_started() -> None:
            limits.until_started.stop(on_overtime)
            admission.on_started(place)

        def on_overtime() -> None:
            self._stop(open_job)

        open_job.on_started = on_started
        limits.until_started.start(on_overtime)
        limits.in_all.start(on_overtime)
        try:
            with self.endpoint.pool.relay.open(open_job):
                await self._submit(open_job)
                await self._answer_while_connected()
        finally:
            limits.until_started.stop(on_overtime)
            limits.in_all.stop(on_overtime)
            await self.endpoint.pool.withdraw(open_job)  # noqa: ASYNC102 -- it shields itself, with a deadline
        # Nothing listens to the client any more, so hypercorn may recycle the connection in peace.
        await self.answer.send_end(self.send, self._headers)

    async def _submit(self, open_job: OpenJob) -> None:
        try:
            await self.endpoint.pool.submit(open_job)
        except StoreError as exc:
            open_job.record.outcome = ErrorCode.UNAVAILABLE.word
            raise RefusedError(
                ErrorCode.UNAVAILABLE, "the queue cannot be reached", retry_after_s=RETRY_AFTER_S
            ) from exc

    async def _answer_while_connected(self) -> None:
        """Send the answer, all but its end; raises what ended the job before anything was sent."""
        answer = self.answer
        if self.connection is not None:
            self.connection.when_peer_leaves(answer.give_up)
            try:
                failure = await answer.send_begin(self.send, self._headers)
            finally:
                self.connection.when_peer_leaves(None)
        else:
            failure = await self._answer_beside_watcher(answer)
        if answer.is_given_up:
            raise ClientGoneError
        if failure is not None:
            refusal = self.endpoint.dialect.refusal(failure)
            if failure.code in _TRY_AGAIN:
                refusal.retry_after_s = RETRY_AFTER_S
            raise refusal

    async def _answer_beside_watcher(self, answer: ClientAnswer) -> Failed | None:
        """Answer while a second task waits for the client to leave, where only ASGI tells of that (HTTP/2)."""
        async with trio.open_nursery() as request_nursery:
            request_nursery.start_soon(_watch, self.receive, answer.give_up)
            failure = await answer.send_begin(self.send, self._headers)
            request_nursery.cancel_scope.cancel()
        return failure

    def _stop(self, open_job: OpenJob) -> None:
        """Fail a job that has taken too long, and let its worker go."""
        open_job.fail(self._out_of_time(open_job))
        open_job.stop_attempt()

    def _out_of_time(self, open_job: OpenJob) -> Failed:
        limits = self.endpoint.limits
        if open_job.record.attempt == 0 and limits.until_started.duration_s <= limits.in_all.duration_s:
            return Failed(ErrorCode.UNAVAILABLE, f"no worker was free within {limits.until_started.duration_s:g} s")
        return Failed(ErrorCode.TIMEOUT, f"the job did not end within {limits.in_all.duration_s:g} s")

    def _headers(self) -> Headers:
        """Return the headers of the answer, as they are when its head is sent."""
        return job_headers(self.open_job.record)


async def send_error(
    send: Send, *, dialect: Dialect, error: RefusedError, request_id: str, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Send an error in the dialect's form."""
    headers = list(headers)
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    body = dialect.error_body(error, request_id=request_id)
    await send_json(send, status=dialect.status(error.code), body=body, headers=headers)


def _open_job(asked: Asked, record: JobRecord, place: Place) -> OpenJob:
    """Return a job as it waits and runs: of its prompt only the encoded message is kept, which the queue shares."""
    job = asked.job
    return OpenJob(
        record=record,
        answer=asked.answer,
        frame=encode(job),
        place=place,
        needs=asked.needs or FEATURE_OF_KIND.get(job.kind),
        max_tokens=job.max_tokens,
        draft=Draft() if can_be_continued(job) else None,
    )


def writable_connection(scope: Scope) -> Connection | None:
    """Return the client's connection if chunks may be written to it directly: HTTP/1.1 in the clear."""
    if scope["http_version"] != "1.1":
        return None
    connection = scope["state"].get("connection")
    return connection if isinstance(connection, Connection) else None


async def _watch(receive: Receive, when_left: Callable[[], None]) -> None:
    """Wait for the client to leave."""
    while (await receive())["type"] != "http.disconnect":
        pass
    when_left()


def _ms(start: float, end: float | None) -> float | None:
    return None if end is None else round((end - start) * 1000, 1)
