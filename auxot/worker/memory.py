"""The processor and its memory: what /proc says, and what a container's limits leave of it (Linux), or sysctl (macOS).

Limits are those of the control group, version 2 or 1, and of all groups above it. The page cache of a group counts as
free: the kernel gives it up first.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import PurePosixPath

from auxot.worker.devices import Device, DeviceKind, Machine

COMMAND_TIMEOUT_S = 10.0
_NO_LIMIT = 1 << 60  # version 1 writes "no limit" as a huge number


def processor(machine: Machine) -> Device:
    """Return the processor with the memory that this process may use."""
    if machine.system == "darwin":
        total = int(sysctl(machine, "hw.memsize") or 0)
        name = sysctl(machine, "machdep.cpu.brand_string") or machine.arch
        return Device(kind=DeviceKind.CPU, name=name, total_bytes=total, free_bytes=total)
    total, free = _of_kernel(machine)
    for limit, used in _limits(machine):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return Device(kind=DeviceKind.CPU, name=_name(machine), total_bytes=total, free_bytes=free)


def sysctl(machine: Machine, name: str) -> str:
    """Return a value of the kernel of macOS; "" if it has none."""
    try:
        done = subprocess.run(
            ["sysctl", "-n", name],
            env=dict(machine.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _of_kernel(machine: Machine) -> tuple[int, int]:
    text = machine.read("/proc/meminfo")
    figures = {match[1]: int(match[2]) * 1024 for match in re.finditer(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return figures.get("MemTotal", 0), figures.get("MemAvailable", 0)


def _name(machine: Machine) -> str:
    match = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", machine.read("/proc/cpuinfo"), re.MULTILINE)
    return match[1].strip() if match else machine.arch


def _limits(machine: Machine) -> Iterator[tuple[int, int]]:
    """Yield (limit, bytes used) of the control groups that this process is in."""
    for line in machine.read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _limits_at(machine, "/sys/fs/cgroup", path, names=("memory.max", "memory.current"))
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            yield from _limits_at(machine, "/sys/fs/cgroup/memory", path, names=names)


def _limits_at(machine: Machine, mount: str, path: str, *, names: tuple[str, str]) -> Iterator[tuple[int, int]]:
    group = PurePosixPath("/", path)
    for folder in (group, *group.parents):
        place = f"{mount}/{str(folder).lstrip('/')}"
        limit = machine.read_int(f"{place}/{names[0]}")
        if 0 < limit < _NO_LIMIT:
            cache = re.search(r"^(?:total_)?inactive_file (\d+)$", machine.read(f"{place}/memory.stat"), re.MULTILINE)
            yield limit, machine.read_int(f"{place}/{names[1]}") - (int(cache[1]) if cache else 0)
