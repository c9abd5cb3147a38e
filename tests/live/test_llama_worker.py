"""The whole worker with a real llama-server, against a router that the test plays."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import attrs
import trio

from auxot.config import WorkerConfig
from auxot.core.jobs import Function, Tool
from auxot.core.messages import (
    WORKER_FEATURES,
    Cancel,
    Complete,
    Config,
    Error,
    FinishMessage,
    PromptProgressMessage,
    ToolCallDeltaMessage,
    ToolGenerating,
)
from auxot.demo.tiny_model import ANSWER, N_ANSWER_TOKENS, THOUGHT, TOOL_ARGUMENTS, TOOL_NAME, TOOL_PARAMETERS
from auxot.worker.llama.argv import LlamaSettings
from auxot.worker.llama.server import LlamaServer, llama_server
from auxot.worker.service import serve
from tests.daemon.worker_harness import (
    ORIGINAL_WELCOME,
    WELCOME,
    job,
    stand_in_router,
)
from tests.live.in_process import (
    ENDLESS,
    TIMEOUT_S,
    complete,
    error,
    noting,
    running,
    text_of,
    until_token,
)

WEATHER = Tool(function=Function(name=TOOL_NAME, parameters=TOOL_PARAMETERS))
HOST = "127.0.0.1"


async def test_what_runs_is_announced(config: WorkerConfig) -> None:
    """The router plans with other slots or another context than the worker has."""
    async with running(config, welcome=WELCOME) as worker:
        capabilities = worker.end.hello.capabilities
        assert capabilities is not None
        assert (capabilities.backend, capabilities.total_slots, capabilities.ctx_size) == ("llama.cpp", 2, 4096)
        assert capabilities.features == WORKER_FEATURES  # and nothing that llama-server was not started for


async def test_answer_to_our_router(config: WorkerConfig) -> None:
    """Text or counts of an answer are wrong, or it is sent twice."""
    async with running(config) as worker:
        messages = await worker.answer(job("j"))
        assert text_of(messages) == ANSWER
        end = complete(messages)
        assert (end.full_response, end.finishes) == ("", (FinishMessage(finish_reason="stop"),))
        assert (end.output_tokens, end.input_tokens + end.cache_tokens) == (N_ANSWER_TOKENS, 21)
        assert any(isinstance(message, PromptProgressMessage) for message in messages)


async def test_answer_to_an_original_router(config: WorkerConfig) -> None:
    """An original router gets an answer without text or tool calls, or messages that it does not know."""
    async with running(config, welcome=ORIGINAL_WELCOME) as worker:
        end = complete(await worker.answer(job("plain")))
        assert (end.full_response, end.tool_calls) == (ANSWER, ())
        messages = await worker.answer(job("tool", tools=(WEATHER,), params={}))
        assert [call.function.arguments for call in complete(messages).tool_calls] == [TOOL_ARGUMENTS]
        assert sum(isinstance(message, ToolGenerating) for message in messages) == 1
        assert not any(isinstance(message, ToolCallDeltaMessage) for message in messages)
        thinking = complete(
            await worker.answer(job("think", params={"chat_template_kwargs": {"enable_thinking": True}}))
        )
        assert (thinking.full_response.strip(), (thinking.reasoning_content or "").strip()) == (ANSWER, THOUGHT)


async def test_tool_call_is_streamed(config: WorkerConfig) -> None:
    """The arguments of a tool call come in one piece, or torn."""
    async with running(config) as worker:
        messages = await worker.answer(job("j", tools=(WEATHER,), params={}))
        deltas = [message for message in messages if isinstance(message, ToolCallDeltaMessage)]
        assert len(deltas) > 2
        assert (deltas[0].name, "".join(delta.arguments for delta in deltas)) == (TOOL_NAME, TOOL_ARGUMENTS)
        assert deltas[0].id
        assert complete(messages).finishes == (FinishMessage(finish_reason="tool_calls"),)


async def test_ways_to_end(config: WorkerConfig) -> None:
    """The reason why an answer ended is lost."""
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    cases = {
        "length": job("length", max_tokens=3),
        "stop_sequence": job("stop_sequence", params={**off, "stop": ["zzz", " brown"]}),
        "context_full": job("context_full", "x" * 4000, params=ENDLESS),
    }
    async with running(config, welcome=WELCOME) as worker:
        for reason, one in cases.items():
            messages = await worker.answer(one)
            word = " brown" if reason == "stop_sequence" else None
            assert complete(messages).finishes == (FinishMessage(finish_reason=reason, stop_sequence=word),)


async def test_bad_requests(config: WorkerConfig) -> None:
    """A request at fault is blamed on the worker, and run again elsewhere."""
    async with running(config, welcome=WELCOME) as worker:
        too_long = error(await worker.answer(job("long", "x" * 6000)))
        assert (too_long.code, too_long.n_ctx) == ("context_length_exceeded", 4096)
        assert (too_long.n_prompt_tokens or 0) > 6000
        grammar = error(await worker.answer(job("grammar", params={"grammar": "no grammar"})))
        assert grammar.code == "invalid_request"
        image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
        assert error(await worker.answer(job("image", image))).code == "invalid_request"  # type: ignore[arg-type]
        assert text_of(await worker.answer(job("after"))) == ANSWER


async def test_slots_are_filled_and_not_overfilled(config: WorkerConfig) -> None:
    """A worker runs one job at a time, or more than it has slots for."""
    async with running(config) as worker:
        await worker.end.send(job("a", params=ENDLESS))
        await worker.end.send(job("b", params=ENDLESS))
        await until_token(worker.end, "a")
        await until_token(worker.end, "b")
        assert error(await worker.answer(job("c"))).code == "unavailable"
        await worker.end.send(Cancel(job_id="a"))
        assert text_of(await worker.answer(job("d"))) == ANSWER
        await worker.end.send(Cancel(job_id="b"))


async def test_cancel_stops_the_generation_and_frees_the_slot(config: WorkerConfig) -> None:
    """llama-server goes on generating for a client that left, or the router is told about a job it has forgotten."""
    servers: list[LlamaServer] = []
    async with running(attrs.evolve(config), open_llama=partial(noting, servers)) as worker:
        await worker.end.send(job("a", params=ENDLESS))
        await until_token(worker.end, "a")
        await worker.end.send(Cancel(job_id="a"))
        await trio.sleep(0.25)
        status, slots = await servers[0].http.get("/slots")
        assert status == 200
        assert b'"is_processing":true' not in slots
        messages = await worker.answer(job("b"))
        assert text_of(messages) == ANSWER
        worker.quiet.set()
        rest = [message async for message in worker.end.messages()]
        assert [message.job_id for message in rest if isinstance(message, Complete | Error)] == [None]


async def test_time_limit_is_told(config: WorkerConfig) -> None:
    """A job that takes too long ends in silence."""
    async with running(config, job_timeout_s=3.0) as worker:
        assert error(await worker.answer(job("a", params=ENDLESS))).code == "timeout"
        assert text_of(await worker.answer(job("b"))) == ANSWER


async def test_killed_llama_server_is_replaced(config: WorkerConfig) -> None:
    """A job whose llama-server was killed passes for answered, or the worker never serves again."""
    servers: list[LlamaServer] = []
    async with running(config, open_llama=partial(noting, servers)) as worker:
        await worker.end.send(job("a", params=ENDLESS))
        await until_token(worker.end, "a")
        assert servers[0].pid is not None
        os.kill(servers[0].pid, signal.SIGKILL)
        assert error(await worker.end.answer_to("a")).code == "worker_lost"
        await worker.end.closed.wait()
        again = await worker.router.next_worker()
        assert isinstance(await again.receive(), Config)
        await again.send(job("b"))
        assert text_of(await again.answer_to("b")) == ANSWER
        assert len(servers) == 2


async def test_lost_link_cancels_its_jobs(config: WorkerConfig) -> None:
    """After a reconnect the slots are still busy with jobs that nobody waits for."""
    async with running(config) as worker:
        for name in ("a", "b"):
            await worker.end.send(job(name, params=ENDLESS))
            await until_token(worker.end, name)
        await worker.end.drop()
        again = await worker.router.next_worker()
        await again.send(job("a"))
        assert text_of(await again.answer_to("a")) == ANSWER


async def test_orderly_stop_lets_jobs_finish(config: WorkerConfig) -> None:
    """Stopping a worker cuts its answers off, takes new jobs, or the router does not know."""
    async with running(config) as worker:
        await worker.end.send(job("a", max_tokens=4000, params=ENDLESS))
        await until_token(worker.end, "a")
        worker.quiet.set()
        while not isinstance(message := await worker.end.receive(), Error):
            assert not isinstance(message, Complete)
        assert (message.job_id, message.code) == (None, "unavailable")
        await worker.end.send(job("b"))
        messages = await worker.end.answer_to("a")
        assert complete(messages).finishes == (FinishMessage(finish_reason="length"),)
        await worker.end.closed.wait()
        await worker.stopped.wait()


async def test_orderly_stop_does_not_wait_for_ever(config: WorkerConfig) -> None:
    """An endless job keeps a worker from stopping."""
    async with running(config, drain_grace_s=0.3) as worker:
        await worker.end.send(job("a", params=ENDLESS))
        await until_token(worker.end, "a")
        worker.quiet.set()
        with trio.fail_after(5):
            await worker.end.closed.wait()
        with trio.fail_after(15):  # on a busy machine llama-server may not hear TERM: it is killed after 10 s
            await worker.stopped.wait()


async def test_external_llama_server(config: WorkerConfig, llama_server_binary: Path, tiny_model: Path) -> None:
    """With AUXOT_LLAMA_URL a worker connects, and never runs a job."""
    settings = LlamaSettings(binary=llama_server_binary, model=tiny_model, slot_ctx_tokens=4096, slots=2)
    with trio.fail_after(TIMEOUT_S):
        async with llama_server(settings) as server, stand_in_router() as router, trio.open_nursery() as nursery:
            await server.wait_ready()
            assert server.http.address.socket is not None
            [listener] = await nursery.start(
                partial(trio.serve_tcp, _forwarder(server.http.address.socket), 0, host=HOST)
            )
            url = f"http://{HOST}:{listener.socket.getsockname()[1]}/v1/"
            external = attrs.evolve(config, llama_url=url, model_path=None, router_url=router.url)
            quiet = trio.Event()
            nursery.start_soon(partial(serve, external, quiet=quiet))
            end = await router.next_worker()
            await end.send(job("a"))
            assert text_of(await end.answer_to("a")) == ANSWER
            quiet.set()
            await end.closed.wait()
            nursery.cancel_scope.cancel()


def _forwarder(socket: Path) -> Callable[[trio.SocketStream], Awaitable[None]]:
    """Return a TCP service that makes a UNIX socket reachable on a port."""

    async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            async for piece in source:
                await sink.send_all(piece)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def connect(client: trio.SocketStream) -> None:
        async with await trio.open_unix_socket(socket) as server, trio.open_nursery() as nursery:
            nursery.start_soon(pump, client, server)
            nursery.start_soon(pump, server, client)

    return connect
