from __future__ import annotations

from pathlib import Path

import attrs

from auxot.core.messages import Policy
from auxot.core.models.entries import packaged_registry
from auxot.worker.devices import GIB, Device, DeviceKind, Host
from auxot.worker.groups import AUTO, groups_of, named, smallest_room, start_of
from auxot.worker.llama.argv import LlamaSettings
from auxot.worker.plan import Plan, make_plan

CPU = Device(kind=DeviceKind.CPU, name="cpu", total_bytes=256 * GIB, free_bytes=200 * GIB)
SETTINGS = LlamaSettings(binary=Path("l"), model=Path("m"), slot_ctx_tokens=8192, slots=2)


def gpus(*free_gib: int) -> tuple[Device, ...]:
    return tuple(
        Device(kind=DeviceKind.CUDA, name="g", total_bytes=free * GIB, free_bytes=free * GIB) for free in free_gib
    )


def plan(model: str, host: Host, *, replicas: int = AUTO, memory_bytes: int = 0, path: Path | None = None) -> Plan:
    policy = Policy(model_name=model, quantization="Q4_K_M", context_size=16_384, max_parallelism=2)
    return make_plan(
        policy,
        host,
        registry=packaged_registry(),
        model_path=path,
        memory_bytes=memory_bytes,
        cache_type="f16",
        replicas=replicas,
    )


def host(*devices: Device) -> Host:
    return Host(gpus=devices, cpu=CPU, n_cpus=8)


def test_a_model_that_fits_on_one_gpu_runs_on_each() -> None:
    """A host with two GPUs serves no more than one with one."""
    assert [len(group) for group in plan("Qwen3-8B", host(*gpus(24, 24))).groups] == [1, 1]
    assert len(plan("Qwen3-8B", host(*gpus(24))).groups) == 1
    assert len(plan("Qwen3-8B", host()).groups) == 1


def test_a_model_that_fits_on_all_only_is_spread() -> None:
    """A model that needs two GPUs is refused on a host that has them, or is served with less than was asked for."""
    spread = plan("Qwen3-32B", host(*gpus(20, 20)))
    assert len(spread.groups) == 1
    assert spread.shape == spread.wanted
    assert len(plan("Qwen3-8B", host(*gpus(24, 4))).groups) == 1


def test_the_operator_goes_before_the_computation(tmp_path: Path) -> None:
    """A number of llama-servers that is asked for is not started, or each believes that it has all of the memory."""
    two = host(*gpus(24, 24))
    assert len(plan("Qwen3-8B", two, replicas=1).groups) == 1
    four = plan("Qwen3-8B", two, replicas=4)
    assert four.groups == ((0,), (1,), (0,), (1,))
    assert four.measured is not None
    assert four.measured.memory_bytes == 12 * GIB
    given = plan("Qwen3-8B", host(), replicas=2, memory_bytes=40 * GIB).measured
    assert given is not None
    assert given.memory_bytes == 20 * GIB
    file = tmp_path / "m.gguf"
    file.write_bytes(b"")
    assert len(plan("any", two, path=file).groups) == 1  # how large it is in memory nobody knows
    assert len(plan("any", two, path=file, replicas=2).groups) == 2


def test_gpus_are_dealt_out() -> None:
    """A GPU is forgotten, or its memory promised twice."""
    five = gpus(8, 8, 8, 8, 8)
    assert groups_of(5, 2) == ((0, 2, 4), (1, 3))
    assert groups_of(0, 2) == ((), ())
    assert smallest_room(five, 2, 0) == 16 * GIB
    assert smallest_room(gpus(24, 8), 2, 0) == 8 * GIB
    assert smallest_room(gpus(24, 8), 3, 0) == 4 * GIB
    assert smallest_room((), 4, 40) == 10


def test_each_llama_server_gets_its_own_gpus() -> None:
    """All llama-servers load their models onto the first GPU."""
    assert start_of(SETTINGS, ("CUDA0", "CUDA2"), n_groups=2, n_cpus=8).devices == ("CUDA0", "CUDA2")


def test_fewer_devices_than_the_drivers_know_are_shared() -> None:
    """A llama-server is started for a GPU that it has not, or for the same one twice."""
    assert named(((0, 2), (1, 3)), ("A", "B")) == (("A",), ("B",))
    assert named(((0, 2), (1,)), ("A", "B", "C")) == (("A", "C"), ("B",))
    assert named(((0,), (1,)), ()) == ((), ())


def test_llama_servers_without_gpus_share_the_processors() -> None:
    """Each of them starts a thread on each processor, and they spin against each other."""
    assert start_of(SETTINGS, (), n_groups=3, n_cpus=8).threads == 2
    assert start_of(SETTINGS, (), n_groups=16, n_cpus=8).threads == 1
    assert start_of(attrs.evolve(SETTINGS, threads=5), (), n_groups=2, n_cpus=8).threads == 5
    assert start_of(SETTINGS, (), n_groups=1, n_cpus=8) == SETTINGS
