from __future__ import annotations

import io
import os
import platform
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from auxot.core.errors import FetchError, LlamaError
from auxot.core.sites import LLAMA_RELEASE
from auxot.worker.fetch.archive import unpack
from auxot.worker.fetch.releases import PINNED_SHA256, Release, choose_archive, variants_for
from auxot.worker.fetch.source import FetchProgress
from auxot.worker.llama.binary import find_llama_server
from auxot.worker.llama.install import install_llama_server
from tests.unit.worker.fetch.site import Misbehaviour, Site, running_site
from tests.unit.worker.fetch.test_transfer import PATIENCE

DIGEST = "sha256:" + "a" * 64
TAG = "b99"
PROGRAM = b"#!/bin/sh\necho 'version: 8925 (0c1e570)'\n"
MACHINES = [
    ("Linux", "x86_64", "cuda", "ubuntu-vulkan-x64"),
    ("Linux", "x86_64", "rocm", "ubuntu-rocm-7.14-x64"),
    ("Linux", "x86_64", "vulkan", "ubuntu-vulkan-x64"),
    ("Linux", "x86_64", "cpu", "ubuntu-x64"),
    ("Linux", "aarch64", "cuda", "ubuntu-vulkan-arm64"),
    ("Linux", "aarch64", "rocm", "ubuntu-vulkan-arm64"),
    ("Darwin", "arm64", "metal", "macos-arm64"),
    ("Darwin", "x86_64", "metal", "macos-x64"),
]


def listed(*variants: str, tag: str = TAG, digest: str | None = DIGEST) -> list[dict[str, object]]:
    names = [f"llama-{tag}-bin-{variant}.tar.gz" for variant in variants]
    return [{"name": name, "digest": digest, "size": 5, "browser_download_url": f"https://x/{name}"} for name in names]


def tar_of(members: dict[str, bytes], *, mode: int = 0o755) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def archive_name(variant: str = "") -> str:
    variant = variant or variants_for(system=platform.system(), machine=platform.machine(), gpu="cpu")[0]
    return f"llama-{TAG}-bin-{variant}.tar.gz"


def site_with(content: bytes, **bad: object) -> dict[str, object]:
    return {
        "files": {archive_name(): content},
        "releases": {TAG: [archive_name()]},
        "bad": Misbehaviour(**bad),  # type: ignore[arg-type]
    }


async def install(site: Site, folder: Path, tag: str = TAG) -> Path:
    release = Release(tag=tag, site=f"{site.url}/releases")
    reports: list[FetchProgress | str] = []
    return await install_llama_server(
        cache_dir=folder, release=release, gpu="cpu", report=reports.append, patience=PATIENCE
    )


@pytest.mark.parametrize(("system", "machine", "gpu", "expected"), MACHINES)
def test_the_archive_for_a_machine(system: str, machine: str, gpu: str, expected: str) -> None:
    """A machine gets a binary that does not run there, or that does not use its GPU."""
    variants = variants_for(system=system, machine=machine, gpu=gpu)
    chosen = choose_archive(listed(*PINNED_SHA256), TAG, variants)
    assert chosen.name == f"llama-{TAG}-bin-{expected}.tar.gz"


def test_cuda_is_taken_where_there_is_one_and_the_lowest_version() -> None:
    """A GPU computes through Vulkan although CUDA is there, or needs a driver that is too new."""
    variants = variants_for(system="Linux", machine="x86_64", gpu="cuda")
    there = listed("ubuntu-x64", "ubuntu-vulkan-x64", "ubuntu-cuda-13.4-x64", "ubuntu-cuda-12.8-x64")
    assert choose_archive(there, TAG, variants).name == f"llama-{TAG}-bin-ubuntu-cuda-12.8-x64.tar.gz"


@pytest.mark.parametrize(
    ("assets", "reason"),
    [
        (listed("win-cpu-x64"), "has no archive for this machine"),
        ([], "has no archive for this machine"),
        (listed("ubuntu-x64", digest=None), "nobody says what the SHA-256"),
        (listed("ubuntu-x64", digest="md5:abc"), "nobody says what the SHA-256"),
        ([{**listed("ubuntu-x64")[0], "browser_download_url": "file:///etc/passwd"}], "says nothing useful"),
    ],
)
def test_an_archive_that_cannot_be_trusted_is_not_taken(assets: list[dict[str, object]], reason: str) -> None:
    """A program of unknown origin is run."""
    with pytest.raises(FetchError, match=reason):
        choose_archive(assets, TAG, variants_for(system="Linux", machine="x86_64", gpu="cpu"))


def test_no_release_for_a_machine_is_known() -> None:
    """A worker on a machine without releases fails in place of building."""
    assert variants_for(system="Linux", machine="riscv64", gpu="cpu") == []
    assert variants_for(system="FreeBSD", machine="x86_64", gpu="cpu") == []


