"""Images that requests name by address, fetched by a real router from real servers, good and bad.

`The web` here is a server on loopback; `Detour` leads connections to public addresses to it, which is what Trio's own
hooks for sockets and names are for.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import attrs
import pytest
import trio

from auxot.core.errors import RefusedError
from auxot.core.jobs import ChatMessage, Job
from auxot.router import fetch, images
from auxot.router.dialects.fields import WebImage
from tests.daemon.harness import chat_body, running_router, scripted_worker, until
from tests.faults.harness import n_descriptors, n_tasks

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
PUBLIC, PRIVATE = "93.184.215.14", "10.1.2.3"


def chat(url: str) -> dict[str, Any]:
    return chat_body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])


def messages(url: str) -> dict[str, Any]:
    block = {"type": "image", "source": {"type": "url", "url": url}}
    return {"model": "any", "max_tokens": 9, "messages": [{"role": "user", "content": [block]}]}


def responses(url: str) -> dict[str, Any]:
    return {"model": "any", "input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}


REQUESTS: list[tuple[str, Callable[[str], dict[str, Any]], str]] = [
    ("/v1/chat/completions", chat, "messages[0].content[0].image_url.url"),
    ("/v1/messages", messages, "messages.0.content.0.source.url"),
    ("/v1/responses", responses, "input[0].content[0].image_url"),
    ("/v1/messages/count_tokens", messages, "messages.0.content.0.source.url"),
]


def answer(
    body: bytes = PNG, *, status: str = "200 OK", kind: str = "image/png", length: int | None = None, more: str = ""
) -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body) if length is None else length}\r\n"
    return f"{head}{more}\r\n".encode() + body


def redirect(location: str) -> bytes:
    return answer(b"", status="302 Found", more=f"location: {location}\r\n")


@attrs.define(eq=False)
class Web:
    """A server that answers each path as it is told: with bytes, or by a function that has the connection."""

    port: int = 0
    pages: dict[str, Any] = attrs.field(factory=dict)
    asked: list[str] = attrs.field(factory=list)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def serve(self, stream: trio.abc.Stream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            more = await stream.receive_some()
            if not more:
                return
            head += more
        path = head.split()[1].decode()
        self.asked.append(path)
        page = self.pages[path]
        with suppress(trio.BrokenResourceError):
            await (stream.send_all(page) if isinstance(page, bytes) else page(stream))


@asynccontextmanager
async def listening(web: Web, serve: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[None]:
    """Have connections served on a free port for the length of the block."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    web.port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve, listeners)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def running_web(**pages: Any) -> AsyncIterator[Web]:
    web = Web(pages={f"/{name}": page for name, page in pages.items()})

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await web.serve(stream)

    async with listening(web, serve):
        yield web


@attrs.define(eq=False)
class Detour(trio.abc.HostnameResolver, trio.abc.SocketFactory):
    """Names as the test says; connections to PUBLIC end at the test's own server, all others where they should."""

    names: dict[str, list[str]]
    resolved: list[str] = attrs.field(factory=list)
    connected: list[str] = attrs.field(factory=list)

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002, ARG002 -- Trio's names
        name = host.decode() if isinstance(host, bytes) else host
        self.resolved.append(name)
        literals = self.names.get(name, [name])
        if self.names.get(name) and len(literals) > 1 and literals[0] == "then":
            self.names[name] = literals[2:]
            literals = literals[1:2]
        return [(trio.socket.AF_INET, trio.socket.SOCK_STREAM, 6, "", (literal, port)) for literal in literals]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError

    def socket(self, family=trio.socket.AF_INET, type=trio.socket.SOCK_STREAM, proto=0):  # noqa: A002 -- Trio's names
        trio.socket.set_custom_socket_factory(None)
        try:
            made = trio.socket.socket(family, type, proto)
        finally:
            trio.socket.set_custom_socket_factory(self)
        made.__class__ = _turned(made.__class__, self)
        return made


def _turned(base: type, detour: Detour) -> type:
    class Turned(base):  # type: ignore[misc]
        async def connect(self, address):
            detour.connected.append(address[0])
            await super().connect(("127.0.0.1", address[1]) if address[0] == PUBLIC else address)

    return Turned


@asynccontextmanager
async def detour(**names: list[str]) -> AsyncIterator[Detour]:
    turned = Detour({name.replace("_", "."): literals for name, literals in names.items()})
    trio.socket.set_custom_hostname_resolver(turned)
    trio.socket.set_custom_socket_factory(turned)
    try:
        yield turned
    finally:
        trio.socket.set_custom_hostname_resolver(None)
        trio.socket.set_custom_socket_factory(None)


