from __future__ import annotations

from pathlib import Path

import pytest

from auxot.worker.llama.argv import LlamaSettings
from auxot.worker.llama.dial import MIN_CTX_TOKENS, dialled_down, want_of_memory


def shapes(ctx_tokens: int, slots: int) -> list[tuple[int, int]]:
    one: LlamaSettings | None = LlamaSettings(
        binary=Path("l"), model=Path("m"), slot_ctx_tokens=ctx_tokens, slots=slots
    )
    tried = []
    while one is not None:
        tried.append((one.slot_ctx_tokens, one.slots))
        one = dialled_down(one)
    return tried


def test_slots_go_before_context() -> None:
    """A conversation gets no room because two could have had it, or the tries never end."""
    assert shapes(65_536, 3) == [(65_536, 3), (65_536, 2), (65_536, 1), (32_768, 1), (16_384, 1), (8192, 1)]
    assert shapes(10_000, 1) == [(10_000, 1), (MIN_CTX_TOKENS, 1)]
    assert shapes(2048, 2) == [(2048, 2), (2048, 1)]
    assert len(shapes(1_000_000, 1024)) < 40


@pytest.mark.parametrize(
    "line",
    [
        "E llama_init_from_model: failed to initialize the context: std::bad_alloc",
        "alloc_buffer: allocating 9216.00 MiB on device 0: cudaMalloc failed: out of memory",
        "E ggml_aligned_malloc: insufficient memory (attempted to allocate 1024.00 MB)",
        "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 68719476736",
        "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
        "  what():  Resource temporarily unavailable",
        "graph_reserve: failed to allocate compute buffers",
        "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
        "ggml_metal_buffer_init: error: failed to allocate buffer, size =  9216.00 MiB",
    ],
)
def test_want_of_memory_is_recognised(line: str) -> None:
    """A worker gives up where a shorter context would have done."""
    assert want_of_memory(["loading", line, "exiting due to model loading error"]) == line


@pytest.mark.parametrize(
    "lines",
    [
        ["error loading model: unknown model architecture: 'x'"],
        ["cudaMalloc failed: out of memory", "llama_model_load: error loading model: unable to allocate CUDA0 buffer"],
    ],
)
def test_other_failures_are_not(lines: list[str]) -> None:
    """A model that cannot be loaded is loaded again and again with shorter contexts."""
    assert not want_of_memory(lines)