async def test_a_release_is_installed_once_and_found(tmp_path: Path) -> None:
    """A downloaded llama-server is not found, or fetched at each start."""
    folder = f"llama-{TAG}"
    content = tar_of({f"{folder}/llama-server": PROGRAM, f"{folder}/libggml.so": b"lib"}, mode=0o644)
    async with running_site(**site_with(content)) as site:
        path = await install(site, tmp_path)
        n_sent = site.n_sent
        assert await install(site, tmp_path) == path
        assert site.n_sent == n_sent
    assert (path.parent / "libggml.so").read_bytes() == b"lib"
    assert os.access(path, os.X_OK)
    assert find_llama_server(given=path, cache_dir=tmp_path) == path
    assert sorted(one.name for one in path.parents[1].iterdir() if not one.name.startswith(".")) == [path.parent.name]


async def test_a_download_that_breaks_is_resumed(tmp_path: Path) -> None:
    """The archive is fetched from its start after each break."""
    content = tar_of({"llama-server": PROGRAM, "padding": os.urandom(1_000_000)})
    async with running_site(**site_with(content, cuts=[300_000, 100_000, 0, 5])) as site:
        assert (await install(site, tmp_path)).exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not an archive", "cannot be unpacked"),
        (tar_of({"llama-server": PROGRAM, "x": os.urandom(100_000)})[:-50_000], "cannot be unpacked"),
        (tar_of({"../llama-server": PROGRAM}), "cannot be unpacked"),
        (tar_of({"llama-cli": PROGRAM}), "holds no llama-server"),
        (tar_of({"llama-server": b"#!/bin/sh\nexit 1\n"}), "--version ended with 1"),
    ],
)
async def test_what_cannot_run_never_gets_into_the_cache(tmp_path: Path, content: bytes, reason: str) -> None:
    """A worker starts a llama-server that is broken, at every start."""
    async with running_site(**site_with(content)) as site:
        with pytest.raises((FetchError, LlamaError), match=reason):
            await install(site, tmp_path)
        left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".build.lock"]
        assert left == []
        site.files[archive_name()] = tar_of({"llama-server": PROGRAM})
        assert (await install(site, tmp_path)).exists()  # and the next try is not spoilt


async def test_a_wrong_hash_is_never_unpacked(tmp_path: Path) -> None:
    """A program that somebody has changed on its way is run."""
    async with running_site(**site_with(tar_of({"llama-server": PROGRAM}), wrong_hash=True)) as site:
        with pytest.raises(FetchError, match="is not what it must be"):
            await install(site, tmp_path)


async def test_a_release_that_is_not_there(tmp_path: Path) -> None:
    """A misspelt AUXOT_LLAMA_RELEASE is a bare status code."""
    async with running_site() as site:
        with pytest.raises(FetchError, match=r"no release b7 of llama\.cpp \(AUXOT_LLAMA_RELEASE\); or give"):
            await install(site, tmp_path, tag="b7")


def test_the_pinned_release_has_every_hash() -> None:
    """A machine that a release is made for has to ask GitHub for a hash."""
    assert LLAMA_RELEASE.startswith("b")
    for system, machine, gpu, expected in MACHINES:
        assert expected in PINNED_SHA256, (system, machine, gpu)


def zip_of(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFREG | 0o755) << 16
            archive.writestr(info, content)
    return packed.getvalue()


def test_a_zip_is_unpacked_with_its_programs(tmp_path: Path) -> None:
    """What was packed as a program is no longer one."""
    archive = tmp_path / "a.zip"
    archive.write_bytes(zip_of({"bin/llama-server": PROGRAM}))
    unpack(archive, tmp_path / "out")
    assert os.access(tmp_path / "out/bin/llama-server", os.X_OK)


def link_tar(target: str, kind: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = kind, target
        tar.addfile(member)
        inside = tarfile.TarInfo("link/evil")
        inside.size = 1
        tar.addfile(inside, io.BytesIO(b"x"))
    return packed.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.zip", zip_of({"../evil": b"x"})),
        ("a.zip", zip_of({"/evil": b"x"})),
        ("a.zip", zip_of({"a/../../evil": b"x"})),
        ("a.tar.gz", tar_of({"../evil": b"x"})),
        ("a.tar.gz", tar_of({"a/../../evil": b"x"})),
        ("a.tar.gz", link_tar("../", tarfile.SYMTYPE)),
        ("a.tar.gz", link_tar("/etc/passwd", tarfile.LNKTYPE)),
    ],
)
def test_nothing_is_written_outside(tmp_path: Path, name: str, content: bytes) -> None:
    """An archive overwrites files of the user."""
    archive = tmp_path / name
    archive.write_bytes(content)
    with pytest.raises(FetchError):
        unpack(archive, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil"))


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    """A small archive fills the disk."""
    archive = tmp_path / "a.tar.gz"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for i in range(20_001):
            tar.addfile(tarfile.TarInfo(f"{i}"))
    archive.write_bytes(packed.getvalue())
    with pytest.raises(FetchError, match="more than"):
        unpack(archive, tmp_path / "out")
