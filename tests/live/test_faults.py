"""Kills, hang-ups and restarts of the real processes: every request ends once, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import orjson
import pytest

from auxot.demo.tiny_model import ANSWER
from tests.live.processes import (
    API_KEY,
    House,
    children_of,
    external_llama,
    is_alive,
    open_request,
    running_router,
    running_worker,
    wait_until,
)

OPENAI = "/v1/chat/completions"
ANTHROPIC = "/v1/messages"
N_LONG_TOKENS = 6000  # seconds of work


def body(path: str = OPENAI, **changes) -> dict:
    plain = {"reasoning_effort": "none"} if path == OPENAI else {"max_tokens": 100_000}
    return {"model": "any", "messages": [{"role": "user", "content": "hi"}], **plain, **changes}


def endless(path: str = OPENAI, **changes) -> dict:
    return body(path, ignore_eos=True, **changes)


def events_of(text: str) -> list:
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [orjson.loads(line) for line in lines if line != "[DONE]"]


def text_of(path: str, text: str) -> str:
    if path == ANTHROPIC:
        return "".join(
            event["delta"].get("text", "") for event in events_of(text) if event["type"] == "content_block_delta"
        )
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events_of(text) if event.get("choices"))


def errors_of(text: str) -> list:
    return [event["error"] for event in events_of(text) if "error" in event]


@pytest.fixture
def worker_variables(llama_server_binary: Path, tiny_model: Path) -> dict[str, str]:
    return {"AUXOT_LLAMA_BINARY": str(llama_server_binary), "AUXOT_MODEL_FILE": str(tiny_model)}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with running_router(tmp_path) as running:
        yield running


def test_four_slots_run_four_jobs_at_once(house, worker_variables):
    """A worker would run one job at a time, whatever its slots."""
    with running_worker(house, **worker_variables), house.client() as client:
        house.wait_health(workers=1, total_slots=4)
        with ThreadPoolExecutor() as pool:
            stop = threading.Event()
            streams = [pool.submit(_read_until, client, endless(stream=True), stop) for _ in range(4)]
            house.wait_health(workers=1, active_jobs=4, available=0)
            stop.set()
            assert all(stream.result() > 0 for stream in streams)
        house.wait_health(active_jobs=0)


def _read_until(client: httpx.Client, asked: dict, stop: threading.Event) -> int:
    n_chunks = 0
    with client.stream("POST", OPENAI, json=asked) as response:
        for _ in response.iter_raw():
            n_chunks += 1
            if stop.is_set():
                return n_chunks
    raise AssertionError("an endless answer ended")


def test_a_queued_request_of_a_client_that_left_never_runs(house, worker_variables):
    """A worker would be busy with an answer that nobody waits for."""
    with open_request(house, OPENAI, endless()):
        house.wait_health(waiting_requests=1)
    house.wait_health(waiting_requests=0)
    with running_worker(house, **worker_variables), house.client() as client:
        assert client.post(OPENAI, json=body()).json()["choices"][0]["message"]["content"] == ANSWER
        assert house.health()["active_jobs"] == 0
    house.router.wait_for("job.finished", after=1)  # it is logged behind the last byte
    assert [line["outcome"] for line in house.router.log() if line["event"] == "job.finished"] == ["cancelled", "stop"]


@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC])
def test_a_worker_killed_in_mid_answer_ends_the_stream_with_an_error(house, worker_variables, path):
    """The client would see a second beginning, or take the part for a whole answer."""
    with running_worker(house, **worker_variables) as worker, house.client() as client:
        house.wait_health(workers=1)
        with client.stream("POST", path, json=endless(path, stream=True)) as response:
            pieces = []
            for piece in response.iter_text():
                pieces.append(piece)
                if len(pieces) == 5:
                    worker.send(signal.SIGKILL)
        text = "".join(pieces)
        assert len(errors_of(text)) == 1
        assert '"finish_reason":"stop"' not in text
        assert "message_stop" not in text
        written = text_of(path, text)
        assert (" ".join([ANSWER] * 10_000)).startswith(written)
        assert house.wait_health(workers=0)["active_jobs"] == 0


def test_a_blocking_job_of_a_killed_worker_runs_on_another_at_once(tmp_path, worker_variables):
    """The client would wait for a sweep, or get an error that nobody needed."""
    with running_router(tmp_path, AUXOT_SWEEP_INTERVAL="1h", AUXOT_MAX_PARALLEL="1") as house, house.client() as client:
        with (
            running_worker(house, name="first", **worker_variables) as first,
            ThreadPoolExecutor() as pool,
        ):
            house.wait_health(workers=1)
            first.send(signal.SIGSTOP)  # else it may have done it before this test has seen that it has it
            answer = pool.submit(client.post, OPENAI, json=endless(max_tokens=N_LONG_TOKENS))
            house.wait_health(active_jobs=1)
            with running_worker(house, name="second", **worker_variables):
                house.wait_health(workers=2)
                first.send(signal.SIGKILL)
                choice = answer.result().json()["choices"][0]
        assert choice["finish_reason"] == "length"
        assert (" ".join([ANSWER] * 1000)).startswith(choice["message"]["content"])
        assert house.router.wait_for("job.finished")["attempt"] == 2


def test_a_killed_llama_server_is_restarted_and_serves_again(house, worker_variables):
    """One crash would make a worker useless, or hang its clients."""
    with running_worker(house, **worker_variables) as worker, house.client() as client:
        house.wait_health(workers=1)
        with client.stream("POST", OPENAI, json=endless(stream=True, max_tokens=3000)) as response:
            pieces = []
            (llama,) = children_of(worker.pid)
            for piece in response.iter_text():
                pieces.append(piece)
                if len(pieces) == 5:
                    subprocess.run(["kill", "-9", str(llama)], check=True)
        text = "".join(pieces)
        # Back in time it goes on where it stopped; too late, and the stream has ended with an error.
        assert (len(errors_of(text)) == 1) != ('"finish_reason":"length"' in text)
        assert '"finish_reason":"stop"' not in text
        assert (" ".join([ANSWER] * 1000)).startswith(text_of(OPENAI, text))
        answer = client.post(OPENAI, json=body())
        assert answer.json()["choices"][0]["message"]["content"] == ANSWER
        (restarted,) = children_of(worker.pid)
        assert restarted != llama


def test_a_blocking_job_outlives_a_killed_llama_server(house, worker_variables):
    """A client that has seen nothing would get an error although the job can run again."""
    with (
        running_worker(house, **worker_variables) as worker,
        house.client() as client,
        ThreadPoolExecutor() as pool,
    ):
        house.wait_health(workers=1)
        (llama,) = children_of(worker.pid)
        os.kill(llama, signal.SIGSTOP)  # else the answer may be over before this test has seen that it is asked for
        answer = pool.submit(client.post, OPENAI, json=endless(max_tokens=N_LONG_TOKENS))
        house.wait_health(active_jobs=1)
        os.kill(llama, signal.SIGKILL)
        assert answer.result().json()["choices"][0]["finish_reason"] == "length"


def test_a_job_waits_for_an_external_llama_server_that_is_restarted(house, llama_server_binary, tiny_model):
    """Every request fails at once until the worker has noticed that nobody is there."""
    with ThreadPoolExecutor() as pool, house.client() as client, ExitStack() as stack:
        with external_llama(llama_server_binary, tiny_model) as url:
            worker = stack.enter_context(running_worker(house, AUXOT_LLAMA_URL=url))
            house.wait_health(workers=1)
        answer = pool.submit(client.post, OPENAI, json=body())  # nobody listens there now
        worker.wait_for("llama.died")
        house.wait_health(workers=0, waiting_requests=1)
        port = url.rpartition(":")[2]
        with external_llama(llama_server_binary, tiny_model, port=port):
            assert answer.result().json()["choices"][0]["message"]["content"] == ANSWER


def test_two_hundred_streams_over_two_workers_are_exact(house, worker_variables):
    """Under load answers would be crossed, lost, or hang."""
    with (
        running_worker(house, name="first", **worker_variables),
        running_worker(house, name="second", **worker_variables),
        httpx.Client(
            base_url=house.url,
            headers={"authorization": f"Bearer {API_KEY}"},
            timeout=120,
            limits=httpx.Limits(max_connections=200),
            trust_env=False,
        ) as client,
        ThreadPoolExecutor(200) as pool,
    ):
        house.wait_health(workers=2, total_slots=8)

        def one(n: int) -> tuple[str, str]:
            path = OPENAI if n % 2 else ANTHROPIC
            n_words = n % len(ANSWER.split()) + 1
            response = client.post(path, json=body(path, stream=True, max_tokens=n_words))
            return text_of(path, response.text), " ".join(ANSWER.split()[:n_words])

        for text, expected in pool.map(one, range(200)):
            assert text == expected
        assert house.health()["active_jobs"] == 0
    house.router.wait_for("job.finished", after=199)
    finished = [line for line in house.router.log() if line["event"] == "job.finished"]
    assert len(finished) == 200
    assert len({line["worker_id"] for line in finished}) == 2


def test_streams_end_within_the_grace_when_the_router_is_told_to_stop(house, worker_variables):
    """A restart would cut answers that are nearly done."""
    with running_worker(house, **worker_variables), house.client() as client:
        house.wait_health(workers=1)
        with client.stream("POST", OPENAI, json=endless(stream=True, max_tokens=1500)) as response:
            pieces = response.iter_text()
            text = next(pieces)
            house.router.send(signal.SIGTERM)
            text += "".join(pieces)
        assert text.endswith("data: [DONE]\n\n")
        assert '"finish_reason":"length"' in text
        assert errors_of(text) == []
        assert house.router.wait() == 0


def test_a_stopping_router_refuses_new_requests_and_fails_what_outlives_the_grace(tmp_path, worker_variables):
    """Clients would hang on a router that is going, or see a connection vanish without a word."""
    with (
        running_router(tmp_path, AUXOT_SHUTDOWN_GRACE="1s") as house,
        running_worker(house, **worker_variables),
        house.client() as client,
    ):
        house.wait_health(workers=1)
        client.get("/health")  # a connection that is open before the listener closes
        with (
            house.client() as streaming,
            streaming.stream("POST", OPENAI, json=endless(stream=True)) as response,
        ):
            pieces = response.iter_text()
            text = next(pieces)
            house.router.send(signal.SIGTERM)
            text += "".join(pieces)
        assert [error["message"] for error in errors_of(text)] == ["the router is shutting down"]
        assert house.router.wait() == 0


def test_a_client_that_does_not_read_cannot_hold_a_stopping_router(tmp_path, worker_variables):
    """One stuck client would hold the router until it is killed."""
    grace_s = 1
    with (
        running_router(tmp_path, AUXOT_SHUTDOWN_GRACE=f"{grace_s}s") as house,
        running_worker(house, **worker_variables),
    ):
        house.wait_health(workers=1)
        with open_request(house, OPENAI, endless(stream=True)):
            house.wait_health(active_jobs=1)
            time.sleep(0.5)  # its socket fills
            stopped_at = time.monotonic()
            house.router.send(signal.SIGTERM)
            assert house.router.wait() == 0
            assert time.monotonic() - stopped_at < grace_s + 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_worker_leaves_no_llama_server_behind(house, worker_variables, number):
    """A stray llama-server would keep the GPU's memory."""
    with running_worker(house, **worker_variables) as worker:
        house.wait_health(workers=1)
        (llama,) = children_of(worker.pid)
        worker.send(number)
        exit_code = worker.wait()
        wait_until(lambda: not is_alive(llama), what="the end of llama-server")
        assert exit_code == (-9 if number is signal.SIGKILL else 0)
        house.wait_health(workers=0)


