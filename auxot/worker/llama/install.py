"""Install a release binary of llama-server into the cache that `find_llama_server` looks into.

    lock -> which archive -> download (resumed) -> unpack -> llama-server --version -> rename into the cache

The lock is the builder's: one of us at a time writes to the part of the cache that is for this platform. A download
that was broken off stays for the next try; everything else is done in a hidden folder that goes with the block.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
import tempfile
from collections.abc import AsyncGenerator, Generator
from functools import partial
from pathlib import Path

import trio

from auxot.core.errors import FetchError, LlamaError
from auxot.core.logs import get_logger
from auxot.worker.fetch.archive import unpack
from auxot.worker.fetch.http import open_client
from auxot.worker.fetch.releases import Release, find_archive, variants_for
from auxot.worker.fetch.source import Patience, Report, Source
from auxot.worker.fetch.transfer import download
from auxot.worker.llama.binary import BINARY_NAME, is_executable, llama_server_version, platform_cache_dir
from auxot.worker.llama.build import BUILD_LOCK
from auxot.worker.lock import held_lock

DOWNLOADS = ".downloads"
_WORK = ".install-"
_CHECK_LIMIT_S = 60.0

_log = get_logger()


def has_release(gpu: str) -> bool:
    """Tell whether releases are made for this machine."""
    return bool(variants_for(system=platform.system(), machine=platform.machine(), gpu=gpu))


async def install_llama_server(
    *, cache_dir: Path, release: Release, gpu: str, report: Report, patience: Patience | None = None
) -> Path:
    """Install llama-server into the cache, or find that this has been done.

    Cancel-safe: the cache is as it was before.

    Args:
        cache_dir: the root of the cache, as for `find_llama_server`; is made if missing.
        release: which release.
        gpu: "cuda", "rocm", "vulkan", "metal" or "cpu".
        report: is told each step and the progress of the download.
        patience: how to go on when the network does not.

    Returns:
        The path of the binary in the cache.

    Raises:
        FetchError: it cannot be had; says what to do.
        LlamaError: it does not run on this machine.
    """
    folder = platform_cache_dir(cache_dir)
    variants = variants_for(system=platform.system(), machine=platform.machine(), gpu=gpu)
    patience = patience or Patience()
    async with _only_installer(folder, report), open_client(patience) as client:
        report(f"looking for release {release.tag} of llama.cpp for {platform.system()} {platform.machine()}, {gpu}")
        source = await find_archive(client, release, variants, patience=patience)
        binary = folder / _stem(source) / BINARY_NAME
        if is_executable(binary):
            report(f"found {binary}")
            return binary
        archive = folder / DOWNLOADS / source.name
        if not archive.exists():
            await download(client, source, archive, patience=patience, report=report)
        report(f"unpacking {source.name}")
        await _install(archive, folder, binary)
    report(f"installed {binary}")
    return binary


async def _install(archive: Path, folder: Path, binary: Path) -> None:
    with _removed_after(archive), _work_folder(folder) as work:
        await trio.to_thread.run_sync(unpack, archive, work / "unpacked")
        unpacked = _find_binary(archive, work / "unpacked")
        await _check(unpacked)
        shutil.rmtree(binary.parent, ignore_errors=True)  # an attempt without an executable
        unpacked.parent.replace(binary.parent)


@contextlib.contextmanager
def _removed_after(archive: Path) -> Generator[None]:
    """Remove the archive however the block ends: a broken one would break the next try too."""
    try:
        yield
    finally:
        archive.unlink(missing_ok=True)


def _find_binary(archive: Path, folder: Path) -> Path:
    """Return where llama-server is: releases keep it in a folder, which has changed over time."""
    found = sorted(path for path in folder.rglob(BINARY_NAME) if path.is_file() and not path.is_symlink())
    if not found:
        raise FetchError(f"{archive.name} holds no {BINARY_NAME}")
    found[0].chmod(0o755)
    return found[0]


async def _check(unpacked: Path) -> None:
    """Run it once, so that one that cannot start never gets into the cache."""
    with trio.move_on_after(_CHECK_LIMIT_S) as scope:
        version = await llama_server_version(unpacked)
        _log.info("llama.installed", release=version.release, build=version.build, commit=version.commit)
    if scope.cancelled_caught:
        raise LlamaError("the new llama-server does not answer")


@contextlib.asynccontextmanager
async def _only_installer(folder: Path, report: Report) -> AsyncGenerator[None]:
    waiting = partial(report, "waiting for another installation or build to end")
    try:
        async with held_lock(folder / BUILD_LOCK, on_wait=waiting):
            yield
    except OSError as exc:
        raise FetchError(f"cannot write to the cache {folder}: {exc.strerror or exc}") from exc


@contextlib.contextmanager
def _work_folder(folder: Path) -> Generator[Path]:
    """Make a folder on the cache's file system; removed without a thread, as nobody else waits on this loop yet."""
    for left_behind in folder.glob(f"{_WORK}*"):  # by an installer that was killed: we hold the lock
        shutil.rmtree(left_behind, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_WORK, ignore_cleanup_errors=True) as work:
        yield Path(work)


def _stem(source: Source) -> str:
    return source.name.removesuffix(".tar.gz").removesuffix(".zip")
