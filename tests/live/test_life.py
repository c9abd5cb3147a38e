"""The life of llama-server: it hangs, grows, dies again and again, has no memory, or is to serve something else."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from auxot.config import WorkerConfig
from auxot.core.errors import LlamaError
from auxot.core.jobs import Job
from auxot.core.messages import Complete, Config, Error, FinishMessage, Policy, PolicyUpdate, Token
from auxot.demo.tiny_model import ANSWER, write_tiny_model
from auxot.worker.llama.server import LlamaServer
from auxot.worker.replica import Care
from auxot.worker.restarts import RestartPolicy
from auxot.worker.service import worker_settings
from auxot.worker.supervise import Worker
from tests.daemon.worker_harness import POLICY, WELCOME, RouterEnd, StandInRouter, job, stand_in_router
from tests.live.in_process import (
    ENDLESS,
    LONG_POLICY,
    TIMEOUT_S,
    Running,
    complete,
    error,
    noting,
    running,
    text_of,
    until_token,
)

LENGTH = (FinishMessage(finish_reason="length"),)


async def until_error(end: RouterEnd) -> Error:
    """Return the next error that is about no job."""
    while not isinstance(message := await end.receive(), Error) or message.job_id is not None:
        pass
    return message


async def next_serving(router: StandInRouter) -> tuple[RouterEnd, Config]:
    """Return the next connection that takes jobs, and what it announces."""
    end = await router.next_worker()
    config = await end.receive()
    assert isinstance(config, Config)
    return end, config


async def next_config(end: RouterEnd) -> Config:
    """Return what the worker announces next."""
    while not isinstance(message := await end.receive(), Config):
        pass
    return message


def stop(server: LlamaServer) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)


def kill(server: LlamaServer) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)


async def test_a_llama_server_that_hangs_is_replaced(config: WorkerConfig) -> None:
    """A llama-server that hangs keeps its jobs for ever, or stays in the way of others."""
    servers: list[LlamaServer] = []
    care = Care(wedge_timeout_s=2)
    async with running(config, open_llama=partial(noting, servers), care=care) as worker:
        await worker.end.send(job("a", params=ENDLESS))
        await until_token(worker.end, "a")
        stop(servers[0])
        assert error(await worker.end.answer_to("a")).code == "worker_lost"
        assert "it wrote nothing for 2 s while jobs waited" in (await until_error(worker.end)).error
        again, _ = await next_serving(worker.router)
        await again.send(job("b"))
        assert text_of(await again.answer_to("b")) == ANSWER


async def test_a_llama_server_at_work_or_idle_does_not_hang(config: WorkerConfig) -> None:
    """A long answer, or a pause between answers, costs the worker its llama-server."""
    servers: list[LlamaServer] = []
    care = Care(wedge_timeout_s=1)
    async with running(config, open_llama=partial(noting, servers), care=care, drain_grace_s=0.1) as worker:
        await trio.sleep(2.5)
        await worker.end.send(job("a", params=ENDLESS))
        with trio.move_on_after(3):
            async for message in worker.end.messages():
                assert isinstance(message, Token) or not isinstance(message, Complete | Error)
        assert len(servers) == 1
        assert not servers[0].died.is_set()


async def test_a_llama_server_that_grows_is_replaced_behind_its_jobs(config: WorkerConfig) -> None:
    """A leak takes the whole machine, or its cure cuts answers off."""
    servers: list[LlamaServer] = []
    care = Care(max_growth_bytes=1, growth_check_s=0.2)
    async with running(config, open_llama=partial(noting, servers), care=care) as worker:
        await worker.end.send(job("a", "x" * 20_000, max_tokens=6000, params=ENDLESS))
        assert "its memory has grown" in (await until_error(worker.end)).error
        assert complete(await worker.end.answer_to("a")).finishes == LENGTH
        again, _ = await next_serving(worker.router)
        await again.send(job("b"))
        assert text_of(await again.answer_to("b")) == ANSWER
        assert servers[0].pid != servers[1].pid
        assert await end_of(servers[0])


async def end_of(server: LlamaServer) -> bool:
    assert server.child is not None
    with trio.move_on_after(5):
        await server.child.exited.wait()
    return server.child.exited.is_set()


def cramped(folder: Path, binary: Path | str, max_tokens: int) -> Path:
    """Return a llama-server that has no memory for a larger context; its words are those of the real one."""
    script = folder / "llama-server"
    said = "E llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache"
    script.write_text(
        f"""#!/bin/sh
for word; do
    if [ "$last" = --ctx-size ]; then
        echo "$word" >> {folder}/tried
        [ "$word" -gt {max_tokens} ] && echo "{said}" && exit 1
    fi
    last=$word