def test_llama_server_outlives_idle_threads_of_the_worker(house, worker_variables):
    """The parent-death signal would fire when the thread that started llama-server ends, some 10 s later."""
    with running_worker(house, **worker_variables) as worker, house.client() as client:
        house.wait_health(workers=1)
        (llama,) = children_of(worker.pid)
        time.sleep(12)
        assert is_alive(llama)
        assert client.post(OPENAI, json=body()).status_code == 200


def test_a_worker_with_a_wrong_key_ends_with_exit_code_3(house, worker_variables):
    """A worker that can never get in would hammer the router for ever."""
    wrong = {**worker_variables, "AUXOT_GPU_KEY": API_KEY}
    with running_worker(house, **wrong) as worker:
        assert worker.wait() == 3
        last = worker.log_path.read_text().strip().splitlines()[-1]
        assert last.startswith("auxot-worker: ")
        assert API_KEY not in worker.log_path.read_text()


def test_a_worker_waits_for_its_router_and_comes_back_to_it(tmp_path, worker_variables):
    """A worker would have to be started again after each restart of the router."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with running_router(tmp_path, AUXOT_PORT=str(port)) as first, running_worker(first, **worker_variables) as worker:
        first.wait_health(workers=1)
        (llama,) = children_of(worker.pid)
        first.router.send(signal.SIGKILL)
        first.router.wait()
        with running_router(tmp_path, AUXOT_PORT=str(port)) as second, second.client() as client:
            second.wait_health(workers=1)
            assert client.post(OPENAI, json=body()).json()["choices"][0]["message"]["content"] == ANSWER
        assert children_of(worker.pid) == [llama]
