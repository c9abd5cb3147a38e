from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from auxot.core.errors import ConfigError, LlamaError
from auxot.core.messages import Policy
from auxot.core.models.entries import packaged_registry
from auxot.core.sites import NO_RELEASE
from auxot.demo.tiny_model import write_tiny_model
from auxot.worker.devices import GIB, Device, DeviceKind, Host
from auxot.worker.fetch.hub import Hub
from auxot.worker.fetch.releases import Release
from auxot.worker.machine import look_at_host
from auxot.worker.prepare import Prepared, Supplies, prepare


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    path = tmp_path / "llama-server"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


async def prepared(tmp_path: Path, model: str, *, host: Host | None = None, **fields: Any) -> Prepared:
    settings: dict[str, Any] = {
        "registry": packaged_registry(),
        "models_dir": tmp_path / "models",
        "llama_cache_dir": tmp_path / "cache",
        "hub": Hub(endpoint="http://127.0.0.1:9"),
        "release": Release(tag=NO_RELEASE),
        "cache_type": "f16",
        **fields,
    }
    policy = Policy(model_name=model, quantization="", context_size=4096, max_parallelism=3)
    return await prepare(Supplies(**settings), policy, host or await look_at_host())


async def test_a_file_of_the_operator_goes_before_the_policy(tmp_path: Path, binary: Path) -> None:
    """A worker with its own file downloads another one, or is refused for a name that nobody knows."""
    file = tmp_path / "own.gguf"
    file.write_bytes(b"x")
    for model in ("unknown", "Qwen3-8B"):
        ready = await prepared(tmp_path, model, model_path=file, binary=binary, memory_bytes=1)
        assert (ready.model.model, ready.binary, ready.shape.ctx_tokens, ready.shape.slots) == (file, binary, 4096, 3)


async def test_a_path_of_the_routers_is_this_machines(tmp_path: Path, binary: Path) -> None:
    """A router cannot name a file that all its workers have."""
    file = tmp_path / "shared.gguf"
    file.write_bytes(b"x")
    assert (await prepared(tmp_path, str(file), binary=binary)).model.model == file
    with pytest.raises(ConfigError, match=r"is not whole: .* has no other\.gguf"):
        await prepared(tmp_path, str(tmp_path / "other.gguf"), binary=binary)


async def test_a_split_file_that_lacks_parts_names_them(tmp_path: Path, binary: Path) -> None:
    """llama-server is started with half a model, and says something about tensors."""
    first = tmp_path / "m-00001-of-00003.gguf"
    for path in (first, tmp_path / "m-00003-of-00003.gguf"):
        path.write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"has no m-00002-of-00003\.gguf$"):
        await prepared(tmp_path, "x", model_path=first, binary=binary)
    (tmp_path / "m-00002-of-00003.gguf").write_bytes(b"x")
    assert (await prepared(tmp_path, "x", model_path=first, binary=binary)).model.model == first


@pytest.mark.parametrize(("model", "reason"), [("FLUX.1-schnell", "makes images"), ("Qwen3-Codr-30B", "Qwen3-Coder")])
async def test_what_cannot_be_served_is_refused(tmp_path: Path, model: str, reason: str) -> None:
    """A worker looks for a llama-server for hours before it says that there is no such model."""
    with pytest.raises(ConfigError, match=reason):
        await prepared(tmp_path, model)


async def test_without_leave_to_download_a_missing_llama_server_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program is downloaded although the operator forbids it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    file = tmp_path / "own.gguf"
    file.write_bytes(b"x")
    with pytest.raises(LlamaError, match="no llama-server on PATH"):
        await prepared(tmp_path, "x", model_path=file)


async def test_a_llama_server_that_does_not_list_its_devices_gets_all_gpus(tmp_path: Path, binary: Path) -> None:
    """A host with two GPUs and a llama-server of last year serves nothing."""
    binary.write_text("#!/bin/sh\nexit 1\n")
    model = tmp_path / "tiny.gguf"
    write_tiny_model(model)
    gpu = Device(kind=DeviceKind.CUDA, name="g", total_bytes=8 * GIB, free_bytes=8 * GIB)
    host = Host(gpus=(gpu, gpu), cpu=attrs.evolve(gpu, kind=DeviceKind.CPU), n_cpus=4)
    ready = await prepared(tmp_path, "any", host=host, model_path=model, binary=binary)
    assert ready.devices == ((),)
    with pytest.raises(LlamaError, match="does not list its devices"):
        await prepared(tmp_path, "any", host=host, model_path=model, binary=binary, replicas=2)
