from __future__ import annotations

from pathlib import Path

import pytest

from auxot.core.errors import LlamaError
from auxot.worker.llama.devices import LlamaDevice, list_devices, names_of, parse_devices

LISTED = """Available devices:
  Vulkan0: Intel(R) UHD Graphics 770 (ADL-S GT1) (47925 MiB, 40000 MiB free)
  Vulkan1: NVIDIA GeForce RTX 4090 (24564 MiB, 23693 MiB free)
  Vulkan2: NVIDIA GeForce RTX 4090 (24564 MiB, 24000 MiB free)
"""
RTX = "NVIDIA GeForce RTX 4090"


def test_devices_are_read() -> None:
    """A GPU with brackets in its name is not seen."""
    assert parse_devices(LISTED)[0] == LlamaDevice(
        name="Vulkan0",
        model="Intel(R) UHD Graphics 770 (ADL-S GT1)",
        total_bytes=47925 * 1024**2,
        free_bytes=40000 * 1024**2,
    )
    assert len(parse_devices(LISTED)) == 3
    assert parse_devices("Available devices:\n  (none)\n") == []


def test_the_gpu_in_the_processor_is_left_out() -> None:
    """A model is loaded onto the GPU in the processor, and one of the fast ones is idle."""
    listed = parse_devices(LISTED)
    assert names_of(listed, [RTX, RTX]) == ("Vulkan1", "Vulkan2")
    assert names_of(listed, ["AMD GPU 0x744c", "AMD GPU 0x744c", "AMD GPU 0x744c"]) == ("Vulkan0", "Vulkan1", "Vulkan2")
    assert names_of([], [RTX]) == ()


async def test_a_llama_server_that_lists_nothing_says_why(tmp_path: Path) -> None:
    """A llama-server too old to list its devices ends the worker with a traceback."""
    binary = tmp_path / "llama-server"
    binary.write_text("#!/bin/sh\nexit 1\n")
    binary.chmod(0o755)
    with pytest.raises(LlamaError, match="does not list its devices"):
        await list_devices(binary)
