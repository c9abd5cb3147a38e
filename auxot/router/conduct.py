"""How a worker behaves: what it may say, how much of it, and when that is enough. Pure.

A worker has a key, and may still be broken or in bad hands. What it says of its own jobs harms only them; what no
honest worker says is counted, and at MAX_BAD_MESSAGES its connection is dropped:

- what is not in the protocol, or a second hello
- words about a job that it never had, or that it has ended itself; of one that was cancelled some come late
- more announcements than a worker has reason for

An answer without end ends the connection at once, see `Allowance`.
"""

from __future__ import annotations

from collections import OrderedDict

import attrs

from auxot.core.errors import ProtocolError

MAX_BAD_MESSAGES = 100
MAX_PAST_JOBS = 4096  # that are remembered, the latest
MAX_LATE_MESSAGES = 200_000  # of a cancelled job: an original worker may write its answer to the end
# Of what is not about a job: heartbeats and announcements. Honest workers say some three a minute.
MAX_REMARKS = 1000
REMARKS_PER_S = 100
MAX_ANSWER_BYTES = 384 * 1024 * 1024  # of one job's messages; 256 MiB of a forwarded body are 342 in base64
FREE_MESSAGES = 10_000  # of one job, beyond those of its tokens
MAX_CHOICES = 4096  # and calls of one answer
MESSAGES_PER_TOKEN = 4  # a worker may split a token's text into thoughts, text and calls


class EndlessAnswerError(ProtocolError):
    """A worker writes more for one job than any answer can have."""


@attrs.define
class Allowance:
    """How much a worker may still say of one job."""

    n_messages: int | None  # None: the caller set no limit of tokens
    n_bytes: int = MAX_ANSWER_BYTES

    @classmethod
    def of(cls, max_tokens: int | None) -> Allowance:
        """Return the allowance of a job with so many tokens in each of its choices."""
        return cls(None if max_tokens is None else MESSAGES_PER_TOKEN * max_tokens + FREE_MESSAGES)

    def spend(self, n_bytes: int, *, choice: int, index: int = 0) -> None:
        """Count one message; only the first choice's are counted by number, for others have as many.

        Raises:
            EndlessAnswerError: that is more than any answer can have.
            ProtocolError: there is no such choice or call.
        """
        self.n_bytes -= n_bytes
        if self.n_messages is not None and choice == 0:
            self.n_messages -= 1
        if self.n_bytes < 0 or (self.n_messages is not None and self.n_messages < 0):
            raise EndlessAnswerError("an answer without end")
        if not (0 <= choice < MAX_CHOICES and 0 <= index < MAX_CHOICES):
            raise ProtocolError("a choice or call that cannot be")


@attrs.define
class Conduct:
    """One connection's."""

    n_bad_messages: int = 0
    _past: OrderedDict[str, int] = attrs.field(factory=OrderedDict)  # jobs that are over: late words that may come
    _remarks: float = 0.0
    _remarked_at: float = 0.0

    def note_bad(self) -> bool:
        """Count a bad message; True when it was one too many."""
        self.n_bad_messages += 1
        return self.n_bad_messages >= MAX_BAD_MESSAGES

    def job_is_over(self, job_id: str, *, is_cancelled: bool) -> None:
        """Note that a job is no longer the worker's."""
        self._past[job_id] = MAX_LATE_MESSAGES if is_cancelled else 0
        self._past.move_to_end(job_id)
        if len(self._past) > MAX_PAST_JOBS:
            self._past.popitem(last=False)

    def check_late_words(self, job_id: str, *, is_end: bool) -> None:
        """Let words about a job pass that is not the worker's; they are dropped.

        Raises:
            ProtocolError: it never was, or there have been too many.
        """
        n_left = self._past.get(job_id, 0)
        if not n_left:
            raise ProtocolError("words about a foreign job")
        self._past[job_id] = 0 if is_end else n_left - 1

    def check_remark(self, now: float, *, weight: int = 1) -> None:
        """Count a message that is not about a job; `now` in seconds. ProtocolError if there are too many."""
        self._remarks = max(0.0, self._remarks - (now - self._remarked_at) * REMARKS_PER_S) + weight
        self._remarked_at = now
        if self._remarks > MAX_REMARKS:
            self._remarks = MAX_REMARKS
            raise ProtocolError("too many messages that are not about a job")
