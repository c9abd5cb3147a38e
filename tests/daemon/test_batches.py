"""Frames of several messages, between workers of ours and a router of ours."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import trio

from tests.daemon.harness import ScriptedWorker, chat_body, running_router, scripted_worker

FEATURES = ("deltas", "batches")


async def ask(client: httpx.AsyncClient, answers: list[str]) -> None:
    response = await client.post("/v1/chat/completions", json=chat_body())
    answers.append(response.json()["choices"][0]["message"]["content"])


async def send_batch(worker: ScriptedWorker, *messages: dict[str, Any]) -> None:
    await worker.socket.send_message(b"\n".join(map(orjson.dumps, messages)).decode())


async def test_one_frame_may_speak_of_several_jobs():
    """Tokens of a batch are lost or go to the wrong client, or one bad message spoils those beside it."""
    answers: list[str] = []
    async with running_router() as running, running.client() as client:
        assert "batches" in (await _ack_of(running))["features"]
        async with scripted_worker(running, slots=2, features=FEATURES) as worker, trio.open_nursery() as nursery:
            nursery.start_soon(ask, client, answers)
            nursery.start_soon(ask, client, answers)
            jobs = [await worker.next_job() for _ in range(2)]
            ids = [job["job_id"] for job in jobs]
            tokens = [
                {"type": "token", "job_id": id_, "token": f"{index}{n}\n"}
                for n in range(3)
                for index, id_ in enumerate(ids)
            ]
            await send_batch(worker, *tokens[:3], {"type": "nonsense"}, *tokens[3:])
            ends = [{"type": "complete", "job_id": id_, "output_tokens": 3} for id_ in ids]
            await send_batch(worker, *ends)
    assert sorted(answers) == ["00\n01\n02\n", "10\n11\n12\n"]


async def test_a_worker_that_knows_no_batches_may_break_lines():
    """An original worker's message is torn apart because there is a line break between its fields."""
    answers: list[str] = []
    async with (
        running_router() as running,
        running.client() as client,
        scripted_worker(running) as worker,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(ask, client, answers)
        job = await worker.next_job()
        token = {"type": "token", "job_id": job["job_id"], "token": "whole"}
        await worker.socket.send_message(orjson.dumps(token, option=orjson.OPT_INDENT_2).decode())
        await worker.complete(job)
    assert answers == ["whole"]


async def _ack_of(running: Any) -> dict[str, Any]:
    async with scripted_worker(running) as worker:
        return worker.ack
