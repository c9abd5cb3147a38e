from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import auxot

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("requirements.lock", "requirements-dev.lock")
WANTED = {
    "requirements.lock": PYPROJECT["dependencies"],
    "requirements-dev.lock": [*PYPROJECT["dependencies"], *PYPROJECT["optional-dependencies"]["dev"]],
}


def pins(lock: str) -> dict[str, list[str]]:
    """Return the versions of each package in a lock; some have one for old and one for new Pythons."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE):
        found.setdefault(canonicalize_name(name), []).append(version)
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_holds_what_pyproject_wants(lock: str) -> None:
    """A dependency that was added or raised would be missing on a fresh machine until `make lock`."""
    locked = pins(lock)
    for requirement in map(Requirement, WANTED[lock]):
        versions = locked.get(canonicalize_name(requirement.name), [])
        assert versions, f"{requirement.name} is not in {lock}: run make lock"
        assert all(requirement.specifier.contains(version) for version in versions), requirement


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_is_exact_and_names_no_place(lock: str) -> None:
    """Another file than the tested one could be installed, or only from one index."""
    text = (ROOT / lock).read_text()
    requirements = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert all(re.match(r"[\w.-]+==\S+", line) for line in requirements)
    assert text.count("==") >= len(requirements)
    assert all(re.search(rf"^{re.escape(line)}\n    --hash=sha256:", text, re.MULTILINE) for line in requirements)
    assert not re.search(r"://|--index|--extra|--find-links|--trusted-host|file:| @ |/", text)


def test_both_locks_agree() -> None:
    """Tests would run with other versions than `make run`."""
    developer = pins("requirements-dev.lock")
    assert {name: developer.get(name) for name in pins("requirements.lock")} == pins("requirements.lock")


def test_package_says_its_version() -> None:
    """`auxot version` would tell another version than the package index."""
    assert auxot.__version__ == PYPROJECT["version"]


def test_package_carries_its_data() -> None:
    """An installed Auxot would have no types, no demo model or no registry."""
    assert files("auxot").joinpath("py.typed").is_file()
    assert files("auxot.demo").joinpath("chat_template.jinja").is_file()
    assert files("auxot.core.models").joinpath("registry.json").is_file()


def test_license_is_whole() -> None:
    """The package would be distributed without its licence."""
    text = (ROOT / PYPROJECT["license-files"][0]).read_text()
    assert PYPROJECT["license"] == "Apache-2.0"
    assert text.lstrip().startswith("Apache License")
    assert "END OF TERMS AND CONDITIONS" in text
