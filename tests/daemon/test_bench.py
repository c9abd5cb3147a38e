"""`auxot bench`, whole: its router, its made-up workers, its made-up back end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.store.harness import free_port

TIMEOUT_S = 120


def bench(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    program = "from auxot.cli import auxot; auxot()"
    return subprocess.run(
        [sys.executable, "-c", program, "bench", "--quick", *flags],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        cwd=folder,
    )


def rows_of(result: subprocess.CompletedProcess[str], name: str = "auxot") -> dict[str, dict[str, Any]]:
    assert result.returncode == 0, result.stdout + result.stderr
    return {row["load"]: row for row in orjson.loads(result.stdout)[name]}


def test_every_token_and_answer_is_seen(tmp_path: Path) -> None:
    """The benchmark measures answers that are not whole, or leaves figures out."""
    rows = rows_of(bench(tmp_path, "--json", "--only", "one,full,queue,blocking"))
    assert set(rows) == {"one", "full", "queue", "blocking"}
    for row in rows.values():
        assert (row["n_wrong"], row["n_failed"]) == (0, 0)
        assert row["cpu_us"] is not None
        assert row["rss_mib"] > 10
        assert row["dispatch_ms"][0] > 0
    assert rows["one"]["delay_ms"][0] > 0
    assert rows["queue"]["freed_ms"][0] > 0
    assert rows["blocking"]["requests_per_s"] > 0
    assert rows["blocking"]["cpu_us"] > 0  # that of a short stream may be less than the clock shows


def test_another_gateway_is_measured_beside_ours(tmp_path: Path) -> None:
    """`--compare` measures something else than the gateway's way to the back end and back."""
    port = free_port()  # the back end itself is the fastest of gateways
    flags = ["--only", "full,blocking", "--compare", f"http://127.0.0.1:{port}/v1", "--backend-port", str(port)]
    rows = rows_of(bench(tmp_path, "--json", *flags), "other")
    for row in rows.values():
        assert (row["n_wrong"], row["n_failed"]) == (0, 0)
        assert row["first_ms" if row["load"] == "full" else "dispatch_ms"][0] > 0
    table = bench(tmp_path, *flags).stdout
    assert table.count("16 streams, no limit") == 2


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--only", "full,none"], "unknown load 'none'"),
        (["--compare", "https://127.0.0.1"], "--compare"),
        (["--compare", "http://127.0.0.1:x"], "--compare"),
        (["--backend-port", "0"], "--backend-port"),
    ],
)
def test_a_bad_command_line_is_one_clear_line(tmp_path: Path, flags: list[str], complaint: str) -> None:
    """A mistyped flag is a traceback, or measures something else."""
    result = bench(tmp_path, *flags)
    assert result.returncode == 2, result.stderr
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_gateway_that_is_not_there_is_told(tmp_path: Path) -> None:
    """A gateway that does not answer is measured as a fast one."""
    port = free_port()
    result = bench(
        tmp_path, "--only", "one", "--compare", f"http://127.0.0.1:{port}", "--backend-port", str(free_port())
    )
    assert result.returncode != 0, result.stdout
