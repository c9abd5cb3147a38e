"""What the tests with a real llama-server share: the binary and the model whose answers are known."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
