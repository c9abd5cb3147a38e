"""What a host computes with: its GPUs and its processor, as values."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path

import attrs

GIB = 1024**3


class DeviceKind(enum.Enum):
    """How llama.cpp reaches a device: the word of a backend."""

    CUDA = "cuda"
    ROCM = "rocm"
    METAL = "metal"
    VULKAN = "vulkan"
    CPU = "cpu"


@attrs.frozen(kw_only=True)
class Device:
    """Something that computes.

    Attributes:
        kind: how it is reached.
        name: as its driver or its vendor says it.
        total_bytes: the memory that models can use on it; 0: not known.
        free_bytes: what is left of that now.
        is_shared: its memory is the processor's own.
    """

    kind: DeviceKind
    name: str
    total_bytes: int
    free_bytes: int
    is_shared: bool = False


@attrs.frozen(kw_only=True)
class Host:
    """The devices of a host.

    Attributes:
        gpus: in their drivers' order.
        cpu: the processor; its memory is what this process may use, limits of containers included.
        n_cpus: processors that this process may use.
        problems: what kept a driver from answering, a sentence each.
    """

    gpus: tuple[Device, ...]
    cpu: Device
    n_cpus: int
    problems: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Machine:
    """Where to look: this machine, or files and programs laid out like one.

    Attributes:
        root: what stands for `/`.
        system: "linux" or "darwin", as `sys.platform` has it.
        arch: "x86_64", "arm64" and so on.
        environ: CUDA_VISIBLE_DEVICES, and the PATH on which programs are looked for.
        n_cpus: processors that this process may use.
    """

    root: Path
    system: str
    arch: str
    environ: Mapping[str, str]
    n_cpus: int

    def read(self, path: str) -> str:
        """Return a small file's text without white space around it; "" if it cannot be read."""
        try:
            return (self.root / path.lstrip("/")).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def read_int(self, path: str) -> int:
        """Return a file's number; 0 if there is none."""
        text = self.read(path)
        return int(text) if text.isdecimal() else 0
