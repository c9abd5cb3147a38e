"""Which GPUs a host has, and with how much memory: NVIDIA, AMD, Intel, Apple; and its processor.

Nothing here fails: what cannot be told is left out, and why stands in `Host.problems`. Blocking (files, a driver
library, on macOS a command): up to a second.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from auxot.worker.devices import GIB, Device, DeviceKind, Host, Machine
from auxot.worker.gpus_linux import linux_gpus
from auxot.worker.gpus_nvidia import nvidia_gpus
from auxot.worker.memory import processor, sysctl

# What Metal lets a process use by default of the memory that it shares with the processor.
_METAL_SHARE_SMALL, _METAL_SHARE_LARGE, _METAL_LARGE_BYTES = 2 / 3, 3 / 4, 36 * GIB


def this_machine() -> Machine:
    """Return the machine that we run on."""
    n_cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return Machine(
        root=Path("/"), system=sys.platform, arch=platform.machine(), environ=dict(os.environ), n_cpus=n_cpus
    )


def detect(machine: Machine | None = None) -> Host:
    """Return what a host computes with.

    Args:
        machine: where to look; None: this machine.
    """
    machine = machine or this_machine()
    cpu = processor(machine)
    if machine.system == "darwin":
        return Host(gpus=_apple_gpus(machine, cpu), cpu=cpu, n_cpus=machine.n_cpus)
    nvidia, problems = nvidia_gpus(machine, cpu)
    return Host(gpus=(*nvidia, *linux_gpus(machine)), cpu=cpu, n_cpus=machine.n_cpus, problems=problems)


def _apple_gpus(machine: Machine, cpu: Device) -> tuple[Device, ...]:
    """Return the GPU of Apple silicon; those of Intel Macs are no faster than their processors."""
    if machine.arch != "arm64":
        return ()
    share = _METAL_SHARE_LARGE if cpu.total_bytes > _METAL_LARGE_BYTES else _METAL_SHARE_SMALL
    limit_mib = sysctl(machine, "iogpu.wired_limit_mb")  # set by who wants more than the share
    is_set = limit_mib.isdecimal() and int(limit_mib) > 0
    total = int(limit_mib) * 1024**2 if is_set else int(cpu.total_bytes * share)
    gpu = Device(kind=DeviceKind.METAL, name=cpu.name, total_bytes=total, free_bytes=total, is_shared=True)
    return (gpu,)
