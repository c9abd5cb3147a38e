from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from auxot.core.errors import FetchError
from auxot.core.models.entries import Model, RemoteFile, Variant
from auxot.core.models.lookup import Choice
from auxot.worker.fetch.hub import Hub
from auxot.worker.fetch.models import LOCK_NAME, fetch_model, folder_of
from auxot.worker.fetch.part_file import part_path
from auxot.worker.fetch.source import FetchProgress, Patience
from tests.unit.worker.fetch.site import COMMIT, Misbehaviour, Site, header, running_site

NAME = "m-Q8_0.gguf"
CONTENT = random.Random(1).randbytes(3_000_000)
PATIENCE = Patience(
    connections=3,
    segment_bytes=400_000,
    connect_s=20.0,  # a busy machine is no broken network
    read_s=20.0,
    stall_bytes=20_000,
    stall_s=20.0,
    max_failures=4,
    first_delay_s=0.01,
    max_delay_s=0.05,
)


@pytest.fixture(autouse=True)
def _limit() -> Generator[None]:
    """A download that hangs would hang the tests."""
    signal.alarm(60)
    yield
    signal.alarm(0)


def choice(*names: str, repo: str = "owner/repo", **known: Any) -> Choice:
    files = tuple(RemoteFile(path=name) for name in names or (NAME,))
    variant = Variant(quantization="Q8_0", files=tuple(attrs.evolve(file, **known) for file in files))
    return Choice(model=Model(name="m", repo=repo, variants=(variant,)), variant=variant)


async def fetch(site: Site, folder: Path, wanted: Choice | None = None, **changes: Any) -> Path:
    hub = Hub(endpoint=site.url, token=str(changes.pop("token", "")) or None)
    reports = changes.pop("reports", [])
    assert isinstance(reports, list)
    patience = attrs.evolve(PATIENCE, **changes)
    paths = await fetch_model(wanted or choice(), models_dir=folder, hub=hub, report=reports.append, patience=patience)
    return paths.model


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.name != LOCK_NAME}


async def test_a_file_comes_whole_over_several_connections(tmp_path: Path) -> None:
    """A model has holes or parts in the wrong order, or everything comes over one connection."""
    reports: list[FetchProgress | str] = []
    async with running_site(files={NAME: CONTENT}) as site:
        path = await fetch(site, tmp_path, reports=reports)
        ranges = {header(one, b"range") for one in site.gets()}
    assert path.read_bytes() == CONTENT
    assert path == tmp_path / "owner_repo" / NAME
    assert len(ranges) == 8
    assert left_in(tmp_path) == {NAME}
    last = [one for one in reports if isinstance(one, FetchProgress)][-1]
    assert (last.doing, last.done_bytes, last.total_bytes) == ("verifying", len(CONTENT), len(CONTENT))


async def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    """A worker without a network does not start although it has its model."""
    async with running_site(files={NAME: CONTENT}) as site:
        await fetch(site, tmp_path)
        n_before = len(site.requests)
        await fetch(site, tmp_path)
        assert len(site.requests) == n_before


async def test_all_parts_and_the_projector_come(tmp_path: Path) -> None:
    """A split model lacks a part, or a model that sees its eyes."""
    names = [f"Q8_0/m-0000{i}-of-00002.gguf" for i in (1, 2)]
    files = {name: CONTENT[:1000] + name.encode() for name in (*names, "mmproj-F16.gguf")}
    wanted = choice(*names)
    wanted = attrs.evolve(wanted, model=attrs.evolve(wanted.model, projector=RemoteFile(path="mmproj-F16.gguf")))
    async with running_site(files=files) as site:
        path = await fetch(site, tmp_path, wanted)
    assert path == folder_of(wanted, tmp_path) / names[0]
    for name, content in files.items():
        assert (folder_of(wanted, tmp_path) / name).read_bytes() == content


@pytest.mark.parametrize("seed", range(8))
async def test_connections_cut_at_random_bytes(tmp_path: Path, seed: int) -> None:
    """A connection that breaks loses or doubles bytes."""
    chance = random.Random(seed)
    cuts = [chance.choice([0, 1, chance.randrange(400_000)]) for _ in range(12)]
    async with running_site(files={NAME: CONTENT}, bad=Misbehaviour(cuts=cuts)) as site:
        path = await fetch(site, tmp_path, max_failures=20)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_a_passing_error_passes(tmp_path: Path, status: int) -> None:
    """A site that is busy for a moment ends a download of hours."""
    async with running_site(files={NAME: CONTENT}, bad=Misbehaviour(statuses=[status] * 3)) as site:
        path = await fetch(site, tmp_path)
    assert path.read_bytes() == CONTENT


