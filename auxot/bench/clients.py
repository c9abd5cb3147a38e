"""Made-up clients: each asks, reads its answer and asks again over the same connection, until the load is through.

A streamed answer is not taken apart here: its tokens are found by their stamps, in the bytes as they come. A client
that parsed HTTP and JSON for each token would cost more than the program that is measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs
import orjson
import trio

from auxot.bench.load import Load, Samples, Tally, now_us, prompt
from auxot.bench.process import BenchError, Target

ANSWER_TIMEOUT_S = 600.0
_READ_BYTES = 256 * 1024
_HEAD_END = b"\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
MAX_FAILURES = 100  # then the measurement is over: it would tell nothing


async def run_clients(target: Target, load: Load, samples: Samples) -> None:
    """Ask all requests of a load.

    Raises:
        BenchError: too many of them fail.
    """
    turns = iter(range(load.requests))
    async with trio.open_nursery() as nursery:
        for _ in range(load.clients):
            nursery.start_soon(_run_client, target, load, samples, turns)


async def _run_client(target: Target, load: Load, samples: Samples, turns: Iterator[int]) -> None:
    """Take turns until there are none; a broken connection is opened again."""
    client: _Client | None = None
    try:
        for _ in turns:
            try:
                client = client or _Client(target, load, await trio.open_tcp_stream(target.host, target.port))
                with trio.fail_after(ANSWER_TIMEOUT_S):
                    await client.ask(samples)
            except (OSError, trio.BrokenResourceError, trio.TooSlowError, _BadAnswerError) as exc:
                _close(client)
                client = None
                samples.n_failed += 1
                if samples.n_failed >= min(MAX_FAILURES, load.requests):
                    raise BenchError(f"{samples.n_failed} requests have failed, the last one: {exc}") from exc
    finally:
        _close(client)


def _close(client: _Client | None) -> None:
    if client is not None:
        client.stream.socket.close()


class _BadAnswerError(Exception):
    """Not an answer of the kind that was asked for."""


@attrs.define
class _End:
    """Where the body of an answer ends: after so many bytes, or with the last chunk."""

    n_bytes_left: int | None
    _last: bytes = b""

    @classmethod
    def of(cls, head: bytes) -> _End:
        found = _LENGTH.search(head)
        return cls(int(found[1]) if found else None)

    def has_come(self, received: bytes) -> bool:
        if self.n_bytes_left is not None:
            self.n_bytes_left -= len(received)
            return self.n_bytes_left <= 0
        self._last = (self._last + received[-len(_LAST_CHUNK) :])[-len(_LAST_CHUNK) :]
        return self._last == _LAST_CHUNK


@attrs.define(eq=False)
class _Client:
    target: Target
    load: Load
    stream: trio.SocketStream

    async def ask(self, samples: Samples) -> None:
        """Ask once, and read the answer to its end."""
        asked_at = now_us()
        await self.stream.send_all(self._request())
        head, received = await self._read_head()
        end, tally, delays_us = _End.of(head), Tally(), list[int]()
        while True:
            if tally.feed(received, delays_us) and not tally.n_before:
                samples.first_us.append(now_us() - asked_at)
            if end.has_come(received):
                break
            received = await self._read()
        tally.finish(delays_us)
        samples.later_us += delays_us[1:]
        samples.n_wrong += tally.n_wrong + abs(self.load.tokens - tally.n_seen)

    def _request(self) -> bytes:
        body = orjson.dumps(
            {
                "model": self.target.model,
                "messages": [{"role": "user", "content": prompt()}],
                "stream": not self.load.is_blocking,
                "max_tokens": self.load.tokens,
            }
        )
        key = f"Authorization: Bearer {self.target.api_key}\r\n" if self.target.api_key else ""
        head = (
            f"POST {self.target.path} HTTP/1.1\r\nHost: {self.target.host}:{self.target.port}\r\n{key}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def _read_head(self) -> tuple[bytes, bytes]:
        """Return the head of the answer, and what has come of its body."""
        received = b""
        while _HEAD_END not in received:
            received += await self._read()
        head, _, body = received.partition(_HEAD_END)
        if not head.startswith(b"HTTP/1.1 200"):
            raise _BadAnswerError((head.partition(b"\r\n")[0] + b" " + body)[:500].decode(errors="replace"))
        return head, body

    async def _read(self) -> bytes:
        received = await self.stream.receive_some(_READ_BYTES)
        if not received:
            raise _BadAnswerError("the connection was closed in the middle of an answer")
        return received
