from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from auxot.worker.process_memory import gpu_bytes, own_bytes, resident_bytes

MIB = 1024**2
_NOBODY = 2**22 + 1  # above the largest process id of Linux

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


def test_what_a_process_takes_is_seen() -> None:
    """A leak is not seen."""
    program = f"x = bytearray({64 * MIB}); print(len(x), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert 64 * MIB < own_bytes(process.pid) < 256 * MIB
        assert resident_bytes(process.pid) >= own_bytes(process.pid)
        process.kill()


def test_mapped_weights_are_not_growth(tmp_path: Path) -> None:
    """A model that comes from the disk piece by piece counts as a leak."""
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(64 * MIB))
    before = own_bytes(os.getpid())
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as weights:
        n_before = resident_bytes(os.getpid())
        assert sum(weights[place] for place in range(0, len(weights), 4096)) > 0
        assert resident_bytes(os.getpid()) - n_before > 32 * MIB
        assert own_bytes(os.getpid()) - before < 16 * MIB


def test_a_process_that_has_gone_takes_nothing() -> None:
    """A look at a llama-server that has just died ends the worker."""
    assert (own_bytes(_NOBODY), resident_bytes(_NOBODY), gpu_bytes(_NOBODY)) == (0, 0, 0)
