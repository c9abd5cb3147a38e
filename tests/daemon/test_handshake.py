"""What a stranger, a wrong key and a policy connection get on /ws; nothing there ends the router."""

from __future__ import annotations

import os
import struct
import zlib

import orjson
import pytest
import trio
import trio_websocket

from auxot.core.keys import Role, generate_key
from auxot.router import handshake
from tests.daemon.harness import API_KEY, GPU_KEY, chat_body, open_socket, running_router, scripted_worker, until

CAPABILITIES = {"backend": "llama.cpp", "model": "m", "ctx_size": 4096}


async def raw_socket(running) -> trio.SocketStream:
    """Return a connection on which the WebSocket handshake is done."""
    stream = await trio.open_tcp_stream("127.0.0.1", running.port)
    await stream.send_all(
        b"GET /ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += await stream.receive_some()
    assert head.startswith(b"HTTP/1.1 101")
    return stream


async def closed_by_peer(stream: trio.SocketStream) -> None:
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        pass


def frame(payload: bytes, *, opcode: int = 1, declared: int | None = None) -> bytes:
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, declared or len(payload)) + mask + masked


async def test_a_good_key_gets_the_policy():
    """A worker would not learn what to serve."""
    async with running_router(max_parallel=3, ctx_size=8192) as running, scripted_worker(running) as worker:
        assert worker.ack["success"] is True
        assert len(worker.ack["gpu_id"]) == 32
        policy = worker.ack["policy"]
        assert (policy["model_name"], policy["context_size"], policy["max_parallelism"]) == ("test-model", 8192, 3)
        assert "deltas" in worker.ack["features"]


@pytest.mark.parametrize("key", [generate_key(Role.WORKER), API_KEY, "", "nonsense"])
async def test_a_wrong_key_is_refused_in_the_form_that_stops_original_workers(key):
    """A worker with a wrong key would try for ever, or one with an API key would be let in."""
    async with running_router() as running, open_socket(running) as socket:
        await socket.send_message(
            orjson.dumps({"type": "hello", "gpu_key": key, "capabilities": CAPABILITIES}).decode()
        )
        ack = orjson.loads(await socket.get_message())
        assert ack["type"] == "hello_ack"
        assert ack["success"] is False
        assert "authentication failed" in ack["error"]
        with pytest.raises(trio_websocket.ConnectionClosed) as closed:
            await socket.get_message()
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1008


async def test_a_policy_connection_never_gets_a_job():
    """A job would be stranded on the connection with which a worker only asks what to do."""
    pending = {"backend": "pending", "model": "pending", "ctx_size": 0}
    async with (
        running_router() as running,
        running.client() as client,
        open_socket(running) as visit,
        trio.open_nursery() as nursery,
    ):
        hello = {"type": "hello", "gpu_key": GPU_KEY, "capabilities": pending}
        await visit.send_message(orjson.dumps(hello).decode())
        assert orjson.loads(await visit.get_message())["success"] is True
        assert (await running.health())["workers"] == 0
        nursery.start_soon(lambda: client.post("/v1/chat/completions", json=chat_body()))
        async with scripted_worker(running) as worker:
            await worker.complete(await worker.next_job())


async def test_a_policy_connection_that_sends_a_config_still_gets_no_job():
    """A pending worker would be counted as one that can work."""
    async with running_router() as running, open_socket(running) as visit:
        pending = {"backend": "pending", "model": "pending", "ctx_size": 0}
        hello = {"type": "hello", "gpu_key": GPU_KEY, "capabilities": pending}
        await visit.send_message(orjson.dumps(hello).decode())
        await visit.send_message(orjson.dumps({"type": "config", "capabilities": pending}).decode())
        for _ in range(2):
            await visit.get_message()
        assert (await running.health())["total_slots"] == 0


@pytest.mark.parametrize(
    "first",
    [b"", b"\x00\xff", b"null", b"[]", b'{"type":"hello"', b'{"type":"config","capabilities":{}}', b'{"type":"x"}'],
)
async def test_a_first_message_that_is_no_hello_ends_that_connection_only(first):
    """Garbage on /ws would end the router, or be kept as a worker."""
    async with running_router() as running:
        stream = await raw_socket(running)
        await stream.send_all(frame(first))
        with trio.fail_after(5):
            await closed_by_peer(stream)
        await stream.aclose()
        assert (await running.health())["status"] == "ok"


async def test_broken_framing_and_huge_frames_end_that_connection_only():
    """A peer could make the router buffer without end, or crash it."""
    async with running_router() as running:
        for attack in (b"\xff" * 100, frame(b"x" * 10, declared=2**40), frame(b"x", opcode=7), b"\x81\x05hello"):
            stream = await raw_socket(running)
            await stream.send_all(attack)
            with trio.fail_after(5):
                await closed_by_peer(stream)
            await stream.aclose()
        assert (await running.health())["status"] == "ok"


