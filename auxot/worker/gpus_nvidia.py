"""NVIDIA's GPUs, as their driver tells them through NVML (the package nvidia-ml-py, which loads libnvidia-ml)."""

from __future__ import annotations

from typing import Any

from auxot.worker.devices import Device, DeviceKind, Machine


def nvidia_gpus(machine: Machine, cpu: Device) -> tuple[tuple[Device, ...], tuple[str, ...]]:
    """Return the GPUs that llama-server would see, and what kept the driver from telling.

    Args:
        machine: CUDA_VISIBLE_DEVICES limits the GPUs.
        cpu: whose memory is theirs where they have none of their own (GB10 and its like).
    """
    import pynvml  # type: ignore[import-untyped]  # noqa: PLC0415 - 20 ms, and only on hosts that ask

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as exc:
        is_absent = exc.value in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        return (), () if is_absent else (f"NVIDIA's driver does not answer: {exc}",)
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        seen = _visible(handles, machine.environ.get("CUDA_VISIBLE_DEVICES"), pynvml)
        return tuple(_device(handle, cpu, pynvml) for handle in seen), ()
    except pynvml.NVMLError as exc:
        return (), (f"NVIDIA's driver does not tell its GPUs: {exc}",)
    finally:
        pynvml.nvmlShutdown()


def process_bytes(pid: int) -> int:
    """Return the memory that a process holds on all GPUs; 0 where the driver does not tell, as in most containers."""
    import pynvml  # noqa: PLC0415 - as above

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        running = [one for handle in handles for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        return sum(one.usedGpuMemory or 0 for one in running if one.pid == pid)
    except pynvml.NVMLError:
        return 0
    finally:
        pynvml.nvmlShutdown()


def _visible(handles: list[Any], wanted: str | None, nvml: Any) -> list[Any]:
    """Return the GPUs of CUDA_VISIBLE_DEVICES: indices or UUIDs, up to the first that is neither."""
    if wanted is None:
        return handles
    seen = []
    for word in wanted.split(","):
        match = [handle for index, handle in enumerate(handles) if _is_meant(word.strip(), index, handle, nvml)]
        if not match:
            break
        seen += match[:1]
    return seen


def _is_meant(word: str, index: int, handle: Any, nvml: Any) -> bool:
    if word.isdecimal():
        return int(word) == index
    return word.startswith("GPU-") and str(nvml.nvmlDeviceGetUUID(handle)).startswith(word)


def _device(handle: Any, cpu: Device, nvml: Any) -> Device:
    name = str(nvml.nvmlDeviceGetName(handle))
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError as exc:
        if exc.value != nvml.NVML_ERROR_NOT_SUPPORTED:
            raise
        total, free = cpu.total_bytes, cpu.free_bytes
        return Device(kind=DeviceKind.CUDA, name=name, total_bytes=total, free_bytes=free, is_shared=True)
    return Device(kind=DeviceKind.CUDA, name=name, total_bytes=int(memory.total), free_bytes=int(memory.free))
