"""A worker on a bare machine: it has a key and a URL, and everything else comes from sites on loopback."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from auxot.core.sites import LLAMA_RELEASE
from auxot.demo.tiny_model import ANSWER
from auxot.worker.fetch.releases import variants_for
from auxot.worker.machine import backend, look_at_host
from tests.live.processes import (
    Daemon,
    House,
    children_of,
    running_router,
    running_worker,
    started_daemon,
    wait_until,
    worker_variables,
)
from tests.unit.worker.fetch.site import Site, running_site

MODEL = "Qwen3-0.6B"
FILE = "Qwen3-0.6B-Q4_K_S.gguf"
ROUTER = {"AUXOT_MODEL": MODEL, "AUXOT_CTX_SIZE": "4096", "AUXOT_MAX_PARALLEL": "2"}


@contextmanager
def site_in_a_thread(**fields: object) -> Iterator[Site]:
    """Run a download site beside the test, which waits for processes."""
    ready, end = threading.Event(), trio.Event()
    running: list[Site] = []
    tokens: list[trio.lowlevel.TrioToken] = []

    async def main() -> None:
        async with running_site(**fields) as site:
            running.append(site)
            tokens.append(trio.lowlevel.current_trio_token())
            ready.set()
            await end.wait()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    assert ready.wait(10)
    try:
        yield running[0]
    finally:
        trio.from_thread.run_sync(end.set, trio_token=tokens[0])
        thread.join(10)


def packed(llama_server: Path) -> tuple[str, bytes]:
    """Return name and content of a release that holds the real llama-server."""
    uname = os.uname()
    kind = backend(trio.run(look_at_host))
    variant = variants_for(system=uname.sysname, machine=uname.machine, gpu=kind.value)[-1]
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=1) as tar:
        tar.add(llama_server, f"llama-{LLAMA_RELEASE}/llama-server")
    return f"llama-{LLAMA_RELEASE}-bin-{variant}.tar.gz", content.getvalue()


def bare(site: Site, tmp_path: Path) -> dict[str, str]:
    """Return the environment of a machine that has nothing, and for which the sites are on loopback."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    return {
        "PATH": str(tmp_path / "bin"),
        "HF_ENDPOINT": site.url,
        "AUXOT_LLAMA_RELEASES_URL": f"{site.url}/releases",
        "AUXOT_MEMORY": "8GB",  # not what this machine happens to have
    }


