"""AMD's and Intel's GPUs on Linux, as their drivers tell them in /sys/class/drm.

    card<N>/device/vendor, device                      0x1002 AMD, 0x8086 Intel
    card<N>/device/mem_info_{vram,gtt}_{total,used}    amdgpu: bytes of its own memory, and of the processor's
    card<N>/device/product_name                        some boards

/dev/kfd is there where ROCm's driver is; else Vulkan is the way to the GPU. The files are those of the kernel's amdgpu
documentation, "GPU Memory Usage Information".
"""

from __future__ import annotations

import re

from auxot.worker.devices import GIB, Device, DeviceKind, Machine

_AMD, _INTEL = "0x1002", "0x8086"
_CARVE_OUT_BYTES = 4 * GIB  # an integrated GPU with so little of its own uses the processor's memory


def linux_gpus(machine: Machine) -> tuple[Device, ...]:
    """Return the GPUs of AMD and Intel, in the order of their cards."""
    folder = machine.root / "sys/class/drm"
    names = [path.name for path in folder.glob("card*") if re.fullmatch(r"card\d+", path.name)]
    found = [
        _device(machine, f"/sys/class/drm/{name}/device") for name in sorted(names, key=lambda name: int(name[4:]))
    ]
    return tuple(device for device in found if device is not None)


def _device(machine: Machine, place: str) -> Device | None:
    vendor = machine.read(f"{place}/vendor")
    if vendor == _AMD:
        return _amd(machine, place)
    if vendor == _INTEL:
        name = f"Intel GPU {machine.read(f'{place}/device')}"
        return Device(kind=DeviceKind.VULKAN, name=name, total_bytes=0, free_bytes=0, is_shared=True)
    return None


def _amd(machine: Machine, place: str) -> Device:
    total = machine.read_int(f"{place}/mem_info_vram_total")
    used = machine.read_int(f"{place}/mem_info_vram_used")
    is_shared = total < _CARVE_OUT_BYTES
    if is_shared:
        total += machine.read_int(f"{place}/mem_info_gtt_total")
        used += machine.read_int(f"{place}/mem_info_gtt_used")
    name = machine.read(f"{place}/product_name") or f"AMD GPU {machine.read(f'{place}/device')}"
    kind = DeviceKind.ROCM if (machine.root / "dev/kfd").exists() else DeviceKind.VULKAN
    return Device(kind=kind, name=name, total_bytes=total, free_bytes=max(0, total - used), is_shared=is_shared)
