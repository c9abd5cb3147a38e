"""The exception tree, and the codes by which a failure travels from a worker to a client.

    AuxotError
    |- ConfigError          bad variable, flag or file: one line on stderr, exit code 2
    |- ProtocolError        a peer's message that is not in the protocol
    |- SseError             an event stream that breaks its limits
    |- InvalidKeyError      a key or a key hash that has not the right form
    |- StoreError           Redis said no
    |  '- StoreLostError    Redis cannot be reached
    |- RefusedError         an API request that is answered with an error; carries an ErrorCode
    |- KeyRefusedError      a worker whose key the router refuses: exit code 3
    |- LinkError            the worker's connection to its router ended or could not be made
    |- FetchError           a file that cannot be downloaded, or is not what it must be
    '- LlamaError           llama-server is missing, does not start, or answered with an error

`ErrorCode` is the inner name of a failure. Its HTTP status stands beside it; a dialect may have one of its
own for it (`Dialect.status`), and how it words it is the dialect's own affair.
"""

from __future__ import annotations

import enum


class ErrorCode(enum.Enum):
    """Why a request or a job failed: (word on the wire, HTTP status)."""

    INVALID_REQUEST = ("invalid_request", 400)
    CONTEXT_LENGTH_EXCEEDED = ("context_length_exceeded", 400)
    UNAUTHENTICATED = ("unauthenticated", 401)
    NOT_FOUND = ("not_found", 404)
    MODEL_NOT_FOUND = ("model_not_found", 404)
    METHOD_NOT_ALLOWED = ("method_not_allowed", 405)
    REQUEST_TIMEOUT = ("request_timeout", 408)
    TOO_LARGE = ("too_large", 413)
    UNSUPPORTED_CODING = ("unsupported_content_encoding", 415)
    RATE_LIMITED = ("rate_limited", 429)
    OVERLOADED = ("overloaded", 429)
    WORKER_FAILED = ("worker_failed", 500)
    INTERNAL = ("internal", 500)
    NOT_IMPLEMENTED = ("not_implemented", 501)
    WORKER_LOST = ("worker_lost", 502)
    UNAVAILABLE = ("unavailable", 503)
    TIMEOUT = ("timeout", 504)

    def __init__(self, word: str, status: int) -> None:
        self.word = word
        self.status = status

    @classmethod
    def from_word(cls, word: str | None) -> ErrorCode:
        """Return the code of that word; WORKER_FAILED for a word that this version does not know."""
        return _BY_WORD.get(word or "", cls.WORKER_FAILED)


_BY_WORD = {code.word: code for code in ErrorCode}


class AuxotError(Exception):
    """The root of everything that Auxot raises on purpose."""


class ConfigError(AuxotError):
    """A variable, flag or file that cannot be used; the text is one line for the operator."""


class ProtocolError(AuxotError):
    """A message that is not in the protocol; `reason` never quotes more than a field's name."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SseError(AuxotError):
    """An event stream with a line or an event beyond its bound."""


class InvalidKeyError(AuxotError):
    """A key, or the hash of one, that has not the right form. Never holds the key."""


class StoreError(AuxotError):
    """Redis answered a command with an error."""


class StoreLostError(StoreError):
    """Redis cannot be reached, or went away while a command was under way."""


class RefusedError(AuxotError):
    """An API request that is answered with an error.

    Attributes:
        code: what is wrong; its status becomes the HTTP status.
        message: for the client; never holds a key.
        param: the name of the offending request field, if there is one.
        retry_after_s: seconds for a `Retry-After` header, if the client should try again.
    """

    def __init__(
        self, code: ErrorCode, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class BindError(AuxotError):
    """An address cannot be listened on."""


class KeyRefusedError(AuxotError):
    """The router does not accept this worker's key: trying again would not help."""


class LinkError(AuxotError):
    """The connection to the router ended, or could not be made: worth another try."""


class FetchError(AuxotError):
    """A file that cannot be downloaded, or is not what it must be; the text says what to do, in one line."""


class LlamaError(AuxotError):
    """llama-server is missing, did not start, died, or answered with an error.

    Attributes:
        code: how the failure is reported to the client of a job.
        n_prompt_tokens, n_ctx: the figures of a prompt that is too long, else None.
    """

    def __init__(
        self,
        message: str,
        *,
        code: ErrorCode = ErrorCode.WORKER_FAILED,
        n_prompt_tokens: int | None = None,
        n_ctx: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.n_prompt_tokens = n_prompt_tokens
        self.n_ctx = n_ctx


def first_error(group: BaseExceptionGroup[AuxotError]) -> AuxotError:
    """Return one of the errors of a group: what a nursery makes of the error that ended it."""
    for exc in group.exceptions:
        return first_error(exc) if isinstance(exc, BaseExceptionGroup) else exc
    raise ValueError("an empty group")  # cannot be: groups are never empty
