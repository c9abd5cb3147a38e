"""What a dialect is: one API that clients speak, as pure functions over the inner language.

    bytes -> Dialect.parse -> ChatRequest (with its Job)
    JobEvents -> StreamEncoder.feed -> server-sent events         a streaming answer
    JobEvents -> Transcript -> Dialect.response -> JSON           a blocking answer: the same events, collected
    RefusedError -> Dialect.error_body -> JSON                    every error, before or instead of an answer

A dialect knows no HTTP, no clock and no randomness: ids and times come from its caller, so the same request and the
same events always give the same bytes. An error's HTTP status is `Dialect.status`.

The life of a streaming answer:

    waiting --first delta, or Finished--> begun --Finished or Failed--> ended
       '--------------------- Failed -------------------------------------^

While it is waiting, `feed` returns nothing, so a failure can still become an HTTP status, and a job whose worker was
lost can run again elsewhere: the client has seen no part of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import attrs
import orjson

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.jobs import Failed, Finish, Finished, FinishReason, Job, JobEvent, Transcript

_MAX_DEPTH = 100  # of JSON in an answer; the encoder itself gives up at 254


@attrs.frozen(kw_only=True)
class ChatRequest:
    """A request that has been read and checked.

    Attributes:
        job: what goes to a worker; `job.job_id` is the id that the caller of `parse` gave.
        stream: whether the client wants server-sent events.
        model: the model's name as the client wrote it; it is echoed, not used.
        answer_id: the id of the whole answer, in the dialect's form.
        created: when the request came, Unix seconds; one value for the whole answer.
        include_usage: OpenAI only: end the stream with a chunk of token counts.
        request_id: the id of the HTTP request; empty where the caller of `parse` has not set it.
    """

    job: Job
    stream: bool
    model: str
    answer_id: str
    created: int
    include_usage: bool = False
    request_id: str = ""


@attrs.frozen(kw_only=True)
class ModelCard:
    """A model as the lists of models show it.

    Attributes:
        id: its name.
        created: Unix seconds; a fixed date of the model, so that the list does not change from call to call.
        context_size: tokens of one slot; None when unknown.
        capabilities: words such as `chat`, `vision`, `code`.
    """

    id: str
    created: int
    context_size: int | None = None
    capabilities: tuple[str, ...] = ()
    owned_by: str = "auxot"


class StreamEncoder(Protocol):
    """The fold of one answer's events into server-sent events. Owned by the one task that feeds it; never raises."""

    @property
    def begun(self) -> bool:
        """Whether a part of the answer, or its error, has been written."""
        ...

    def feed(self, event: JobEvent) -> bytes:
        """Take the next event of the job.

        Returns:
            Zero or more whole server-sent events. A terminal event writes the end of the stream (for Failed: the
            dialect's error event); whatever is fed after it returns nothing.
        """
        ...

    def keep_alive(self, note: str = "") -> bytes:
        """Return bytes that say "still here" and that clients ignore; valid at any moment before the end.

        Args:
            note: for a human who watches the stream, such as the place in the queue; no part of the protocol.
        """
        ...


class Dialect(Protocol):
    """One API. Its instances hold no state."""

    @property
    def name(self) -> str:
        """A word for logs and metrics: `openai.chat`, `anthropic.messages`."""
        ...

    def parse(self, body: bytes, *, job_id: str, now: float) -> ChatRequest:
        """Read and check a request.

        Args:
            body: the HTTP body, whole.
            job_id: the id of the job that it becomes.
            now: Unix seconds.

        Raises:
            RefusedError: the body is not a request of this dialect; `param` names the field.
        """
        ...

    def encoder(self, request: ChatRequest) -> StreamEncoder:
        """Return the encoder of one streaming answer."""
        ...

    def response(self, request: ChatRequest, transcript: Transcript) -> bytes:
        """Return the JSON body of a blocking answer; `transcript.finished` is set. Never raises."""
        ...

    def refusal(self, failed: Failed) -> RefusedError:
        """Return a job's failure as the error of this dialect: its code gives the status, its text is worded."""
        ...

    def error_body(self, error: RefusedError, *, request_id: str) -> bytes:
        """Return the JSON body of an error, in the shape that clients of this dialect parse."""
        ...

    def status(self, code: ErrorCode) -> int:
        """Return the HTTP status of an error: the code's own, where this dialect has no other."""
        ...

    def models(self, cards: Sequence[ModelCard]) -> bytes:
        """Return the JSON body of the list of models."""
        ...

    def model(self, card: ModelCard) -> bytes:
        """Return the JSON body of one model."""
        ...


def json_bytes(value: Any) -> bytes:
    """Return a value as JSON, whatever is in it.

    Lone surrogates become question marks, what is nested too deep becomes null, and integers are cut to 64 bits: an
    answer or an error that holds them is still written.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        return orjson.dumps(_printable(value, _MAX_DEPTH))


def _printable(value: Any, levels: int) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int):
        return max(-(2**63), min(value, 2**63 - 1))
    if levels == 0:
        return None
    if isinstance(value, dict):
        return {_printable(name, levels): _printable(item, levels - 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(item, levels - 1) for item in value]
    return value


def id_stem(job_id: str) -> str:
    """Return the random part of a job id, from which an answer's other ids are made (`chatcmpl-ab12` -> `ab12`)."""
    return job_id.rpartition("-")[2]


def finishes_of(finished: Finished | None, n_choices: int) -> tuple[Finish, ...]:
    """Return how each choice that was asked for ended: an ordinary stop where the worker did not say."""
    told = finished.finishes[:n_choices] if finished else ()
    return told + (Finish(FinishReason.STOP),) * (n_choices - len(told))