done
exec {binary} "$@"
"""
    )
    script.chmod(0o755)
    return script


def tried(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "tried").read_text().split()]


async def test_slots_are_dialled_down_to_the_memory(
    config: WorkerConfig, tmp_path: Path, llama_server_binary: Path
) -> None:
    """A worker gives up for want of memory that fewer slots do not need, or announces slots that it has not."""
    binary = cramped(tmp_path, llama_server_binary, 20_000)
    policy = attrs.evolve(POLICY, context_size=16_384, max_parallelism=3)
    welcome = attrs.evolve(WELCOME, policy=policy)
    servers: list[LlamaServer] = []
    changed = attrs.evolve(config, llama_binary=binary)
    async with running(changed, welcome=welcome, open_llama=partial(noting, servers)) as worker:
        announced = worker.end.hello.capabilities
        assert announced is not None
        assert (announced.total_slots, announced.ctx_size) == (1, 16_384)
        assert text_of(await worker.answer(job("a"))) == ANSWER
        kill(servers[-1])
        await next_serving(worker.router)
    assert tried(tmp_path) == [49_152, 32_768, 16_384, 16_384]  # and what did not fit is not tried again


async def test_a_model_without_room_for_any_context_is_given_up(config: WorkerConfig, tmp_path: Path) -> None:
    """A worker tries smaller and smaller contexts for ever, and its operator does not know."""
    binary = cramped(tmp_path, "false", 0)
    with trio.fail_after(TIMEOUT_S):
        async with stand_in_router(lambda _: attrs.evolve(WELCOME, policy=LONG_POLICY)) as router:
            settings = worker_settings(attrs.evolve(config, llama_binary=binary, router_url=router.url))
            with pytest.raises(LlamaError, match=r"llama-server got no memory: .* buffer for kv cache"):
                await Worker(settings).run()
    assert tried(tmp_path) == [262_144, 131_072, 65_536, 32_768, 16_384, 8192]


LOADED_BUT_BROKEN = """
import http.server, socketserver, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200, b'{"status":"ok"}')
    def do_POST(self):
        self.answer(500, b'{"error":{"message":"CUDA error: device-side assert triggered"}}')
    def answer(self, status, body):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def address_string(self):
        return "worker"

socketserver.UnixStreamServer(sys.argv[sys.argv.index("--host") + 1], Handler).serve_forever()
"""


async def test_a_llama_server_that_cannot_write_is_not_ready(config: WorkerConfig, tmp_path: Path) -> None:
    """A llama-server that has loaded its model, and fails at every token, gets jobs."""
    binary = tmp_path / "llama-server"
    binary.write_text(f"#!{sys.executable}\n{LOADED_BUT_BROKEN}")
    binary.chmod(0o755)
    with trio.fail_after(TIMEOUT_S):
        async with stand_in_router() as router:
            settings = worker_settings(attrs.evolve(config, llama_binary=binary, router_url=router.url))
            with pytest.raises(LlamaError, match=r"status 500 to the first token: .*device-side assert"):
                await Worker(settings).run()


async def test_a_llama_server_that_keeps_dying_goes_into_quarantine(config: WorkerConfig) -> None:
    """A llama-server that cannot live is restarted for ever and looks healthy, or nobody learns why it is gone."""
    servers: list[LlamaServer] = []
    restarts = RestartPolicy(max_deaths=2, first_delay_s=0.1, max_delay_s=0.2, quarantine_s=2)
    async with running(config, open_llama=partial(noting, servers), care=Care(restarts=restarts)) as worker:
        kill(servers[0])
        await next_serving(worker.router)
        kill(servers[1])
        while (end := await worker.router.ends.receive()).hello.capabilities.backend != "pending":  # type: ignore[union-attr]
            pass
        assert "died 2 times in a row, at last with: SIGKILL" in (await until_error(end)).error
        assert len(servers) == 2
        again, _ = await next_serving(worker.router)
        await again.send(job("b"))
        assert text_of(await again.answer_to("b")) == ANSWER


async def test_a_new_policy_is_served_when_the_running_jobs_have_finished(config: WorkerConfig) -> None:
    """A change of policy cuts answers off, or needs a restart of the worker."""
    async with running(config) as worker:
        await worker.end.send(job("a", max_tokens=3000, params=ENDLESS))
        await until_token(worker.end, "a")
        await change(worker, attrs.evolve(LONG_POLICY, context_size=8192, max_parallelism=3))
        assert complete(await worker.end.answer_to("a")).finishes == LENGTH
        again, config_now = await next_serving(worker.router)
        assert (config_now.capabilities.ctx_size, config_now.capabilities.total_slots) == (8192, 3)
        await again.send(job("b"))
        assert text_of(await again.answer_to("b")) == ANSWER


async def change(worker: Running, policy: Policy) -> None:
    """Change the router's policy."""
    worker.router.answer = lambda _: attrs.evolve(WELCOME, policy=policy)
    await worker.end.send(PolicyUpdate(policy=policy))


def policy_of(path: Path) -> Policy:
    return attrs.evolve(POLICY, model_name=str(path))