async def test_a_wait_that_the_site_asks_for_is_kept(tmp_path: Path) -> None:
    """A site that limits us is asked again at once, and locks us out."""
    bad = Misbehaviour(statuses=[429], retry_after="1")
    async with running_site(files={NAME: CONTENT[:1000]}, bad=bad) as site:
        started_at = trio.current_time()
        await fetch(site, tmp_path)
        assert trio.current_time() - started_at >= 1.0


async def test_a_site_that_stays_down_is_an_error_that_keeps_what_has_come(tmp_path: Path) -> None:
    """A download is tried for ever, or what has come is thrown away."""
    async with running_site(files={NAME: CONTENT}, bad=Misbehaviour(statuses=[503] * 500)) as site:
        with pytest.raises(FetchError, match=r"m-Q8_0\.gguf: .*status 503 \(4 tries in a row\); what has come is kept"):
            await fetch(site, tmp_path)
    assert left_in(tmp_path) == {f"{NAME}.part", f"{NAME}.part.json"}


async def test_a_trickle_is_given_up_and_resumed(tmp_path: Path) -> None:
    """A connection that hangs holds up a download for ever."""
    async with running_site(files={NAME: CONTENT}, bad=Misbehaviour(hold_after=131_072)) as site:
        path = await fetch(site, tmp_path, max_failures=10, stall_s=1.0)
    assert path.read_bytes() == CONTENT


async def test_next_to_nothing_is_an_error(tmp_path: Path) -> None:
    """A site that sends some bytes a second is waited for, for days."""
    async with running_site(files={NAME: CONTENT}, bad=Misbehaviour(trickle=10)) as site:
        with pytest.raises(FetchError, match="sends next to nothing"):
            await fetch(site, tmp_path, max_failures=2, stall_s=1.0)


async def test_a_site_without_ranges(tmp_path: Path) -> None:
    """A mirror that knows no ranges gives a file of which each part is the beginning."""
    async with running_site(files={NAME: CONTENT}, bad=Misbehaviour(has_ranges=False, cuts=[0, 0, 0, 70_000])) as site:
        path = await fetch(site, tmp_path)
    assert path.read_bytes() == CONTENT


async def test_another_part_than_asked_for_is_not_taken(tmp_path: Path) -> None:
    """A proxy that answers with other bytes makes a broken model."""
    async with running_site(files={NAME: CONTENT}, bad=Misbehaviour(wrong_range=True)) as site:
        with pytest.raises(FetchError, match="sent another part than asked for"):
            await fetch(site, tmp_path)


async def test_an_answer_without_what_was_asked_for_is_a_failure(tmp_path: Path) -> None:
    """A proxy that answers with nothing is asked again without a pause, for ever."""
    async with running_site(files={NAME: CONTENT}, bad=Misbehaviour(is_short=True)) as site:
        with pytest.raises(FetchError, match="ended too early"):
            await fetch(site, tmp_path)


async def test_more_than_asked_for_is_cut(tmp_path: Path) -> None:
    """Bytes beyond a part are written over the next one."""
    async with running_site(files={NAME: CONTENT}, bad=Misbehaviour(too_much=b"x" * 100_000)) as site:
        path = await fetch(site, tmp_path)
    assert path.read_bytes() == CONTENT


async def test_a_wrong_hash_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """A file that somebody has changed on its way is served."""
    async with running_site(files={NAME: CONTENT}, bad=Misbehaviour(wrong_hash=True)) as site:
        with pytest.raises(
            FetchError, match=r"is not what it must be: its SHA-256 is \w{64}, not 0{64}; it was removed"
        ):
            await fetch(site, tmp_path)
    assert left_in(tmp_path) == set()


async def test_the_registrys_hash_holds(tmp_path: Path) -> None:
    """A site that was taken over serves its own model and its own hash."""
    async with running_site(files={NAME: CONTENT}) as site:
        right = choice(sha256=hashlib.sha256(CONTENT).hexdigest(), size_bytes=len(CONTENT))
        with pytest.raises(FetchError, match="has changed since the registry was written"):
            await fetch(site, tmp_path, choice(sha256="a" * 64))
        with pytest.raises(FetchError, match="has changed since the registry was written"):
            await fetch(site, tmp_path, choice(size_bytes=7))
        site.bad.has_hash = False
        assert (await fetch(site, tmp_path, right)).read_bytes() == CONTENT


