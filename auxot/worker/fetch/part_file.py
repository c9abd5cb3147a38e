"""A file that is not whole yet, and the journal that says what of it is there.

    NAME.part        as long as the file will be, with holes where nothing has come yet
    NAME.part.json   size, hash, and for each segment how many of its bytes are there

Whatever the journal says is there has been written before: a process that is killed at any moment loses at most what
came after the last journal. After a power cut the disk may have less than the journal says; the hash finds out.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import attrs
import orjson

from auxot.worker.fetch.source import Source

_PART, _JOURNAL = ".part", ".part.json"
_OWNER_ONLY_WRITES = 0o644


@attrs.define
class Segment:
    """Bytes `start` to `end` (not included), of which the first `done` are there."""

    start: int
    end: int
    done: int = 0

    @property
    def position(self) -> int:
        """Where the next byte goes."""
        return self.start + self.done

    @property
    def missing(self) -> int:
        """How many bytes are still to come."""
        return self.end - self.position


@attrs.define(kw_only=True, eq=False)
class PartFile:
    """A file on its way. Segments are changed by the task that fetches them; one process has it open at a time."""

    path: Path
    source: Source
    segments: list[Segment]
    was_resumed: bool
    _fd: int

    @property
    def done_bytes(self) -> int:
        """How much is there."""
        return sum(segment.done for segment in self.segments)

    @property
    def missing_bytes(self) -> int:
        """How much is still to come."""
        return self.source.size_bytes - self.done_bytes

    @property
    def file(self) -> Path:
        """Where its bytes are."""
        return part_path(self.path)

    def write(self, position: int, chunk: bytes | bytearray) -> None:
        """Write bytes at a place; OSError if the disk does not take them."""
        view = memoryview(chunk)
        while view:
            n = os.pwrite(self._fd, view, position)
            view, position = view[n:], position + n

    def journal(self) -> bytes:
        """Return the journal as of now."""
        rows = [[segment.start, segment.end, segment.done] for segment in self.segments]
        return orjson.dumps({**_identity(self.source), "segments": rows})

    def save_journal(self, journal: bytes) -> None:
        """Put a journal in the place of the last one."""
        fresh = _journal_path(self.path).with_suffix(".new")
        try:
            fresh.write_bytes(journal)
            fresh.replace(_journal_path(self.path))
        except OSError:  # a full disk takes the name, and nothing else
            fresh.unlink(missing_ok=True)
            raise

    def start_over(self, segment_bytes: int) -> None:
        """Forget what is there."""
        self.segments[:] = cut(self.source.size_bytes, segment_bytes)
        self.was_resumed = False
        self.save_journal(self.journal())

    def finish(self) -> None:
        """Give the whole file its name."""
        os.fsync(self._fd)
        self.file.replace(self.path)
        _journal_path(self.path).unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove what is there."""
        _journal_path(self.path).unlink(missing_ok=True)
        self.file.unlink(missing_ok=True)

    def close(self) -> None:
        """Close it, with its journal up to date where it is not finished."""
        if self.file.exists():
            with contextlib.suppress(OSError):  # a full disk: the last journal holds
                self.save_journal(self.journal())
        os.close(self._fd)


def open_part(path: Path, source: Source, segment_bytes: int) -> PartFile:
    """Open the part of a file, with what an earlier process left of the same file.

    Raises:
        OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    segments = _read_journal(path, source) if part_path(path).exists() else None
    fd = os.open(part_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _OWNER_ONLY_WRITES)
    part = PartFile(
        path=path,
        source=source,
        segments=segments or cut(source.size_bytes, segment_bytes),
        was_resumed=segments is not None,
        fd=fd,
    )
    try:
        os.ftruncate(fd, source.size_bytes)
    except OSError:
        os.close(fd)
        raise
    return part


def part_path(path: Path) -> Path:
    """Return where the bytes of a file are while it is not whole."""
    return path.with_name(path.name + _PART)


def allocated_bytes(path: Path) -> int:
    """Return what the part of a file takes on the disk already."""
    try:
        return part_path(path).stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def cut(size_bytes: int, segment_bytes: int) -> list[Segment]:
    """Return the segments of a file of that size, none of which is there."""
    starts = range(0, size_bytes, segment_bytes)
    return [Segment(start, min(start + segment_bytes, size_bytes)) for start in starts]


def _read_journal(path: Path, source: Source) -> list[Segment] | None:
    """Return what a journal says of this very file; None if it is of another one, or cannot be understood."""
    try:
        journal = orjson.loads(_journal_path(path).read_bytes())
        segments = [Segment(*map(int, row)) for row in journal.pop("segments")]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    joined = [0, *(segment.end for segment in segments)]
    is_whole = all(
        segment.start == end and 0 <= segment.done <= segment.end - segment.start
        for segment, end in zip(segments, joined, strict=False)
    )
    return segments if journal == _identity(source) and is_whole and joined[-1] == source.size_bytes else None


def _identity(source: Source) -> dict[str, object]:
    return {"name": source.name, "size": source.size_bytes, "sha256": source.sha256}


def _journal_path(path: Path) -> Path:
    return path.with_name(path.name + _JOURNAL)
