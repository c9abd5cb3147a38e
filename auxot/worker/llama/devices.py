"""What llama-server calls the GPUs: that depends on what it was built for, and is said by `--list-devices`.

Available devices:
CUDA0: NVIDIA GeForce RTX 4090 (24081 MiB, 23693 MiB free)
Vulkan1: AMD Radeon RX 7900 XTX (RADV NAVI31) (24560 MiB, 24100 MiB free)
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection
from pathlib import Path

import attrs
import trio

from auxot.core.errors import LlamaError
from auxot.worker.llama.argv import llama_environment

LIST_TIMEOUT_S = 60.0  # drivers of many GPUs take their time to wake up

_DEVICE = re.compile(
    r"^\s+(?P<name>[^\s:]+): (?P<model>.+) \((?P<total>\d+) MiB, (?P<free>\d+) MiB free\)$", re.MULTILINE
)
_MIB = 1024**2


@attrs.frozen(kw_only=True)
class LlamaDevice:
    """A GPU: `name` is llama-server's word for it, `model` what it is."""

    name: str
    model: str
    total_bytes: int
    free_bytes: int


def parse_devices(text: str) -> list[LlamaDevice]:
    """Read the output of `llama-server --list-devices`; none where it was built for the processor only."""
    return [
        LlamaDevice(
            name=match["name"],
            model=match["model"],
            total_bytes=int(match["total"]) * _MIB,
            free_bytes=int(match["free"]) * _MIB,
        )
        for match in _DEVICE.finditer(text)
    ]


def names_of(listed: list[LlamaDevice], models: Collection[str]) -> tuple[str, ...]:
    """Return llama-server's names of the GPUs that compute.

    Args:
        listed: what it lists, in its order; also GPUs that llama-server would leave out, as those in the processor.
        models: the GPUs' names, as their drivers say them.
    """
    known = [device.name for device in listed if device.model in models]
    names = known if len(known) == len(models) else [device.name for device in listed]
    return tuple(names[: len(models)])


async def list_devices(binary: Path) -> list[LlamaDevice]:
    """Ask a llama-server for its devices, within LIST_TIMEOUT_S.

    Raises:
        LlamaError: it does not say.
    """
    argv = [str(binary), "--list-devices"]
    try:
        with trio.fail_after(LIST_TIMEOUT_S):
            done = await trio.run_process(
                argv, env=llama_environment(os.environ), capture_stdout=True, stderr=subprocess.DEVNULL, stdin=b""
            )
    except (OSError, subprocess.CalledProcessError, trio.TooSlowError) as exc:
        raise LlamaError(f"{binary} does not list its devices: {type(exc).__name__}") from exc
    return parse_devices(done.stdout.decode(errors="replace"))
