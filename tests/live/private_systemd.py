"""A systemd of the test's own: a user manager in namespaces of its own, with a home that is the test's folder.

It sees this machine's programs and its loopback network, and nothing of the real service manager; it ends with the
namespace, whatever it has started.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from tests.live.processes import children_of, wait_until

SYSTEMD = Path("/lib/systemd/systemd")
RUNTIME_DIR = "/run/user-of-test"
# systemd --user wants a machine that was booted with systemd: a folder says so.
START = f"""
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system && mkdir -m 700 {RUNTIME_DIR} || exit 1
{SYSTEMD} --user --unit=basic.target 2>&1 &
wait
"""


@attrs.frozen
class Systemd:
    """A running user manager."""

    home: Path
    init_pid: int
    environ: dict[str, str]

    def run(self, *argv: str, check: bool = True, **variables: str) -> str:
        """Run a command beside it; return what it says."""
        inside = ["nsenter", "--target", str(self.init_pid), "--mount", "--pid", "--wd=" + str(self.home)]
        done = subprocess.run(
            [*inside, *argv], env={**self.environ, **variables}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0 or not check, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def auxot(self, program: str, *argv: str, **variables: str) -> str:
        """Run one of our commands."""
        return self.run(str(Path(sys.executable).with_name(program)), *argv, check=True, **variables)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "--user", "show", "--value", f"--property={name}", unit).strip()

    def wait_active(self, unit: str) -> str:
        """Wait until a service says that it is ready; return its process id."""

        def is_active() -> bool:
            return self.show(unit, "ActiveState") == "active"

        wait_until(is_active, what=f"{unit} active")
        return self.show(unit, "MainPID")


@contextmanager
def private_systemd(folder: Path) -> Iterator[Systemd]:
    """Run a user manager for the length of the block; the test is skipped where none can run."""
    if not SYSTEMD.exists() or shutil.which("unshare") is None:
        pytest.skip("there is no systemd on this machine")
    home = folder / "home"
    home.mkdir()
    passed_on = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    log_to = {"SYSTEMD_LOG_TARGET": "console-prefixed", "SYSTEMD_LOG_LEVEL": "notice"}
    environ = {**passed_on, **log_to, "HOME": str(home), "XDG_RUNTIME_DIR": RUNTIME_DIR}
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    unshare = ["unshare", *as_root, "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    with (folder / "systemd.log").open("wb") as log:
        process = subprocess.Popen([*unshare, "sh", "-c", START], env=environ, stdout=log, stderr=log)
    try:
        wait_until(lambda: process.poll() is not None or children_of(process.pid), what="a namespace")
        if process.poll() is not None:
            pytest.skip(f"no namespaces here: {(folder / 'systemd.log').read_text()}")
        systemd = Systemd(home, children_of(process.pid)[0], environ)
        wait_until(
            lambda: "running" in systemd.run("systemctl", "--user", "is-system-running", check=False),
            what="systemd",
        )
        yield systemd
        systemd.run("systemctl", "--user", "exit", check=False)
    finally:
        process.kill()
        process.wait()
