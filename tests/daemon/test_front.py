"""HTTP on the wire: what hypercorn must still do for us, and what we do in front of it."""

from __future__ import annotations

import gc
import subprocess

import orjson
import pytest
import trio

from tests.daemon.harness import API_KEY, GPU_KEY, chat_body, running_router, scripted_worker, until


def request(
    method: str = "POST", path: str = "/v1/chat/completions", *, version: str = "1.1", body: bytes = b"", headers=()
) -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "host: x", f"authorization: Bearer {API_KEY}", *headers]
    if body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chat(**changes) -> bytes:
    return orjson.dumps(chat_body(**changes))


async def everything(stream: trio.SocketStream) -> bytes:
    received = b""
    with trio.fail_after(8):
        async for chunk in stream:
            received += chunk
    return received


async def connect(running) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", running.port)


async def answer_all(worker) -> None:
    while True:
        job = await worker.next_job()
        await worker.say(job, "Hel", "lo")
        await worker.complete(job)


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_connection_that_asks_to_be_closed_is_closed(path, version):
    """A client that waits for the end of the connection would hang."""
    async with running_router() as running, await connect(running) as stream:
        headers = ["connection: close"] if version == "1.1" else []
        await stream.send_all(request("GET", path, version=version, headers=headers))
        received = await everything(stream)
        assert b" 200" in received.split(b"\r\n")[0]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_answer_is_whole_and_the_connection_closed_when_asked(version, stream):
    """Old clients and `Connection: close` would get a cut answer or wait for ever."""
    async with running_router() as running, scripted_worker(running) as worker, trio.open_nursery() as nursery:
        nursery.start_soon(answer_all, worker)
        async with await connect(running) as client:
            headers = ["connection: close"] if version == "1.1" else []
            await client.send_all(request(version=version, body=chat(stream=stream), headers=headers))
            received = await everything(client)
        assert b" 200" in received.split(b"\r\n")[0]
        head, _, body = received.partition(b"\r\n\r\n")
        if stream:
            assert b"data: [DONE]\n\n" in body
            assert (b"transfer-encoding: chunked" in head.lower()) == (version == "1.1")
            assert body.endswith(b"0\r\n\r\n") == (version == "1.1")
        else:
            assert orjson.loads(body)["choices"][0]["message"]["content"] == "Hello"
        nursery.cancel_scope.cancel()


async def test_one_connection_serves_many_answers_of_every_kind():
    """Keep-alive would break after a stream that we wrote behind hypercorn's back."""
    async with (
        running_router() as running,
        scripted_worker(running) as worker,
        running.client() as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(answer_all, worker)
        local_ports = set()
        for n in range(12):
            if n % 3 == 2:
                response = await client.get("/v1/models")
            else:
                response = await client.post("/v1/chat/completions", json=chat_body(stream=n % 3 == 0))
            assert response.status_code == 200
            local_ports.add(response.extensions["network_stream"].get_extra_info("client_addr")[1])
        assert len(local_ports) == 1
        nursery.cancel_scope.cancel()


async def test_pipelined_requests_are_answered_in_order():
    """A client that does not wait for the answer would get them mixed up."""
    async with running_router() as running, scripted_worker(running) as worker, trio.open_nursery() as nursery:
        nursery.start_soon(answer_all, worker)
        async with await connect(running) as client:
            first = request(body=chat(stream=True))
            second = request("GET", "/health", headers=["connection: close"])
            await client.send_all(first + second)
            received = await everything(client)
        assert received.count(b"HTTP/1.1 200") == 2
        assert received.index(b"[DONE]") < received.index(b'"status":"ok"')
        nursery.cancel_scope.cancel()


async def test_head_and_first_event_leave_in_one_packet():
    """The first token would wait for Nagle's algorithm and a delayed acknowledgement: 40 ms."""
    async with running_router() as running, scripted_worker(running) as worker, await connect(running) as client:
        await client.send_all(request(body=chat(stream=True)))
        job = await worker.next_job()
        await worker.say(job, "Hello")
        received = await client.receive_some()
        assert received.startswith(b"HTTP/1.1 200")
        assert b'"content":"Hello"' in received
        await worker.complete(job)


async def test_a_body_over_the_limit_is_refused_declared_or_not():
    """Anybody with a key could fill the router's memory."""
    async with running_router(max_body_bytes=10_000) as running, running.client() as client:
        big = chat(messages=[{"role": "user", "content": "x" * 20_000}])

        async def chunks():  # noqa: ASYNC124 -- httpx wants an async generator
            for start in range(0, len(big), 1000):
                yield big[start : start + 1000]

        for path in ("/v1/chat/completions", "/v1/messages"):
            for content in (big, chunks()):
                response = await client.post(path, content=content)
                assert response.status_code == 413
                assert "10000 bytes" in response.json()["error"]["message"]
        assert (await client.get("/health")).status_code == 200


async def test_a_connection_without_a_first_line_is_closed():
    """Silent connections would be held for ever."""
    async with running_router() as running, await connect(running) as stream:
        began = trio.current_time()
        await stream.send_all(b"GET")
        assert await everything(stream) == b""
        assert trio.current_time() - began > 3


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\n",
        b"NONSENSE\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /ws HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
        b"a" * 100_000,
    ],
)
async def test_malformed_http_ends_that_connection_only(garbage):
    """Garbage would end the router, or be answered by a 500."""
    async with running_router() as running:
        async with await connect(running) as stream:
            try:
                await stream.send_all(garbage)
                received = await everything(stream)
            except trio.BrokenResourceError:
                received = b""
        assert received[9:12] in {b"", b"400", b"405", b"426", b"431", b"505"}
        assert (await running.health())["status"] == "ok"


