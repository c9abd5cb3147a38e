"""JSON logs with bound fields: one object a line, on standard error.

    {"ts":"2026-01-31T12:00:00.123Z","level":"info","event":"job.finished","job_id":"job-1","duration_ms":812}

`ts`, `level` and `event` come first, then the bound fields, then those of the call. Everything goes to standard
error: standard output belongs to the answers of the commands, and a service manager collects both.

A logger never raises and never waits. Before each piece that is written the file is asked whether it takes it; a
line that finds a full pipe (nobody reads it) is dropped and counted, and `log.dropped` tells the count as soon as
the reader is back. One piece of at most PIPE_BUF bytes never blocks on a pipe that says it is writable, unless
another process fills that same pipe in between.

Secrets are the caller's duty; as a second line of defence fields with telling names are replaced, and so is every
text that looks like a key, a bearer token, a key hash or the password of a URL.

On a terminal one more line can stand below the log: how far something is (`show_below`). The next log line takes its
place.

Owner: the process. Loggers are values that share one sink, set by `configure`; all of it may be used from threads.
"""

from __future__ import annotations

import enum
import logging
import os
import re
import select
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

import attrs
import orjson

MAX_LINE_BYTES = 64 * 1024  # a longer one is a mistake: its fields are left out
MAX_TRACEBACK_CHARS = 16 * 1024  # the end is kept: it says what happened
_CLEAR_LINE = b"\r\x1b[K"  # of the terminal: to its beginning, and away with what stands there
_DEFAULT_COLUMNS = 80  # of a terminal that does not say
_PIECE_BYTES = getattr(select, "PIPE_BUF", 512)  # 512: what POSIX guarantees

_HIDDEN = "***"
_SECRET_NAMES = re.compile(
    r"authorization|cookie|password|passwd|secret|credential|apikey|(?:^|[_-])(?:key|token|key_hash)$", re.IGNORECASE
)
# On the bytes of a line: a word may begin after an escape such as \n. A key keeps its first 8 characters, so that a
# line can be matched to it.
_WORD_BEGINS = rb"(?:(?<![\w\\-])|(?<=\\[\\bfnrt])|(?<=\\u[0-9a-f]{4}))"
_SECRET_TEXTS = (
    (re.compile(_WORD_BEGINS + rb"(?=[a-z]{2,8}_[\w-]{43}(?![\w-]))([\w-]{8})[\w-]+"), rb"\1***"),
    (re.compile(rb"(?i)\b(bearer\s+)[^\s\"\\]+"), rb"\1***"),
    (re.compile(rb"\$argon2[a-z]*\$[^\s\"\\]*"), rb"***"),
    (re.compile(rb"(://[^\s\"/:@]*:)[^\s\"/@]+@"), rb"\1***@"),
)


class Level(enum.IntEnum):
    """How bad a line is; the numbers are those of the standard library."""

    DEBUG = 10  # a line a frame
    INFO = 20  # a line a life-cycle step
    WARNING = 30  # someone must look this week
    ERROR = 40  # someone lost something

    @property
    def word(self) -> str:
        """The level as it stands in a log line."""
        return self.name.lower()


@attrs.frozen
class Logger:
    """Something to log with; carries the fields that all its lines share. Make one with `get_logger`."""

    _bound: Mapping[str, Any]

    def bind(self, **fields: Any) -> Logger:
        """Return a logger whose lines carry these fields too."""
        return Logger({**self._bound, **fields})

    def is_enabled(self, level: Level) -> bool:
        """Whether lines of that level are written: ask before computing fields that are costly."""
        return level >= _sink.level

    def debug(self, event: str, /, **fields: Any) -> None:
        """Log one line. `event`: constant, dotted (`job.finished`); values belong into fields."""
        if _sink.level <= Level.DEBUG:
            self._log(Level.DEBUG, event, fields)

    def info(self, event: str, /, **fields: Any) -> None:
        """Log one line; arguments as `debug`."""
        if _sink.level <= Level.INFO:
            self._log(Level.INFO, event, fields)

    def warning(self, event: str, /, **fields: Any) -> None:
        """Log one line; arguments as `debug`."""
        if _sink.level <= Level.WARNING:
            self._log(Level.WARNING, event, fields)

    def error(self, event: str, /, **fields: Any) -> None:
        """Log one line; arguments as `debug`."""
        if _sink.level <= Level.ERROR:
            self._log(Level.ERROR, event, fields)

    def exception(self, event: str, /, **fields: Any) -> None:
        """Log an error with `error` and `traceback` of the exception that is being handled; arguments as `debug`."""
        if _sink.level <= Level.ERROR:
            self._log(Level.ERROR, event, {**fields, **_exception_fields(sys.exception())})

    def _log(self, level: Level, event: str, fields: Mapping[str, Any]) -> None:
        _sink.write(_line(level, event, {**self._bound, **fields}))