async def test_a_broken_rest_is_fetched_anew(tmp_path: Path) -> None:
    """After a power cut a download fails at its end, again and again."""
    async with running_site(files={NAME: CONTENT}, bad=Misbehaviour(statuses=[])) as site:
        site.on_bytes = lambda n: site.bad.statuses.extend([503] * 100) if n > 1_500_000 else None
        with pytest.raises(FetchError):
            await fetch(site, tmp_path)
        part = part_path(folder_of(choice(), tmp_path) / NAME)
        part.write_bytes(b"\0" * len(CONTENT))  # what the journal promises is not on the disk
        site.on_bytes = None
        site.bad.statuses.clear()
        assert (await fetch(site, tmp_path)).read_bytes() == CONTENT


async def test_a_rest_of_another_file_is_not_used(tmp_path: Path) -> None:
    """A file that was changed at the site becomes a mixture of both."""
    async with running_site(files={NAME: CONTENT}, bad=Misbehaviour(cuts=[200_000] * 3 + [0] * 50)) as site:
        with pytest.raises(FetchError):
            await fetch(site, tmp_path)
        site.files[NAME] = bytes(reversed(CONTENT))
        site.bad.cuts.clear()
        site.n_sent = 0
        assert (await fetch(site, tmp_path)).read_bytes() == bytes(reversed(CONTENT))
        assert site.n_sent == len(CONTENT)


@pytest.mark.parametrize("journal", [b"", b"{", b"[]", b'{"segments": [[0, 5, 9]]}', b'{"segments": 1}'])
async def test_a_journal_that_cannot_be_read_is_started_over(tmp_path: Path, journal: bytes) -> None:
    """A file that was cut by a crash keeps the worker from starting."""
    path = folder_of(choice(), tmp_path) / NAME
    path.parent.mkdir()
    part_path(path).write_bytes(b"y" * 1000)
    path.with_name(f"{NAME}.part.json").write_bytes(journal)
    async with running_site(files={NAME: CONTENT}) as site:
        assert (await fetch(site, tmp_path)).read_bytes() == CONTENT


async def test_cancelling_keeps_what_has_come(tmp_path: Path) -> None:
    """A worker that is stopped while it downloads begins anew."""
    async with running_site(files={NAME: CONTENT}, bad=Misbehaviour(trickle=8192)) as site:
        with trio.CancelScope() as scope:
            site.on_bytes = lambda n: scope.cancel() if n > 2_000_000 else None
            await fetch(site, tmp_path)
        assert scope.cancelled_caught
        first, site.n_sent, site.on_bytes = site.n_sent, 0, None
        assert (await fetch(site, tmp_path)).read_bytes() == CONTENT
        assert first + site.n_sent < len(CONTENT) + 1_300_000  # what three connections had on the way


FETCHER = """
import sys, trio
from pathlib import Path
from tests.unit.worker.fetch.test_transfer import *
site = Site(url=sys.argv[1])
trio.run(partial(fetch, site, Path(sys.argv[2])))
"""


@pytest.mark.parametrize("seed", range(4))
async def test_a_kill_at_any_byte_is_resumed(tmp_path: Path, seed: int) -> None:
    """A worker that is killed while it downloads begins anew, or ends with a broken file."""
    kill_at = random.Random(seed).randrange(100_000, 2_900_000)
    async with running_site(files={NAME: CONTENT}, bad=Misbehaviour(trickle=8192)) as site:
        killed = await _run_fetcher(site, tmp_path, kill_at=kill_at)
        assert killed == -signal.SIGKILL
        assert NAME not in left_in(tmp_path)
        site.bad.trickle = 0
        assert await _run_fetcher(site, tmp_path, kill_at=None) == 0
    assert (folder_of(choice(), tmp_path) / NAME).read_bytes() == CONTENT
    assert left_in(tmp_path) == {NAME}


