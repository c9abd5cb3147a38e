"""A lock between processes, held by whoever writes to a cache; the kernel frees it also when a process is killed."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path
from typing import IO

import trio

_POLL_S = 1.0


@contextlib.asynccontextmanager
async def held_lock(path: Path, *, on_wait: Callable[[], None]) -> AsyncGenerator[None]:
    """Hold the lock for the length of the block; waits for as long as somebody else has it.

    Args:
        path: the lock's file; it and its folder are made, and stay.
        on_wait: called once if somebody else has it.

    Raises:
        OSError: the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as lock_file:
        if not _try_lock(lock_file):
            on_wait()
            while not _try_lock(lock_file):  # noqa: ASYNC110 - a flock that waits in a thread cannot be cancelled
                await trio.sleep(_POLL_S)
        yield


@contextlib.contextmanager
def free_lock(path: Path) -> Generator[bool]:
    """Hold the lock for the length of the block if nobody else has it; yields whether that is so."""
    try:
        lock_file = path.open("ab")
    except OSError:
        yield True  # there is no lock: nobody has it
        return
    with lock_file:
        yield _try_lock(lock_file)


def _try_lock(lock_file: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
