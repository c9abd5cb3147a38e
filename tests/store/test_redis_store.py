"""What only a real server can do to us: go away, stand still, refuse us."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest
import trio
import trio.testing

from auxot.core.errors import ConfigError, StoreError, StoreLostError
from auxot.router import store_connection, sweeper
from auxot.router.bell import Bell
from auxot.router.queue import JobQueue
from auxot.router.store import Store, open_store
from tests.log_scan import REDIS_PASSWORD
from tests.store.harness import RedisServer, bounded, eventually, fill, free_port, job, numbers, redis_server, router

PASSWORD = REDIS_PASSWORD
QUOTED = quote(PASSWORD, safe="")


async def _kill_connections(store: Store) -> None:
    await store.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await store.execute("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")


@bounded
async def test_a_cut_connection_is_made_again_with_its_bells(server: RedisServer) -> None:
    """After a cut connection the router is deaf or mute until it is restarted."""
    async with open_store(server.url) as store, open_store(server.url) as other, router(store, "a") as queue:
        await queue.claim(1)
        await queue.bell.wait()
        await queue.reconnected.wait()
        connected_at = store.connected_at
        await _kill_connections(other)
        await queue.reconnected.wait()
        await queue.bell.wait()
        assert store.connected_at != connected_at
        async with router(other, "b") as elsewhere:
            await elsewhere.enqueue(job(1))
            await queue.bell.wait()
            await eventually(lambda: _claims(queue, [1]))


async def _claims(queue: JobQueue, expected: list[int]) -> bool:
    return numbers(await queue.claim(9)) == expected


@bounded
async def test_commands_under_way_are_told_that_the_connection_is_lost(server: RedisServer) -> None:
    """A request hangs because its command went down with the connection."""
    async with open_store(server.url) as store:
        server.freeze()
        n_lost = 0

        async def ask() -> None:
            nonlocal n_lost
            with pytest.raises(StoreLostError):
                await store.execute("PING")
            n_lost += 1

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.05)
            server.stop()
        assert n_lost == 50
        await eventually(lambda: store.connected_at is None)
        with pytest.raises(StoreLostError, match="cannot be reached"), trio.fail_after(0.5):
            await store.execute("PING")


@bounded
async def test_a_server_that_stands_still_counts_as_lost(
    server: RedisServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """A frozen server or a half-open connection holds every request for ever."""
    async with open_store(server.url) as store:
        server.freeze()
        with trio.fail_after(store_connection.REPLY_DEADLINE_S + 3), pytest.raises(StoreLostError, match="no reply"):
            await store.execute("PING")
        await eventually(lambda: store.connected_at is None)
        await trio.testing.wait_all_tasks_blocked()
    assert "store.lost" in capfd.readouterr().err


@bounded
async def test_everything_goes_on_after_a_restart_that_forgot_everything(server: RedisServer) -> None:
    """After a restart of Redis the routers must be restarted too."""
    async with open_store(server.url) as store, router(store, "a", heartbeat_ttl_s=30) as queue:
        await fill(queue, 2)
        [running] = await queue.claim(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: sweeper.keep_alive(queue, interval_s=10))
            server.stop()
            for use in (queue.depth, lambda: queue.enqueue(job(7)), lambda: queue.claim(1)):
                with pytest.raises(StoreLostError):
                    await use()
            with pytest.raises(StoreLostError):
                await queue.ack(running.entry_id)
            server.start()
            await eventually(lambda: _is_live(queue))
            await queue.enqueue(job(9))
            assert numbers(await queue.claim(5)) == [9]
            nursery.cancel_scope.cancel()


async def _is_live(queue: JobQueue) -> bool:
    return set(await queue.live_routers()) == {"a"}


@bounded
async def test_an_ack_that_was_lost_with_the_connection_is_repeated(server: RedisServer) -> None:
    """A finished job runs again because Redis was away when it ended."""
    async with open_store(server.url) as store, open_store(server.url) as other, router(store, "a") as queue:
        await fill(queue, 2)
        done, also_done = await queue.claim(2)
        async with trio.open_nursery() as nursery:

            async def fail(entry_id: bytes) -> None:
                with pytest.raises(StoreLostError):
                    await queue.ack(entry_id)

            await other.execute("CLIENT", "PAUSE", 10_000, "WRITE")
            nursery.start_soon(fail, done.entry_id)
            nursery.start_soon(fail, also_done.entry_id)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await _kill_connections(other)
            await other.execute("CLIENT", "UNPAUSE")
        await eventually(lambda: _claims(queue, []))
        assert await other.execute("XLEN", "auxot:jobs") == 0


@bounded
async def test_the_first_connection_waits_for_a_server_that_starts(server: RedisServer) -> None:
    """A router that is started beside its Redis gives up at once."""
    server.stop()
    async with trio.open_nursery() as nursery:

        async def start_late() -> None:
            await trio.sleep(0.2)
            await trio.to_thread.run_sync(server.start)

        nursery.start_soon(start_late)
        async with open_store(server.url) as store:
            await store.execute("PING")


@bounded
async def test_a_server_that_is_not_there_is_named_without_the_password() -> None:
    """A router without its Redis hangs, or says where it is with the password in it."""
    port = free_port()
    with pytest.raises(StoreLostError) as caught:
        async with open_store(f"redis://user:{QUOTED}@127.0.0.1:{port}/0", first_connect_s=0.3):
            pass
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "refused" in str(caught.value)
    assert PASSWORD not in str(caught.value)
    assert QUOTED not in str(caught.value)


@bounded
async def test_a_server_that_says_nothing_is_given_up() -> None:
    """A peer that accepts and stays silent holds the start for ever."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    with pytest.raises(StoreLostError, match=r"no answer within 0\.3 s"):
        async with open_store(f"redis://127.0.0.1:{port}", first_connect_s=0.3):
            pass
    await listeners[0].aclose()


