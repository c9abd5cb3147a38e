"""What the tests with a real llama-server share: the binary and the model whose answers are known."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from auxot.config import WorkerConfig
from auxot.config_shared import in_home
from auxot.core.errors import LlamaError
from auxot.demo.tiny_model import write_tiny_model
from auxot.worker.llama.binary import find_llama_server


@pytest.fixture(scope="session")
def llama_server_binary() -> Path:
    """Return a real llama-server: AUXOT_TEST_LLAMA_SERVER (`make test` sets it), else the one that a worker finds."""
    given = os.environ.get("AUXOT_TEST_LLAMA_SERVER")
    try:
        return find_llama_server(given=Path(given) if given else None, cache_dir=in_home("llama-server"))
    except LlamaError as exc:
        if given:
            raise
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the model of `auxot.demo.tiny_model`."""
    path = tmp_path_factory.mktemp("tiny_model") / "tiny.gguf"
    write_tiny_model(path)
    return path


@pytest.fixture
def config(llama_server_binary: Path, tiny_model: Path) -> WorkerConfig:
    return WorkerConfig(
        router_url="ws://127.0.0.1:1",
        gpu_key="adm_" + "k" * 43,
        model_path=tiny_model,
        llama_binary=llama_server_binary,
        reconnect_delay_s=0.1,
        threads=1,  # several llama-servers on two cores: their threads would spin against each other
        reconnect_max_delay_s=0.2,
    )
