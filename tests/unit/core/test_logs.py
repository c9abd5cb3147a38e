from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import os
import pty
import re
import struct
import termios
import threading
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auxot.core import logs
from auxot.core.keys import CHEAP, Role, generate_key, hash_key
from auxot.core.logs import MAX_LINE_BYTES, Level, get_logger

KEY = generate_key(Role.API)


@pytest.fixture
def stream():
    text = io.StringIO()
    logs.configure(level=Level.DEBUG, stream=text)
    yield text
    logs.configure()


@pytest.fixture
def pipe():
    """A pipe whose reader sleeps: (the log's end as a stream, the reader's descriptor)."""
    read_fd, write_fd = os.pipe()
    with os.fdopen(write_fd, "w") as writer:
        logs.configure(level=Level.DEBUG, stream=writer)
        yield writer, read_fd
        logs.configure()
    os.close(read_fd)


@pytest.fixture
def terminal():
    """A terminal of 40 columns that the log goes to: what is read here is what it was sent."""
    read_fd, fd = pty.openpty()
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", 24, 40, 0, 0))
    with os.fdopen(fd, "w") as screen:
        logs.configure(stream=screen)
        yield screen, read_fd
        logs.configure()
    os.close(read_fd)


def shown_on(terminal):
    """Return all that a terminal was sent; it is closed, for what is sent arrives a moment later."""
    screen, read_fd = terminal
    screen.close()
    pieces = []
    with contextlib.suppress(OSError):  # as a terminal tells its end
        while piece := os.read(read_fd, 65536):
            pieces.append(piece)
    return b"".join(pieces)


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().split("\n")[:-1]]


def drain(read_fd):
    """Read what is in the pipe now, without waiting."""
    os.set_blocking(read_fd, False)
    pieces = []
    while True:
        try:
            pieces.append(os.read(read_fd, 65536))
        except BlockingIOError:
            return b"".join(pieces)


class Unprintable:
    """A value that cannot be turned into text."""

    def __str__(self):
        raise RuntimeError("no")

    __repr__ = __str__


def test_line_has_time_level_event_then_fields(stream):
    """Whoever reads the logs by machine would not find them."""
    get_logger(worker_id="w1").bind(job_id="j1").info("job.finished", duration_ms=12)
    assert list(lines(stream)[0]) == ["ts", "level", "event", "worker_id", "job_id", "duration_ms"]
    assert lines(stream)[0] | {"ts": ""} == {
        "ts": "",
        "level": "info",
        "event": "job.finished",
        "worker_id": "w1",
        "job_id": "j1",
        "duration_ms": 12,
    }


def test_time_is_utc_with_milliseconds(stream):
    """Lines of two machines could not be put in order."""
    get_logger().info("x")
    ts = lines(stream)[0]["ts"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", ts)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(ts)).total_seconds()) < 60


@pytest.mark.parametrize("level", list(Level))
def test_only_lines_of_the_level_and_above_are_written(stream, level):
    """`AUXOT_LOG_LEVEL=warn` would still fill the disk."""
    logs.configure(level=level, stream=stream)
    log = get_logger()
    for write in (log.debug, log.info, log.warning, log.error):
        write("x")
    written = [line["level"] for line in lines(stream)]
    assert written == [one.word for one in Level if one >= level]
    assert [one for one in Level if log.is_enabled(one)] == [one for one in Level if one >= level]


def test_loggers_made_before_configure_follow_it(stream):
    """A module's logger would stay at the default level for ever."""
    log = get_logger()
    logs.configure(level=Level.ERROR, stream=stream)
    log.info("x")
    assert not stream.getvalue()


def test_exception_is_logged_with_its_traceback(stream):
    """A crash would leave no trace of where it was."""
    try:
        _ = 1 // 0
    except ZeroDivisionError:
        get_logger().exception("job.crashed", job_id="j1")
    (line,) = lines(stream)
    assert line["level"] == "error"
    assert line["error"] == "ZeroDivisionError: integer division or modulo by zero"
    assert "test_logs.py" in line["traceback"]


def test_fields_cannot_overwrite_time_level_and_event(stream):
    """A field's name would forge a line."""
    get_logger(level="debug", event="other").info("real", ts=0)
    line = lines(stream)[0]
    assert (line["level"], line["event"]) == ("info", "real")
    assert line["ts"] != 0


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (b"\xff", "\\xff"),
        (2**70, str(2**70)),
        ("\ud800", "'\\ud800'"),
        (ValueError("bad"), "ValueError: bad"),
        (Unprintable(), "<Unprintable>"),
        ({"a"}, ["a"]),
        (float("nan"), None),
        (io, str(io)),
    ],
)
def test_strange_values_do_not_break_a_line(stream, value, written):
    """Logging an odd value would raise in the middle of a job, or lose its neighbours."""
    get_logger().info("x", odd=value, job_id="j1")
    (line,) = lines(stream)
    assert line["odd"] == written
    assert line["job_id"] == "j1"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.sets(st.integers()),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), anything))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_line_is_one_json_object(stream, fields):
    """A line break or a quote in a value would cut the log."""
    stream.truncate(0)
    stream.seek(0)
    get_logger(**fields).info("x")
    assert stream.getvalue().count("\n") == 1
    assert lines(stream)[0]["event"] == "x"


