"""Which Redis a router works with, and how it refuses the others: one line, exit code 2, no password anywhere."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from auxot.router.store import open_store
from tests.faults.routers import TEXT, Crew, refused_start, router_process, stream_of, text_of
from tests.store.harness import bounded, free_port, redis_server

PASSWORD = "s3cret/Pa:ss"
QUOTED = "s3cret%2FPa%3Ass"
# What the README asks for.
RIGHTS = ["~auxot:*", "&auxot:*", "+@read", "+@write", "+@stream", "+@pubsub", "+@connection", "+@transaction"]


async def check_that_it_works(folder: Path, redis_url: str) -> str:
    """Have one answer cross from router to router; return all that they have logged."""
    crew = Crew()
    with router_process(folder, "one", redis_url) as one, router_process(folder, "two", redis_url) as two:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(crew.work, two, slots=1))
            assert text_of(await stream_of(one)) == TEXT
            nursery.cancel_scope.cancel()
        logs = [router.daemon.log_path for router in (one, two)]
    return "".join(log.read_text() for log in logs)


def check_refusal(folder: Path, redis_url: str, *reasons: str) -> None:
    code, said = refused_start(folder, redis_url)
    lines = [line for line in said.splitlines() if not line.startswith("{")]
    assert code == 2, said
    assert len(lines) == 1, said
    assert lines[0].startswith("auxot-router: ")
    for reason in reasons:
        assert reason in lines[0]
    for secret in (PASSWORD, QUOTED, "wrong-one"):
        assert secret not in said


@bounded
async def test_a_password_is_used_and_never_logged(tmp_path: Path) -> None:
    """A Redis with a password cannot be used, or its password stands in the log."""
    with redis_server("--requirepass", PASSWORD) as server:
        url = f"unix://:{QUOTED}@{server.socket_path}"
        logged = await check_that_it_works(tmp_path, url)
        assert PASSWORD not in logged
        assert QUOTED not in logged
        check_refusal(tmp_path, f"unix://{server.socket_path}", "refuses the user name or the password")
        check_refusal(tmp_path, f"unix://:wrong-one@{server.socket_path}", "refuses the user name or the password")


@bounded
async def test_a_user_with_few_rights_is_enough_and_one_with_fewer_is_told(tmp_path: Path) -> None:
    """A router needs an administrator, or starts with rights that its queue cannot do with."""
    with redis_server() as server:
        async with open_store(server.url) as admin:
            await admin.execute("ACL", "SETUSER", "auxot", "on", f">{PASSWORD}", *RIGHTS)
            await admin.execute("ACL", "SETUSER", "reader", "on", f">{PASSWORD}", "~*", "&*", "+@read", "+@connection")
        logged = await check_that_it_works(tmp_path, f"unix://auxot:{QUOTED}@{server.socket_path}")
        assert PASSWORD not in logged
        assert "NOPERM" not in logged
        check_refusal(tmp_path, f"unix://reader:{QUOTED}@{server.socket_path}", "may not do what the queue needs")
        check_refusal(tmp_path, f"unix://auxot:wrong-one@{server.socket_path}", "refuses the user name or the password")


@pytest.fixture(scope="module")
def authority() -> Iterator[Path]:
    """A folder with the certificate of an authority of our own, and one that it has given to localhost."""
    folder = Path(tempfile.mkdtemp(prefix="auxot-tls-"))
    key_options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    ca = ["req", "-x509", *key_options, "-days", "2", "-subj", "/CN=Our CA", "-keyout", "ca.key", "-out", "ca.pem"]
    request = ["req", *key_options, "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr"]
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    sign = ["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"]
    for argv in (ca, request, [*sign, "-extfile", "names", "-out", "server.pem"]):
        subprocess.run(["openssl", *argv], check=True, capture_output=True, cwd=folder)
    yield folder
    shutil.rmtree(folder)


@bounded
async def test_tls_with_an_authority_of_ones_own_works_and_without_it_is_refused(
    authority: Path, tmp_path: Path
) -> None:
    """A rediss:// URL does not work, or works with a server that anybody may be."""
    port = free_port()
    options = ["--tls-port", str(port), "--bind", "127.0.0.1", "--tls-auth-clients", "no", "--requirepass", PASSWORD]
    files = ["--tls-cert-file", f"{authority}/server.pem", "--tls-key-file", f"{authority}/server.key"]
    with redis_server(*options, *files):
        url = f"rediss://:{QUOTED}@localhost:{port}/0"
        logged = await check_that_it_works(tmp_path, f"{url}?ssl_ca_certs={authority}/ca.pem")
        assert PASSWORD not in logged
        assert QUOTED not in logged
        check_refusal(tmp_path, url, "is not trusted")
        check_refusal(tmp_path, f"{url}?ssl_ca_certs={authority}/none.pem", "certificate or key file cannot be used")


@contextmanager
def sentinel(folder: Path) -> Iterator[int]:
    """Run a sentinel; yields its port."""
    port = free_port()
    config = folder / "sentinel.conf"
    config.write_text(f"port {port}\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 1 1\n")
    argv = ["redis-server", str(config), "--sentinel"]
    process = subprocess.Popen(argv, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def test_a_sentinel_and_a_cluster_are_refused_in_one_line(tmp_path: Path) -> None:
    """A router starts on a server on which its queue cannot work, or ends with a traceback."""
    with sentinel(tmp_path) as port:
        check_refusal(tmp_path, f"redis://127.0.0.1:{port}", "is a sentinel node; a standalone server is needed")
    with redis_server("--cluster-enabled", "yes") as server:
        check_refusal(tmp_path, server.url, "is a cluster node; a standalone server is needed")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"redis+sentinel://:{QUOTED}@h1:26379,h2:26379/mymaster", "expected redis://... or rediss://"),
        (f"redis://:{QUOTED}@h1:6379,h2:6379/0", "several hosts are not supported"),
        (f"redis://:{QUOTED}@127.0.0.1:6379/0?master=mymaster", "not supported here"),
    ],
)
def test_an_address_of_several_servers_is_refused_in_one_line(tmp_path: Path, url: str, reason: str) -> None:
    """A router would run on one server of several, until that one is replaced."""
    check_refusal(tmp_path, url, reason)
