"""A real llama-server as a context manager, and one chat completion of it."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
import trio

from auxot.core.errors import LlamaError
from auxot.core.jobs import (
    ChatMessage,
    Finished,
    FinishReason,
    Job,
    JobEvent,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
)
from auxot.demo.tiny_model import ANSWER, N_ANSWER_TOKENS, THOUGHT
from auxot.worker.llama.argv import LlamaSettings
from auxot.worker.llama.client import generate
from auxot.worker.llama.request import chat_request
from auxot.worker.llama.server import LlamaServer, llama_server
from tests.daemon.worker_harness import stand_in_router

OFF = {"chat_template_kwargs": {"enable_thinking": False}}
USER = ChatMessage(role="user", content="Hi")
WORKER = """
import sys, trio
from pathlib import Path
from auxot.config import WorkerConfig
from auxot.worker.service import main
url, binary, model = sys.argv[1:]
config = WorkerConfig(
    router_url=url, gpu_key="adm_" + "k" * 43, model_path=Path(model), llama_binary=Path(binary)
)
sys.exit(trio.run(main, config))
"""


@pytest.fixture
def settings(llama_server_binary: Path, tiny_model: Path) -> LlamaSettings:
    return LlamaSettings(binary=llama_server_binary, model=tiny_model, slot_ctx_tokens=65_536, slots=2, threads=1)


async def events_of(server: LlamaServer, *messages: ChatMessage, **params: Any) -> list[JobEvent]:
    events: list[JobEvent] = []

    async def deliver(some: list[JobEvent]) -> None:
        await trio.lowlevel.checkpoint()
        events.extend(some)

    job = Job(job_id="j", messages=messages or (USER,), params={**OFF, **params})
    await generate(server.http, chat_request(job), deliver=deliver)
    return events


def text_of(events: list[JobEvent], choice: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta) and event.choice == choice)


def finished(events: list[JobEvent]) -> Finished:
    assert isinstance(events[-1], Finished), events[-1]
    return events[-1]


async def is_idle(server: LlamaServer) -> bool:
    _, body = await server.http.get("/slots")
    return not any(slot["is_processing"] for slot in orjson.loads(body))


async def test_answers(settings: LlamaSettings) -> None:
    """Reasoning, several choices, logprobs, a prefilled answer or counts come out wrong."""
    with trio.fail_after(60):
        async with llama_server(settings) as server:
            await server.wait_ready()
            events = await events_of(server)
            assert (text_of(events), finished(events).usage.completion_tokens) == (ANSWER, N_ANSWER_TOKENS)

            events = await events_of(server, chat_template_kwargs={"enable_thinking": True})
            thought = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
            assert (thought.strip(), text_of(events).strip()) == (THOUGHT, ANSWER)
            assert finished(events).usage.reasoning_tokens == len(THOUGHT.split())

            events = await events_of(server, n=2)
            assert (text_of(events, 0), text_of(events, 1)) == (ANSWER, ANSWER)
            assert [finish.reason for finish in finished(events).finishes] == [FinishReason.STOP] * 2
            assert finished(events).usage.completion_tokens == 2 * N_ANSWER_TOKENS

            events = await events_of(server, logprobs=True, top_logprobs=2)
            logprobs = [entry for event in events if isinstance(event, TextDelta) for entry in event.logprobs or ()]
            assert "".join(entry["token"] for entry in logprobs if entry["token"] != "<|im_end|>") == ANSWER

            begun = " ".join(ANSWER.split()[:5])
            events = await events_of(server, USER, ChatMessage(role="assistant", content=begun))
            assert begun + text_of(events) == ANSWER


async def test_cancel_in_the_prompt_phase(settings: LlamaSettings) -> None:
    """A client that leaves while its prompt is read keeps its slot busy until the end of the prompt."""
    progress: list[PromptProgress] = []
    long_prompt = ChatMessage(role="user", content="x" * 60_000)

    with trio.fail_after(60):
        async with llama_server(settings) as server:
            await server.wait_ready()
            with trio.CancelScope() as scope:

                async def deliver(some: list[JobEvent]) -> None:
                    await trio.lowlevel.checkpoint()
                    progress.extend(event for event in some if isinstance(event, PromptProgress))
                    if len(progress) > 3:
                        scope.cancel()

                request = chat_request(Job(job_id="j", messages=(long_prompt,), params=OFF))
                await generate(server.http, request, deliver=deliver)
            assert progress[-1].processed < progress[-1].total
            left_at = trio.current_time()
            while not await is_idle(server):
                assert trio.current_time() - left_at < 3  # some batches of 512 tokens


async def test_socket_is_private(settings: LlamaSettings) -> None:
    """Another user of the machine can talk to llama-server, or its socket stays behind."""
    with trio.fail_after(60):
        async with llama_server(settings) as server:
            await server.wait_ready()
            socket = server.http.address.socket
            assert socket is not None
            assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert not socket.parent.exists()


async def test_reason_of_a_failed_start(settings: LlamaSettings, tmp_path: Path) -> None:
    """An operator does not learn why llama-server does not start."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    with trio.fail_after(30):
        async with llama_server(attrs.evolve(settings, model=broken)) as server:
            with pytest.raises(LlamaError, match=r"ended before it was ready: exit code 1: .*(error|fail)"):
                await server.wait_ready()


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
async def test_nothing_stays_behind(settings: LlamaSettings, sign: signal.Signals) -> None:
    """A worker that is stopped, or killed with SIGKILL, leaves its llama-server running."""
    with trio.fail_after(60):
        async with stand_in_router() as router, trio.open_nursery() as nursery:
            argv = [sys.executable, "-c", WORKER, router.url, str(settings.binary), str(settings.model)]
            worker = await nursery.start(partial(trio.run_process, argv, check=False, stderr=subprocess.DEVNULL))
            await router.next_worker()
            [pid] = map(int, Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split())
            assert Path(f"/proc/{pid}/comm").read_text().strip() == "llama-server"
            worker.send_signal(sign)
            assert await worker.wait() == (0 if sign is signal.SIGTERM else -sign)
            await wait_gone(pid)


async def wait_gone(pid: int) -> None:
    for _ in range(500):
        if not is_alive(pid):
            return
        await trio.sleep(0.01)
    pytest.fail("llama-server is still there")


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie that its new parent has not collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
