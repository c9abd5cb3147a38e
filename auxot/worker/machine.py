"""What of this machine a model can use: which kind of GPU, and how much memory is free.

NVIDIA's own program tells the memory of its GPUs; of all other machines it is that of the machine itself, within the
limit of a container.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import attrs
import trio

from auxot.core.logs import get_logger

MIB = 1024 * 1024
_ASK_LIMIT_S = 10.0
_NVIDIA = ("nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits")

_log = get_logger()


@attrs.frozen(kw_only=True)
class Machine:
    """What there is. `gpu`: cuda, rocm, vulkan, metal or cpu; `free_bytes`: of the GPUs together, or of the machine."""

    gpu: str
    free_bytes: int


async def look_at_machine() -> Machine:
    """Find out what there is; takes at most some seconds."""
    free_on_nvidia = await _nvidia_free_bytes()
    if free_on_nvidia is not None:
        return Machine(gpu="cuda", free_bytes=free_on_nvidia)
    return Machine(gpu=_other_gpu(), free_bytes=free_memory_bytes())


def free_memory_bytes(root: Path = Path("/")) -> int:
    """Return the memory that programs may still take, 0 if nobody says; `root` is where /proc and /sys are."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return _physical_bytes()
    limit, used = (_number(root / "sys/fs/cgroup" / name) for name in ("memory.max", "memory.current"))
    return free if limit is None else max(0, min(free, limit - (used or 0)))


def _physical_bytes() -> int:
    """Return the size of the memory where nobody says what is free of it, as on macOS."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no limit is the word "max"
        return None


def _other_gpu() -> str:
    if platform.system() == "Darwin":
        return "metal"
    if Path("/dev/kfd").exists():
        return "rocm"
    return "vulkan" if any(Path("/dev/dri").glob("renderD*")) else "cpu"


async def _nvidia_free_bytes() -> int | None:
    """Return the free memory of all NVIDIA GPUs, None if there are none."""
    if shutil.which(_NVIDIA[0]) is None:
        return None
    with trio.move_on_after(_ASK_LIMIT_S):
        try:
            done = await trio.run_process(_NVIDIA, capture_stdout=True, stderr=subprocess.DEVNULL, stdin=b"")
            return sum(int(line) for line in done.stdout.split()) * MIB or None
        except (OSError, subprocess.CalledProcessError, ValueError) as exc:
            _log.warning("gpu.unknown", reason=str(exc))
    return None
