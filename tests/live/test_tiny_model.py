from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import trio

from auxot.demo.tiny_model import ANSWER, N_ANSWER_TOKENS, THOUGHT, TOOL_ARGUMENTS, TOOL_NAME, TOOL_PARAMETERS

START_LIMIT_S = 60
PLAIN = {"chat_template_kwargs": {"enable_thinking": False}}
TOOL = {"type": "function", "function": {"name": TOOL_NAME, "parameters": TOOL_PARAMETERS}}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@asynccontextmanager
async def serving(binary: Path, model: Path) -> AsyncGenerator[httpx.AsyncClient]:
    """Run a llama-server for the block."""
    port = free_port()
    argv = [str(binary), "-m", str(model), "--jinja", "-np", "4", "-c", "163840", "--host", "127.0.0.1"]
    argv += ["--threads", "1"]  # several wait for each other by spinning, for minutes where the cores have other work
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, [*argv, "--port", str(port)], capture_stdout=True, capture_stderr=True)
        await nursery.start(run)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            with trio.fail_after(START_LIMIT_S):
                while not await is_ready(client):
                    await trio.sleep(0.05)
            yield client
        nursery.cancel_scope.cancel()


async def is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).is_success
    except httpx.TransportError:
        return False


async def ask(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "What is up?"}], **fields}
    answer: dict[str, Any] = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()
    return answer | answer["choices"][0]


async def test_real_llama_server_gives_the_known_answers(llama_server_binary: Path, tiny_model: Path) -> None:
    """Every other test with a real llama-server compares with these words."""
    with trio.fail_after(120):
        async with serving(llama_server_binary, tiny_model) as client:
            await check_answer(client)
            await check_thought(client)
            await check_tool_call(client)
            await check_endless_answer(client)


async def check_answer(client: httpx.AsyncClient) -> None:
    answer = await ask(client, **PLAIN)
    assert answer["message"]["content"] == ANSWER
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == N_ANSWER_TOKENS


async def check_thought(client: httpx.AsyncClient) -> None:
    message = (await ask(client))["message"]
    assert (message["reasoning_content"], message["content"]) == (THOUGHT, ANSWER)


async def check_tool_call(client: httpx.AsyncClient) -> None:
    answer = await ask(client, tools=[TOOL])
    (call,) = answer["message"]["tool_calls"]
    assert call["function"] == {"name": TOOL_NAME, "arguments": TOOL_ARGUMENTS}
    assert answer["finish_reason"] == "tool_calls"
    history = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "sunny"},
    ]
    assert (await ask(client, messages=history, tools=[TOOL], **PLAIN))["message"]["content"] == ANSWER


async def check_endless_answer(client: httpx.AsyncClient) -> None:
    answer = await ask(client, ignore_eos=True, max_tokens=2000, **PLAIN)
    assert answer["finish_reason"] == "length"
    assert f"{ANSWER} {' '.join([ANSWER] * 80)}".startswith(answer["message"]["content"])
    assert len(answer["message"]["content"]) > 60 * len(ANSWER)