async def refusal(running, url: str, *, path: str = "/v1/chat/completions", body=chat) -> dict[str, Any]:
    async with running.client() as client:
        response = await client.post(path, json=body(url))
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize(("path", "body", "field"), REQUESTS)
async def test_an_image_is_fetched_and_the_worker_gets_no_address(path, body, field):
    """llama-server would fetch it, from inside the GPU host's network, or the model would see nothing."""
    async with (
        running_web(one=answer(), two=redirect("/one")) as web,
        running_router(allow_private_urls=True) as running,
        running.client() as client,
        scripted_worker(running, features=("deltas", "params", "count")) as worker,
        trio.open_nursery() as nursery,
    ):
        for page in ("/one", "/two"):
            nursery.start_soon(partial(client.post, path, json=body(web.url(page))))
            job = await worker.next_job()
            url = job["messages"][0]["content"][0]["image_url"]["url"]
            assert url == "data:image/png;base64," + base64.b64encode(PNG).decode()
            await worker.complete(job)
        assert (await refusal(running, "http://127.0.0.1:1/", path=path, body=body))["message"].startswith(field)


@pytest.mark.parametrize(("path", "body", "field"), REQUESTS)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0"])
async def test_what_is_not_on_the_public_internet_is_not_asked(path, body, field, host):
    """Whoever has a key could read what only the router's machine may see."""
    async with running_web(secret=answer()) as web, running_router() as running:
        error = await refusal(running, web.url("/secret", host), path=path, body=body)
        assert error["message"] == f"{field}: is not an address on the public internet"
        assert error.get("param", field) == field
        assert web.asked == []


async def test_a_name_that_leads_inside_is_refused_as_one_that_leads_nowhere():
    """A stranger could reach inner machines by a name of his own, or learn which inner names there are."""
    names = {"inner_example": [PRIVATE], "both_example": [PUBLIC, PRIVATE], "metadata_example": ["169.254.169.254"]}
    async with running_router() as running, detour(**names) as turned:
        texts = {
            (await refusal(running, f"http://{name}/x"))["message"].partition(": ")[2]
            for name in ("inner.example", "both.example", "metadata.example")
        }
        assert set(turned.connected) == {"127.0.0.1"}  # the test's own client
    async with running_router() as running:
        texts.add((await refusal(running, "http://nowhere.invalid/x"))["message"].partition(": ")[2])
    assert texts == {"is not an address on the public internet"}


async def test_a_redirect_that_leads_inside_is_not_followed():
    """A page on the web could send the router where its asker may not go."""
    async with running_web(secret=answer()) as web, running_router() as running, detour() as turned:
        for location in (web.url("/secret"), "http://169.254.169.254/", "file:///etc/passwd", "http://u:p@1.1.1.1/"):
            web.pages["/door"] = redirect(location)
            await refusal(running, web.url("/door", PUBLIC))
        assert web.asked == ["/door"] * 4
        assert turned.connected.count(PUBLIC) == 4
        assert "169.254.169.254" not in turned.connected


async def test_the_address_that_was_checked_is_the_one_that_is_asked():
    """A name that changes its address between the check and the connection would lead inside (DNS rebinding)."""
    async with (
        running_web(one=answer()) as web,
        running_router() as running,
        running.client() as client,
        scripted_worker(running) as worker,
        detour(turning_example=["then", PUBLIC, "127.0.0.1"]) as turned,
        trio.open_nursery() as nursery,
    ):
        url = web.url("/one", "turning.example")
        nursery.start_soon(partial(client.post, "/v1/chat/completions", json=chat(url)))
        await worker.complete(await worker.next_job())
        assert turned.resolved.count("turning.example") == 1
        assert turned.connected.count(PUBLIC) == 1
        await refusal(running, url)  # by now it leads inside, and is refused
        assert web.asked == ["/one"]


