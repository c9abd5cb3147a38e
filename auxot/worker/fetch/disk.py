"""What a disk says when it does not take what is downloaded, as a sentence that tells what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Generator
from pathlib import Path

from auxot.core.errors import FetchError
from auxot.core.sizes import show_bytes

MAKE_ROOM = (
    "make room (`auxot-worker cache list` shows what is there), or choose another disk with AUXOT_MODELS_DIR or"
    " AUXOT_LLAMA_CACHE_DIR"
)


@contextlib.contextmanager
def disk_errors(path: Path, missing_bytes: Callable[[], int] | None = None) -> Generator[None]:
    """Turn an OSError of the block into a FetchError.

    Args:
        path: the file that the block writes, or the folder.
        missing_bytes: how much of the file is still to come, where what has come is kept.
    """
    try:
        yield
    except OSError as exc:
        if is_full(exc):
            raise FetchError(_full(path, missing_bytes() if missing_bytes else 0)) from exc
        raise FetchError(f"{path} cannot be written: {exc.strerror or exc}") from exc


def is_full(exc: OSError) -> bool:
    """Tell whether an error means that a disk, or a user's share of it, is full."""
    return exc.errno in (errno.ENOSPC, errno.EDQUOT)


def _full(path: Path, missing_bytes: int) -> str:
    if not missing_bytes:
        return f"the disk of {path.parent} is full: {MAKE_ROOM}"
    rest = f"{show_bytes(missing_bytes)} of {path.name} are still to come, the rest is kept for the next try"
    return f"the disk of {path.parent} is full, {rest}: {MAKE_ROOM}"