def ask(house: House) -> str:
    body = {
        "model": "any",
        "messages": [{"role": "user", "content": "hello"}],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    with house.client() as client:
        text: str = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    return text


def events(daemon: Daemon, name: str) -> list[dict]:
    return [line for line in daemon.log() if line["event"] == name]


def test_from_nothing_to_serving_with_a_kill_in_between(
    tmp_path: Path, llama_server_binary: Path, tiny_model: Path
) -> None:
    """A worker with a key and a URL does not serve, or a killed one downloads everything again."""
    archive, content = packed(llama_server_binary)
    model = tiny_model.read_bytes()
    files = {archive: content, FILE: model}
    with (
        site_in_a_thread(files=files, releases={LLAMA_RELEASE: [archive]}) as site,
        running_router(tmp_path, **ROUTER) as house,
    ):
        with running_worker(house, **bare(site, tmp_path)) as first:
            site.on_bytes = lambda n: _kill_within(site, first, n, len(content), len(model))
            assert first.wait(60) == -signal.SIGKILL
        assert not list(tmp_path.rglob(FILE))
        site.on_bytes, site.bad.trickle, n_before = None, 0, site.n_sent
        with running_worker(house, name="second", **bare(site, tmp_path)) as second:
            house.wait_health(workers=1)
            assert ask(house) == ANSWER
            assert events(second, "fetch.resumed")
            assert not events(second, "llama.installed")  # that was done before
        assert site.n_sent - n_before < len(model)
        with running_worker(house, name="third", **{**bare(site, tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}):
            house.wait_health(workers=1)  # all is here: no network is needed
            assert ask(house) == ANSWER


def _kill_within(site: Site, worker: Daemon, n_sent: int, n_archive: int, n_model: int) -> None:
    """Kill the worker when half of the model has come, which comes slowly."""
    if n_sent >= n_archive:
        site.bad.trickle = max(64, n_model // 600)
    if n_sent > n_archive + n_model // 2:
        worker.send(signal.SIGKILL)


def test_a_model_that_does_not_fit_is_refused_before_anything_comes(tmp_path: Path) -> None:
    """A worker downloads for an hour what it cannot load."""
    with site_in_a_thread() as site, running_router(tmp_path, **{**ROUTER, "AUXOT_MODEL": "Qwen3-32B"}) as house:
        with running_worker(house, **{**bare(site, tmp_path), "AUXOT_MEMORY": "10GB"}) as worker:
            assert worker.wait(60) == 2
            text = worker.log_path.read_text()
        assert "Qwen3-32B (Q4_K_S) does not fit: it takes " in text
        assert "there are 10.0 GB; " in text
        assert " would fit" in text
        assert site.requests == []


def test_what_fits_of_the_policy_is_served(tmp_path: Path, llama_server_binary: Path, tiny_model: Path) -> None:
    """A worker with less memory than the router hopes for does not serve at all."""
    files = {FILE: tiny_model.read_bytes()}
    router = {"AUXOT_MODEL": MODEL, "AUXOT_CTX_SIZE": "32768", "AUXOT_MAX_PARALLEL": "4"}
    variables = {"AUXOT_LLAMA_BINARY": str(llama_server_binary), "AUXOT_MEMORY": "6GB"}
    with site_in_a_thread(files=files) as site, running_router(tmp_path, **router) as house:
        with running_worker(house, **{**bare(site, tmp_path), **variables}) as worker:
            health = house.wait_health(workers=1)
            told = worker.wait_for("model.dialled_down")
        assert (told["ctx_tokens"], told["slots"], told["wanted_slots"]) == (32_768, 1, 4)
        assert health["total_slots"] == 1


def test_a_misspelt_model_is_told_with_the_nearest(tmp_path: Path) -> None:
    """A typing error in AUXOT_MODEL is found by nobody."""
    with site_in_a_thread() as site, running_router(tmp_path, AUXOT_MODEL="Qwen3-Codr-30B-A3B") as house:
        warned = house.router.wait_for("config.warning")
        assert "is Qwen3-Coder-30B-A3B or" in warned["text"]
        with running_worker(house, **bare(site, tmp_path)) as worker:
            assert worker.wait(60) == 2
            wait_until(lambda: "is Qwen3-Coder-30B-A3B or" in worker.log_path.read_text(), what="the nearest names")


# Runs a program on a terminal of its own, and copies what it shows to standard output.
ON_A_TERMINAL = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"


def test_on_a_terminal_the_worker_shows_how_far_it_is(
    tmp_path: Path, llama_server_binary: Path, tiny_model: Path
) -> None:
    """Who starts a worker by hand sees lines of JSON, or nothing, for as long as model and llama-server take."""
    files = {FILE: tiny_model.read_bytes()}
    program = [sys.executable, "-c", ON_A_TERMINAL, str(Path(sys.executable).with_name("auxot-worker"))]
    with site_in_a_thread(files=files) as site, running_router(tmp_path, **ROUTER) as house:
        settings = {**bare(site, tmp_path), "AUXOT_LLAMA_BINARY": str(llama_server_binary)}
        variables = worker_variables(f"ws://127.0.0.1:{house.port}", **settings)
        with started_daemon(tmp_path, "worker", program, variables, stdin=subprocess.DEVNULL) as terminal:
            house.wait_health(workers=1)
            (worker,) = children_of(terminal.pid)
            os.kill(worker, signal.SIGTERM)
            assert terminal.wait(60) == 0
    shown = terminal.log_path.read_bytes()
    assert b"MB/s, downloading Qwen" in shown  # the rest of a line is cut off at 80 columns
    assert b"0 s, loading Qwen3-0.6B" in shown
    assert b"fetch.progress" not in shown
    assert all(line.rpartition(b"\x1b[K")[2].startswith(b"{") for line in shown.split(b"\r\n") if line)
