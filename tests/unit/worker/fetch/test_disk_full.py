"""A disk that gets full while a model comes: a small one of its own, in a namespace that ends with the test."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from auxot.core.errors import FetchError
from auxot.worker.fetch.hub import Hub
from auxot.worker.fetch.models import fetch_model
from auxot.worker.fetch.source import FetchProgress
from tests.unit.worker.fetch.site import Misbehaviour, running_site
from tests.unit.worker.fetch.test_transfer import NAME, PATIENCE, choice, left_in

ROOT = Path(__file__).parents[4]
CONTENT = random.Random(2).randbytes(3_000_000)
DISK = "72m"  # the model, and what must be free before a download begins
PROGRAM = "import sys; from tests.unit.worker.fetch.test_disk_full import *; main(sys.argv[1], Path(sys.argv[2]))"


def main(url: str, disk: Path) -> None:
    """Download a model twice; the first time another program takes the rest of the disk meanwhile."""
    error = download(url, disk, report=partial(fill, disk))
    left = sorted(left_in(disk) - {"filler"})
    (disk / "filler").unlink()
    second = download(url, disk, report=lambda _: None)
    is_right = (disk / "owner_repo" / NAME).read_bytes() == CONTENT
    there = sorted(left_in(disk))
    sys.stdout.write(json.dumps({"error": error, "left": left, "second": second, "is_right": is_right, "there": there}))


def download(url: str, disk: Path, *, report) -> str:
    patience = attrs.evolve(PATIENCE, segment_bytes=1_500_000)  # each is long enough for a journal
    fetch = partial(fetch_model, choice(), models_dir=disk, hub=Hub(endpoint=url), report=report, patience=patience)
    try:
        trio.run(fetch)
    except FetchError as exc:
        return str(exc)
    return "whole"


def fill(disk: Path, step: FetchProgress | str) -> None:
    """Take all that is free, once there is something to resume."""
    if isinstance(step, str) or (disk / "filler").exists() or not (disk / f"owner_repo/{NAME}.part.json").exists():
        return
    with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(65_536))


@pytest.fixture
def with_a_small_disk(tmp_path: Path) -> list[str]:
    """Return what a command has to begin with, to have such a disk at `tmp_path`."""
    mount = f'mount -t tmpfs -o size={DISK} tmpfs {shlex.quote(str(tmp_path))} && exec "$@"'
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may make no namespaces")
    return inside


async def test_a_disk_that_gets_full_is_told_and_what_has_come_is_kept(
    tmp_path: Path, with_a_small_disk: list[str]
) -> None:
    """A user reads an error number, or downloads everything again after making room."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    async with running_site(files={NAME: CONTENT}, bad=Misbehaviour(trickle=4096)) as site:
        argv = [*with_a_small_disk, sys.executable, "-c", PROGRAM, site.url, str(tmp_path)]
        with trio.fail_after(60):
            done = await trio.run_process(argv, capture_stdout=True, cwd=ROOT, env=environ)
        n_sent = site.n_sent
    told = json.loads(done.stdout)
    assert f"the disk of {tmp_path}/owner_repo is full, " in told["error"]
    assert f"MB of {NAME} are still to come, the rest is kept for the next try: make room (" in told["error"]
    assert told["left"] == [f"{NAME}.part", f"{NAME}.part.json"]
    assert (told["second"], told["is_right"], told["there"]) == ("whole", True, [NAME])
    assert n_sent < 2 * len(CONTENT) - 200_000  # the second time only the rest came
