"""The loads of the benchmark, the stamps that its tokens carry, and the figures that come out. No I/O.

A token is the text `7@1234567 `: its number in the answer and the moment at which its worker wrote it, in microseconds
of the machine's monotonic clock, which all processes share. So whoever reads it knows how long it was under way, and
whether one is missing, doubled or out of order. A prompt carries the moment at which its client asked: `@1234567`.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterable, Sequence

import attrs

_STAMP = re.compile(rb"(\d+)@(\d+) ")
_PROMPT = re.compile(rb"@(\d+)")
_MAX_TOKENS = re.compile(rb'"max_tokens": ?(\d+)')
LEAST_TOKENS = 3


@attrs.frozen(kw_only=True)
class Load:
    """One row of the table.

    Attributes:
        name: how it is chosen on the command line.
        title: how it is shown.
        clients: requests at once.
        workers: connected workers.
        slots: jobs that each of them runs at once.
        requests: in all.
        tokens: of each answer.
        rate: tokens a second of each answer; 0: as fast as it goes.
        is_blocking: answers come in one piece.
    """

    name: str
    title: str
    clients: int
    workers: int
    slots: int = 1
    requests: int
    tokens: int
    rate: float = 0.0
    is_blocking: bool = False

    @property
    def n_tokens(self) -> int:
        """Tokens in all."""
        return self.requests * self.tokens

    @property
    def has_line(self) -> bool:
        """Whether jobs wait for slots."""
        return self.clients > self.workers * self.slots

    def shortened(self, share: float) -> Load:
        """Return the same load for a part of the time."""
        if self.tokens > LEAST_TOKENS:
            return attrs.evolve(self, tokens=max(LEAST_TOKENS, round(self.tokens * share)))
        return attrs.evolve(self, requests=max(self.clients, round(self.requests * share)))

    def warm_up(self) -> Load:
        """Return a few requests of this kind: the first ones that a program serves pay for its imports."""
        return attrs.evolve(self, clients=1, requests=3, tokens=min(self.tokens, LEAST_TOKENS))


LOADS = (
    Load(name="one", title="1 stream, 50 tokens/s", clients=1, workers=2, requests=1, tokens=500, rate=50),
    Load(name="64", title="64 streams, 50 tokens/s", clients=64, workers=64, requests=64, tokens=500, rate=50),
    Load(name="256", title="256 streams, 50 tokens/s", clients=256, workers=256, requests=256, tokens=250, rate=50),
    Load(name="full", title="16 streams, no limit", clients=16, workers=16, requests=16, tokens=10_000),
    Load(
        name="slots",
        title="2 workers x 4 slots, 8 clients",
        clients=8,
        workers=2,
        slots=4,
        requests=64,
        tokens=50,
        rate=50,
    ),
    Load(
        name="queue",
        title="2 workers x 4 slots, 24 clients",
        clients=24,
        workers=2,
        slots=4,
        requests=400,
        tokens=10,
        rate=50,
    ),
    Load(
        name="blocking",
        title="blocking, 1 token, 32 clients",
        clients=32,
        workers=64,
        requests=6000,
        tokens=1,
        is_blocking=True,
    ),
)


def now_us() -> int:
    """Return the moment, in microseconds of the monotonic clock."""
    return time.monotonic_ns() // 1000


def token(number: int) -> str:
    """Return the text of a token that is written now."""
    return f"{number}@{now_us()} "


def prompt() -> str:
    """Return the prompt of a request that is sent now."""
    return f"@{now_us()}"


def asked_at_us(job: bytes) -> int:
    """Return when the client of a job, or of a request's body, sent it."""
    found = _PROMPT.search(job)
    return int(found[1]) if found else now_us()


def tokens_asked_for(job: bytes, default: int) -> int:
    """Return how many tokens the answer to a job, or to a request's body, shall have."""
    found = _MAX_TOKENS.search(job)
    return int(found[1]) if found else default


@attrs.define
class Tally:
    """The tokens of one answer, as they come."""

    n_seen: int = 0
    n_wrong: int = 0
    n_before: int = 0  # seen before the last bytes
    _tail: bytes = b""

    def feed(self, received: bytes, delays_us: list[int]) -> int:
        """Count the tokens in the next bytes of an answer, and note for how long each was under way.

        What follows the last line end is kept for the next bytes: a stamp never holds one.

        Returns:
            how many tokens there were.
        """
        whole, end, self._tail = (self._tail + received).rpartition(b"\n")
        now, self.n_before = now_us(), self.n_seen
        for number, written_at in _STAMP.findall(whole + end):
            self.n_wrong += int(number) != self.n_seen
            self.n_seen += 1
            delays_us.append(now - int(written_at))
        return self.n_seen - self.n_before

    def finish(self, delays_us: list[int]) -> None:
        """Count what is left when the answer is over: a blocking one has no line end."""
        self.feed(b"\n", delays_us)


@attrs.define
class FarTimes:
    """What the far end sees, in microseconds."""

    dispatch_us: list[int] = attrs.field(factory=list)  # asked -> job read by a worker
    freed_us: list[int] = attrs.field(factory=list)  # end of an answer written -> next job read, where jobs wait


