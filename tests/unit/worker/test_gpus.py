"""Hosts as files: what their kernels and drivers say, and what is made of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from auxot.worker.devices import GIB, DeviceKind, Machine
from auxot.worker.gpus import detect, this_machine

MEMINFO = "MemTotal:       65536000 kB\nMemFree:        1000000 kB\nMemAvailable:   32768000 kB\n"

# NVML as a driver exports it, for two GPUs; the second has no memory of its own.
NVML = r"""
#include <stdio.h>
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory_t;
static char handles[2];
int nvmlInitWithFlags(unsigned flags) { return FAIL; }
int nvmlInit_v2(void) { return FAIL; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "Driver/library version mismatch"; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = handles + i; return 0; }
static int at(void *h) { return (int)((char *)h - handles); }
int nvmlDeviceGetName(void *h, char *s, unsigned n) { snprintf(s, n, "Test GPU %d", at(h)); return 0; }
int nvmlDeviceGetUUID(void *h, char *s, unsigned n) { snprintf(s, n, "GPU-%d%d", at(h), 7); return 0; }
int nvmlDeviceGetMemoryInfo(void *h, memory_t *m) {
    if ((char *)h != handles) return 3;
    m->total = 24ULL << 30; m->free = 20ULL << 30; m->used = 4ULL << 30; return 0;
}
"""
TELL = """
import json
from auxot.worker.gpus import detect
host = detect()
gpus = [(gpu.kind.value, gpu.name, gpu.total_bytes >> 30, gpu.free_bytes >> 30, gpu.is_shared) for gpu in host.gpus]
print(json.dumps([gpus, list(host.problems)]))
"""


def machine(root: Path, **fields) -> Machine:
    return Machine(**{"root": root, "system": "linux", "arch": "x86_64", "environ": {}, "n_cpus": 8, **fields})


def lay(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def drm(n: int, **files: str) -> dict[str, str]:
    return {f"sys/class/drm/card{n}/device/{name}": text for name, text in files.items()}


def nvml_says(folder: Path, *, fail: int, **variables: str):
    """What a process sees under a driver of that kind."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / "nvml.c").write_text(NVML)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", f"-DFAIL={fail}", "-o", library, folder / "nvml.c"], check=True)
    environ = {**os.environ, "LD_LIBRARY_PATH": str(folder), **variables}
    done = subprocess.run([sys.executable, "-c", TELL], env=environ, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_amd_cards_in_the_order_of_their_numbers(tmp_path):
    """A card would be missed, a display's connector taken for one, or ROCm promised where there is none."""
    gib = {n: str(n * GIB) for n in (2, 20, 24)}
    lay(tmp_path, drm(10, vendor="0x1002", device="0x744c", mem_info_vram_total=gib[24], mem_info_vram_used=gib[2]))
    named = {"vendor": "0x1002", "product_name": "Radeon Pro", "mem_info_vram_total": gib[20]}
    lay(tmp_path, {**drm(2, **named), "sys/class/drm/card2-HDMI-A-1/status": "connected"})
    lay(tmp_path, {"dev/kfd": "", **drm(0, vendor="0x10de")})  # NVIDIA's driver speaks for itself
    gpus = detect(machine(tmp_path)).gpus
    assert [(gpu.name, gpu.kind) for gpu in gpus] == [
        ("Radeon Pro", DeviceKind.ROCM),
        ("AMD GPU 0x744c", DeviceKind.ROCM),
    ]
    assert (gpus[1].total_bytes, gpus[1].free_bytes) == (24 * GIB, 22 * GIB)
    (tmp_path / "dev/kfd").unlink()
    assert {gpu.kind for gpu in detect(machine(tmp_path)).gpus} == {DeviceKind.VULKAN}


def test_an_integrated_gpu_has_the_memory_that_it_shares(tmp_path):
    """A machine with 96 GB for its GPU would count as one with 512 MB."""
    own = {"mem_info_vram_total": str(GIB // 2), "mem_info_vram_used": str(GIB // 4)}
    shared = {"mem_info_gtt_total": str(96 * GIB), "mem_info_gtt_used": "0"}
    lay(tmp_path, drm(1, vendor="0x1002", device="0x1586", **own, **shared))
    lay(tmp_path, drm(2, vendor="0x8086", device="0x56a0"))
    amd, intel = detect(machine(tmp_path)).gpus
    assert (amd.total_bytes, amd.is_shared) == (96 * GIB + GIB // 2, True)
    assert (intel.kind, intel.total_bytes) == (DeviceKind.VULKAN, 0)


@pytest.mark.parametrize(
    ("files", "total", "free"),
    [
        ({}, 65536000 << 10, 32768000 << 10),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.max": str(8 * GIB),
                "sys/fs/cgroup/a/memory.current": str(5 * GIB),
                "sys/fs/cgroup/a/memory.stat": f"anon 1\ninactive_file {4 * GIB}\n",
            },
            8 * GIB,
            7 * GIB,
        ),
        (
            {
                "proc/self/cgroup": "7:cpu:/x\n4:memory:/job\n0::/\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(2 * GIB),
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": str(GIB),
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            2 * GIB,
            GIB,
        ),
    ],
    ids=["none", "v2", "v1"],
)
def test_memory_within_the_limits_of_containers(tmp_path, files, total, free):
    """A model would be loaded that the container is killed for."""
    cpuinfo = "processor : 0\nmodel name\t: Test CPU @ 3 GHz\n"
    lay(tmp_path, {"proc/meminfo": MEMINFO, "proc/cpuinfo": cpuinfo, **files})
    cpu = detect(machine(tmp_path)).cpu
    assert (cpu.name, cpu.total_bytes, cpu.free_bytes) == ("Test CPU @ 3 GHz", total, free)


@pytest.mark.parametrize(("limit_mib", "gib"), [("0", 48.0), ("57344", 56.0)])
def test_apple_silicon(tmp_path, limit_mib, gib):
    """A Mac would count as a machine without a GPU, or its GPU as one with all of the memory."""
    sysctl = tmp_path / "sysctl"
    answers = f"hw.memsize) echo {64 * GIB};; machdep*) echo Apple M3 Max;; iogpu*) echo {limit_mib};;"
    sysctl.write_text(f'#!/bin/sh\ncase "$2" in {answers} *) exit 1;; esac\n')
    sysctl.chmod(0o755)
    host = detect(machine(tmp_path, system="darwin", arch="arm64", environ={"PATH": f"{tmp_path}:/bin"}))
    assert [(gpu.kind, gpu.name, gpu.total_bytes / GIB) for gpu in host.gpus] == [
        (DeviceKind.METAL, "Apple M3 Max", gib)
    ]
    assert host.cpu.total_bytes == 64 * GIB


def test_nvidia_s_driver_is_asked(tmp_path):
    """A GPU would be missed, or one without memory of its own end the worker."""
    gpus, problems = nvml_says(tmp_path, fail=0)
    assert gpus[0] == ["cuda", "Test GPU 0", 24, 20, False]
    assert (gpus[1][:2], gpus[1][4]) == (["cuda", "Test GPU 1"], True)
    assert gpus[1][2] > 0
    assert problems == []


@pytest.mark.parametrize(("wanted", "names"), [("1", [1]), ("1,0", [1, 0]), ("GPU-17", [1]), ("", []), ("0,9,1", [0])])
def test_gpus_that_cuda_may_not_see_are_not_counted(tmp_path, wanted, names):
    """A worker that was given one GPU would count on the memory of all."""
    gpus, _ = nvml_says(tmp_path, fail=0, CUDA_VISIBLE_DEVICES=wanted)
    assert [gpu[1] for gpu in gpus] == [f"Test GPU {n}" for n in names]


def test_a_driver_that_does_not_answer_is_told(tmp_path):
    """A driver that was updated under a running system would look like a host without GPUs."""
    gpus, problems = nvml_says(tmp_path, fail=18)
    assert gpus == []
    assert "version mismatch" in problems[0]


def test_this_machine_has_a_processor():
    """Detection would fail on the machine at hand."""
    host = detect(this_machine())
    assert host.cpu.total_bytes >= host.cpu.free_bytes > 0
