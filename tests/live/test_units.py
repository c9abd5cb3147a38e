"""Installed daemons, under a real systemd."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.private_systemd import Systemd, private_systemd
from tests.live.processes import ADMIN_HASH, API_HASH, API_KEY, GPU_KEY, PROBE, children_of, is_alive, wait_until

HASHES = {"AUXOT_ADMIN_KEY_HASH": ADMIN_HASH, "AUXOT_API_KEY_HASH": API_HASH}
ROUTER, WORKER = "auxot-router-default", "auxot-worker-gpu0"


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with private_systemd(tmp_path) as running:
        yield running


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
    return number


def install_router(systemd: Systemd, port: int, *flags: str, **variables: str) -> str:
    where = ("--host", "127.0.0.1", "--port", str(port))
    return systemd.auxot("auxot-router", "install", "--user", *where, *flags, **variables)


def outside(systemd: Systemd, pid: str) -> int:
    """The number that a process of the namespace has outside of it."""
    for status in Path("/proc").glob("[0-9]*/status"):
        numbers = re.search(r"^NSpid:\t(.*)$", read(status), re.MULTILINE)
        if numbers and numbers[1].split()[1:] == [pid] and is_below(int(status.parent.name), systemd.init_pid):
            return int(status.parent.name)
    raise AssertionError(f"no process {pid}")


def is_below(pid: int, ancestor: int) -> bool:
    while pid > 1 and pid != ancestor:
        parent = re.search(r"^PPid:\t(\d+)$", read(Path(f"/proc/{pid}/status")), re.MULTILINE)
        pid = int(parent[1]) if parent else 0
    return pid == ancestor


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def served_model(port: int) -> str:
    answer = PROBE.get(f"http://127.0.0.1:{port}/v1/models", headers={"authorization": f"Bearer {API_KEY}"}, timeout=60)
    name: str = answer.json()["data"][0]["id"]
    return name


def test_a_router_is_installed_changed_and_removed(systemd, port):
    """`install` would write units that systemd does not start, or keys that others can read."""
    said = install_router(systemd, port, "--model", "model-a", **HASHES)
    pid = systemd.wait_active(ROUTER)
    assert "journalctl --user --unit auxot-router-default" in said
    assert served_model(port) == "model-a"
    assert systemd.show(ROUTER, "StatusText") == "0 workers, 0 of 0 slots busy"
    config = systemd.home / ".config"
    assert (config / "auxot/router-default/.env").stat().st_mode & 0o777 == 0o600
    assert (config / "auxot/router-default").stat().st_mode & 0o777 == 0o700
    units = "".join(path.read_text() for path in (config / "systemd/user").glob("auxot*"))
    assert ADMIN_HASH not in units
    systemd.run("systemd-analyze", "verify", "--user", *map(str, (config / "systemd/user").glob("auxot*.*")))

    install_router(systemd, port)  # the same settings: nothing happens
    assert systemd.wait_active(ROUTER) == pid
    install_router(systemd, port, "--model", "model-b")
    wait_until(lambda: served_model(port) == "model-b", what="model-b")  # each request is answered meanwhile
    assert systemd.wait_active(ROUTER) != pid

    listed = systemd.auxot("auxot-router", "list").splitlines()
    assert listed[1].split() == ["default", "user", "running", "model-b", f"127.0.0.1:{port}"]
    systemd.auxot("auxot-router", "uninstall")
    assert systemd.show(ROUTER, "LoadState") == "not-found"
    assert not list(config.rglob("*auxot*/*"))
    assert "nothing is installed" in systemd.auxot("auxot-router", "list")


def test_settings_are_read_again_by_a_reload(systemd, port):
    """`systemctl reload` would end the router, or read settings that were given when it started."""
    install_router(systemd, port, "--model", "model-a", **HASHES)
    pid = systemd.wait_active(ROUTER)
    env_file = systemd.home / ".config/auxot/router-default/.env"
    env_file.write_text(env_file.read_text().replace("model-a", "model-b"))
    systemd.run("systemctl", "--user", "reload", ROUTER)
    wait_until(lambda: served_model(port) == "model-b", what="model-b")
    assert systemd.wait_active(ROUTER) == pid


def test_a_router_that_is_stuck_is_restarted(systemd, port):
    """A router whose event loop does not turn any more would stay so until somebody looks."""
    override = systemd.home / f".config/systemd/user/{ROUTER}.service.d"
    override.mkdir(parents=True)
    (override / "short.conf").write_text("[Service]\nWatchdogSec=1\nRestartSec=100ms\nTimeoutAbortSec=1\n")
    install_router(systemd, port, "--model", "model-a", **HASHES)
    pid = systemd.wait_active(ROUTER)
    os.kill(outside(systemd, pid), signal.SIGSTOP)
    wait_until(lambda: systemd.show(ROUTER, "MainPID") not in (pid, "0"), what="another process")
    systemd.wait_active(ROUTER)
    assert served_model(port) == "model-a"
    assert systemd.show(ROUTER, "NRestarts") == "1"


def test_a_worker_is_active_when_it_serves(systemd, port, llama_server_binary, tiny_model):
    """A worker's service would run without its key, count as started too early, or leave its llama-server behind."""
    install_router(systemd, port, "--ctx-size", "4096", **HASHES)
    systemd.wait_active(ROUTER)
    flags = ("--name", "gpu0", "--model-path", str(tiny_model), "--threads", "1")
    url = f"ws://127.0.0.1:{port}"
    variables = {"AUXOT_GPU_KEY": GPU_KEY, "AUXOT_ROUTER_URL": url, "AUXOT_LLAMA_BINARY": str(llama_server_binary)}
    systemd.auxot("auxot-worker", "install", "--user", *flags, **variables)
    pid = outside(systemd, systemd.wait_active(WORKER))
    wait_until(lambda: PROBE.get(f"http://127.0.0.1:{port}/health").json()["workers"] == 1, what="the worker")
    assert systemd.show(WORKER, "StatusText") == "serving, 2 slots"
    listed = systemd.auxot("auxot-worker", "list").splitlines()
    assert listed[1].split() == ["gpu0", "user", "running", GPU_KEY[:8], url]
    (llama,) = children_of(pid)
    systemd.run("systemctl", "--user", "stop", WORKER)
    assert systemd.show(WORKER, "Result") == "success"
    assert not is_alive(llama)


