"""`auxot-worker doctor`, with a real router and a real llama-server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from auxot.core.sites import LLAMA_RELEASE
from auxot.worker.devices import GIB, Device, DeviceKind, Host
from auxot.worker.doctor import check_gpus, devices_listed
from auxot.worker.doctor_model import check_file
from auxot.worker.findings import Verdict
from auxot.worker.llama.devices import parse_devices
from tests.live.processes import API_KEY, GPU_KEY, running_router

CPU = Device(kind=DeviceKind.CPU, name="cpu", total_bytes=16 * GIB, free_bytes=8 * GIB)


def doctor(folder: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    passed_on = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    program = Path(sys.executable).with_name("auxot-worker")
    return subprocess.run(
        [program, "doctor", *flags],
        env={**passed_on, "HOME": str(folder), **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def of(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    """What each check found, by its name (of several the last)."""
    return {one["check"]: (one["verdict"], one["text"]) for one in json.loads(done.stdout)["findings"]}


def test_a_host_that_has_everything(tmp_path, llama_server_binary, tiny_model):
    """A user would look for faults where there are none, or a worker of the doctor's take jobs."""
    with running_router(tmp_path) as house:
        files = ("--model-path", str(tiny_model), "--llama-server-path", str(llama_server_binary))
        variables = {"AUXOT_ROUTER_URL": f"ws://127.0.0.1:{house.port}", "AUXOT_GPU_KEY": GPU_KEY}
        done = doctor(tmp_path, "--json", *files, **variables)
        assert (done.returncode, json.loads(done.stdout)["ok"]) == (0, True), done.stdout
        found = of(done)
        assert found["router"][1].endswith("takes the key; serves tiny-bigram, 4 slots of 16384 tokens")
        assert {name: verdict for name, (verdict, _) in found.items() if name not in ("gpu", "memory", "disk")} == {
            "key": "ok",
            "router": "ok",
            "llama-server": "ok",
            "model": "ok",
        }
        plain = doctor(tmp_path, *files, **variables)
        assert plain.returncode == 0
        assert f"ok    key           {GPU_KEY[:8]}..." in plain.stdout.splitlines()
        assert GPU_KEY not in plain.stdout + plain.stderr
        assert house.health()["workers"] == 0


def test_a_host_that_has_nothing(tmp_path):
    """The first fault would hide the others, or a fault be told without what to do."""
    done = doctor(tmp_path, "--json", PATH="/nowhere", AUXOT_LLAMA_RELEASE="none")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["ok"] is False
    failed = {one["check"]: one for one in report["findings"] if one["verdict"] == "fail"}
    assert set(failed) == {"key", "router", "llama-server"}
    assert of(done)["model"] == ("warn", "the router says which one, and it has not answered")
    assert all(failed[check]["advice"] or "run `auxot-worker" in failed[check]["text"] for check in failed)


@pytest.mark.parametrize(
    ("key", "check", "line"),
    [
        ("adm_" + "x" * 43, "router", "refuses the key"),
        (API_KEY, "key", "is not a worker's key"),
        ("secret-in-the-wrong-form", "key", "it is no key"),
    ],
)
def test_a_key_that_opens_nothing(tmp_path, key, check, line):
    """A worker would be installed that the router does not let in, or the wrong key be shown to everybody."""
    with running_router(tmp_path) as house:
        variables = {"AUXOT_ROUTER_URL": f"ws://127.0.0.1:{house.port}", "AUXOT_GPU_KEY": key}
        done = doctor(tmp_path, "--json", **variables)
    verdict, text = of(done)[check]
    assert (done.returncode, verdict) == (1, "fail")
    assert line in text
    assert key not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("model", "memory", "verdict", "words"),
    [
        ("Qwen3-0.6B", "24GB", "ok", ("Qwen3-0.6B Q4_K_S: ", "of 24.0 GB", "; to be downloaded: about ")),
        ("Qwen3-8B", "8GB", "warn", ("that there is room for: 1 of ", "that the router asks for: 4 of 16384")),
        ("Qwen3-32B", "10GB", "fail", ("Qwen3-32B (Q4_K_S) does not fit: ", "there are 10.0 GB", " would fit")),
        ("Qwen3-9B", "24GB", "fail", ("there is no model 'Qwen3-9B' in the registry",)),
    ],
)
def test_what_the_router_asks_for_is_measured_as_a_start_measures_it(tmp_path, model, memory, verdict, words):
    """The doctor would promise a start that is refused, or refuse one that would come to serve."""
    with running_router(tmp_path, AUXOT_MODEL=model, AUXOT_CTX_SIZE="16384", AUXOT_MAX_PARALLEL="4") as house:
        url = f"ws://127.0.0.1:{house.port}"
        variables = {"AUXOT_ROUTER_URL": url, "AUXOT_GPU_KEY": GPU_KEY, "AUXOT_MEMORY": memory, "PATH": "/nowhere"}
        done = doctor(tmp_path, "--json", **variables)
    found = of(done)
    assert done.returncode == (1 if verdict == "fail" else 0)
    assert found["model"][0] == verdict
    assert [word for word in words if word not in found["model"][1]] == []
    assert found["llama-server"][0] == "ok"
    assert f"a start downloads release {LLAMA_RELEASE}" in found["llama-server"][1]
    assert not (tmp_path / ".auxot").exists()  # nothing is changed


