"""`auxot-router --processes N`: real processes on one port, killed, stopped and orphaned."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from auxot.demo.tiny_model import ANSWER
from tests.live.processes import (
    API_KEY,
    GPU_KEY,
    PROBE,
    Daemon,
    House,
    children_of,
    is_alive,
    router_variables,
    running_daemon,
    running_worker,
    started_daemon,
    wait_until,
)
from tests.store.harness import RedisServer, redis_server

N_PROCESSES = 2
ROUTER = str(Path(sys.executable).with_name("auxot-router"))
IMPATIENT = f"""
import sys, trio
from auxot.router.processes import ProcessPlan, run_processes
plan = ProcessPlan(n_processes={N_PROCESSES}, program=sys.argv[1:], host="127.0.0.1", port=0, patience_s=5,
                   watchdog_s=1)
trio.run(run_processes, plan)
"""
QUESTION = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "reasoning_effort": "none"}


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@contextmanager
def running_routers(folder: Path, redis: RedisServer, **variables: str) -> Iterator[House]:
    """Run a parent with its routers."""
    settings = router_variables(AUXOT_REDIS_URL=redis.url, AUXOT_PROCESSES=str(N_PROCESSES), **variables)
    with running_daemon(folder, "router", "auxot-router", **settings) as daemon:
        daemon.wait_for("processes.ready")
        address = daemon.wait_for("router.ready")["addresses"][0]
        yield House(daemon, int(address.rpartition(":")[2]), folder)


@pytest.fixture
def house(tmp_path: Path, redis: RedisServer) -> Iterator[House]:
    with running_routers(tmp_path, redis) as house:
        yield house


@pytest.fixture
def worker_files(tiny_model: Path, llama_server_binary: Path) -> dict[str, str]:
    return {"AUXOT_MODEL_FILE": str(tiny_model), "AUXOT_LLAMA_BINARY": str(llama_server_binary)}


@pytest.fixture
def worker(house: House, worker_files: dict[str, str]) -> Iterator[Daemon]:
    with running_worker(house, **worker_files) as worker:
        worker.wait_for("link.open")
        wait_until(lambda: house.health()["all_routers"]["workers"] == 1, what="a worker", daemon=house.router)
        yield worker


def answer_of(house: House) -> str:
    """Ask over a connection of its own, which any of the routers may get."""
    headers = {"authorization": f"Bearer {API_KEY}"}
    response = PROBE.post(f"{house.url}/v1/chat/completions", json=QUESTION, headers=headers, timeout=60)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def events(house: House, event: str) -> int:
    return len(lines(house, event))


def lines(house: House, event: str) -> list[dict[str, Any]]:
    return [line for line in house.router.log() if line["event"] == event]


def n_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_every_process_serves_the_one_worker(house: House, worker_files: dict[str, str]) -> None:
    """A request is answered only by the process that its worker is connected to."""
    assert len(children_of(house.router.pid)) == N_PROCESSES
    with ExitStack() as stack:
        clients = [stack.enter_context(house.client()) for _ in range(16)]
        for client in clients:  # while nobody has a worker connections stay where the kernel puts them
            assert client.get("/v1/models").is_success
        stack.enter_context(running_worker(house, **worker_files))
        wait_until(lambda: house.health()["all_routers"]["workers"] == 1, what="a worker", daemon=house.router)
        for client in clients:
            assert client.post("/v1/chat/completions", json=QUESTION).is_success
    assert len({line["router_id"] for line in lines(house, "job.finished")}) == N_PROCESSES


@pytest.mark.usefixtures("worker")
def test_a_client_is_handed_to_the_process_with_the_worker(house: House) -> None:
    """Answers cross Redis, which costs four times the CPU, or each hand-over leaves a descriptor behind."""
    assert answer_of(house) == ANSWER
    children = children_of(house.router.pid)
    before = [n_descriptors(child) for child in children]
    for _ in range(16):
        assert answer_of(house) == ANSWER
    [home] = {line["router_id"] for line in lines(house, "worker.ready")}
    assert {line["router_id"] for line in lines(house, "job.finished")} == {home}
    wait_until(
        lambda: all(n_descriptors(child) <= old for child, old in zip(children, before, strict=True)),
        what=f"the old number of descriptors, {before}",
    )


def test_workers_are_spread_over_the_processes(house: House) -> None:
    """One process computes for all workers while the other has none."""
    capabilities = {"backend": "llama.cpp", "model": "m", "ctx_size": 0, "total_slots": 1}
    with ExitStack() as stack:
        for _ in range(32):
            worker = stack.enter_context(connect(house.worker_url, proxy=None))
            worker.send(json.dumps({"type": "hello", "gpu_key": GPU_KEY, "capabilities": capabilities}))
            assert json.loads(worker.recv(timeout=60))["success"]
        wait_until(lambda: events(house, "worker.connected") == 32, what="32 workers", daemon=house.router)
    connected = Counter(line["router_id"] for line in lines(house, "worker.connected"))
    assert list(connected.values()) == [16, 16]


def test_a_killed_process_comes_again_and_nobody_is_refused(house: House, worker: Daemon) -> None:
    """A router process that dies takes its share of the port with it."""
    for child in children_of(house.router.pid):
        os.kill(child, signal.SIGKILL)
        for _ in range(16):
            assert PROBE.get(f"{house.url}/health", timeout=60).is_success
    assert events(house, "process.died") == N_PROCESSES
    worker.wait_for("link.open", after=1)
    assert answer_of(house) == ANSWER


@pytest.mark.usefixtures("worker")
def test_what_was_handed_to_a_process_that_is_killed_is_served_by_the_next(house: House) -> None:
    """A client whose connection lay in the inbox of a killed process is closed, or waits for ever."""
    for n_died, child in enumerate(children_of(house.router.pid)):  # one of them has the worker, and is handed clients
        wait_until(lambda: house.health()["all_routers"]["workers"] == 1, what="a worker", daemon=house.router)
        os.kill(child, signal.SIGSTOP)
        with ExitStack() as stack:
            clients = [stack.enter_context(socket.create_connection(("127.0.0.1", house.port))) for _ in range(16)]
            for client in clients:
                client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            time.sleep(0.5)  # to accept them and hand them over
            os.kill(child, signal.SIGKILL)
            for client in clients:
                client.settimeout(60)
                assert client.recv(12) == b"HTTP/1.1 200"
        house.router.wait_for("process.started", after=N_PROCESSES + n_died)


def test_a_stuck_process_is_replaced(tmp_path: Path, redis: RedisServer) -> None:
    """A process that hangs holds its share of the connections for ever."""
    settings = router_variables(AUXOT_REDIS_URL=redis.url)
    with started_daemon(tmp_path, "parent", [sys.executable, "-c", IMPATIENT, ROUTER], settings) as parent:
        parent.wait_for("processes.ready")
        stuck = children_of(parent.pid)[0]
        os.kill(stuck, signal.SIGSTOP)
        parent.wait_for("process.died")
        assert not is_alive(stuck)
        parent.wait_for("process.started", after=N_PROCESSES)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_lets_answers_end_and_leaves_nothing(house: House, number: signal.Signals) -> None:
    """A signal to the parent cuts an answer, or leaves a process behind."""
    children = children_of(house.router.pid)
    headers = {"authorization": f"Bearer {API_KEY}"}
    asked = {**QUESTION, "stream": True, "ignore_eos": True, "max_tokens": 2000}
    with (
        httpx.Client(trust_env=False) as client,
        client.stream("POST", f"{house.url}/v1/chat/completions", json=asked, headers=headers) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        house.router.send(number)
        assert any("[DONE]" in line for line in lines)
    assert house.router.wait() == 0
    assert not any(map(is_alive, children))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", house.port))


def test_children_do_not_outlive_a_killed_parent(house: House) -> None:
    """Routers without a parent go on, and nobody can stop or restart them."""
    children = children_of(house.router.pid)
    house.router.send(signal.SIGKILL)
    house.router.wait()
    wait_until(lambda: not any(map(is_alive, children)), what="the end of the children")


def test_hup_reaches_every_process(house: House) -> None:
    """A reload reaches one of the routers only."""
    house.router.send(signal.SIGHUP)
    for number in range(N_PROCESSES):
        house.router.wait_for("config.reloaded", after=number)


@pytest.mark.parametrize(
    ("changes", "code", "complaint"),
    [
        ({"AUXOT_PROCESSES": "2"}, 2, "AUXOT_PROCESSES=2 needs AUXOT_REDIS_URL"),
        ({"AUXOT_PROCESSES": "2", "AUXOT_REDIS_URL": "redis://127.0.0.1:1"}, 1, "127.0.0.1:1"),
        ({"AUXOT_ROUTER_HERITAGE": "x:y"}, 2, "AUXOT_ROUTER_HERITAGE"),
        ({"AUXOT_ROUTER_HERITAGE": "987654:3"}, 2, "AUXOT_ROUTER_HERITAGE"),
        ({"AUXOT_PROCESSES": "0", "AUXOT_REDIS_URL": "redis://127.0.0.1:1"}, 2, "AUXOT_PROCESSES"),
    ],
)
def test_what_cannot_start_is_told_once(tmp_path: Path, changes: dict[str, str], code: int, complaint: str) -> None:
    """Each of the processes tells the same error, or the parent starts them for ever."""
    assert complaint in refused(tmp_path, code, **changes)


def test_a_port_that_is_taken_is_told(tmp_path: Path, redis: RedisServer) -> None:
    """A parent shares the port of a stranger, who gets half of the requests."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        changes = {"AUXOT_PROCESSES": "2", "AUXOT_REDIS_URL": redis.url, "AUXOT_PORT": port}
        assert f"cannot listen on 127.0.0.1:{port}" in refused(tmp_path, 1, **changes)


def refused(folder: Path, code: int, **changes: str) -> str:
    """Return the one line that a router says on its way out."""
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        **router_variables(**changes),
    }
    result = subprocess.run([ROUTER], env=environ, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert (result.returncode, len(lines)) == (code, 1), result.stderr
    return lines[0]