def test_a_worker_with_a_wrong_key_is_not_restarted(systemd, port, llama_server_binary, tiny_model):
    """A worker whose key is refused would knock at the router every five seconds for ever."""
    install_router(systemd, port, **HASHES)
    files = {"AUXOT_LLAMA_BINARY": str(llama_server_binary), "AUXOT_MODEL_FILE": str(tiny_model)}
    variables = {"AUXOT_GPU_KEY": "adm_" + "x" * 43, "AUXOT_ROUTER_URL": f"ws://127.0.0.1:{port}", **files}
    systemd.auxot("auxot-worker", "install", "--user", "--name", "gpu0", **variables)
    wait_until(lambda: systemd.show(WORKER, "ActiveState") == "failed", what="its end")
    assert (systemd.show(WORKER, "ExecMainStatus"), systemd.show(WORKER, "NRestarts")) == ("3", "0")


def test_system_services_work_within_their_bounds(systemd, port, llama_server_binary, tiny_model):
    """What a system service may not do would keep the router, the worker or llama-server from working."""
    root = systemd.home / "image"
    where = ("--host", "127.0.0.1", "--port", str(port), "--ctx-size", "4096")
    files = {"AUXOT_LLAMA_BINARY": str(llama_server_binary), "AUXOT_MODEL_FILE": str(tiny_model), "AUXOT_THREADS": "1"}
    variables = {"AUXOT_GPU_KEY": GPU_KEY, "AUXOT_ROUTER_URL": f"ws://127.0.0.1:{port}", **files}
    systemd.auxot("auxot-router", "install", "--system", "--root", str(root), *where, **HASHES)
    systemd.auxot("auxot-worker", "install", "--system", "--root", str(root), "--name", "gpu0", **variables)
    adopt_system_units(systemd, root)
    systemd.run("systemctl", "--user", "start", f"{ROUTER}.socket", f"{ROUTER}.service", f"{WORKER}.service")
    systemd.wait_active(WORKER)
    question = {"model": "any", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    answer = PROBE.post(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json=question,
        headers={"authorization": f"Bearer {API_KEY}"},
        timeout=60,
    )
    assert answer.status_code == 200
    for unit in (ROUTER, WORKER):
        pid = outside(systemd, systemd.show(unit, "MainPID"))
        assert "CapEff:\t0000000000000000" in read(Path(f"/proc/{pid}/status"))


def adopt_system_units(systemd: Systemd, root: Path) -> None:
    """Have the user manager run system services: all of their text, but for what is not here.

    That is the user and its folders, and what takes device nodes that only the manager of a whole machine has made.
    """
    absent = r"^(User|Group|SupplementaryGroups|Environment|ProtectHome|ProtectKernel(Logs|Tunables))=.*\n"
    units = systemd.home / ".config/systemd/user"
    units.mkdir(parents=True)
    for path in (root / "etc/systemd/system").iterdir():
        text = path.read_text().replace("=/etc/auxot/", f"={root}/etc/auxot/")
        text = text.replace("PrivateTmp=yes", "ReadWritePaths=/tmp")  # where this test's files may be
        (units / path.name).write_text(re.sub(absent, "", text, flags=re.MULTILINE))
    systemd.run("systemctl", "--user", "daemon-reload")