def test_nobody_answers(tmp_path):
    """A wrong address would end the doctor, or let it wait for ever."""
    wrong = {"AUXOT_ROUTER_URL": "ws://127.0.0.1:1", "AUXOT_LLAMA_URL": "http://127.0.0.1:1", "AUXOT_GPU_KEY": GPU_KEY}
    found = of(doctor(tmp_path, "--json", **wrong))
    assert found["router"][0] == found["llama-server"][0] == "fail"
    assert "model" not in found  # that is the other llama-server's affair


@pytest.mark.parametrize(
    ("n_gib", "gpus_gib", "verdict"),
    [
        (7, (), "ok"),
        (17, (), "fail"),
        (20, (24,), "ok"),
        (30, (24, 24), "ok"),
        (30, (24,), "warn"),
        (41, (24,), "fail"),
    ],
)
def test_a_model_must_fit(tmp_path, n_gib, gpus_gib, verdict):
    """A model would be loaded for minutes that the memory has no room for."""
    for part in (1, 2):
        with (tmp_path / f"big-0000{part}-of-00002.gguf").open("wb") as file:
            file.write(b"GGUF")
            file.truncate(n_gib * GIB // 2)  # a file with a hole takes no room
    gpus = tuple(Device(kind=DeviceKind.CUDA, name="g", total_bytes=n * GIB, free_bytes=n * GIB) for n in gpus_gib)
    found = check_file(tmp_path / "big-00001-of-00002.gguf", Host(gpus=gpus, cpu=CPU, n_cpus=4))
    assert found.verdict is Verdict(verdict)
    assert f"{n_gib * GIB / 10**9:.1f} GB of weights" in found.text


def test_files_that_are_no_model(tmp_path):
    """A download of an error page would look like a model, or a missing part like a whole one."""
    host = Host(gpus=(), cpu=CPU, n_cpus=4)
    (tmp_path / "page.gguf").write_text("<html>")
    (tmp_path / "m-00001-of-00002.gguf").write_text("GGUF")
    assert "is no GGUF file" in check_file(tmp_path / "page.gguf", host).text
    assert "m-00002-of-00002.gguf" in check_file(tmp_path / "m-00001-of-00002.gguf", host).text
    assert check_file(tmp_path, host).verdict is Verdict.FAIL


def test_gpus_and_their_drivers_are_told():
    """A driver that does not answer would look like a host without GPUs."""
    text = (
        "Available devices:\n  CUDA0: NVIDIA H200 (143167 MiB, 142600 MiB free)\n  Vulkan1: A (b) (8 MiB, 4 MiB free)\n"
    )
    cuda, vulkan = devices_listed(parse_devices(text))
    assert (cuda.kind, cuda.name, cuda.total_bytes >> 20) == (DeviceKind.CUDA, "NVIDIA H200", 143167)
    assert (vulkan.kind, vulkan.name, vulkan.free_bytes >> 20) == (DeviceKind.VULKAN, "A (b)", 4)
    findings = list(check_gpus(Host(gpus=(cuda,), cpu=CPU, n_cpus=4, problems=("no answer",))))
    assert [(one.verdict, one.text) for one in findings] == [
        (Verdict.WARN, "no answer"),
        (Verdict.OK, "NVIDIA H200 (cuda), 149.5 GB of 150.1 GB free"),
    ]
