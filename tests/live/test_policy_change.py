"""The router's policy changes, or llama-server hangs, while clients ask: real processes, and no answer is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from auxot.demo.tiny_model import ANSWER, write_tiny_model
from tests.live.processes import (
    House,
    children_of,
    router_variables,
    running_daemon,
    running_router,
    running_worker,
    wait_until,
)

OPENAI = "/v1/chat/completions"
N_CLIENTS = 6


@pytest.fixture
def variables(llama_server_binary: Path) -> dict[str, str]:
    return {"AUXOT_LLAMA_BINARY": str(llama_server_binary)}


def body(**changes: Any) -> dict[str, Any]:
    return {
        "model": "any",
        "messages": [{"role": "user", "content": "hi"}],
        "reasoning_effort": "none",
        **changes,
    }


def write_settings(folder: Path, **changes: str) -> None:
    """Write what the router reads at its start and at each HUP."""
    lines = [f"{name}='{value}'" for name, value in router_variables(**changes).items()]
    (folder / ".env").write_text("\n".join(lines))


@contextmanager
def router_with_settings(folder: Path) -> Iterator[House]:
    with running_daemon(folder, "router", "auxot-router") as daemon:
        address = daemon.wait_for("router.ready")["addresses"][0]
        yield House(daemon, int(address.rpartition(":")[2]), folder)


def ask(client: httpx.Client, number: int) -> str:
    """Return the text of an answer, streamed or whole."""
    if number % 2:
        answer = client.post(OPENAI, json=body())
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])
    with client.stream("POST", OPENAI, json=body(stream=True)) as response:
        text = "".join(response.iter_text())
    assert response.status_code == 200, text
    lines = [orjson.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert not any("error" in line for line in lines), text
    return "".join(line["choices"][0]["delta"].get("content") or "" for line in lines if line.get("choices"))


def test_the_policy_changes_under_load(tmp_path: Path, variables: dict[str, str]) -> None:
    """A client gets an error, or half an answer, because the operator changes the model."""
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    for path in (first, second):
        write_tiny_model(path)
    write_settings(tmp_path, AUXOT_MODEL=str(first))
    with (
        router_with_settings(tmp_path) as house,
        running_worker(house, **variables) as worker,
        house.client() as client,
    ):
        house.wait_health(workers=1)
        is_over = threading.Event()
        answers: list[str] = []

        def keep_asking(number: int) -> None:
            while not is_over.is_set():
                answers.append(ask(client, number))

        with ThreadPoolExecutor() as pool:
            clients = [pool.submit(keep_asking, number) for number in range(N_CLIENTS)]
            try:
                wait_until(lambda: len(answers) > N_CLIENTS, what="answers", daemon=worker)
                write_settings(tmp_path, AUXOT_MODEL=str(second), AUXOT_MAX_PARALLEL="3")
                house.router.send(signal.SIGHUP)
                assert worker.wait_for("llama.ready", after=1)["model"] == "second"
                house.wait_health(workers=1, total_slots=3)
                n_before = len(answers)
                wait_until(lambda: len(answers) > n_before + N_CLIENTS, what="answers", daemon=worker)
            finally:
                is_over.set()
            for one in clients:
                one.result()
        assert set(answers) == {ANSWER}
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["second"]


def test_the_router_hears_why_a_policy_is_refused(tmp_path: Path, variables: dict[str, str]) -> None:
    """A typing error in the router's settings is told on the workers' hosts only, where nobody looks."""
    model = tmp_path / "first.gguf"
    write_tiny_model(model)
    write_settings(tmp_path, AUXOT_MODEL=str(model))
    with router_with_settings(tmp_path) as house, running_worker(house, **variables), house.client() as client:
        house.wait_health(workers=1)
        write_settings(tmp_path, AUXOT_MODEL=str(tmp_path / "missing.gguf"))
        house.router.send(signal.SIGHUP)
        assert "missing.gguf" in house.router.wait_for("worker.error")["error"]
        assert ask(client, 1) == ANSWER


def test_a_job_outlives_a_llama_server_that_hangs(tmp_path: Path, tiny_model: Path, variables: dict[str, str]) -> None:
    """A client waits for ever for a llama-server that hangs, or gets an error although the job can run again."""
    settings = {**variables, "AUXOT_MODEL_FILE": str(tiny_model), "AUXOT_WEDGE_TIMEOUT": "2s"}
    with (
        running_router(tmp_path) as house,
        running_worker(house, **settings) as worker,
        house.client() as client,
        ThreadPoolExecutor() as pool,
    ):
        house.wait_health(workers=1)
        (llama,) = children_of(worker.pid)
        os.kill(llama, signal.SIGSTOP)
        answer = pool.submit(client.post, OPENAI, json=body())
        assert worker.wait_for("llama.wedged")["pid"] == llama
        assert answer.result().json()["choices"][0]["message"]["content"] == ANSWER
        assert "wrote nothing for 2 s" in house.router.wait_for("worker.quiet")["reason"]


def test_a_worker_that_stood_still_does_not_blame_llama_server(
    tmp_path: Path, tiny_model: Path, variables: dict[str, str]
) -> None:
    """A frozen container, or a machine that slept, costs the worker its llama-server and the answers in it."""
    settings = {**variables, "AUXOT_MODEL_FILE": str(tiny_model), "AUXOT_WEDGE_TIMEOUT": "2s"}
    endless = body(stream=True, ignore_eos=True, max_tokens=6000)
    with (
        running_router(tmp_path) as house,
        running_worker(house, **settings) as worker,
        house.client() as client,
    ):
        house.wait_health(workers=1)
        (llama,) = children_of(worker.pid)
        with client.stream("POST", OPENAI, json=endless) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(llama, signal.SIGSTOP)
            time.sleep(0.3)  # the worker reads what was written
            os.kill(worker.pid, signal.SIGSTOP)
            time.sleep(2.5)
            os.kill(worker.pid, signal.SIGCONT)
            time.sleep(0.3)  # it looks before llama-server has said a word
            os.kill(llama, signal.SIGCONT)
            assert "data: [DONE]" in lines
        assert not [line for line in worker.log() if line["event"] == "llama.wedged"]
        assert children_of(worker.pid) == [llama]
