"""Run the steps of a target of the Containerfile without a builder, then start what comes out of it.

python scripts/check_containerfile.py [router]
python scripts/check_containerfile.py worker|worker-cuda [LLAMA_SERVER]

Each stage is an overlay over the stage that it builds on; an image from elsewhere is stood for by this machine's own
system. Steps run in a chroot, in namespaces that end with this program: the machine stays as it is. At last the entry
point is started as the image's user; a router's health check must pass, a worker must serve a tiny model to a router of
this checkout; and TERM must end them with 0. LLAMA_SERVER stands for what `auxot-worker llama build` makes, which takes
long, and for CUDA a compiler that this machine does not have; that step is then the only one that is not run.

Needs root, Linux with overlayfs, Debian's python3-venv, and the network that pip and apt-get need.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import attrs

from auxot.core.keys import CHEAP, Role, generate_key, hash_key
from auxot.demo.tiny_model import write_tiny_model
from auxot.worker.llama.binary import platform_cache_dir

ROOT = Path(__file__).parent.parent
SCRATCH = Path("/mnt")  # a tmpfs of our own mount namespace
INSIDE = "AUXOT_CHECK_INSIDE"
STEP_TIMEOUT_S, HEALTH_TIMEOUT_S, SERVE_TIMEOUT_S, STOP_TIMEOUT_S = 3600, 60, 120, 40
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
BUILDS_LLAMA = "/opt/auxot/bin/auxot-worker llama build "
_VARIABLE = re.compile(r"\$\{(\w+)\}")


@attrs.define(kw_only=True)
class Stage:
    """One `FROM` and what follows it."""

    base: str
    name: str
    steps: list[tuple[str, str]] = attrs.field(factory=list)


@attrs.define(kw_only=True)
class Image:
    """A stage that has been built: its root, the layers below it, and what its instructions have set."""

    root: Path
    layers: list[Path]
    environ: dict[str, str] = attrs.field(factory=dict)
    folder: str = "/"
    user: str = "0"
    entry_point: list[str] = attrs.field(factory=list)
    health: list[str] = attrs.field(factory=list)


def parse(text: str) -> dict[str, Stage]:
    """Return the stages of a Containerfile by name, in order; ARGs before the first one are put in."""
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for word, rest in _instructions(text):
        if word == "ARG":
            name, _, default = rest.partition("=")
            arguments[name] = default
        elif word == "FROM":
            base, _, name = _VARIABLE.sub(lambda match: arguments[match[1]], rest).partition(" AS ")
            stage = stages[name] = Stage(base=base, name=name)
        elif stage is None:
            raise SystemExit(f"{word} before the first FROM")
        else:
            stage.steps.append((word, rest))
    return stages


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            yield word, rest.strip()


def build(name: str, stages: Mapping[str, Stage], built: dict[str, Image], llama_server: Path | None = None) -> Image:
    """Build a stage, and those that it needs first; `llama_server` stands for the one that a step would build."""
    stage = stages[name]
    if stage.base in stages and stage.base not in built:
        build(stage.base, stages, built, llama_server)
    image = _overlay(stage, built.get(stage.base))
    for word, rest in stage.steps:
        if word == "COPY" and rest.startswith("--from=") and (source := rest.split()[0][7:]) not in built:
            build(source, stages, built, llama_server)
        print(f"[{name}] {word} {rest[:110]}", flush=True)
        if llama_server is not None and rest.startswith(BUILDS_LLAMA):
            _stand_in(image, rest, llama_server)
        else:
            _step(image, word, rest, built)
    built[name] = image
    return image


def _overlay(stage: Stage, base: Image | None) -> Image:
    place = SCRATCH / stage.name
    upper, work, root = (place / part for part in ("upper", "work", "root"))
    for folder in (upper, work, root):
        folder.mkdir(parents=True)
    below = base.layers if base is not None else [Path("/")]
    options = f"lowerdir={':'.join(map(str, below))},upperdir={upper},workdir={work}"
    _run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)])
    for source in ("proc", "dev"):
        _run(["mount", "--rbind", f"/{source}", str(root / source)])
    image = Image(root=root, layers=[upper, *below])
    if base is not None:
        image.environ, image.folder, image.user = dict(base.environ), base.folder, base.user
    return image


def _step(image: Image, word: str, rest: str, built: Mapping[str, Image]) -> None:
    if word == "RUN":
        _run(_inside(image, ["/bin/sh", "-ec", rest]), env=_environ(image))
    elif word == "COPY":
        _copy(image, rest.split(), built)
    elif word == "WORKDIR":
        image.folder = rest
        (image.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
    elif word == "ENV":
        for pair in shlex.split(rest):
            name, _, value = pair.partition("=")
            image.environ[name] = value
    elif word == "USER":
        image.user = rest
    elif word == "ENTRYPOINT":
        image.entry_point = json.loads(rest)
    elif word == "HEALTHCHECK":
        image.health = [] if rest == "NONE" else json.loads(rest.partition("CMD ")[2])
    elif word not in ("EXPOSE", "VOLUME"):
        raise SystemExit(f"unknown instruction {word}")


def _stand_in(image: Image, step: str, llama_server: Path) -> None:
    """Put a llama-server where a step would put the one that it builds; its flags are read by the image's program."""
    _run(_inside(image, ["/bin/sh", "-ec", f"{step} --help"]), env=_environ(image))
    words = shlex.split(step)
    cache = words[words.index("--llama-cache-dir") + 1]
    place = platform_cache_dir(image.root / cache.lstrip("/")) / "stand-in"
    place.mkdir(parents=True)
    _run(["cp", str(llama_server), str(place / "llama-server")])


