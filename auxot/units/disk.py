"""What installing does to the machine: files, a user, the commands of the service manager."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from auxot.core.errors import AuxotError
from auxot.units.places import Command
from auxot.units.unit import STATE_DIR

COMMAND_TIMEOUT_S = 120.0
SECRET_MODE, UNIT_MODE = 0o600, 0o644
_GPU_GROUPS = ("render", "video")  # who may open /dev/dri and /dev/kfd


def gpu_groups() -> tuple[str, ...]:
    """Return the groups of this machine that may use its GPUs."""
    there = {group.gr_name for group in grp.getgrall()}
    return tuple(name for name in _GPU_GROUPS if name in there)


def write(path: Path, text: str, *, mode: int, owner: str | None = None) -> bool:
    """Write a file in one step, with that mode from the start; return whether anything has changed.

    Args:
        path: where; its folder must be there.
        text: what.
        mode: who may read it.
        owner: a user of this machine; None: whoever runs this.

    Raises:
        AuxotError: it cannot be written.
    """
    try:
        if _is_as_wanted(path, text, mode):
            return False
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(descriptor, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor has no path
                stream.write(text)
                os.fchmod(stream.fileno(), mode)
            if owner is not None:
                shutil.chown(temporary, owner, owner)
            os.replace(temporary, path)  # noqa: PTH105 - mkstemp gives names
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108 - mkstemp gives names
            raise
    except OSError as exc:
        raise AuxotError(f"{path} cannot be written: {exc.strerror}{_advice(exc)}") from exc
    return True


def make_folder(path: Path, *, mode: int, owner: str | None = None) -> None:
    """Make a folder, and those above it; AuxotError if that cannot be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)
        if owner is not None:
            shutil.chown(path, owner, owner)
    except OSError as exc:
        raise AuxotError(f"{path} cannot be made: {exc.strerror}{_advice(exc)}") from exc


def remove(paths: Iterable[Path]) -> None:
    """Remove files and folders; AuxotError if one of them stays."""
    for path in paths:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as exc:
            raise AuxotError(f"{path} cannot be removed: {exc.strerror}{_advice(exc)}") from exc


def make_user(name: str) -> None:
    """Make the user of system services on Linux, if it is not there; AuxotError if that cannot be done."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        home = ("--home-dir", str(STATE_DIR), "--no-create-home")
        run([("useradd", "--system", "--user-group", *home, "--shell", "/usr/sbin/nologin", name)])


def run(commands: Sequence[Command]) -> None:
    """Run commands one after the other; one that begins with `?` may fail.

    Raises:
        AuxotError: one of the others failed; with what it says.
    """
    for command in commands:
        may_fail = command[0] == "?"
        argv = command[1:] if may_fail else command
        problem = _problem(argv)
        if problem and not may_fail:
            raise AuxotError(f"`{' '.join(argv)}` failed: {problem}")


def succeeds(command: Command) -> bool:
    """Whether a command ends with 0."""
    return not _problem(command)


def is_open_to_all(path: Path) -> bool:
    """Whether any user may read a file, as far as its mode and those of the folders above it tell."""
    real = path.resolve()
    try:
        return bool(real.stat().st_mode & 0o004) and all(folder.stat().st_mode & 0o001 for folder in real.parents)
    except OSError:
        return False


def _problem(argv: Sequence[str]) -> str:
    """Run a command; return what is wrong, "" if nothing is."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    said = (done.stderr or done.stdout).strip().splitlines()
    return "" if done.returncode == 0 else (said[-1] if said else f"exit code {done.returncode}")


def _is_as_wanted(path: Path, text: str, mode: int) -> bool:
    try:
        return path.stat().st_mode & 0o777 == mode and path.read_text(encoding="utf-8") == text
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def _advice(exc: OSError) -> str:
    return " (as root? or with --user)" if isinstance(exc, PermissionError) else ""
