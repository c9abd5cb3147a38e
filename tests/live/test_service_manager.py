"""The daemons under a service manager: what they tell it, the sockets that it holds, a reload."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
from websockets.sync.client import connect

from tests.live.processes import (
    ADMIN_HASH,
    API_HASH,
    API_KEY,
    GPU_KEY,
    PROBE,
    Daemon,
    running_daemon,
    running_router,
    running_worker,
    started_daemon,
    wait_until,
)

HASHES = {"AUXOT_ADMIN_KEY_HASH": ADMIN_HASH, "AUXOT_API_KEY_HASH": API_HASH}
LOOPBACK = {"AUXOT_HOST": "127.0.0.1", "AUXOT_PORT": "0"}
BEARER = {"authorization": f"Bearer {API_KEY}"}
# What a service manager does between fork and exec: descriptor 3 is the socket, and the pid is told.
HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.execve(sys.argv[2], sys.argv[2:], {**os.environ, "LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())})
"""
ROUTER = str(Path(sys.executable).with_name("auxot-router"))
ACTIVATE = [sys.executable, "-c", HAND_OVER]


@attrs.frozen
class Manager:
    """The notification socket of a service manager."""

    listening: socket.socket
    path: Path

    def next(self) -> dict[str, str]:
        """Return the next message as its variables."""
        lines = self.listening.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def next_with(self, name: str) -> dict[str, str]:
        """Return the next message that says something of this name."""
        while name not in (message := self.next()):
            pass
        return message


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        listening.settimeout(60)
        yield Manager(listening, path)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket that outlives the routers that serve it."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as held:
        yield held


@contextmanager
def activated_router(folder: Path, listener: socket.socket, **variables: str) -> Iterator[Daemon]:
    """Run a router on a socket that somebody else has opened."""
    with router_given(folder, listener.fileno(), **variables) as daemon:
        yield daemon


@contextmanager
def router_given(folder: Path, fd: int, **variables: str) -> Iterator[Daemon]:
    """Run a router that is handed a descriptor."""
    argv = [*ACTIVATE, str(fd), ROUTER]
    with started_daemon(folder, "router", argv, {**HASHES, **variables}, pass_fds=[fd]) as daemon:
        yield daemon


def write_settings(folder: Path, **settings: str) -> None:
    lines = [f"{name}='{value}'" for name, value in {**HASHES, **LOOPBACK, **settings}.items()]
    (folder / ".env").write_text("\n".join(lines))


def url_of(daemon: Daemon) -> str:
    return f"http://{daemon.wait_for('router.ready')['addresses'][0]}"


def test_router_tells_its_life(manager, tmp_path):
    """A service manager would start what needs the router before it answers, or kill it while it lives."""
    told = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "400000"}
    with running_router(tmp_path, **told) as house:
        assert manager.next_with("READY")["STATUS"] == "0 workers, 0 of 0 slots busy"
        assert house.health()["status"] == "ok"
        assert [manager.next_with("WATCHDOG")["WATCHDOG"] for _ in range(3)] == ["1"] * 3
        house.router.send(signal.SIGTERM)
        assert manager.next_with("STOPPING")["STOPPING"] == "1"
        assert house.router.wait() == 0


def test_worker_is_ready_when_it_serves(manager, tmp_path, llama_server_binary, tiny_model):
    """A service manager would call a worker started that is still loading."""
    files = {"AUXOT_LLAMA_BINARY": str(llama_server_binary), "AUXOT_MODEL_FILE": str(tiny_model)}
    told = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "400000"}
    with (
        running_router(tmp_path, AUXOT_MAX_PARALLEL="2") as house,
        running_worker(house, **files, **told) as worker,
    ):
        said = []
        while "READY" not in (message := manager.next()):
            said.append(message.get("STATUS", "starting"))
        assert [text for text in dict.fromkeys(said) if text != "starting"] == [
            "asking the router what to serve",
            "getting llama-server and the model ready",
            "llama-server loads the model",
            "serving, 2 slots",
        ]
        house.wait_health(total_slots=2)  # the router may be reading the announcement still
        assert manager.next_with("WATCHDOG")["WATCHDOG"] == "1"
        worker.send(signal.SIGTERM)
        assert manager.next_with("STOPPING")["STATUS"] == "running jobs may end"
        assert worker.wait() == 0


def test_a_restart_refuses_nobody(listener, tmp_path):
    """Clients would be refused, or turned away with a 503, whenever the router is restarted."""
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/models"
    statuses: list[int | str] = []
    done = threading.Event()

    def ask() -> None:
        with httpx.Client(headers=BEARER, timeout=30, trust_env=False) as client:
            while not done.is_set():
                try:
                    statuses.append(client.get(url, headers={"connection": "close"}).status_code)
                except httpx.TransportError as exc:
                    statuses.append(repr(exc))

    clients = [threading.Thread(target=ask) for _ in range(4)]
    try:
        for round_ in range(3):
            with activated_router(tmp_path, listener) as router:
                router.wait_for("router.ready")
                if not round_:
                    for client in clients:
                        client.start()
                wanted = len(statuses) + 20
                wait_until(partial(has_grown, statuses, wanted), what="answers", daemon=router)
                router.send(signal.SIGTERM)
                assert router.wait() == 0
        with activated_router(tmp_path, listener) as router:  # those who wait now are served too
            done.set()
            for client in clients:
                client.join(30)
    finally:
        done.set()
    assert set(statuses) == {200}


