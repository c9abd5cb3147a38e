"""Become another program that dies with the process that started this one. Run as a script, by `process`.

    python -I -S launch.py PARENT_PID PROGRAM [ARGUMENT...]

Linux ends a process whose parent has died when it asked for that (prctl(2), PR_SET_PDEATHSIG); the wish survives
exec. Asking from here rather than from a `preexec_fn` keeps Python code out of the moment between fork and exec, where
a lock that another thread held stays locked for ever.

Imports nothing of ours: it runs without the package's path.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_EXIT_NOT_FOUND = 127  # as a shell says it


def main() -> None:
    """Ask to be killed with the parent, then become the program."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)
    try:
        os.execv(command[0], command)  # noqa: S606 - no shell is what we want
    except OSError as exc:
        sys.exit(f"error: cannot run {command[0]}: {exc.strerror}")


if __name__ == "__main__":
    main()
