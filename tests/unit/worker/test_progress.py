"""What is told of something that takes long, on a terminal and in a log."""

from __future__ import annotations

import io
import os
import pty
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress

import attrs
import orjson
import pytest
import trio

from auxot.core import logs
from auxot.worker.fetch.source import FetchProgress
from auxot.worker.llama.build import BuildProgress
from auxot.worker.progress import Loading, Progress, Teller

GB = 10**9


@attrs.define
class Terminal:
    """A terminal that the log goes to; `shown`, when it has been closed: all that it was sent."""

    shown: str = ""


@contextmanager
def terminal() -> Iterator[Terminal]:
    """Send the log to a terminal, to the end of the block."""
    seen = Terminal()
    read_fd, fd = pty.openpty()
    with os.fdopen(fd, "w") as screen:
        logs.configure(stream=screen)
        yield seen
        logs.configure()
    with os.fdopen(read_fd, "rb", buffering=0) as other_end, suppress(OSError):  # as a terminal tells its end
        while piece := other_end.read(4096):
            seen.shown += piece.decode()


@pytest.fixture
def log() -> Generator[io.StringIO]:
    text = io.StringIO()
    logs.configure(stream=text)
    yield text
    logs.configure()


def told(log: io.StringIO) -> list[str]:
    return [orjson.loads(line)["event"] for line in log.getvalue().splitlines()]


def fetched(n: int) -> FetchProgress:
    return FetchProgress(name="m.gguf", doing="downloading", done_bytes=n * GB, total_bytes=4 * GB, bytes_per_s=2e7)


async def tell_all(report: Teller, seconds: int) -> None:
    """Tell a step four times a second."""
    for n in range(4 * seconds):
        if isinstance(report, Progress):
            report(fetched(n % 4))
        elif isinstance(report, Loading):
            report.tell_loaded(lambda n=n: n * GB)  # type: ignore[misc]
        await trio.sleep(0.25)


async def test_a_download_is_an_event_now_and_then(log: io.StringIO, autojump_clock: trio.abc.Clock) -> None:  # noqa: ARG001 -- pytest-trio wants it here
    """A log gets four lines a second for an hour, or none."""
    with Progress() as report:
        report("asking the site")
        await tell_all(report, 12)
    assert told(log) == ["prepare.step", *["fetch.progress"] * 3]


async def test_loading_is_an_event_now_and_then(log: io.StringIO, autojump_clock: trio.abc.Clock) -> None:  # noqa: ARG001 -- pytest-trio wants it here
    """Nobody can tell from the log whether a model is still being loaded; or each start of a small one is told."""
    with Loading(step="loading m.gguf", model_bytes=40 * GB) as loading:
        await tell_all(loading, 25)
    assert told(log) == ["llama.loading"] * 2
    assert orjson.loads(log.getvalue().splitlines()[0])["resident_bytes"] == 40 * GB


async def test_a_download_is_a_bar_on_a_terminal(autojump_clock: trio.abc.Clock) -> None:  # noqa: ARG001 -- pytest-trio wants it here
    """Who starts a worker by hand waits for an hour and does not know for how long still."""
    with terminal() as seen, Progress() as report:
        report(fetched(2))
        await trio.sleep(1)
    assert seen.shown == f"\r\x1b[K[{'#' * 15}{'.' * 15}] 2.0 GB/4.0 GB, 20.0 MB/s, downloading m.gguf\r\x1b[K"


async def test_a_build_is_a_bar_on_a_terminal(autojump_clock: trio.abc.Clock) -> None:  # noqa: ARG001 -- pytest-trio wants it here
    """Who starts a worker by hand sees nothing for the minutes that a build takes."""
    with terminal() as seen, Progress() as report:
        report(BuildProgress(done=10, total=300, step="compiling"))
        await trio.sleep(1)
    assert f"[#{'.' * 29}] 10/300 compiling llama-server" in seen.shown


async def test_loading_is_a_bar_on_a_terminal(autojump_clock: trio.abc.Clock) -> None:  # noqa: ARG001 -- pytest-trio wants it here
    """Who starts a worker by hand takes a model that loads for a worker that hangs."""
    with terminal() as seen, Loading(step="loading m.gguf", model_bytes=4 * GB) as loading:
        await trio.sleep(3)
        loading.tell_loaded(lambda: 9 * GB)
    assert seen.shown == f"\r\x1b[K[{'#' * 30}] 4.0 GB/4.0 GB, 3 s, loading m.gguf\r\x1b[K"


async def test_what_is_not_known_is_no_bar(autojump_clock: trio.abc.Clock) -> None:  # noqa: ARG001 -- pytest-trio wants it here
    """An external llama-server, of whose model nobody knows the size, is shown as 0 of 0 bytes."""
    with terminal() as seen, Loading(step="waiting for the external llama-server", model_bytes=0) as loading:
        loading.tell_loaded(lambda: 0)
        await trio.sleep(1)
    assert seen.shown == "\r\x1b[K0 s, waiting for the external llama-server\r\x1b[K"