async def test_a_stranger_who_says_nothing_is_dropped():
    """Idle sockets would be held for ever."""
    async with running_router() as running:
        stream = await raw_socket(running)
        began = trio.current_time()
        await closed_by_peer(stream)
        await stream.aclose()
        assert trio.current_time() - began == pytest.approx(handshake.HELLO_TIMEOUT_S, abs=2)


async def test_a_worker_that_falls_silent_is_dropped_and_its_job_moves():
    """A frozen host would keep its jobs for ever."""
    async with running_router(dead_worker_timeout_s=0.5) as running, running.client() as client:
        async with trio.open_nursery() as nursery, scripted_worker(running) as frozen:
            responses = []

            async def ask():
                responses.append(await client.post("/v1/chat/completions", json=chat_body()))

            nursery.start_soon(ask)
            await frozen.next_job()
            async with scripted_worker(running) as second:

                async def beat():
                    while True:
                        await second.send("heartbeat")
                        await trio.sleep(0.1)

                nursery.start_soon(beat)
                await second.complete(await second.next_job(), full_response="moved")
                await until(lambda: bool(responses))
                nursery.cancel_scope.cancel()
        assert responses[0].json()["choices"][0]["message"]["content"] == "moved"


async def test_words_about_a_job_of_another_worker_are_dropped():
    """A worker could write into other people's answers, or end them."""
    async with running_router() as running, running.client() as client, trio.open_nursery() as nursery:
        responses = []

        async def ask():
            responses.append(await client.post("/v1/chat/completions", json=chat_body()))

        async with scripted_worker(running) as owner:
            nursery.start_soon(ask)
            job = await owner.next_job()
            async with scripted_worker(running) as liar:
                await liar.say(job, "lie")
                await liar.complete(job, full_response="lie")
                await liar.send("error", job_id=job["job_id"], error="lie")
                await liar.send("heartbeat")
                assert (await liar.receive())["type"] == "heartbeat_ack"
                await owner.complete(job, full_response="truth")
                await until(lambda: bool(responses))
        assert responses[0].json()["choices"][0]["message"]["content"] == "truth"


async def test_bad_messages_after_the_handshake_are_skipped_until_there_are_too_many():
    """One bad message would cost a worker its jobs, or a flood of them would go on for ever."""
    async with running_router() as running, scripted_worker(running) as worker:
        await worker.socket.send_message("garbage")
        await worker.send("heartbeat")
        assert (await worker.receive())["type"] == "heartbeat_ack"
        with pytest.raises(trio_websocket.ConnectionClosed):
            await flood(worker)
        await until(lambda: _n_workers(running, 0))


async def test_messages_in_fragments_and_binary_frames_are_read():
    """A peer that splits its messages, or sends them as binary, would not be understood."""
    async with running_router() as running:
        stream = await raw_socket(running)
        hello = orjson.dumps({"type": "hello", "gpu_key": GPU_KEY, "capabilities": CAPABILITIES})
        first = bytearray(frame(hello[:10], opcode=2))
        first[0] &= 0x7F  # not the last one
        await stream.send_all(bytes(first) + frame(b"ping", opcode=9) + frame(hello[10:], opcode=0))
        await stream.send_all(frame(orjson.dumps({"type": "config", "capabilities": CAPABILITIES}), opcode=2))
        await until(lambda: _n_workers(running, 1))
        await stream.aclose()


async def test_a_tools_worker_is_told_that_this_router_takes_none():
    """A tools worker would be taken for a GPU worker and be given jobs."""
    async with running_router() as running, open_socket(running) as socket:
        hello = {"type": "hello", "gpu_key": GPU_KEY, "worker_type": "tools", "tools_capabilities": {"tools": ["x"]}}
        await socket.send_message(orjson.dumps(hello).decode())
        ack = orjson.loads(await socket.get_message())
        assert ack["success"] is False
        assert "tools workers not enabled" in ack["error"]


async def flood(worker) -> None:
    while True:
        await worker.socket.send_message("garbage")


async def _n_workers(running, count: int) -> bool:
    return (await running.health())["workers"] == count


async def test_compression_is_not_negotiated_and_compressed_frames_end_the_connection():
    """A frame of kilobytes would become gigabytes in the router's memory (a decompression bomb)."""
    async with running_router() as running:
        stream = await trio.open_tcp_stream("127.0.0.1", running.port)
        await stream.send_all(
            b"GET /ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
            b"sec-websocket-extensions: permessage-deflate; client_max_window_bits\r\n"
            b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
        )
        head = await stream.receive_some()
        assert head.startswith(b"HTTP/1.1 101")
        assert b"extensions" not in head.lower()
        packed = zlib.compress(orjson.dumps({"type": "hello", "gpu_key": GPU_KEY, "capabilities": CAPABILITIES}))
        await stream.send_all(frame(packed, opcode=0x40 | 1))
        with trio.fail_after(5):
            await closed_by_peer(stream)
        await stream.aclose()