def test_long_lines_are_cut_and_say_so(stream):
    """A prompt in a field by mistake would be megabytes of log."""
    get_logger().error("x", text="a" * 10 * MAX_LINE_BYTES)
    assert len(stream.getvalue()) < 200
    assert lines(stream)[0]["n_bytes_left_out"] > 10 * MAX_LINE_BYTES


@pytest.mark.parametrize(
    "name",
    ["gpu_key", "key", "Authorization", "x-api-key", "password", "redis_password", "hf_token", "token", "api_key_hash"],
)
def test_fields_with_telling_names_are_hidden(stream, name):
    """A secret that somebody logs by its own name would be in the log."""
    get_logger(**{name: "hunter2"}).info("x", **{f"n_{name}s": 3})
    assert "hunter2" not in stream.getvalue()
    assert lines(stream)[0][name] == "***"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (KEY, f"{KEY[:8]}***"),
        (f"key={KEY}, refused", f"key={KEY[:8]}***, refused"),
        (f"first\n{KEY}\x1f{KEY}", f"first\n{KEY[:8]}***\x1f{KEY[:8]}***"),
        (f"/x?key={KEY}&y", f"/x?key={KEY[:8]}***&y"),
        ("Bearer sk-123456", "Bearer ***"),
        ("authorization: bearer  abc.def", "authorization: bearer  ***"),
        ("redis://user:pa$$@host:6379/0", "redis://user:***@host:6379/0"),
        ("redis://:pass@host", "redis://:***@host"),
        (f"AUXOT_API_KEY_HASH='{hash_key(KEY, CHEAP)}", "AUXOT_API_KEY_HASH='***"),
        ("http://host:8080/a@b", "http://host:8080/a@b"),
        ("job_0123456789abcdef", "job_0123456789abcdef"),
    ],
)
def test_texts_that_look_like_secrets_are_hidden(stream, text, shown):
    """A secret inside a message, a URL or a list would be in the log."""
    get_logger().info("x", message=text, deep=[{"a": text}])
    assert lines(stream)[0]["message"] == shown
    assert lines(stream)[0]["deep"] == [{"a": shown}]


def test_key_in_a_traceback_is_hidden(stream):
    """An exception that quotes a key would put it into the log."""
    try:
        raise ValueError(f"bad key {KEY}")  # noqa: TRY301 - to have it in a traceback
    except ValueError:
        get_logger().exception("x")
    assert KEY not in stream.getvalue()


def test_full_pipe_drops_lines_and_tells_how_many(pipe):
    """A pipe that nobody reads would stop the router; or lines would be missing and nobody knew."""
    _, read_fd = pipe
    log = get_logger()
    for n in range(2000):
        log.info("x", n=n, padding="p" * 100)
    first = drain(read_fd)
    log.info("after")
    rest = drain(read_fd)
    written = [json.loads(line) for line in (first + rest).splitlines()]
    numbers = [line["n"] for line in written if line["event"] == "x"]
    (dropped,) = [line for line in written if line["event"] == "log.dropped"]
    assert numbers == list(range(len(numbers)))
    assert 0 < len(numbers) == 2000 - dropped["n_lines"]
    assert written[-1]["event"] == "after"


