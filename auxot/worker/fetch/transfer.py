"""One file over several connections, from where the last process stopped, verified before it gets its name.

    probe -> NURSERY of `connections` tasks, each: next segment -> GET with Range -> write -> journal
          -> SHA-256 -> rename

A connection that breaks, stalls or brings an error that may pass is opened again where it was, with a growing pause
while next to nothing comes. A site that does not know ranges is read in one piece; that cannot be resumed.

Cancel-safe: what has come stays, for the next try.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from pathlib import Path

import attrs
import httpx
import trio

from auxot.core.errors import FetchError, first_error
from auxot.core.logs import get_logger
from auxot.core.sizes import show_bytes
from auxot.worker.fetch.disk import MAKE_ROOM, disk_errors
from auxot.worker.fetch.http import PassingError, RefusedByServerError, check_status, told
from auxot.worker.fetch.part_file import PartFile, Segment, allocated_bytes, open_part
from auxot.worker.fetch.source import MIB, FetchProgress, Patience, Report, Source

_BUFFER_BYTES = MIB  # a thread for each smaller piece would cost more than the piece; but after 1 s it is written
_HASH_BYTES = 64 * MIB  # at once in a thread: some 50 ms, so that a cancelled download ends soon
_JOURNAL_S = 1.0
_WRITE_LIMIT_S = 10.0  # only for waiting for a thread: what is being written is written
_REPORT_S = 0.2
_SPARE_BYTES = 64 * MIB  # a disk that is full to the last byte is of no use to anybody
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")

_log = get_logger()


class NoRangesError(Exception):
    """The site answers a request for a part with the whole."""


async def download(
    client: httpx.AsyncClient, source: Source, path: Path, *, patience: Patience, report: Report
) -> None:
    """Download a file; the caller holds the lock on its place.

    Args:
        client: of `open_client`.
        source: the file.
        path: what it is called when it is whole; until then it is `path`.part.
        patience: how to go on.
        report: is told how far it is, five times a second at most.

    Raises:
        FetchError: it cannot be had, or is not what it must be.
    """
    require_space(path.parent, [(path, source.size_bytes)])
    with disk_errors(path):
        part = await trio.to_thread.run_sync(open_part, path, source, patience.segment_bytes)
    try:
        await _Transfer(client, part, patience, report).run()
    finally:
        part.close()


def require_space(folder: Path, wanted: list[tuple[Path, int]]) -> None:
    """Raise FetchError if a disk has no room for files, given their paths and sizes in bytes."""
    needed = sum(max(0, size - allocated_bytes(path)) for path, size in wanted) + _SPARE_BYTES
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise FetchError(
            f"{folder} has {show_bytes(free)} free and needs {show_bytes(needed)}, {show_bytes(needed - free)} more:"
            f" {MAKE_ROOM}"
        )


@attrs.define(eq=False)
class _Transfer:
    """One download under way."""

    _client: httpx.AsyncClient
    _part: PartFile
    _patience: Patience
    _report: Report
    _has_ranges: bool = True
    _is_saving: bool = False
    _saved_at: float = attrs.field(factory=trio.current_time)
    _meter: _Meter = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._meter = _Meter(self._part, self._report)

    async def run(self) -> None:
        """Fetch what is missing, verify, and give the file its name; once more if what was there is broken."""
        was_resumed = self._part.was_resumed
        if was_resumed:
            _log.info("fetch.resumed", file=self._part.source.name, done_bytes=self._part.done_bytes)
        await self._fetch()
        if not await self._is_right(may_be_wrong=was_resumed):
            _log.warning("fetch.started_over", file=self._part.source.name, reason="what was there was broken")
            self._part.start_over(self._patience.segment_bytes)
            await self._fetch()
            await self._is_right(may_be_wrong=False)
        with self._disk_errors():
            await trio.to_thread.run_sync(self._part.finish)

    async def _fetch(self) -> None:
        error: FetchError | None = None
        try:
            await self._fetch_segments()
        except* NoRangesError:
            self._has_ranges = False
        except* FetchError as group:
            error = first_error(group)  # type: ignore[assignment]  # of a group of FetchErrors
        if error is not None:
            raise error
        if not self._has_ranges:
            await self._fetch_in_one_piece()

    async def _fetch_segments(self) -> None:
        missing = (segment for segment in self._part.segments if segment.missing)
        async with trio.open_nursery() as transfer_nursery:
            for _ in range(self._patience.connections):
                transfer_nursery.start_soon(self._work, missing)

    async def _fetch_in_one_piece(self) -> None:
        self._part.start_over(self._part.source.size_bytes)
        await self._work(iter(self._part.segments))

    async def _work(self, missing: Iterator[Segment]) -> None:
        """Fetch one segment after the other; the tasks share the iterator."""
        for segment in missing:
            await self._complete(segment)

    async def _complete(self, segment: Segment) -> None:
        n_failures = 0
        while segment.missing:
            before = segment.done
            try:
                await self._stream(segment)
            except (httpx.TransportError, httpx.TooManyRedirects, PassingError) as exc:
                n_failures = 1 if segment.done - before >= self._patience.stall_bytes else n_failures + 1
                await self._pause(exc, n_failures)

    async def _pause(self, exc: Exception, n_failures: int) -> None:
        source = self._part.source
        if n_failures >= self._patience.max_failures:
            raise FetchError(
                f"{source.name}: {source.host} {told(exc)} ({n_failures} tries in a row); what has come is kept:"
                " try again, or fetch it by another way"
            ) from exc
        delay_s = max(self._patience.delay_s(n_failures), getattr(exc, "retry_after_s", 0.0))
        _log.debug("fetch.retry", file=source.name, reason=told(exc), retry_ms=round(delay_s * 1000))
        await trio.sleep(delay_s)

    async def _stream(self, segment: Segment) -> None:
        """Read what one request brings; PassingError if it is less than was asked for."""
        if not self._has_ranges:
            segment.done = 0
        source = self._part.source
        wanted = {"range": f"bytes={segment.position}-{segment.end - 1}"} if self._has_ranges else {}
        headers = {**source.headers, **wanted}
        with trio.move_on_after(self._patience.stall_s) as stall:
            async with self._client.stream("GET", source.url, headers=headers, follow_redirects=True) as response:
                self._check(response, segment)
                await self._read(response, segment, stall)
        if stall.cancelled_caught:
            raise PassingError("sends next to nothing")
        if segment.missing:
            raise PassingError("ended too early")

    def _check(self, response: httpx.Response, segment: Segment) -> None:
        try:
            check_status(response)
        except RefusedByServerError as exc:
            if exc.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise FetchError(f"{self._part.source.name}: the file there has changed; try again") from exc
            raise
        if not self._has_ranges:
            return
        if response.status_code == HTTPStatus.OK:
            raise NoRangesError
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        size = str(self._part.source.size_bytes)
        if match is None or int(match[1]) != segment.position or match[3] not in (size, "*"):
            raise PassingError("sent another part than asked for")

    async def _read(self, response: httpx.Response, segment: Segment, stall: trio.CancelScope) -> None:
        """Read to the end of the answer, so that its connection serves the next one; but not beyond the segment.

        The loop is left from within the connection only, at its end or when that is cancelled: httpx's generators
        would be abandoned otherwise.
        """
        buffer, n_seen, written_at = bytearray(), 0, trio.current_time()
        error: FetchError | None = None
        with trio.CancelScope() as rest:
            try:
                async for chunk in response.aiter_raw():
                    room = 0 if error else segment.missing - len(buffer)
                    buffer += chunk[:room]
                    n_seen += len(chunk)
                    if n_seen >= self._patience.stall_bytes:
                        n_seen, stall.deadline = 0, trio.current_time() + self._patience.stall_s
                    is_due = len(buffer) >= _BUFFER_BYTES or trio.current_time() - written_at >= _JOURNAL_S
                    if is_due and not error:
                        error = await self._write(segment, buffer)
                        buffer, written_at = bytearray(), trio.current_time()
                    if error or len(chunk) > room:
                        rest.cancel()
            finally:
                if error is None:
                    self._write_now(segment, buffer)
        if error is not None:
            raise error

    async def _write(self, segment: Segment, buffer: bytearray) -> FetchError | None:
        """Write, and journal now and then; return what went wrong: the segment then ends before this."""
        try:
            with self._disk_errors(), trio.move_on_after(_WRITE_LIMIT_S, shield=True) as scope:
                await trio.to_thread.run_sync(self._part.write, segment.position, buffer, limiter=_DISK)
                segment.done += len(buffer)
                self._meter.tell()
                await self._journal_now_and_then()
        except FetchError as exc:
            return exc
        return FetchError(f"the disk of {self._part.path.parent} is too slow") if scope.cancelled_caught else None

    async def _journal_now_and_then(self) -> None:
        now = trio.current_time()
        if self._is_saving or now - self._saved_at < _JOURNAL_S:
            return
        self._is_saving, self._saved_at = True, now
        try:
            await trio.to_thread.run_sync(self._part.save_journal, self._part.journal(), limiter=_DISK)
        finally:
            self._is_saving = False

    def _write_now(self, segment: Segment, buffer: bytearray) -> None:
        """Keep the last bytes of a connection: less than 1 MiB, and perhaps all that it brought."""
        if buffer:
            with self._disk_errors():
                self._part.write(segment.position, buffer)
            segment.done += len(buffer)
            self._meter.tell()

    def _disk_errors(self) -> contextlib.AbstractContextManager[None]:
        return disk_errors(self._part.path, lambda: self._part.missing_bytes)

    async def _is_right(self, *, may_be_wrong: bool) -> bool:
        """Tell whether the file has its hash. One that has not is removed, and an error unless it may be wrong."""
        source = self._part.source
        if source.sha256 is None:
            _log.warning("fetch.unverified", file=source.name, reason="nobody says what its SHA-256 is")
            return True
        actual = await self._digest()
        if actual == source.sha256:
            return True
        if may_be_wrong:
            return False
        self._part.discard()
        raise FetchError(
            f"{source.name} from {source.host} is not what it must be: its SHA-256 is {actual}, not {source.sha256};"
            " it was removed"
        )

    async def _digest(self) -> str:
        digest, meter = hashlib.sha256(), _Meter(self._part, self._report, doing="verifying")
        with self._disk_errors(), self._part.file.open("rb") as file:
            while n := await trio.to_thread.run_sync(partial(_hash_some, file.fileno(), digest), limiter=_DISK):
                meter.n_hashed += n
                meter.tell()
        return digest.hexdigest()


@attrs.define(eq=False)
class _Meter:
    """Tells how far it is, and how fast it goes: over the time since it began."""

    _part: PartFile
    _report: Report
    doing: str = "downloading"
    n_hashed: int = 0
    _began_at: float = attrs.field(factory=trio.current_time)
    _told_at: float = 0.0
    _n_before: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._n_before = self._n_done()

    def tell(self) -> None:
        """Report, unless that was done just now."""
        now, done, total = trio.current_time(), self._n_done(), self._part.source.size_bytes
        if now - self._told_at < _REPORT_S and done < total:
            return
        self._told_at = now
        speed = (done - self._n_before) / max(now - self._began_at, 0.001)
        self._report(
            FetchProgress(
                name=self._part.source.name, doing=self.doing, done_bytes=done, total_bytes=total, bytes_per_s=speed
            )
        )

    def _n_done(self) -> int:
        return self.n_hashed if self.doing == "verifying" else self._part.done_bytes


def _hash_some(fd: int, digest: hashlib._Hash) -> int:
    """Hash the next piece of a file; return its length, 0 at the end."""
    n_read = 0
    while n_read < _HASH_BYTES and (chunk := os.read(fd, MIB)):
        digest.update(chunk)
        n_read += len(chunk)
    return n_read


_DISK = trio.CapacityLimiter(8)  # threads that write and hash: more would only wait for the disk
