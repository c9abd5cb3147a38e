"""The benchmark's bookkeeping."""

from __future__ import annotations

import itertools

import attrs
from hypothesis import given
from hypothesis import strategies as st

from auxot.bench.load import LOADS, Samples, Tally, asked_at_us, figures, prompt, table, token


def answer(numbers: list[int]) -> bytes:
    """Return an answer with these tokens, as a client gets it: chunked events."""
    events = (b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % token(number).encode() for number in numbers)
    return b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events) + b"0\r\n\r\n"


def tally_of(received: bytes, cuts: list[int]) -> tuple[Tally, list[int]]:
    tally, delays_us = Tally(), list[int]()
    places = sorted({0, len(received), *(cut % len(received) for cut in cuts)})
    for start, end in itertools.pairwise(places):
        tally.feed(received[start:end], delays_us)
    tally.finish(delays_us)
    return tally, delays_us


@given(st.integers(1, 30), st.lists(st.integers(0, 10_000)))
def test_tokens_are_counted_however_the_bytes_come(n_tokens: int, cuts: list[int]) -> None:
    """A token that comes in two reads counts as missing, or twice."""
    tally, delays_us = tally_of(answer(list(range(n_tokens))), cuts)
    assert (tally.n_seen, tally.n_wrong, len(delays_us)) == (n_tokens, 0, n_tokens)
    assert all(0 <= delay_us < 60_000_000 for delay_us in delays_us)


@given(st.permutations(range(5)).filter(lambda numbers: numbers != sorted(numbers)))
def test_tokens_out_of_order_are_wrong(numbers: list[int]) -> None:
    """A doubled, lost or shuffled token passes for a good one."""
    assert tally_of(answer(numbers), [])[0].n_wrong > 0
    assert tally_of(answer([0, 1, 1, 2]), [])[0].n_wrong > 0
    assert tally_of(answer([0, 2]), [])[0].n_wrong > 0


def test_the_prompt_tells_when_it_was_sent() -> None:
    """Times from request to worker are those of something else."""
    body = b'{"job_id":"x@y","messages":[{"role":"user","content":"%b"}]}' % prompt().encode()
    assert asked_at_us(body) > 0
    assert asked_at_us(b'{"content":"@17"}') == 17


def test_a_row_of_the_table() -> None:
    """Figures are shown in the wrong unit."""
    load = attrs.evolve(LOADS[0], requests=2, tokens=100)
    samples = Samples(later_us=[1000] * 100, first_us=[2000])
    row = figures(load, samples, elapsed_s=4.0, cpu_s=0.002, rss_mib=70.2)
    assert row.as_dict() == {
        "load": "one",
        "tokens_per_s": 50.0,
        "requests_per_s": 0.5,
        "cpu_us": 10.0,
        "rss_mib": 70.2,
        "delay_ms": (1.0, 1.0),
        "first_ms": (2.0, 2.0),
        "dispatch_ms": None,
        "freed_ms": None,
        "n_wrong": 0,
        "n_failed": 0,
    }
    head, line = table([row]).splitlines()
    assert len(head) == len(line)
    assert " ".join(line.split()) == "1 stream, 50 tokens/s 50 0 10.0 1.00 / 1.00 2.00 / 2.00 - - 70 0"
