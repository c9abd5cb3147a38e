from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_tables_are_those_of_the_code():
    """The README would tell defaults or fields that are no longer true."""
    result = subprocess.run(
        [sys.executable, "scripts/readme_tables.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_test_that_the_promises_name_exists():
    """A promise would be held by a test that has been renamed or removed."""
    readme = (ROOT / "README.md").read_text()
    promises = readme.partition("## What is promised")[2].partition("\n## ")[0]
    named = re.findall(r"(?:::|`)(test_\w+)(\*?)", promises)
    assert named
    functions = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name, star in named:
        is_file = any((ROOT / "tests").rglob(f"{name}.py"))
        assert is_file or re.search(rf"def {name}{'' if star else r'[(]'}", functions), name