async def endless(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        await stream.send_all(b"10000\r\n" + bytes(65536) + b"\r\n")


async def silent(stream: trio.SocketStream) -> None:
    await stream.receive_some()


async def dripping(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 1000\r\n\r\n")
    while True:
        await stream.send_all(b"x")
        await trio.sleep(0.05)


async def head_without_end(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        await stream.send_all(b"x" * 65536)


BAD_PAGES = {
    "huge": (answer(b"", length=10**15), "is larger than"),
    "endless": (endless, "is larger than"),
    "text": (answer(b"root:x:0:0", kind="text/html"), "is not of the type"),
    "odd": (answer(kind="image/png,x"), "is not of the type"),
    "error": (answer(b"hidden-words", status="500 hidden-words"), "could not be fetched"),
    "missing": (answer(b"hidden-words", status="404 Not Found"), "could not be fetched"),
    "zipped": (answer(more="content-encoding: gzip\r\n"), "could not be fetched"),
    "short": (answer(length=1000), "could not be fetched"),
    "garbage": (b"hidden-words\r\n\r\n", "could not be fetched"),
    "nothing": (b"", "could not be fetched"),
    "number": (answer(more="content-length: -5\r\n"), "could not be fetched"),
    "circle": (redirect("/circle"), "is redirected more than 3 times"),
    "lost": (answer(b"", status="302 Found"), "is redirected more than 3 times"),
    "head": (head_without_end, "could not be fetched"),
}


async def test_what_is_no_image_is_refused_in_words_that_tell_nothing_of_it():
    """The router would be a way to read other servers, be filled by one, or answer 500."""
    pages = {name: page for name, (page, _) in BAD_PAGES.items()}
    limit = 1024 * 1024
    async with running_web(**pages) as web, running_router(allow_private_urls=True, max_body_bytes=limit) as running:
        await running.health()
        for name, (_, reason) in BAD_PAGES.items():
            error = await refusal(running, web.url(f"/{name}"))
            assert reason in error["message"], name
            assert "hidden-words" not in str(error)
        before = n_descriptors(), n_tasks()
        for name in BAD_PAGES:
            await refusal(running, web.url(f"/{name}"))
        await until(lambda: n_descriptors() <= before[0] and n_tasks() <= before[1])


async def test_a_client_that_leaves_ends_the_fetching():
    """Slow servers would hold connections for clients that are gone, and places in line."""
    ended = trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        await silent(stream)
        ended.set()

    async with running_web(slow=slow) as web, running_router(allow_private_urls=True) as running:
        async with running.client() as client, trio.open_nursery() as nursery:
            nursery.start_soon(partial(client.post, "/v1/chat/completions", json=chat(web.url("/slow"))))
            await until(lambda: web.asked == ["/slow"])
            nursery.cancel_scope.cancel()
        await ended.wait()
        await until(lambda: running.router.pool.admission.waiting.n_jobs == 0)


async def test_images_of_one_request_are_bounded_together():
    """A small request could fill the router's memory with what it names."""
    half = answer(bytes(700_000))

    def body(url: str) -> dict[str, Any]:
        parts = [{"type": "image_url", "image_url": {"url": url}}]
        return chat_body(messages=[{"role": "user", "content": parts * 2}])

    settings = {"allow_private_urls": True, "max_body_bytes": 1_000_000}
    async with running_web(half=half) as web, running_router(**settings) as running:
        assert "too large" in (await refusal(running, web.url("/half"), body=body))["message"]
        n_asked = len(web.asked)
        many = chat_body(messages=[{"role": "user", "content": chat(web.url("/half"))["messages"][0]["content"] * 101}])
        assert "more than 100 images" in (await refusal(running, "", body=lambda _: many))["message"]
        assert len(web.asked) == n_asked


async def test_what_is_fetched_counts_as_bytes_that_wait():
    """The bound on what waits would not hold for what requests name."""
    async with running_web(half=answer(bytes(700_000))) as web:
        settings = {"allow_private_urls": True, "max_queue_bytes": 1_000_000}
        async with running_router(**settings) as running, running.client() as client, trio.open_nursery() as nursery:
            nursery.start_soon(partial(client.post, "/v1/chat/completions", json=chat(web.url("/half"))))
            await until(lambda: running.router.pool.admission.waiting.n_bytes > 900_000)
            refused = await client.post("/v1/chat/completions", json=chat(web.url("/half")))
            assert refused.status_code == 429
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("page", [silent, dripping])
async def test_a_server_that_does_not_end_its_answer_is_given_up(page):
    """A request would wait for ever for a server that says nothing, or a byte now and then."""
    async with running_web(slow=page) as web:
        holder = {"url": WebImage(web.url("/slow"), field="messages[0]")}
        content = [{"type": "image_url", "image_url": holder}]
        job = Job(job_id="1", messages=(ChatMessage(role="user", content=content),))
        with pytest.raises(RefusedError, match=r"was not fetched within 0\.5 s") as refused, trio.fail_after(10):
            await images.Images(allows_private=True, max_bytes=10**6, limit_s=0.5).put_in(job, grow=lambda _: None)
        assert refused.value.param == "messages[0]"


async def test_addresses_in_a_template_are_not_passed_to_llama_server():
    """/apply-template would have it fetch what it names."""
    async with running_router() as running:
        for part in (
            {"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}},
            {"type": "image_url", "image_url": "file:///etc/passwd"},
            {"type": "input_audio", "input_audio": {"data": "http://127.0.0.1/"}},
            {"type": "video_url", "video_url": {"url": "https://127.0.0.1/"}},
        ):
            body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x: y"}, part]}]}
            async with running.client() as client:
                response = await client.post("/apply-template", json=body)
            assert response.status_code == 400
            assert response.json()["error"]["param"].startswith("messages[0].content[1].")


def test_the_bounds_are_what_the_readme_says():
    """The documentation would promise other bounds."""
    assert (images.MAX_IMAGE_BYTES, images.TOTAL_TIMEOUT_S, fetch.MAX_REDIRECTS) == (20 * 1024 * 1024, 20, 3)
