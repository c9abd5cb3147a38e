"""A download site on loopback that behaves like Hugging Face and GitHub, and misbehaves as the test says."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import h11
import orjson
import trio

COMMIT = "c" * 40
_RANGE = re.compile(rb"bytes=(\d+)-(\d+)")


@attrs.define(eq=False)
class Misbehaviour:
    """What goes wrong with the bytes of a file, for each GET of it."""

    statuses: list[int] = attrs.field(factory=list)  # answered in turn, before anything works
    retry_after: str = ""
    cuts: list[int] = attrs.field(factory=list)  # in turn: break the connection after so many bytes
    has_ranges: bool = True
    trickle: int = 0  # bytes per 10 ms; 0: as fast as it goes
    hold_after: int = -1  # send so many bytes of each answer, then nothing
    wrong_range: bool = False
    is_short: bool = False  # answers as asked, with nothing
    wrong_hash: bool = False
    has_hash: bool = True
    too_much: bytes = b""
    needs_token: str = ""


@attrs.define(eq=False)
class Site:
    """The site. `files`: path in any repository -> bytes. `requests`: what was asked for, in order."""

    url: str = ""
    files: dict[str, bytes] = attrs.field(factory=dict)
    releases: dict[str, list[str]] = attrs.field(factory=dict)  # tag -> names in `files`
    bad: Misbehaviour = attrs.field(factory=Misbehaviour)
    requests: list[h11.Request] = attrs.field(factory=list)
    n_sent: int = 0
    on_bytes: Callable[[int], None] | None = None
    moved_from: dict[str, str] = attrs.field(factory=dict)  # old repository -> new one
    moved_to: str = ""  # another site that has everything

    def gets(self) -> list[h11.Request]:
        return [one for one in self.requests if one.method == b"GET" and one.target.startswith(b"/cdn/")]


@asynccontextmanager
async def running_site(**changes: Any) -> AsyncGenerator[Site, None]:
    site = Site(**changes)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, partial(_serve, site), 0, host="127.0.0.1"))
        site.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        yield site
        nursery.cancel_scope.cancel()


def header(request: h11.Request, name: bytes) -> str:
    return next((value.decode() for key, value in request.headers if key == name), "")


async def _serve(site: Site, stream: trio.SocketStream) -> None:
    connection = h11.Connection(h11.SERVER)
    try:
        while await _exchange(site, stream, connection):
            connection.start_next_cycle()
    except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError, _CutError):
        pass


class _CutError(Exception):
    pass


async def _exchange(site: Site, stream: trio.SocketStream, connection: h11.Connection) -> bool:
    request = None
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(65536))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.ConnectionClosed):
            return False
    assert request is not None
    site.requests.append(request)
    status, headers, body = _answer(site, request)
    await _send(site, stream, connection, request=request, status=status, headers=headers, body=body)
    return connection.our_state is h11.DONE


async def _send(
    site: Site,
    stream: trio.SocketStream,
    connection: h11.Connection,
    *,
    request: h11.Request,
    status: int,
    headers,
    body,
) -> None:
    is_file = request.target.startswith(b"/cdn/") and status in (200, 206)
    head = [("content-length", str(len(body))), *headers]
    if request.method == b"HEAD" and any(name == "x-linked-size" for name, _ in headers):
        head = headers
    if status == 302:
        head = [*headers, ("content-length", "0")]
    kind = h11.Response(status_code=status, headers=head)
    data = connection.send(kind)
    assert data is not None
    await stream.send_all(data)
    if request.method == b"HEAD" or status == 302:
        body = b""
    await _send_body(site, stream, body, is_file=is_file)
    connection.send(h11.Data(body)) if body else None
    connection.send(h11.EndOfMessage())


async def _send_body(site: Site, stream: trio.SocketStream, body: bytes, *, is_file: bool) -> None:
    bad = site.bad
    cut = bad.cuts.pop(0) if is_file and bad.cuts else None
    step = bad.trickle if is_file and bad.trickle else 65536
    for start in range(0, len(body), step):
        piece = body[start : start + step]
        if is_file and 0 <= bad.hold_after <= start:
            await trio.sleep_forever()
        if cut is not None and start + len(piece) > cut:
            await stream.send_all(piece[: cut - start])
            raise _CutError
        await stream.send_all(piece)
        if is_file:
            site.n_sent += len(piece)
            if site.on_bytes:
                site.on_bytes(site.n_sent)
            if bad.trickle:
                await trio.sleep(0.01)


def _answer(site: Site, request: h11.Request) -> tuple[int, list[tuple[str, str]], bytes]:
    target = request.target.decode().partition("?")[0]
    if target.startswith("/cdn/"):
        return _bytes(site, request, site.files.get(target.removeprefix("/cdn/")))
    if target.startswith("/releases/tags/"):
        return _release(site, target.rpartition("/")[2])
    return _resolve(site, request, target)


def _resolve(site: Site, request: h11.Request, target: str) -> tuple[int, list[tuple[str, str]], bytes]:
    match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", target)
    if match is None:
        return 404, [], b""
    repo, path = match[1], match[2]
    if site.moved_to:
        return 307, [("location", site.moved_to + target)], b""
    if repo in site.moved_from:
        return 307, [("location", target.replace(repo, site.moved_from[repo], 1))], b""
    if site.bad.needs_token and header(request, b"authorization") != f"Bearer {site.bad.needs_token}":
        return 401, [("x-error-code", "GatedRepo")], b""
    if path not in site.files:
        return 404, [("x-error-code", "EntryNotFound")], b""
    content = site.files[path]
    digest = "0" * 64 if site.bad.wrong_hash else hashlib.sha256(content).hexdigest()
    linked = [("x-linked-size", str(len(content))), ("x-repo-commit", COMMIT)]
    linked += [("x-linked-etag", f'"{digest}"')] if site.bad.has_hash else []
    return 302, [("location", f"{site.url.replace('127.0.0.1', 'localhost')}/cdn/{path}?sig=secret"), *linked], b""


def _bytes(site: Site, request: h11.Request, content: bytes | None) -> tuple[int, list[tuple[str, str]], bytes]:
    if site.bad.statuses:
        status = site.bad.statuses.pop(0)
        return status, ([("retry-after", site.bad.retry_after)] if site.bad.retry_after else []), b"sorry"
    if content is None:
        return 404, [], b""
    match = _RANGE.fullmatch(header(request, b"range").encode())
    if match is None or not site.bad.has_ranges:
        return 200, [], content
    start, end = int(match[1]), min(int(match[2]) + 1, len(content))
    told = start + 1 if site.bad.wrong_range else start
    headers = [("content-range", f"bytes {told}-{end - 1}/{len(content)}")]
    return 206, headers, b"" if site.bad.is_short else content[start:end] + site.bad.too_much


def _release(site: Site, tag: str) -> tuple[int, list[tuple[str, str]], bytes]:
    if tag not in site.releases:
        return 404, [], b"{}"
    assets = [
        {
            "name": name,
            "size": len(site.files[name]),
            "digest": "sha256:" + ("0" * 64 if site.bad.wrong_hash else hashlib.sha256(site.files[name]).hexdigest()),
            "browser_download_url": f"{site.url}/cdn/{name}",
        }
        for name in site.releases[tag]
    ]
    return 200, [("content-type", "application/json")], orjson.dumps({"tag_name": tag, "assets": assets})