@pytest.mark.parametrize(("kind", "line"), [("file", "is no socket"), ("udp", "is not a listening TCP socket")])
def test_a_descriptor_that_is_no_listener_is_told(tmp_path, kind, line):
    """A mistake in a unit would show as a traceback, or as a router that listens on nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, (tmp_path / "file").open("w") as file:
        fd = {"udp": udp, "file": file}[kind].fileno()
        with router_given(tmp_path, fd) as router:
            assert router.wait() == 2
    assert line in router.log_path.read_text()


def test_sockets_for_another_process_are_left_alone(tmp_path):
    """A router that was started by an activated service would take that service's sockets."""
    with running_router(tmp_path, LISTEN_FDS="1", LISTEN_PID=str(os.getpid())) as house:
        assert house.health()["status"] == "ok"


def test_hangup_changes_the_policy_of_running_workers(manager, tmp_path):
    """A change of the model or its context would need a restart of the router, and so of every worker's connection."""
    write_settings(tmp_path, AUXOT_MODEL="old-model", AUXOT_CTX_SIZE="4096")
    with running_daemon(tmp_path, "router", "auxot-router", NOTIFY_SOCKET=str(manager.path)) as router:
        url = url_of(router)
        manager.next_with("READY")
        with connect(f"{url.replace('http', 'ws')}/ws") as worker:
            capabilities = {"backend": "llama.cpp", "model": "m", "ctx_size": 0, "total_slots": 1}
            worker.send(json.dumps({"type": "hello", "gpu_key": GPU_KEY, "capabilities": capabilities}))
            assert receive(worker, "hello_ack")["policy"]["model_name"] == "old-model"
            write_settings(tmp_path, AUXOT_MODEL="new-model", AUXOT_CTX_SIZE="8192", AUXOT_MAX_BODY_BYTES="2048")
            router.send(signal.SIGHUP)
            policy = receive(worker, "policy_update")["policy"]
        assert (policy["model_name"], policy["context_size"]) == ("new-model", 8192)
        manager.next_with("RELOADING")
        assert manager.next_with("READY")["READY"] == "1"
        assert models(url) == ["new-model"]
        assert router.wait_for("config.restart_needed")["settings"] == ["max_body_bytes"]
        with connect(f"{url.replace('http', 'ws')}/ws") as worker:
            worker.send(json.dumps({"type": "hello", "gpu_key": GPU_KEY, "capabilities": capabilities}))
            assert receive(worker, "hello_ack")["policy"]["model_name"] == "new-model"


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"AUXOT_CTX_SIZE": "many"}, "AUXOT_CTX_SIZE"),
        ({"AUXOT_MODEL": "Qwen3-8B", "AUXOT_QUANTIZATION": "Q9_X"}, "no quantization 'Q9_X' of Qwen3-8B"),
        ({"AUXOT_REGISTRY_FILE": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_hangup_with_bad_settings_changes_nothing(tmp_path, settings, error):
    """A typing error in the settings would end a router that serves."""
    write_settings(tmp_path, AUXOT_MODEL="old-model")
    with running_daemon(tmp_path, "router", "auxot-router") as router:
        url = url_of(router)
        write_settings(tmp_path, **{"AUXOT_MODEL": "new-model", **settings})
        router.send(signal.SIGHUP)
        assert error in router.wait_for("config.not_reloaded")["error"]
        assert models(url) == ["old-model"]


def test_hangup_of_a_closed_terminal_stops(tmp_path):
    """A router that was started in a terminal would go on, unseen, after that has been closed."""
    write_settings(tmp_path)
    master, slave = os.openpty()
    with started_daemon(tmp_path, "router", [ROUTER], {}, stdin=slave) as router:
        os.close(slave)
        router.wait_for("router.ready")
        router.send(signal.SIGHUP)  # the terminal is there: settings are read again
        router.wait_for("config.reloaded")
        os.close(master)
        router.send(signal.SIGHUP)
        assert router.wait() == 0


def receive(worker: Any, kind: str) -> dict[str, Any]:
    while (message := json.loads(worker.recv(timeout=30)))["type"] != kind:
        pass
    body: dict[str, Any] = message
    return body


def has_grown(statuses: list[Any], wanted: int) -> bool:
    return len(statuses) >= wanted


def models(url: str) -> list[str]:
    return [one["id"] for one in PROBE.get(f"{url}/v1/models", headers=BEARER).json()["data"]]