def get_logger(**bound: Any) -> Logger:
    """Return a logger whose lines carry these fields. Cheap; may be called before `configure`."""
    return Logger(bound)


def configure(*, level: Level = Level.INFO, stream: TextIO | None = None) -> None:
    """Set what is logged and where, for the whole process; loggers that exist follow.

    Warnings and errors of libraries, which use the standard library's `logging`, become `library.log` lines.

    Args:
        level: the lowest level that is written.
        stream: where to; None: standard error, whatever it is when a line is written.
    """
    global _sink  # noqa: PLW0603 - one process, one log
    _sink = _Sink(level=level, stream=stream)
    root = logging.getLogger()
    if not any(isinstance(handler, _LibraryHandler) for handler in root.handlers):
        root.addHandler(_LibraryHandler(logging.WARNING))


def has_terminal() -> bool:
    """Tell whether somebody sees the log as it is written, and what `show_below` shows."""
    return _sink.terminal() is not None


def show_below(text: str) -> None:
    """Show a line below the log of a terminal, in place of the one before; elsewhere nothing. Never raises or waits.

    Args:
        text: of one line; what is wider than the terminal is cut off. "": no line.
    """
    _sink.show_below(text)


class _Sink:
    """Where lines go. `_rest` is what the file has not taken yet, at most a line and a `log.dropped`."""

    def __init__(self, *, level: Level, stream: TextIO | None) -> None:
        self.level = level
        self._stream = stream
        self._rest = b""
        self._n_dropped = 0
        self._has_line_below = False
        self._lock = threading.RLock()  # held for microseconds; re-entrant because a finalizer may log

    def write(self, line: bytes) -> None:
        """Write a line, or count it as dropped. Never raises, never waits."""
        with self._lock:
            try:
                self._write(line)
            except (OSError, ValueError):  # the disk is full, the reader is gone, the stream is closed
                self._rest = b""
                self._n_dropped += 1

    def terminal(self) -> int | None:
        """Return the descriptor of the terminal that lines go to, None if it is none."""
        try:
            fd = _descriptor(self._stream or sys.stderr)
        except ValueError:  # the stream is closed
            return None
        return fd if fd is not None and os.isatty(fd) else None

    def show_below(self, text: str) -> None:
        """Show a line below the log, or take it away."""
        with self._lock:
            try:
                self._show_below(text)
            except (OSError, ValueError):  # the terminal is gone
                self._has_line_below = False

    def _show_below(self, text: str) -> None:
        fd = self.terminal()
        if fd is None or self._rest or not (text or self._has_line_below) or not _is_writable(fd):
            return
        n_columns = os.get_terminal_size(fd).columns or _DEFAULT_COLUMNS
        shown = text[: n_columns - 1].encode(errors="replace")  # a full line would begin another
        os.write(fd, (_CLEAR_LINE + shown)[:_PIECE_BYTES])
        self._has_line_below = bool(text)

    def _write(self, line: bytes) -> None:
        stream = self._stream or sys.stderr
        fd = _descriptor(stream)
        if fd is None:
            if stream is not None:  # it is None in a process without a standard error
                stream.write(line.decode())
                stream.flush()
            return
        self._flush(fd)
        if self._rest:
            self._n_dropped += 1
            return
        if self._n_dropped:
            self._rest = _line(Level.WARNING, "log.dropped", {"n_lines": self._n_dropped})
            self._n_dropped = 0
        if self._has_line_below:
            self._rest = _CLEAR_LINE + self._rest
            self._has_line_below = False
        self._rest += line
        self._flush(fd)

    def _flush(self, fd: int) -> None:
        while self._rest and _is_writable(fd):
            try:
                n_written = os.write(fd, self._rest[:_PIECE_BYTES])
            except BlockingIOError:  # somebody made the file non-blocking, and it is full after all
                return
            self._rest = self._rest[n_written:]