def test_line_longer_than_a_piece_goes_through_a_pipe_whole(pipe):
    """A traceback would be cut after 4 KiB."""
    _, read_fd = pipe
    get_logger().error("x", traceback="t" * 20_000)
    assert json.loads(drain(read_fd))["traceback"] == "t" * 20_000


def test_pipe_made_non_blocking_by_another_process_loses_nothing(pipe):
    """A shell that shares the pipe and makes it non-blocking would tear lines."""
    writer, read_fd = pipe
    os.set_blocking(writer.fileno(), False)
    log = get_logger()
    for n in range(100):
        log.info("x", n=n, padding="p" * 3000)
    content = drain(read_fd)
    log.info("last")
    content += drain(read_fd)
    assert [json.loads(line) for line in content.splitlines()][-1]["event"] == "last"


def test_reader_that_went_away_is_survived():
    """`auxot-router 2>&1 | head` would crash the router."""
    read_fd, write_fd = os.pipe()
    with os.fdopen(write_fd, "w") as writer:
        logs.configure(stream=writer)
        os.close(read_fd)
        get_logger().info("x")
        logs.configure()


def test_closed_stream_is_survived():
    """A late line in a process that ends would raise."""
    text = io.StringIO()
    text.close()
    logs.configure(stream=text)
    get_logger().info("x")
    logs.show_below("x")
    assert not logs.has_terminal()
    logs.configure()


def test_standard_error_is_the_default(capfd):
    """Answers of commands on standard output would be mixed with logs."""
    logs.configure()
    get_logger().info("x")
    captured = capfd.readouterr()
    assert json.loads(captured.err)["event"] == "x"
    assert captured.out == ""


def test_lines_of_threads_do_not_mix(stream):
    """Two lines would be written into each other."""

    def work(name):
        for n in range(200):
            get_logger(thread_name=name).info("x", n=n)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    for name in "abcd":
        assert [line["n"] for line in lines(stream) if line["thread_name"] == name] == list(range(200))


def test_warnings_of_libraries_become_lines(stream):
    """Errors of the HTTP server would be plain text between JSON lines, or lost."""
    library = logging.getLogger("some.library")
    library.info("not this")
    library.warning("disk %s", "slow")
    library.error("fields: %d", 3)
    try:
        raise OSError("gone")  # noqa: TRY301 - to have a traceback
    except OSError:
        library.exception("failed")
    slow, bad, failed = lines(stream)
    assert (slow["event"], slow["logger"], slow["message"]) == ("library.log", "some.library", "disk slow")
    assert (bad["level"], bad["message"]) == ("error", "fields: 3")
    assert failed["error"] == "OSError: gone"


def test_bad_format_of_a_library_is_survived(stream):
    """A bug in a library's log call would raise in our handler."""
    (handler,) = [one for one in logging.getLogger().handlers if type(one).__module__ == logs.__name__]
    handler.emit(logging.LogRecord("some.library", logging.ERROR, "file", 1, "bad format %d", ("text",), None))
    assert "bad format %d" in lines(stream)[0]["message"]


def test_a_line_below_the_log_gives_way_to_the_next_line(terminal):
    """Bars and log lines are written into each other, and nobody can read either."""
    assert logs.has_terminal()
    logs.show_below("half done")
    get_logger().info("x")
    get_logger().info("y")
    assert re.split(rb"\{.*?\}", shown_on(terminal)) == [b"\r\x1b[Khalf done\r\x1b[K", b"\r\n", b"\r\n"]


def test_a_line_below_the_log_fits_the_terminal(terminal):
    """A line that is wider than the terminal is never taken away again."""
    logs.show_below("x" * 100)
    logs.show_below("")
    logs.show_below("")
    assert shown_on(terminal) == b"\r\x1b[K" + b"x" * 39 + b"\r\x1b[K"


def test_nothing_is_shown_below_a_log_that_is_no_terminal(pipe):
    """A log file is full of bars."""
    _, read_fd = pipe
    assert not logs.has_terminal()
    logs.show_below("half done")
    assert drain(read_fd) == b""


def test_a_terminal_that_went_away_is_survived(terminal):
    """The user closes the window, and the worker crashes at the next bar."""
    null_fd = os.open(os.devnull, os.O_RDWR)
    os.dup2(null_fd, terminal[1])  # closes the terminal's other end
    os.close(null_fd)
    logs.show_below("half done")
    logs.show_below("")
