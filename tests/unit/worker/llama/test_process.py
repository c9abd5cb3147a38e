"""Children are real processes: small Python programs that behave well, badly, or loudly."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from auxot.core.errors import LlamaError
from auxot.worker.llama import process
from auxot.worker.llama.process import MAX_LINE_CHARS, TAIL_LINES, LineSplitter, run_child

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
SLEEPER = "import time; print('up', flush=True); time.sleep(60)"
PARENT = """
import sys, trio
from auxot.worker.llama.process import run_child

async def main():
    async with run_child([sys.executable, "-c", "import time; time.sleep(60)"], environ={}, on_line=print) as child:
        print(child.pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie that its new parent has not collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


async def wait_gone(pid: int) -> None:
    for _ in range(1000):
        if not is_alive(pid):
            return
        await trio.sleep(0.01)
    pytest.fail(f"process {pid} is still there")


async def test_child_ends_with_its_block() -> None:
    """A llama-server stays behind when its worker stops."""
    with trio.fail_after(10):
        async with run_child(python(SLEEPER), environ={}, on_line=lambda _: None) as child:
            assert is_alive(child.pid)
        assert not is_alive(child.pid)
        assert child.exit_status == "SIGTERM"


async def test_child_ends_with_a_cancelled_block() -> None:
    """A llama-server stays behind when its worker is cancelled."""
    pid = 0
    with trio.fail_after(10), trio.CancelScope() as scope:
        async with run_child(python(SLEEPER), environ={}, on_line=lambda _: None) as child:
            pid = child.pid
            scope.cancel()
            await trio.sleep_forever()
    assert pid
    assert not is_alive(pid)


async def test_child_that_ignores_term_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A llama-server that hangs keeps its worker from stopping."""
    monkeypatch.setattr(process, "STOP_GRACE_S", 0.2)
    up = trio.Event()
    with trio.fail_after(10):
        async with run_child(python(STUBBORN), environ={}, on_line=lambda _: up.set()) as child:
            await up.wait()
        assert child.exit_status == "SIGKILL"


async def test_end_and_last_lines_are_told() -> None:
    """Nobody learns why llama-server ended."""
    lines: list[str] = []
    program = "import sys; [print(n, flush=True) for n in range(100)]; sys.exit('error: no memory')"
    with trio.fail_after(10):
        async with run_child(python(program), environ={}, on_line=lines.append) as child:
            await child.exited.wait()
    assert child.exit_status == "exit code 1"
    assert lines == [*map(str, range(100)), "error: no memory"]
    assert list(child.tail) == lines[-TAIL_LINES:]


async def test_loud_child_is_never_held_up() -> None:
    """llama-server stops in the middle of a sentence because nobody reads what it prints."""
    program = "import sys; sys.stdout.write('x' * 3_000_000 + chr(10)); print('done')"
    lines: list[str] = []
    with trio.fail_after(20):
        async with run_child(python(program), environ={}, on_line=lines.append) as child:
            await child.exited.wait()
    assert [len(line) for line in lines] == [MAX_LINE_CHARS, 4]


async def test_grandchild_that_holds_the_pipe_does_not_hide_the_end() -> None:
    """The end of llama-server goes unnoticed because a helper of it still has its output open."""
    program = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(5)'])"
    with trio.fail_after(4):
        async with run_child(python(program), environ={}, on_line=lambda _: None) as child:
            await child.exited.wait()
            assert child.exit_status == "exit code 0"


async def test_program_that_is_not_there() -> None:
    """A wrong path to llama-server gives a traceback, or nothing."""
    lines: list[str] = []
    with trio.fail_after(10):
        try:
            async with run_child(["/no/such/program"], environ={}, on_line=lines.append) as child:
                await child.exited.wait()
        except LlamaError as exc:
            lines.append(str(exc))
    assert "/no/such/program: No such file or directory" in lines[-1]


@linux_only
async def test_child_dies_with_a_killed_parent() -> None:
    """A worker that is killed with SIGKILL leaves its llama-server behind."""
    with trio.fail_after(15):
        async with trio.open_nursery() as nursery:
            start = partial(trio.run_process, python(PARENT), stdout=subprocess.PIPE, check=False)
            parent = await nursery.start(start)
            pid = int(await parent.stdout.receive_some())
            await trio.sleep(0.2)  # the launcher becomes the program
            assert is_alive(pid)
            parent.send_signal(signal.SIGKILL)
            await wait_gone(pid)


@linux_only
async def test_child_outlives_the_threads_of_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes the end of an idle thread for the death of the worker, and kills llama-server."""
    monkeypatch.setattr(trio._core._thread_cache, "IDLE_TIMEOUT", 0.05)  # 10 s
    with trio.fail_after(20):
        async with run_child(python(SLEEPER), environ={}, on_line=lambda _: None) as child:
            await trio.to_thread.run_sync(lambda: None)
            while threading.active_count() > 1:  # those of earlier tests wait for their 10 s
                await trio.sleep(0.05)
            await trio.sleep(0.2)
            assert is_alive(child.pid)


@given(text=st.binary(max_size=200), cuts=st.lists(st.integers(min_value=0, max_value=200)))
def test_lines_do_not_depend_on_the_cuts(text: bytes, cuts: list[int]) -> None:
    """A line is lost or torn where two reads meet."""
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    splitter = LineSplitter()
    lines = [line for a, b in pairwise(bounds) for line in splitter.feed(text[a:b])]
    lines += splitter.end()
    whole = LineSplitter()
    assert lines == whole.feed(text) + whole.end()
    assert "\n".join(lines).count("\n") <= text.count(b"\n")
