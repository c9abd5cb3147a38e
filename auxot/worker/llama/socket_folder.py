"""The folder for llama-server's UNIX socket: only this user can enter it, and its path is short enough for a socket.

Made where temporary files go; where that is impossible (a read-only machine, a path that is too long) in the user's
runtime folder, in /tmp, or at home.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from auxot.core.errors import LlamaError

_MAX_PATH_BYTES = 100  # sun_path holds 104 bytes on macOS and 108 on Linux
_PREFIX = "auxot-llama-"
_SOCKET = "llama.sock"
_LONGEST = Path(f"{_PREFIX}12345678") / _SOCKET


@contextmanager
def socket_in_folder(parents: Iterable[Path] | None = None) -> Generator[Path]:
    """Make a folder of mode 0700 that goes with the block, and return the path for a socket in it.

    Args:
        parents: folders to make it in; the first that takes it is used. None: those of this machine.

    Raises:
        LlamaError: none does; says why.
    """
    with _made_in(_parents() if parents is None else parents) as folder:
        yield Path(folder) / _SOCKET


def _made_in(parents: Iterable[Path]) -> tempfile.TemporaryDirectory[str]:
    refusals: list[str] = []
    for parent in parents:
        if len(os.fsencode(parent / _LONGEST)) > _MAX_PATH_BYTES:
            refusals.append(f"{parent} (its path is too long)")
            continue
        try:
            return tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True)
        except OSError as exc:
            refusals.append(f"{parent} ({exc.strerror or exc})")
    tried = ", ".join(dict.fromkeys(refusals))
    raise LlamaError(f"no folder for llama-server's socket: tried {tried}; set TMPDIR to one that can be written")


def _parents() -> Iterator[Path]:
    with suppress(OSError):  # no folder for temporary files can be written
        yield Path(tempfile.gettempdir())
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime)
    yield Path("/tmp")  # noqa: S108 - the folder gets a random name and mode 0700
    with suppress(RuntimeError):  # a user without a home
        yield Path.home()
