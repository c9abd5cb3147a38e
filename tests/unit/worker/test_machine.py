from __future__ import annotations

import pytest

from auxot.worker.devices import GIB, Device, DeviceKind, Host
from auxot.worker.machine import backend, look_at_host, model_memory

CUDA, ROCM, METAL, VULKAN, CPU = (DeviceKind(word) for word in ("cuda", "rocm", "metal", "vulkan", "cpu"))


def device(kind: DeviceKind, total: int, free: int, *, is_shared: bool = False) -> Device:
    return Device(kind=kind, name="d", total_bytes=total * GIB, free_bytes=free * GIB, is_shared=is_shared)


def host(*gpus: Device, cpu: tuple[int, int] = (64, 32)) -> Host:
    return Host(gpus=gpus, cpu=device(CPU, *cpu), n_cpus=4)


@pytest.mark.parametrize(
    ("there", "kind", "free"),
    [
        (host(), CPU, 32),
        (host(device(CUDA, 24, 20), device(CUDA, 24, 23)), CUDA, 43),
        (host(device(CUDA, 24, 0)), CUDA, 0),  # full is not unknown
        (host(device(CUDA, 24, 20), device(ROCM, 16, 16)), CUDA, 20),  # one llama-server cannot use both
        (host(device(VULKAN, 0, 0, is_shared=True), device(ROCM, 16, 15)), ROCM, 15),  # an integrated GPU beside it
        (host(device(VULKAN, 0, 0, is_shared=True)), VULKAN, 32),
        (host(device(CUDA, 64, 60, is_shared=True)), CUDA, 32),  # the processor's memory, which others use
        (host(device(METAL, 48, 48, is_shared=True), cpu=(64, 64)), METAL, 48),
    ],
)
def test_what_llama_server_computes_on_and_its_memory(there: Host, kind: DeviceKind, free: int) -> None:
    """A model is refused that fits, or loaded into memory that is another device's."""
    memory = model_memory(there)
    assert memory is not None
    assert (backend(there), memory.free_bytes) == (kind, free * GIB)


def test_memory_that_nobody_tells_is_not_none_of_it() -> None:
    """On a host that does not tell its memory no model fits."""
    assert model_memory(host(cpu=(0, 0))) is None
    assert model_memory(host(device(VULKAN, 0, 0, is_shared=True), cpu=(0, 0))) is None


async def test_this_host_has_memory_and_a_kind() -> None:
    """A worker starts with nothing known of its host."""
    found = await look_at_host()
    assert backend(found) in DeviceKind
    memory = model_memory(found)
    assert memory is not None
    assert memory.total_bytes > 100_000_000
