"""Where llama-server is: the given path, PATH, or the cache that `auxot-worker llama build` fills.

The cache holds one folder a platform, and in it one a build:

    <cache>/<os>-<machine>/<name>/llama-server          linux-x86_64/llama-cpp-python-0.3.36-cpu/llama-server

The newest build there is taken: whoever has just built for another backend wants that one.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import attrs
import trio

from auxot.core.errors import LlamaError

BINARY_NAME = "llama-server"
_HOW_TO_GET_ONE = "run `auxot-worker llama build`, or give its path with --llama-server-path"
# `version: 0.5.0-dev (build 1, commit 0c1e570)` since 0.5, `version: 8925 (0c1e570)` before.
_VERSION = re.compile(r"^version: (?P<release>\S+) \((?:build (?P<build>\d+), commit )?(?P<commit>\w+)\)", re.MULTILINE)


@attrs.frozen(kw_only=True)
class LlamaServerVersion:
    """What `llama-server --version` says.

    Attributes:
        release: "0.5.0-dev"; in older ones the build number, "8925".
        build: the number of the build.
        commit: the short hash of llama.cpp's commit, or "unknown".
    """

    release: str
    build: int
    commit: str


def platform_cache_dir(cache_dir: Path) -> Path:
    """Return the part of the cache that holds binaries for this machine."""
    return cache_dir / f"{platform.system().lower()}-{platform.machine().lower()}"


def find_llama_server(*, given: Path | None, cache_dir: Path) -> Path:
    """Return the path of a llama-server: the given one, else the one on PATH, else the newest in the cache.

    Args:
        given: a path that the operator chose; nothing else is looked at then.
        cache_dir: the root of the cache; need not exist.

    Raises:
        LlamaError: there is none, or the given one is not an executable file; says what to do, in one line.
    """
    if given is not None:
        return _checked(given.expanduser())
    on_path = shutil.which(BINARY_NAME)
    if on_path is not None:
        return Path(on_path).absolute()
    cached = _newest(platform_cache_dir(cache_dir))
    if cached is not None:
        return cached
    raise LlamaError(f"no llama-server on PATH or in {cache_dir}: {_HOW_TO_GET_ONE}")


def is_executable(path: Path) -> bool:
    """Tell whether this is a file, with something in it, that we may run."""
    return path.is_file() and path.stat().st_size > 0 and os.access(path, os.X_OK)


def parse_version(text: str) -> LlamaServerVersion:
    """Read the output of `llama-server --version`, in its old or its new form.

    Raises:
        LlamaError: no version in it.
    """
    match = _VERSION.search(text)
    if match is None or not (match["build"] or match["release"].isdecimal()):
        raise LlamaError(f"not the version of a llama-server: {text.strip()[:200]!r}")
    return LlamaServerVersion(
        release=match["release"], build=int(match["build"] or match["release"]), commit=match["commit"]
    )


async def llama_server_version(path: Path) -> LlamaServerVersion:
    """Ask a llama-server for its version; the caller sets the deadline, cancellation kills the process.

    Raises:
        LlamaError: it does not run here (wrong platform, a missing library), or is no llama-server.
    """
    try:
        done = await trio.run_process(
            [str(path), "--version"], capture_stdout=True, stderr=subprocess.STDOUT, check=False, stdin=b""
        )
    except OSError as exc:
        raise LlamaError(f"{path} does not run: {exc.strerror or exc}") from exc
    text = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        raise LlamaError(f"{path} --version ended with {done.returncode}: {text.strip()[-200:]!r}")
    return parse_version(text)


def _checked(given: Path) -> Path:
    if not is_executable(given):
        problem = "is not an executable file" if given.exists() else "does not exist"
        raise LlamaError(f"llama-server {given} {problem}: correct the path, or leave it out and {_HOW_TO_GET_ONE}")
    return given.absolute()


def _newest(folder: Path) -> Path | None:
    builds = [path for path in folder.glob(f"[!.]*/{BINARY_NAME}") if is_executable(path)]  # .x is still being made
    return max(builds, key=lambda path: (path.stat().st_mtime_ns, path.parent.name), default=None)