async def _run_fetcher(site: Site, folder: Path, *, kill_at: int | None) -> int:
    argv = [sys.executable, "-c", FETCHER, site.url, str(folder)]
    root = Path(__file__).parents[4]
    process = await trio.lowlevel.open_process(argv, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    site.n_sent = 0
    site.on_bytes = lambda n: process.kill() if kill_at is not None and n > kill_at else None
    return await process.wait()


async def test_two_workers_fetch_once(tmp_path: Path) -> None:
    """Two workers of one machine write into the same file."""
    reports: list[FetchProgress | str] = []
    async with running_site(files={NAME: CONTENT}, bad=Misbehaviour(trickle=65_536)) as site:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(fetch, site, tmp_path, reports=reports))
            nursery.start_soon(partial(fetch, site, tmp_path, reports=reports))
        assert site.n_sent == len(CONTENT)
    assert "waiting for another download into the same folder to end" in reports
    assert (folder_of(choice(), tmp_path) / NAME).read_bytes() == CONTENT


async def test_a_disk_without_room_is_told_before_anything_comes(tmp_path: Path) -> None:
    """A disk is filled to the last byte before anybody notices."""
    async with running_site(files={NAME: CONTENT}) as site:
        from auxot.worker.fetch.transfer import require_space  # noqa: PLC0415 - the fetcher above imports the rest

        with pytest.raises(FetchError, match=r"free and needs .* make room .*AUXOT_MODELS_DIR"):
            require_space(tmp_path, [(tmp_path / "x", 10**18)])
        assert site.gets() == []


async def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A wrong AUXOT_MODELS_DIR is a traceback."""
    (tmp_path / "file").write_text("")
    async with running_site(files={NAME: CONTENT}) as site:
        with pytest.raises(FetchError, match="cannot be written"):
            await fetch(site, tmp_path / "file")


async def test_a_token_opens_and_goes_to_no_other_site(tmp_path: Path) -> None:
    """A token is sent to whoever the site redirects to, or a gated model cannot be had."""
    async with running_site(files={NAME: CONTENT}, bad=Misbehaviour(needs_token="hf_secret")) as site:
        with pytest.raises(FetchError, match=r"not open to everybody.*accept its terms at .*then set HF_TOKEN"):
            await fetch(site, tmp_path)
        with pytest.raises(FetchError, match=r"refuses HF_TOKEN \(status 401\): its owner has not accepted") as caught:
            await fetch(site, tmp_path, token="hf_wrong")
        assert "hf_wrong" not in str(caught.value)
        assert (await fetch(site, tmp_path, token="hf_secret")).read_bytes() == CONTENT
        assert all(header(one, b"authorization") == "" for one in site.gets())


async def test_a_token_does_not_follow_a_redirect_of_the_site(tmp_path: Path) -> None:
    """A repository that has moved elsewhere gives our token to its new place."""
    async with running_site(files={NAME: CONTENT}) as other, running_site() as site:
        site.moved_to = other.url.replace("127.0.0.1", "localhost")
        assert (await fetch(site, tmp_path, token="hf_secret")).read_bytes() == CONTENT
        assert all(header(one, b"authorization") == "Bearer hf_secret" for one in site.requests)
        assert other.requests
        assert all(header(one, b"authorization") == "" for one in other.requests)


async def test_the_revision_is_pinned(tmp_path: Path) -> None:
    """A file that changes while it is fetched becomes a mixture of both."""
    async with running_site(files={NAME: CONTENT}) as site:
        await fetch(site, tmp_path)
        asked = [one.target.decode() for one in site.requests if one.method == b"GET" and b"/resolve/" in one.target]
    assert asked
    assert all(f"/resolve/{COMMIT}/" in target for target in asked)


async def test_a_renamed_repository_is_followed(tmp_path: Path) -> None:
    """A repository that was renamed is not found any more."""
    async with running_site(files={NAME: CONTENT}, moved_from={"owner/repo": "other/repo"}) as site:
        assert (await fetch(site, tmp_path)).read_bytes() == CONTENT


async def test_what_is_not_there_says_where_to_look(tmp_path: Path) -> None:
    """A user reads a status code and nothing else."""
    async with running_site() as site:
        with pytest.raises(
            FetchError, match=r"there is no m-Q8_0\.gguf in owner/repo \(status 404\): see .*/tree/main"
        ):
            await fetch(site, tmp_path)


async def test_no_network_says_what_to_do_by_hand(tmp_path: Path) -> None:
    """A user behind a firewall reads a traceback."""
    site = Site(url="http://127.0.0.1:9")
    with pytest.raises(FetchError, match=r"cannot be reached .*set HF_ENDPOINT to a mirror, or copy .*--model-path"):
        await fetch(site, tmp_path)
