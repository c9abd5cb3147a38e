"""The daemons as real processes, for tests that kill, signal and watch them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import orjson

from auxot.core.keys import CHEAP, Role, generate_key, hash_key
from tests import log_scan

GPU_KEY = generate_key(Role.WORKER)
API_KEY = generate_key(Role.API)
ADMIN_HASH = hash_key(GPU_KEY, CHEAP)
API_HASH = hash_key(API_KEY, CHEAP)

# For looking on: one client for all tests, because making one takes longer than what is measured with it.
PROBE = httpx.Client(trust_env=False, verify=False, limits=httpx.Limits(max_keepalive_connections=0))

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
MODEL = "tiny-bigram"


@attrs.define(eq=False)
class Daemon:
    """One daemon as a child process; its log is kept."""

    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def log(self) -> list[dict[str, Any]]:
        """Return what it has logged so far."""
        lines = self.log_path.read_bytes().splitlines()
        return [orjson.loads(line) for line in lines if line.startswith(b"{")]

    def wait_for(self, event: str, *, after: int = 0) -> dict[str, Any]:
        """Return the first line of that event after the first `after` ones of it."""
        return wait_until(lambda: self._find(event, after), what=f"{event} in {self.log_path.name}", daemon=self)

    def _find(self, event: str, after: int) -> dict[str, Any] | None:
        found = [line for line in self.log() if line["event"] == event]
        return found[after] if len(found) > after else None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait for its end; return the exit code."""
        return self.process.wait(timeout_s)


@attrs.define(eq=False)
class House:
    """A router process, and what is needed to talk to it."""

    router: Daemon
    port: int
    folder: Path

    @property
    def url(self) -> str:
        """The router's address for API clients."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def worker_url(self) -> str:
        """The router's address for workers."""
        return f"ws://127.0.0.1:{self.port}/ws"

    def health(self) -> dict[str, Any]:
        """Return what /health says."""
        body: dict[str, Any] = PROBE.get(f"{self.url}/health").json()
        return body

    def client(self, **settings: Any) -> httpx.Client:
        """Return an HTTP client that shows the API key."""
        return httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {API_KEY}"},
            timeout=60,
            trust_env=False,
            event_hooks={"response": [_scan_error]},
            **settings,
        )

    def wait_health(self, **expected: int) -> dict[str, Any]:
        """Wait until /health shows these figures."""

        def matches() -> dict[str, Any] | None:
            health = self.health()
            return health if all(health[name] == value for name, value in expected.items()) else None

        return wait_until(matches, what=f"/health {expected}", daemon=self.router)


def _scan_error(response: httpx.Response) -> None:
    if response.is_error:
        log_scan.collect(f"the answer to {response.request.url.path}", response.read())


def wait_until(condition: Callable[[], Any], *, what: str, daemon: Daemon | None = None) -> Any:
    """Return the first true outcome of a condition; fails with the end of the daemon's log."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        outcome = condition()
        if outcome:
            return outcome
        if daemon is not None and daemon.process.poll() is not None:
            break
        time.sleep(0.01)
    log = daemon.log_path.read_text()[-4000:] if daemon else ""
    raise AssertionError(f"never came: {what}\n{log}")


@contextmanager
def running_daemon(folder: Path, name: str, program: str, **variables: str) -> Iterator[Daemon]:
    """Run an installed program for the length of the block, in an environment of its own; killed if it must be."""
    with started_daemon(folder, name, [str(Path(sys.executable).with_name(program))], variables) as daemon:
        yield daemon


@contextmanager
def started_daemon(
    folder: Path, name: str, argv: Sequence[str], variables: Mapping[str, str], **start: Any
) -> Iterator[Daemon]:
    """Run a program as `running_daemon` does; `start`: more arguments for Popen."""
    log_path = folder / f"{name}.log"
    passed_on = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
    environ = {**passed_on, "HOME": str(folder), **variables}
    with log_path.open("wb") as log:
        process = subprocess.Popen(argv, env=environ, cwd=folder, stdout=log, stderr=log, **start)
    daemon = Daemon(process, log_path)
    try:
        yield daemon
    finally:
        stop(process)
        log_scan.collect(f"the log of {name}", log_path.read_bytes())


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process in order, or at once when it does not."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def running_router(folder: Path, **variables: str) -> Iterator[House]:
    """Run `auxot-router` on a free port."""
    with running_daemon(folder, "router", "auxot-router", **router_variables(**variables)) as daemon:
        address = daemon.wait_for("router.ready")["addresses"][0]
        yield House(daemon, int(address.rpartition(":")[2]), folder)


def router_variables(**variables: str) -> dict[str, str]:
    """Return the environment of a router, on a free port unless AUXOT_PORT is given."""
    return {
        "AUXOT_HOST": "127.0.0.1",
        "AUXOT_PORT": "0",
        "AUXOT_ADMIN_KEY_HASH": ADMIN_HASH,
        "AUXOT_API_KEY_HASH": API_HASH,
        "AUXOT_MODEL": MODEL,
        "AUXOT_CTX_SIZE": "16384",
        "AUXOT_MAX_PARALLEL": "4",
        "AUXOT_SHUTDOWN_GRACE": "5s",
        **variables,
    }


@contextmanager
def running_worker(house: House, *, name: str = "worker", url: str | None = None, **variables: str) -> Iterator[Daemon]:
    """Run `auxot-worker`; it may not be ready yet."""
    settings = worker_variables(url or f"ws://127.0.0.1:{house.port}", **variables)
    with running_daemon(house.folder, name, "auxot-worker", **settings) as daemon:
        yield daemon


def worker_variables(url: str, **variables: str) -> dict[str, str]:
    """Return the environment of a worker of the router at `url`."""
    return {
        "AUXOT_ROUTER_URL": url,
        "AUXOT_GPU_KEY": GPU_KEY,
        "AUXOT_RECONNECT_DELAY": "100ms",
        "AUXOT_THREADS": "1",  # several llama-servers on two cores: their threads would spin against each other
        **variables,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def external_llama(binary: Path, model: Path, *arguments: str, port: str = "") -> Iterator[str]:
    """Run a llama-server that a test can look into, on a free port by default; yields its address."""
    port = port or str(_free_port())
    settings = ["--jinja", "-np", "4", "-c", "655360", "--batch-size", "512", "--threads", "1"]
    argv = [str(binary), "-m", str(model), *settings, "--host", "127.0.0.1", "--port", port, *arguments]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _is_up(url), what="llama-server")
        yield url
    finally:
        process.kill()
        process.wait()


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).is_success
    except httpx.TransportError:
        return False


@contextmanager
def open_request(house: House, path: str, asked: dict[str, Any]) -> Iterator[socket.socket]:
    """Send a request; leaving the block closes the connection."""
    content = orjson.dumps(asked)
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {API_KEY}\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", house.port)) as connection:
        connection.sendall(head.encode() + content)
        yield connection


def n_busy_slots(llama_url: str) -> int:
    """Return how many slots of a llama-server are at work."""
    slots = PROBE.get(f"{llama_url}/slots").json()
    return sum(slot["is_processing"] for slot in slots)


def children_of(pid: int) -> list[int]:
    """Return the process ids of a process's children, whichever of its threads started them (Linux)."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return sorted(int(child) for children in lists for child in children.read_text().split())


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