async def test_http2_in_the_clear_is_served():
    """A client or proxy that speaks HTTP/2 with prior knowledge would be refused, or its stream garbled."""
    async with running_router() as running, scripted_worker(running) as worker, trio.open_nursery() as nursery:
        nursery.start_soon(answer_all, worker)
        command = ["curl", "-sS", "--http2-prior-knowledge", "-m", "10", "-w", "%{http_version}"]
        command += ["-H", f"authorization: Bearer {API_KEY}", "--data-binary", chat(stream=True).decode()]
        result = await trio.run_process([*command, f"{running.url}/v1/chat/completions"], capture_stdout=True)
        assert result.stdout.endswith(b"data: [DONE]\n\n2")
        nursery.cancel_scope.cancel()


async def test_a_client_that_half_closes_after_its_request_is_treated_as_gone():
    """A hung-up client and one that shuts down its sending side look alike; its slot must be free."""
    async with running_router() as running, scripted_worker(running) as worker, await connect(running) as client:
        await client.send_all(request(body=chat(stream=True)))
        job = await worker.next_job()
        await client.send_eof()
        while (message := await worker.receive())["type"] != "cancel":
            pass
        assert message["job_id"] == job["job_id"]


async def test_nothing_is_left_of_connections_that_ended():
    """Tasks or descriptors would pile up until the router dies."""
    async with running_router() as running, scripted_worker(running) as worker, trio.open_nursery() as nursery:
        nursery.start_soon(answer_all, worker)
        await running.health()
        gc.collect()
        before = (n_descriptors(), trio.lowlevel.current_statistics().tasks_living)
        for n in range(20):
            async with await connect(running) as client:
                await client.send_all(request(body=chat(stream=n % 2 == 0))[: 50 + n * 10 if n % 3 else None])
                if n % 3 == 0:
                    await client.receive_some()
        await until(lambda: n_descriptors() <= before[0])
        await until(lambda: trio.lowlevel.current_statistics().tasks_living <= before[1])
        nursery.cancel_scope.cancel()


def n_descriptors() -> int:
    return int(subprocess.run(["sh", "-c", "ls /proc/$PPID/fd | wc -l"], capture_output=True, check=True).stdout)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("key", [None, "Bearer", GPU_KEY, "rtr_" + "x" * 43, "x" * 10_000])
async def test_a_request_without_a_right_key_is_refused(path, key):
    """Strangers, or holders of a worker's key, could use the models."""
    async with running_router() as running, running.client(key=key) as client:
        response = await client.post(path, json=chat_body(max_tokens=1))
        assert response.status_code == 401
        error = response.json()["error"]
        assert error["type"] == "authentication_error"
        assert key is None or key not in response.text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", ""),
        (b'{"model":"m"}', "messages"),
        (b'{"model":"m","messages":[]}', "messages"),
        (b'{"model":"m","messages":[{"role":"user","content":5}]}', "messages"),
        (b'{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":"5"}', "max_tokens"),
        (b'{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":0}', "max_tokens"),
        (
            b'{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":1,"temperature":"warm"}',
            "temperature",
        ),
        (b'{"model":"m","messages":[{"role":"user","content":"\xff"}],"max_tokens":1}', "JSON"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_bad_body_is_refused_with_the_name_of_the_field(path, body, field):
    """A client would have to guess what is wrong with its request."""
    async with running_router() as running, running.client() as client:
        response = await client.post(path, content=body)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert field in error["message"] + str(error.get("param"))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("POST", "/api/openai/v1/nope", 404),
        ("GET", "/api/anthropic/v1/nope", 404),
        ("PUT", "/v1/chat/completions", 405),
        ("GET", "/v1/messages", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
        ("GET", "/v1/chat/completions", 200),
        ("GET", "/v1/chat/completions/chatcmpl-1", 404),
        ("DELETE", "/v1/chat/completions/chatcmpl-1", 400),
        ("GET", "/v1/models/test-model", 200),
        ("GET", "/v1/models/other", 404),
        ("GET", "/api/anthropic/v1/models/test-model", 200),
        ("GET", "/api/anthropic/models/..%2f..%2fetc", 404),
    ],
)
async def test_routes_methods_and_unknown_paths(method, path, status):
    """A client would get an HTML page, a 500, or a wrong status."""
    async with running_router() as running, running.client() as client:
        response = await client.request(method, path)
        assert response.status_code == status
        body = response.json()
        if status >= 400:
            assert body["error"]["message"]
            assert body["error"]["type"]
            is_anthropic = "/anthropic/" in path or path == "/v1/messages"
            assert ("request_id" in body) == is_anthropic
            assert response.headers["x-request-id"].startswith("req_")


async def test_health_needs_no_key_and_tells_no_secret():
    """A load balancer could not ask, or everybody could read a key."""
    async with running_router() as running, running.client(key=None) as client:
        response = await client.get("/health")
        counts = {"workers": 0, "total_slots": 0, "active_jobs": 0, "available": 0, "waiting_requests": 0}
        whole = {"routers": 1, **counts}
        assert response.json() == {"status": "ok", **counts, "queue": "ok", "all_routers": whole}
