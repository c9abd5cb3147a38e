from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from auxot.core.errors import LlamaError
from auxot.worker.llama.build_program import LineSplitter, run_program


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has waited for yet does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@given(st.lists(st.binary(max_size=8)))
def test_lines_are_the_same_however_they_are_cut(chunks: list[bytes]) -> None:
    """A line that comes in two pieces would be torn."""
    splitter = LineSplitter()
    lines = [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.finish()
    whole = b"".join(chunks).split(b"\n")
    assert lines == [line.decode(errors="replace").rstrip() for line in (whole if whole[-1] else whole[:-1])]


def test_an_endless_line_is_bounded() -> None:
    """A program that writes no line end would fill the memory."""
    splitter = LineSplitter()
    for _ in range(100):
        splitter.feed(b"x" * 65536)
    assert len(splitter.finish()[0]) == 65536


async def test_output_and_lines_are_given() -> None:
    """Progress on stdout or an error on stderr would be lost."""
    lines: list[str] = []
    with trio.fail_after(20):
        output = await run_program(
            ["sh", "-c", "echo one; echo two >&2"], doing="test", limit_s=10, environ=os.environ, on_line=lines.append
        )
    assert output == "one\ntwo"
    assert lines == ["one", "two"]


async def test_a_failure_tells_the_end_of_the_output() -> None:
    """The user would not see the compiler's error."""
    script = "i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo line $i; done; exit 3"
    with trio.fail_after(20), pytest.raises(LlamaError, match=r"compiling failed \(exit code 3\)") as caught:
        await run_program(["sh", "-c", script], doing="compiling", limit_s=10, environ=os.environ)
    assert str(caught.value).endswith("line 500")
    assert "line 449\n" not in str(caught.value)


async def test_a_stuck_program_is_ended() -> None:
    """A download that hangs would hang for ever."""
    with trio.fail_after(20), pytest.raises(LlamaError, match="took longer"):
        await run_program(["sleep", "1000"], doing="downloading", limit_s=0.2, environ=os.environ)


async def test_a_missing_program_is_an_error() -> None:
    """The operating system's refusal would come through as a bare OSError."""
    with trio.fail_after(20), pytest.raises(LlamaError, match="does not run"):
        await run_program(["/no/such/program"], doing="compiling", limit_s=10, environ=os.environ)


async def test_cancellation_kills_the_children_too() -> None:
    """Compilers would run on after ctrl-C."""
    pids: list[int] = []
    with trio.fail_after(20), trio.CancelScope() as scope:

        def on_line(line: str) -> None:
            pids.append(int(line))
            scope.cancel()

        await run_program(
            ["sh", "-c", "sleep 1000 & echo $!; wait"], doing="test", limit_s=10, environ=os.environ, on_line=on_line
        )
    with trio.fail_after(10):
        while is_alive(pids[0]):
            await trio.sleep(0.01)
