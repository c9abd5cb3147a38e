from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SKIPPING = {
    "in_a_test": "import pytest\ndef test_it(): pytest.skip('no server')",
    "by_a_mark": "import pytest\n@pytest.mark.skip(reason='later')\ndef test_it(): pass",
    "of_a_module": "import pytest\npytest.importorskip('no_such_module_here')\ndef test_it(): pass",
}


def run_pytest(folder: Path, *, ci: bool) -> int:
    environ = {name: value for name, value in os.environ.items() if name != "CI"} | ({"CI": "true"} if ci else {})
    environ["PYTHONPATH"] = str(Path(__file__).parent.parent)  # what conftest imports
    (folder / "conftest.py").write_bytes(Path(__file__).with_name("conftest.py").read_bytes())
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    return subprocess.run(argv, env=environ, cwd=folder, capture_output=True, check=False, timeout=60).returncode


@pytest.mark.parametrize("source", SKIPPING.values(), ids=SKIPPING.keys())
def test_a_skip_fails_in_ci(source: str, tmp_path: Path) -> None:
    """A test that did not run would let CI pass."""
    (tmp_path / "test_skipping.py").write_text(source)
    assert run_pytest(tmp_path, ci=True) in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)


def test_a_skip_is_fine_elsewhere(tmp_path: Path) -> None:
    """A developer without redis-server could not run the other tests."""
    (tmp_path / "test_skipping.py").write_text(SKIPPING["in_a_test"] + "\ndef test_other(): pass")
    assert run_pytest(tmp_path, ci=False) == pytest.ExitCode.OK


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    """A test marked xfail would fail in CI."""
    (tmp_path / "test_failing.py").write_text("import pytest\n@pytest.mark.xfail\ndef test_it(): assert False")
    assert run_pytest(tmp_path, ci=True) == pytest.ExitCode.OK
