"""What is served of a file that no registry knows: its own header and size say what it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from auxot.core.errors import ConfigError
from auxot.core.messages import Policy
from auxot.core.models.entries import packaged_registry
from auxot.demo.tiny_model import CONTEXT_LENGTH, write_tiny_model
from auxot.worker.devices import GIB, Device, DeviceKind, Host
from auxot.worker.doctor_model import check_policy
from auxot.worker.findings import Verdict
from auxot.worker.plan import Plan, make_plan, refitted

MIB = 1024**2
CACHE_BYTES_PER_TOKEN = 256  # of the tiny model
OVERHEAD = 512 * MIB
REGISTRY = packaged_registry()


def host(*, free: int, total: int = 16 * GIB, gpu_free: int | None = None) -> Host:
    cpu = Device(kind=DeviceKind.CPU, name="c", total_bytes=total, free_bytes=free)
    gpu = Device(kind=DeviceKind.CUDA, name="g", total_bytes=8 * GIB, free_bytes=gpu_free or 0)
    return Host(gpus=() if gpu_free is None else (gpu,), cpu=cpu, n_cpus=4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_tiny_model(path)
    return path


def policy(name: str = "any", *, slots: int = 4) -> Policy:
    return Policy(model_name=name, quantization="", context_size=CONTEXT_LENGTH, max_parallelism=slots)


def plan(model: Path | None, where: Host, *, memory_bytes: int = 0, name: str = "any") -> Plan:
    return make_plan(
        policy(name), where, registry=REGISTRY, model_path=model, memory_bytes=memory_bytes, cache_type="f16"
    )


def test_a_file_of_the_operators_is_measured(model: Path) -> None:
    """llama-server is started with a cache that the memory has no room for, and dies or is killed."""
    made = plan(model, host(free=12 * GIB))
    assert made.measured is not None
    assert made.measured.need.cache == 4 * CONTEXT_LENGTH * CACHE_BYTES_PER_TOKEN
    assert made.measured.need.weights == model.stat().st_size
    assert made.shape == made.wanted
    room = OVERHEAD + 10 * MIB + 2 * CONTEXT_LENGTH * CACHE_BYTES_PER_TOKEN
    less = plan(model, host(free=room))
    assert (less.shape.slots, less.shape.ctx_tokens) == (2, CONTEXT_LENGTH)
    also = plan(None, host(free=room), name=str(model))  # a path that the router names
    assert (also.shape, also.model) == (less.shape, model)


def test_a_file_that_fits_on_each_gpu_runs_on_each(model: Path) -> None:
    """Of two GPUs one has nothing to do, or each llama-server counts on the memory of both."""
    gpu = Device(kind=DeviceKind.CUDA, name="g", total_bytes=8 * GIB, free_bytes=8 * GIB)
    two = Host(gpus=(gpu, gpu), cpu=host(free=GIB).cpu, n_cpus=4)
    made = plan(model, two)
    assert made.groups == ((0,), (1,))
    assert made.measured is not None
    assert made.measured.memory_bytes == 8 * GIB


def test_a_file_may_take_more_than_is_free_now(model: Path) -> None:
    """A file that ran yesterday, a part of it on the processor, is refused today."""
    assert plan(model, host(free=MIB)).shape == plan(model, host(free=12 * GIB)).shape
    assert plan(model, host(free=MIB, gpu_free=MIB)).shape == plan(model, host(free=12 * GIB)).shape


def test_a_file_that_cannot_fit_is_refused_with_the_numbers(model: Path) -> None:
    """A host starts llama-server for minutes that the kernel then kills."""
    for where, memory_bytes in ((host(free=300 * MIB, total=300 * MIB), 0), (host(free=12 * GIB), 300 * MIB)):
        with pytest.raises(ConfigError, match=r"tiny \(tiny\.gguf\) does not fit: it takes .* there are 314\.6 MB"):
            plan(model, where, memory_bytes=memory_bytes)


def test_a_file_that_cannot_be_read_is_llama_servers_affair(tmp_path: Path) -> None:
    """A new version of the format, which llama-server knows, is refused by us."""
    path = tmp_path / "new.gguf"
    path.write_bytes(b"GGUF" + bytes([9] * 40))
    made = plan(path, host(free=MIB))
    assert (made.measured, made.shape) == (None, made.wanted)


def test_a_model_that_has_come_is_measured_again(model: Path) -> None:
    """A model by reference is served with a cache that nobody has counted."""
    where = host(free=OVERHEAD + 10 * MIB + CONTEXT_LENGTH * CACHE_BYTES_PER_TOKEN)
    before = plan(None, where, name="hf:owner/repo:tiny-Q8_0.gguf")
    assert before.shape.slots == 4
    after = refitted(before, model, where, registry=REGISTRY, memory_bytes=0)
    assert (after.shape.slots, after.shape.ctx_tokens) == (1, CONTEXT_LENGTH)
    known = plan(None, host(free=15 * GIB), name="Qwen3-0.6B")
    assert refitted(known, model, where, registry=REGISTRY, memory_bytes=0) is known


def test_the_doctor_says_what_a_start_does(model: Path, tmp_path: Path) -> None:
    """The doctor promises slots that a start does not serve, or is content with a model that is refused."""

    def check(where: Host, *, memory_bytes: int = 0, path: Path = model) -> tuple[Verdict, str]:
        found = check_policy(
            policy(),
            where,
            model_path=path,
            registry_file=None,
            memory_bytes=memory_bytes,
            cache_type="f16",
            models_dir=tmp_path,
        )
        return found.verdict, f"{found.text} -> {found.advice}"

    verdict, text = check(host(free=12 * GIB))
    assert verdict is Verdict.OK
    assert "tiny.gguf: 673.2 MB (weights 2.0 MB, KV cache 134.2 MB, overhead " in text
    verdict, text = check(host(free=OVERHEAD + 50 * MIB))
    assert (verdict, "slots that there is room for: 1 of 131072 tokens" in text) == (Verdict.WARN, True)
    verdict, text = check(host(free=8 * GIB, gpu_free=100 * MIB))
    assert (verdict, "a part runs on the processor" in text) == (Verdict.WARN, True)
    verdict, text = check(host(free=8 * GIB), memory_bytes=100 * MIB)
    assert (verdict, "correct --model-path" in text) == (Verdict.FAIL, True)
    page = tmp_path / "page.gguf"
    page.write_text("<html>")
    assert check(host(free=8 * GIB), path=page)[0] is Verdict.FAIL
