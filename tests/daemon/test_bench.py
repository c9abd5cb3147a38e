from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench.py"


def test_the_benchmark_runs_and_sees_every_token():
    """`make bench` would fail, or measure answers that are not whole."""
    result = subprocess.run(
        [sys.executable, SCRIPT, "--streams", "3", "--tokens", "20", "--rate", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "wrong or missing           0" in result.stdout
