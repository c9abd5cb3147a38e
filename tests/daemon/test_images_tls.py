"""Images from https addresses: real TLS on loopback, with certificates that openssl makes for the test.

The router trusts the authorities that OpenSSL does, so SSL_CERT_FILE names ours. `detour` leads connections to a public
address to the test's own server: the check of addresses stays as it is.
"""

from __future__ import annotations

import base64
import ssl
import subprocess
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from auxot.router import fetch
from tests.daemon.harness import running_router, scripted_worker
from tests.daemon.test_images import PNG, PUBLIC, Web, answer, chat, detour, listening, redirect, refusal

HOST = "pictures.example"
NAMES = {"pictures_example": [PUBLIC], "other_example": [PUBLIC]}


@attrs.frozen
class Certificate:
    """A certificate and its key, both PEM."""

    file: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        made.load_cert_chain(self.file, self.key)
        return made


def openssl(*argv: object) -> None:
    subprocess.run(["openssl", *map(str, argv)], check=True, capture_output=True, timeout=60)


def authority(folder: Path, name: str) -> Certificate:
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-subj", f"/CN={name}", "-days", 2, "-keyout", made.key, "-out", made.file)
    return made


def certificate(folder: Path, host: str, by: Certificate) -> Certificate:
    """Return one for a host, signed by an authority."""
    stem = folder / f"{host}-{by.file.stem}"
    made, request, extension = Certificate(stem.with_suffix(".pem"), stem.with_suffix(".key")), f"{stem}.csr", "san.cnf"
    (folder / extension).write_text(f"subjectAltName=DNS:{host}\n")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-new", *curve, "-subj", f"/CN={host}", "-keyout", made.key, "-out", request)
    signing = ("-CA", by.file, "-CAkey", by.key, "-CAcreateserial", "-extfile", folder / extension)
    openssl("x509", "-req", "-in", request, *signing, "-days", 2, "-out", made.file)
    return made


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Certificate]:
    """Return the one authority that the router trusts."""
    made = authority(tmp_path, "trusted")
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
    fetch._tls_context.cache_clear()
    yield made
    fetch._tls_context.cache_clear()


@asynccontextmanager
async def running_tls_web(shown: Certificate | None, **pages: bytes) -> AsyncGenerator[Web]:
    """Run a server that shows a certificate; None: it answers without TLS."""
    web = Web(pages={f"/{name}": page for name, page in pages.items()})

    async def serve(stream: trio.abc.Stream) -> None:
        async with stream:
            if shown is None:
                await stream.send_all(answer(b"", status="400 Bad Request"))
                return
            stream = trio.SSLStream(stream, shown.context(), server_side=True, https_compatible=True)
            with suppress(trio.BrokenResourceError):  # the router does not like what it is shown
                await web.serve(stream)

    async with listening(web, serve):
        yield web


def https(web: Web, path: str, host: str = HOST) -> str:
    return web.url(path, host).replace("http:", "https:")


async def test_an_image_comes_over_tls(tmp_path: Path, trusted: Certificate) -> None:
    """No image of the web can be had, since all of it speaks https."""
    async with (
        running_tls_web(certificate(tmp_path, HOST, trusted), one=answer(), two=redirect("/one")) as web,
        running_router() as running,
        running.client() as client,
        scripted_worker(running) as worker,
        detour(**NAMES) as turned,
        trio.open_nursery() as nursery,
    ):
        for page in ("/one", "/two"):
            nursery.start_soon(partial(client.post, "/v1/chat/completions", json=chat(https(web, page))))
            job = await worker.next_job()
            url = job["messages"][0]["content"][0]["image_url"]["url"]
            assert url == "data:image/png;base64," + base64.b64encode(PNG).decode()
            await worker.complete(job)
        assert turned.connected.count(PUBLIC) == 3
        assert web.asked == ["/one", "/two", "/one"]


@pytest.mark.parametrize("fault", ["another name", "an unknown authority", "its own authority", "no tls"])
async def test_who_cannot_show_its_name_is_not_asked(tmp_path: Path, trusted: Certificate, fault: str) -> None:
    """Whoever is between the router and a server could give the model other images, and read the address."""
    shown = {
        "another name": lambda: certificate(tmp_path, "other.example", trusted),
        "an unknown authority": lambda: certificate(tmp_path, HOST, authority(tmp_path, "stranger")),
        "its own authority": lambda: authority(tmp_path, HOST),
        "no tls": lambda: None,
    }[fault]()
    async with running_tls_web(shown, one=answer()) as web, running_router() as running, detour(**NAMES) as turned:
        error = await refusal(running, https(web, "/one"))
        assert error["message"] == "messages[0].content[0].image_url.url: could not be fetched"
        assert turned.connected.count(PUBLIC) == 1
        assert web.asked == []


async def test_a_redirect_to_another_name_has_to_show_that(tmp_path: Path, trusted: Certificate) -> None:
    """The certificate of the first server would do for all."""
    async with running_tls_web(certificate(tmp_path, HOST, trusted), one=answer()) as web, running_router() as running:
        web.pages["/door"] = redirect(https(web, "/one", "other.example"))
        async with detour(**NAMES):
            assert "could not be fetched" in (await refusal(running, https(web, "/door")))["message"]
        assert web.asked == ["/door"]