def _copy(image: Image, words: list[str], built: Mapping[str, Image]) -> None:
    origin = ROOT
    if words[0].startswith("--from="):
        origin = built[words.pop(0)[7:]].root
    *sources, target = words
    into = image.root / (target if target.startswith("/") else f"{image.folder}/{target}").lstrip("/")
    if len(sources) > 1 or target.endswith("/"):
        into.mkdir(parents=True, exist_ok=True)
    for source in sources:
        path = origin / source.lstrip("/")
        if path.is_dir():
            into.mkdir(parents=True, exist_ok=True)
            _run(["cp", "--archive", f"{path}/.", str(into)])
        else:
            _run(["cp", "--archive", str(path), str(into)])


def _inside(image: Image, argv: list[str]) -> list[str]:
    """Return a command line that runs in the image, as its user and in its folder."""
    start = ["/bin/sh", "-ec", f'cd {shlex.quote(image.folder)}; exec "$@"', "sh", *argv]
    return ["/usr/sbin/chroot", f"--userspec={image.user}:{image.user}", str(image.root), *start]


def _environ(image: Image) -> dict[str, str]:
    passed_on = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name == "HOME"}
    return {**passed_on, "PATH": SYSTEM_PATH, **image.environ}


def _run(argv: list[str], env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=STEP_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(argv)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")


def check_router(image: Image) -> None:
    """Start the router of an image, wait until it is healthy, and stop it."""
    left = [
        path for name in ("worker", "demo") for path in image.root.glob(f"opt/auxot/lib/*/site-packages/auxot/{name}")
    ]
    if left or image.user in ("0", "root"):
        raise SystemExit(f"the router's image holds {left}, and runs as {image.user}")
    hashes = {name: hash_key(generate_key(Role.API), CHEAP) for name in ("AUXOT_ADMIN_KEY_HASH", "AUXOT_API_KEY_HASH")}
    where = {"AUXOT_HOST": "127.0.0.1", "AUXOT_PORT": str(_free_port()), "HOME": image.folder}
    environ = {**_environ(image), **hashes, **where}
    router = subprocess.Popen(_inside(image, image.entry_point), env=environ)
    with _stopped(router):
        _wait_healthy(image, environ, router)
        n_bytes = sum(path.lstat().st_size for path in (image.root / "opt/auxot").rglob("*"))
        print(f"healthy, as user {image.user}; {n_bytes >> 20} MiB on its base", flush=True)


def check_worker(image: Image) -> None:
    """Start the worker of an image, wait until it serves a tiny model, and stop it."""
    if image.user in ("0", "root"):
        raise SystemExit(f"the worker's image runs as {image.user}")
    model = Path("/opt/tiny.gguf")
    write_tiny_model(image.root / model.relative_to("/"))
    (image.root / model.relative_to("/")).chmod(0o644)
    port, key = _free_port(), generate_key(Role.WORKER)
    with _router(port, key):
        given = {"AUXOT_ROUTER_URL": f"ws://127.0.0.1:{port}", "AUXOT_GPU_KEY": key, "AUXOT_MODEL_FILE": str(model)}
        environ = {**_environ(image), **given, "HOME": image.folder, "AUXOT_LLAMA_RELEASE": "none"}
        environ["PATH"] = image.environ["PATH"]  # not this machine's llama-server
        worker = subprocess.Popen(_inside(image, image.entry_point), env=environ)
        with _stopped(worker):
            _wait_serving(port, worker)
            print(f"serving, as user {image.user}", flush=True)


@contextmanager
def _router(port: int, key: str) -> Iterator[None]:
    """Run a router of this checkout, for workers with that key."""
    hashes = {
        "AUXOT_ADMIN_KEY_HASH": hash_key(key, CHEAP),
        "AUXOT_API_KEY_HASH": hash_key(generate_key(Role.API), CHEAP),
    }
    where = {"AUXOT_HOST": "127.0.0.1", "AUXOT_PORT": str(port), "AUXOT_CTX_SIZE": "4096", "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", "from auxot.cli import auxot_router; auxot_router()"]
    router = subprocess.Popen(argv, env={"PATH": SYSTEM_PATH, **hashes, **where}, cwd=SCRATCH)
    try:
        yield
    finally:
        router.kill()
        router.wait()


@contextmanager
def _stopped(daemon: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a daemon after the block; it must then end with 0."""
    try:
        yield
        daemon.send_signal(signal.SIGTERM)
        if daemon.wait(STOP_TIMEOUT_S) != 0:
            raise SystemExit(f"it ended with {daemon.returncode}")
    finally:
        daemon.kill()
        daemon.wait()


def _wait_serving(port: int, worker: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SERVE_TIMEOUT_S
    while time.monotonic() < deadline and worker.poll() is None:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            if json.load(answer)["workers"] == 1:
                return
        time.sleep(0.2)
    raise SystemExit(f"it did not come to serve (exit code {worker.poll()})")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_healthy(image: Image, environ: Mapping[str, str], router: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + HEALTH_TIMEOUT_S
    while time.monotonic() < deadline and router.poll() is None:
        check = subprocess.run(_inside(image, image.health), env=environ, capture_output=True, check=False)
        if check.returncode == 0:
            return
        time.sleep(0.2)
    raise SystemExit(f"it did not become healthy (exit code {router.poll()})")


def _enter() -> int:
    """Run this program again in namespaces of its own, with an empty SCRATCH."""
    again = shlex.join([sys.executable, *sys.argv])
    script = f"mount -t tmpfs tmpfs {SCRATCH} && exec {again}"
    argv = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script]
    return subprocess.run(argv, env={**os.environ, INSIDE: "1"}, check=False).returncode


def main() -> int:
    """Run the command line; return the exit code."""
    target = sys.argv[1] if len(sys.argv) > 1 else "router"
    if INSIDE not in os.environ:
        return _enter()
    stages = parse((ROOT / "Containerfile").read_text())
    image = build(target, stages, {}, Path(sys.argv[2]) if len(sys.argv) > 2 else None)
    check = check_router if target == "router" else check_worker
    check(image)
    return 0


if __name__ == "__main__":
    sys.exit(main())
