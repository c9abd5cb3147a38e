"""`auxot-router --processes N`: real processes on one port, killed, stopped and orphaned."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from auxot.demo.tiny_model import ANSWER
from tests.live.processes import (
    API_KEY,
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
def worker(house: House, tiny_model: Path, llama_server_binary: Path) -> Iterator[Daemon]:
    files = {"AUXOT_MODEL_FILE": str(tiny_model), "AUXOT_LLAMA_BINARY": str(llama_server_binary)}
    with running_worker(house, **files) as worker:
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
    return sum(line["event"] == event for line in house.router.log())


@pytest.mark.usefixtures("worker")
def test_every_process_serves_the_one_worker(house: House) -> None:
    """A request is answered only by the process that its worker is connected to."""
    assert len(children_of(house.router.pid)) == N_PROCESSES
    for _ in range(12):
        assert answer_of(house) == ANSWER
    accepted_by = {line["router_id"] for line in house.router.log() if line["event"] == "job.finished"}
    assert len(accepted_by) == N_PROCESSES


def test_a_killed_process_comes_again_and_nobody_is_refused(house: House, worker: Daemon) -> None:
    """A router process that dies takes its share of the port with it."""
    for child in children_of(house.router.pid):
        os.kill(child, signal.SIGKILL)
        for _ in range(16):
            assert PROBE.get(f"{house.url}/health", timeout=60).is_success
    assert events(house, "process.died") == N_PROCESSES
    worker.wait_for("link.open", after=1)
    assert answer_of(house) == ANSWER


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
