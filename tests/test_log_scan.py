from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from auxot.core.keys import CHEAP, Role, generate_key, hash_key, redact
from tests.log_scan import CANARY, find_secrets

ROOT = Path(__file__).parent.parent
LOGS = "import sys\ndef test_it():\n    sys.stderr.write({text!r})\n"


def run(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run a test that logs some text and passes, with this project's conftest."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    (folder / "test_one.py").write_text(LOGS.format(text=text))
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", str(folder)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, env=environ, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("secret", [generate_key(Role.API), hash_key(generate_key(Role.API), CHEAP), f"say {CANARY}"])
def test_a_secret_in_the_log_of_a_test_that_passes_fails_the_run(tmp_path, secret):
    """Whatever the parts log, the run would be green."""
    done = run(tmp_path, f'{{"event":"x","text":"{secret}"}}')
    assert done.returncode == 1, done.stdout
    assert "1 passed" in done.stdout
    assert "FOUND test_one.py::test_it" in done.stdout


def test_what_may_be_logged_does_not_fail_the_run(tmp_path):
    """Nobody could log which key it was."""
    text = f"{redact(generate_key(Role.API))} rtr_*** $argon2 " + "x" * 50
    assert find_secrets(text.encode()) == []
    assert run(tmp_path, text).returncode == 0
