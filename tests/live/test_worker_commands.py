"""The worker's commands about models and programs, as programs, against sites on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

from auxot.core.sites import LLAMA_RELEASE
from auxot.demo.tiny_model import ANSWER
from tests.live.processes import GPU_KEY, Daemon, running_router, stop
from tests.live.test_from_nothing import FILE, MODEL, ROUTER, ask, bare, packed, site_in_a_thread
from tests.unit.worker.fetch.site import Site


def run(folder: Path, environ: Mapping[str, str], program: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run an installed program in an environment of its own."""
    python_path = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
    return subprocess.run(
        [Path(sys.executable).with_name(program), *argv],
        cwd=folder,
        env={"HOME": str(folder), **python_path, **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_pull_and_install_and_prune(tmp_path: Path, llama_server_binary: Path, tiny_model: Path) -> None:
    """A host cannot be prepared before its worker starts, or its disk cannot be cleaned."""
    archive, content = packed(llama_server_binary)
    files = {archive: content, FILE: tiny_model.read_bytes()}
    with site_in_a_thread(files=files, releases={LLAMA_RELEASE: [archive]}) as site:
        environ = bare(site, tmp_path)
        pulled = run(tmp_path, environ, "auxot-worker", "pull", MODEL.lower())
        path = Path(pulled.stdout.strip())
        assert path == tmp_path / ".auxot/models" / f"unsloth_{MODEL}-GGUF" / FILE
        assert path.read_bytes() == files[FILE]
        assert "downloading Qwen3-0.6B-Q4_K_S.gguf" in pulled.stderr
        installed = run(tmp_path, environ, "auxot-worker", "llama", "install")
        binary = Path(installed.stdout.strip())
        assert binary.read_bytes() == llama_server_binary.read_bytes(), installed.stderr
        listed = run(tmp_path, environ, "auxot-worker", "llama", "list")
        assert listed.stdout == f"* {binary}\n"
        assert run(tmp_path, environ, "auxot-worker", "llama", "find").stdout == f"{binary}\n"
        part = path.with_name("other.gguf.part")
        part.write_bytes(b"x" * 5000)
        shown = run(tmp_path, environ, "auxot-worker", "cache", "list").stdout
        assert all(str(one) in shown for one in (path, binary.parent, part))
        run(tmp_path, environ, "auxot-worker", "cache", "prune", "--dry-run")
        assert part.exists()
        run(tmp_path, environ, "auxot-worker", "cache", "prune")
        assert not part.exists()
        assert path.exists()
        assert binary.exists()


def test_commands_fail_in_one_line(tmp_path: Path) -> None:
    """A user reads a traceback, or a script goes on after a failure."""
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "PATH": str(tmp_path)}
    for argv, code, word in (
        (["pull"], 2, "expected `auxot-worker pull MODEL`"),
        (["pull", "Qwen3-Codr-30B-A3B"], 2, "is Qwen3-Coder-30B-A3B or"),
        (["pull", "hf:o/r:../x.gguf"], 2, "is not a reference"),
        (["llama"], 2, "expected `auxot-worker llama install`"),
        (["llama", "install", "--llama-release", "../x"], 2, "the name of a release"),
    ):
        done = run(tmp_path, offline, "auxot-worker", *argv)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert done.stderr.count("\n") == 1
        assert word in done.stderr


def test_a_bundle_serves_without_a_network(tmp_path: Path, llama_server_binary: Path, tiny_model: Path) -> None:
    """A host without a network cannot be a worker, or the bundle needs something that is not in it."""
    archive, content = packed(llama_server_binary)
    files = {archive: content, FILE: tiny_model.read_bytes()}
    with site_in_a_thread(files=files, releases={LLAMA_RELEASE: [archive]}) as site:
        done = run(tmp_path, bare(site, tmp_path), "auxot", "bundle", MODEL)
    assert done.returncode == 0, done.stderr
    bundle = Path(done.stdout.strip())
    away = tmp_path / "away"
    with tarfile.open(bundle) as tar:
        tar.extractall(away, filter="data")
    bundle.unlink()
    (tmp_path / ".auxot").rename(tmp_path / "gone")
    with running_router(tmp_path, **ROUTER) as house:
        log = tmp_path / "bundled.log"
        environ = {
            **bare(Site(url="http://127.0.0.1:9"), tmp_path),
            "PATH": "/usr/bin:/bin",
            "PYTHON": sys.executable,
            "HOME": str(tmp_path / "nobody"),
            "AUXOT_GPU_KEY": GPU_KEY,
            "AUXOT_THREADS": "1",
        }
        argv = [str(away / "auxot/auxot-worker"), "--router-url", f"ws://127.0.0.1:{house.port}"]
        with log.open("wb") as stderr:
            process = subprocess.Popen(argv, env=environ, cwd=away, stdout=stderr, stderr=stderr)
        try:
            house.wait_health(workers=1)
            assert ask(house) == ANSWER
            imported = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            assert f"PYTHONPATH={away / 'auxot/python'}".encode() in imported
            starting = Daemon(process, log).wait_for("llama.starting")
            assert all(str(away) in argument for argument in (starting["argv"][0], starting["argv"][2]))
        finally:
            stop(process)