@attrs.define
class Samples:
    """What is seen while a load runs. All times are in microseconds."""

    later_us: list[int] = attrs.field(factory=list)  # written by a worker -> read by its client, without first tokens
    first_us: list[int] = attrs.field(factory=list)  # asked -> first token read
    far: FarTimes = attrs.field(factory=FarTimes)
    n_wrong: int = 0  # tokens that are missing, doubled or out of order
    n_failed: int = 0  # requests without an answer


@attrs.frozen(kw_only=True)
class Figures:
    """One row, measured.

    Attributes:
        load: which.
        elapsed_s: how long it took.
        cpu_s: the router's CPU time, user and system; None where it cannot be seen.
        rss_mib: its memory at the end.
        delay_ms: p50 and p99 of what is added to a later token; None when there are none.
        first_ms: p50 and p99 from request to first token.
        dispatch_ms: p50 and p99 from request to worker.
        freed_ms: p50 and p99 from a slot that is free to its next job; None where no jobs wait.
        n_wrong: tokens that are missing, doubled or out of order.
        n_failed: requests without an answer.
    """

    load: Load
    elapsed_s: float
    cpu_s: float | None
    rss_mib: float | None
    delay_ms: tuple[float, float] | None
    first_ms: tuple[float, float] | None
    dispatch_ms: tuple[float, float] | None
    freed_ms: tuple[float, float] | None
    n_wrong: int
    n_failed: int

    @property
    def tokens_per_s(self) -> float:
        """Tokens that came through, a second."""
        return (self.load.n_tokens - self.n_wrong - self.n_failed * self.load.tokens) / self.elapsed_s

    @property
    def requests_per_s(self) -> float:
        """Answers a second."""
        return (self.load.requests - self.n_failed) / self.elapsed_s

    @property
    def cpu_us(self) -> float | None:
        """Microseconds of the router's CPU for each token; of a blocking load, for each request."""
        if self.cpu_s is None:
            return None
        return self.cpu_s * 1e6 / (self.load.requests if self.load.is_blocking else self.load.n_tokens)

    def as_dict(self) -> dict[str, object]:
        """Return the row for JSON."""
        return {
            "load": self.load.name,
            "tokens_per_s": round(self.tokens_per_s, 1),
            "requests_per_s": round(self.requests_per_s, 1),
            "cpu_us": None if self.cpu_us is None else round(self.cpu_us, 1),
            "rss_mib": None if self.rss_mib is None else round(self.rss_mib, 1),
            "delay_ms": self.delay_ms,
            "first_ms": self.first_ms,
            "dispatch_ms": self.dispatch_ms,
            "freed_ms": self.freed_ms,
            "n_wrong": self.n_wrong,
            "n_failed": self.n_failed,
        }


def figures(load: Load, samples: Samples, *, elapsed_s: float, cpu_s: float | None, rss_mib: float | None) -> Figures:
    """Sum up what was seen."""
    return Figures(
        load=load,
        elapsed_s=elapsed_s,
        cpu_s=cpu_s,
        rss_mib=rss_mib,
        delay_ms=quantiles_ms(samples.later_us),
        first_ms=quantiles_ms(samples.first_us),
        dispatch_ms=quantiles_ms(samples.far.dispatch_us),
        freed_ms=quantiles_ms(samples.far.freed_us),
        n_wrong=samples.n_wrong,
        n_failed=samples.n_failed,
    )


def quantiles_ms(times_us: Sequence[int]) -> tuple[float, float] | None:
    """Return median and 99th percentile, in ms; None of nothing."""
    if not times_us:
        return None
    if len(times_us) == 1:
        return times_us[0] / 1000, times_us[0] / 1000
    cuts = statistics.quantiles(times_us, n=100, method="inclusive")
    return round(cuts[49] / 1000, 3), round(cuts[98] / 1000, 3)


_COLUMNS = (
    "load",
    "tokens/s",
    "answers/s",
    "CPU us",
    "delay ms p50/p99",
    "first ms p50/p99",
    "to worker ms",
    "free slot ms",
    "MiB",
    "lost",
)


def table(rows: Iterable[Figures]) -> str:
    """Return the rows as text, a line each, under a head."""
    lines = [_COLUMNS, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if not n else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _cells(row: Figures) -> tuple[str, ...]:
    return (
        row.load.title,
        f"{row.tokens_per_s:,.0f}",
        f"{row.requests_per_s:,.0f}",
        "-" if row.cpu_us is None else f"{row.cpu_us:,.1f}",
        _pair(row.delay_ms),
        _pair(row.first_ms),
        _pair(row.dispatch_ms),
        _pair(row.freed_ms),
        "-" if row.rss_mib is None else f"{row.rss_mib:,.0f}",
        f"{row.n_wrong + row.n_failed * row.load.tokens:,}",
    )


def _pair(pair: tuple[float, float] | None) -> str:
    return "-" if pair is None else f"{pair[0]:.2f} / {pair[1]:.2f}"
