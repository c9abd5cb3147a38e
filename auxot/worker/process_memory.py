"""How much memory a process holds, of the machine's and of its GPUs'. Nothing here fails: what is not told is 0.

Mapped files are not a process's own: weights that come from the disk can go at any time. So growth is seen in what is
left: heap, swapped pages included.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from auxot.worker.gpus_nvidia import process_bytes

_PS_TIMEOUT_S = 5.0


def own_bytes(pid: int) -> int:
    """Return the memory that only this process holds. On macOS all that is resident."""
    status = _status(pid)
    if not status:
        return resident_bytes(pid)
    return sum(status.get(name, 0) for name in ("RssAnon", "RssShmem", "VmSwap"))


def resident_bytes(pid: int) -> int:
    """Return the memory that a process has in use, mapped files included."""
    return _status(pid).get("VmRSS", 0) if sys.platform == "linux" else _resident_by_ps(pid)


def gpu_bytes(pid: int) -> int:
    """Return the memory that a process holds on NVIDIA's GPUs. Blocking: a driver's some milliseconds."""
    return process_bytes(pid)


def oom_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since it started."""
    match = re.search(r"^oom_kill (\d+)$", _read(Path("/proc/vmstat")), re.MULTILINE)
    return int(match[1]) if match else 0


def _status(pid: int) -> dict[str, int]:
    text = _read(Path(f"/proc/{pid}/status"))
    return {match[1]: int(match[2]) * 1024 for match in re.finditer(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _resident_by_ps(pid: int) -> int:
    try:
        done = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, timeout=_PS_TIMEOUT_S, check=False
        )
        return int(done.stdout) * 1024
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 0
