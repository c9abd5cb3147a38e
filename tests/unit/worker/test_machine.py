from __future__ import annotations

from pathlib import Path

import pytest

from auxot.worker.machine import free_memory_bytes, look_at_machine

KIB = 1024


def machine(root: Path, *, meminfo: str = "", **cgroup: str) -> Path:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(meminfo or f"MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: {8000} kB\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    for name, text in cgroup.items():
        (root / "sys/fs/cgroup" / name.replace("_", ".")).write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        ({}, 8000 * KIB),
        ({"memory_max": "max\n", "memory_current": "5\n"}, 8000 * KIB),
        ({"memory_max": f"{5000 * KIB}\n", "memory_current": f"{1000 * KIB}\n"}, 4000 * KIB),
        ({"memory_max": f"{50_000 * KIB}\n", "memory_current": f"{1000 * KIB}\n"}, 8000 * KIB),
        ({"memory_max": "100\n", "memory_current": "200\n"}, 0),
    ],
)
def test_free_memory_is_within_the_limit_of_the_container(
    tmp_path: Path, cgroup: dict[str, str], expected: int
) -> None:
    """A model is loaded that the container has no room for, and the kernel kills the worker."""
    assert free_memory_bytes(machine(tmp_path, **cgroup)) == expected


def test_where_nobody_says_it_is_the_machines_memory(tmp_path: Path) -> None:
    """A machine without /proc has no memory, and no model fits."""
    assert free_memory_bytes(tmp_path) > 100_000_000
    assert free_memory_bytes(machine(tmp_path, meminfo="broken")) > 100_000_000


async def test_this_machine_has_memory_and_a_kind() -> None:
    """A worker starts with nothing known of its machine."""
    found = await look_at_machine()
    assert found.gpu in ("cuda", "rocm", "vulkan", "metal", "cpu")
    assert found.free_bytes > 100_000_000