@bounded
async def test_a_password_an_acl_user_and_a_database_are_used() -> None:
    """A Redis with accounts cannot be used."""
    with redis_server("--requirepass", PASSWORD) as server:
        path = server.socket_path
        async with open_store(f"unix://:{QUOTED}@{path}?db=3") as admin:
            await admin.execute("ACL", "SETUSER", "bob", "on", ">s%cret", "+@all", "~*", "&*")
            async with open_store(f"unix://bob:s%25cret@{path}") as store:
                assert await store.execute("ACL", "WHOAMI") == b"bob"
                assert b"name=auxot" in bytes(await store.execute("CLIENT", "INFO"))
            assert b" db=3 " in bytes(await admin.execute("CLIENT", "INFO"))


@bounded
@pytest.mark.parametrize("credentials", ["", ":wrong-pass@", "nobody:wrong-pass@"])
async def test_a_wrong_password_is_refused_at_once_in_one_clear_line(credentials: str) -> None:
    """A wrong password is tried again and again, or stands in the error."""
    with redis_server("--requirepass", PASSWORD) as server:
        with pytest.raises(ConfigError, match="refuses the user name or the password") as caught, trio.fail_after(2):
            async with open_store(f"unix://{credentials}{server.socket_path}"):
                pass
        assert "wrong-pass" not in str(caught.value)
        assert "\n" not in str(caught.value)


@bounded
async def test_a_database_that_is_not_there_is_refused(shared_server: RedisServer) -> None:
    """A router starts on the wrong database."""
    with pytest.raises(ConfigError, match="database 99"):
        async with open_store(f"{shared_server.url}?db=99"):
            pass


@bounded
async def test_sentinels_cluster_nodes_and_replicas_are_refused() -> None:
    """A router starts on a server on which its queue cannot work."""
    with redis_server("--cluster-enabled", "yes") as server, pytest.raises(ConfigError, match="is a cluster node"):
        async with open_store(server.url):
            pass
    replica = redis_server("--replicaof", "127.0.0.1 1")
    with replica as server, pytest.raises(StoreLostError, match="read-only replica"):
        async with open_store(server.url, first_connect_s=0.2):
            pass


@bounded
async def test_a_peer_that_is_not_redis_is_refused() -> None:
    """A web server at the address of Redis crashes the router."""

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, answer, 0)
        port = listeners[0].socket.getsockname()[1]
        with pytest.raises(StoreLostError):
            async with open_store(f"redis://localhost:{port}", first_connect_s=0.3):
                pass
        nursery.cancel_scope.cancel()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*argv, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


@bounded
async def test_tls_is_used_and_verified(certificate: tuple[Path, Path]) -> None:
    """A rediss:// URL does not work, or works with a server that anybody may be."""
    cert, key = certificate
    port = free_port()
    options = ("--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file", str(key))
    with redis_server(*options, "--tls-auth-clients", "no", "--bind", "127.0.0.1") as server:
        del server
        async with open_store(f"rediss://localhost:{port}/0?ssl_ca_certs={cert}") as store:
            value = os.urandom(3_000_000)
            await store.execute("SET", "key", value)
            assert await store.execute("GET", "key") == value
        with pytest.raises(ConfigError, match="is not trusted: self-signed certificate"), trio.fail_after(2):
            async with open_store(f"rediss://localhost:{port}"):
                pass
        with pytest.raises(ConfigError, match=r"is not trusted: .*match"), trio.fail_after(2):
            async with open_store(f"rediss://127.0.0.1:{port}?ssl_ca_certs={cert}"):
                pass
        async with open_store(f"rediss://127.0.0.1:{port}?ssl_cert_reqs=none") as store:
            await store.execute("PING")
        with pytest.raises(ConfigError, match="certificate or key file"):
            async with open_store(f"rediss://localhost:{port}?ssl_ca_certs=/nowhere.pem"):
                pass


@bounded
async def test_an_error_in_the_block_closes_the_connection(shared_server: RedisServer) -> None:
    """A router that fails keeps its connection, or hides its error."""
    with pytest.RaisesGroup(pytest.RaisesExc(StoreError, match="wrong number of arguments")):
        async with open_store(shared_server.url) as store:
            await store.execute("HGET", "key")
    with pytest.raises(StoreLostError):
        await store.execute("PING")


@bounded
async def test_a_bell_hears_nothing_while_away_but_rings_when_back(server: RedisServer) -> None:
    """What is published during a reconnect is never looked for."""
    async with open_store(server.url) as store, open_store(server.url) as other:
        bell = Bell()
        await store.subscribe("channel", bell)
        await bell.wait()
        await _kill_connections(other)
        await other.execute("PUBLISH", "channel", "lost")
        await bell.wait()
        assert store.connected_at is not None
