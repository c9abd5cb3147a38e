"""The tests of faults run the same llama-server and model as the live ones."""

from __future__ import annotations

from tests.live.conftest import llama_server_binary, tiny_model

__all__ = ["llama_server_binary", "tiny_model"]