async def test_a_policy_that_is_the_same_for_llama_server_is_announced_at_once(config: WorkerConfig) -> None:
    """A change of what the model is said to do restarts llama-server, or is never announced."""
    servers: list[LlamaServer] = []
    async with running(config, open_llama=partial(noting, servers), drain_grace_s=0.1) as worker:
        await worker.end.send(job("a", params=ENDLESS))
        await change(worker, attrs.evolve(LONG_POLICY, capabilities=("chat", "reasoning")))
        assert (await next_config(worker.end)).capabilities.model_capabilities == ("chat", "reasoning")
        assert len(servers) == 1


async def test_a_policy_that_cannot_be_served_changes_nothing(
    config: WorkerConfig, tiny_model: Path, tmp_path: Path
) -> None:
    """A typing error at the router takes all workers down."""
    welcome = attrs.evolve(WELCOME, policy=policy_of(tiny_model))
    async with running(attrs.evolve(config, model_path=None), welcome=welcome, drain_grace_s=0.1) as worker:
        await worker.end.send(job("a", params=ENDLESS))
        await change(worker, policy_of(tmp_path / "missing.gguf"))
        assert "the old one goes on: the model's file is not whole" in (await until_error(worker.end)).error
        assert text_of(await worker.answer(job("b"))) == ANSWER


async def test_a_model_that_cannot_be_loaded_gives_way_to_the_one_before(
    config: WorkerConfig, tiny_model: Path, tmp_path: Path
) -> None:
    """A broken file at a change of policy ends the worker, or it tries that file again and again."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no model")
    servers: list[LlamaServer] = []
    welcome = attrs.evolve(WELCOME, policy=policy_of(tiny_model))
    changed = attrs.evolve(config, model_path=None)
    async with running(changed, welcome=welcome, open_llama=partial(noting, servers)) as worker:
        await change(worker, policy_of(broken))
        again, _ = await next_serving(worker.router)
        assert "back to the old one" in (await until_error(again)).error
        await again.send(job("b"))
        assert text_of(await again.answer_to("b")) == ANSWER
        assert len(servers) == 3
        other = tmp_path / "other.gguf"
        write_tiny_model(other)
        worker.end = again
        await change(worker, policy_of(other))
        _, config_now = await next_serving(worker.router)
        assert config_now.capabilities.model == "other"


async def test_several_llama_servers_are_one_worker(config: WorkerConfig) -> None:
    """The slots of the second GPU are idle, or one dead llama-server takes the other's answers along."""
    servers: list[LlamaServer] = []
    changes: dict[str, Any] = {
        "open_llama": partial(noting, servers),
        "care": Care(restarts=RestartPolicy(first_delay_s=2)),  # who has two slots for a moment need not say so
        "drain_grace_s": 0.1,
    }
    async with running(attrs.evolve(config, replicas=2), **changes) as worker:
        config_now = worker.end.hello
        assert config_now.capabilities is not None
        if config_now.capabilities.total_slots == 2:  # the second was not ready yet
            assert (await next_config(worker.end)).capabilities.total_slots == 4
        for name in "abcd":
            await worker.end.send(job(name, params=ENDLESS))
            await until_token(worker.end, name)
        assert [await n_busy(server) for server in servers] == [2, 2]
        kill(servers[0])
        lost, totals = await news_of_a_death(worker.end)
        assert totals == [2, 4]
        kept = {*"abcd"} - lost
        assert len(kept) == 2
        await until_token(worker.end, kept.pop())
        assert text_of(await worker.answer(job("e"))) == ANSWER


async def news_of_a_death(end: RouterEnd) -> tuple[set[str | None], list[int]]:
    """Return which jobs were lost, and the slots that the worker announced, until it has announced twice."""
    lost: set[str | None] = set()
    totals: list[int] = []
    while len(totals) < 2:
        message = await end.receive()
        if isinstance(message, Config):
            totals.append(message.capabilities.total_slots)
        elif isinstance(message, Error) and message.code == "worker_lost":
            lost.add(message.job_id)
    return lost, totals


async def test_a_prompt_that_is_too_long_is_refused_before_llama_server_is_asked(config: WorkerConfig) -> None:
    """A prompt of known length costs llama-server's time to be refused, or waits behind others for that."""
    servers: list[LlamaServer] = []
    async with running(config, welcome=WELCOME, open_llama=partial(noting, servers)) as worker:
        stop(servers[0])  # it could not answer
        refused = error(await worker.answer(completion("a", [1] * 5000)))
        assert (refused.code, refused.n_prompt_tokens, refused.n_ctx) == ("context_length_exceeded", 5000, 4096)
        several = error(await worker.answer(completion("b", [[1] * 10, [1] * 4097])))
        assert several.n_prompt_tokens == 4097


def completion(job_id: str, prompt: list[Any]) -> Job:
    return Job(job_id=job_id, messages=(), prompt=prompt)


async def n_busy(server: LlamaServer) -> int:
    _, slots = await server.http.get("/slots")
    return slots.count(b'"is_processing":true')