class _LibraryHandler(logging.Handler):
    """Turns records of the standard library's `logging` into our lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; never raises."""
        try:
            message = record.getMessage()
        except Exception as exc:  # noqa: BLE001 - a library's format string and arguments do not fit
            message = f"{record.msg!r}: {exc}"
        fields = {"logger": record.name, "message": message}
        if record.exc_info:
            fields |= _exception_fields(record.exc_info[1])
        level = Level.ERROR if record.levelno >= logging.ERROR else Level.WARNING
        if _sink.level <= level:
            _sink.write(_line(level, "library.log", fields))


def _descriptor(stream: TextIO | None) -> int | None:
    """Return the file descriptor to write to, or None if there is none (a StringIO, a captured stream)."""
    if stream is None or not hasattr(select, "poll"):
        return None
    try:
        return stream.fileno()
    except OSError:  # io.UnsupportedOperation
        return None


def _is_writable(fd: int) -> bool:
    """Whether a piece can be written without waiting. An error counts as yes: the write will tell."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


def _line(level: Level, event: str, fields: Mapping[str, Any]) -> bytes:
    """Return one log line with its newline; never raises. A value that cannot be written is quoted in ASCII."""
    now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
    head = {"ts": now.replace("+00:00", "Z"), "level": level.word, "event": event}
    shown = {name: _HIDDEN if _is_secret(name, value) else value for name, value in fields.items()}
    try:
        text = _dumps({**head, **shown, **head})  # twice: first in order, and not to be overwritten
    except Exception:  # noqa: BLE001 - a value's own __str__ may raise anything, and a log must not fail its caller
        text = _dumps({_quoted(name): _quoted(value) for name, value in ({**head, **shown, **head}).items()})
    for pattern, replacement in _SECRET_TEXTS:
        text = pattern.sub(replacement, text)
    if len(text) > MAX_LINE_BYTES:
        text = _dumps({**head, "event": event[:1000], "n_bytes_left_out": len(text)})
    return text + b"\n"


def _dumps(fields: Mapping[str, Any]) -> bytes:
    return orjson.dumps(fields, default=_plain, option=orjson.OPT_NON_STR_KEYS)


def _quoted(value: Any) -> Any:
    """Return the value if it can be written, else a text that can: lone surrogates, huge integers, failing __str__."""
    try:
        _dumps(value)
    except Exception:  # noqa: BLE001 - see _line
        try:
            return ascii(value)
        except Exception:  # noqa: BLE001 - see _line
            return f"<{type(value).__name__}>"
    return value


def _is_secret(name: str, value: Any) -> bool:
    return isinstance(value, str | bytes) and _SECRET_NAMES.search(name) is not None


def _plain(value: Any) -> Any:
    """Return something that JSON knows in place of a value that it does not know."""
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    if isinstance(value, bytes | bytearray):
        return value.decode(errors="backslashreplace")
    if isinstance(value, set | frozenset):
        return list(value)
    return str(value)


def _exception_fields(exc: BaseException | None) -> dict[str, Any]:
    if exc is None:
        return {}
    text = "".join(traceback.format_exception(exc))
    return {"error": f"{type(exc).__name__}: {exc}", "traceback": text[-MAX_TRACEBACK_CHARS:]}


_sink = _Sink(level=Level.INFO, stream=None)
