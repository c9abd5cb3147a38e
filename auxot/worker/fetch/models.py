"""The files of a model on this machine: found where they are, fetched where they are not.

    <models>/<owner>_<repository>/<path in the repository>     as the original worker keeps them

A file that is there under its own name is whole: it got the name when it was verified. Who downloads into a
repository's folder holds its lock; a second worker waits, and finds the file.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import attrs
import httpx
import trio

from auxot.core.logs import get_logger
from auxot.core.models.entries import RemoteFile
from auxot.core.models.lookup import Choice
from auxot.worker.fetch.disk import disk_errors
from auxot.worker.fetch.http import open_client
from auxot.worker.fetch.hub import Hub, find_file
from auxot.worker.fetch.source import Patience, Report
from auxot.worker.fetch.transfer import download, require_space
from auxot.worker.lock import held_lock

LOCK_NAME = ".fetch.lock"

_log = get_logger()


@attrs.frozen(kw_only=True)
class ModelPaths:
    """Where a model is: its file (of a split one the first part), and its vision projector."""

    model: Path
    projector: Path | None = None


def folder_of(choice: Choice, models_dir: Path) -> Path:
    """Return the folder of a model's repository."""
    return models_dir / choice.model.repo.replace("/", "_")


def missing_files(choice: Choice, models_dir: Path) -> list[RemoteFile]:
    """Return those of a model's files that are not on this machine."""
    folder = folder_of(choice, models_dir)
    return [file for file in _files(choice) if not _is_there(folder / file.path, file)]


def model_paths(choice: Choice, models_dir: Path) -> ModelPaths:
    """Return where a model's files are, or will be."""
    folder, projector = folder_of(choice, models_dir), choice.model.projector
    return ModelPaths(
        model=folder / choice.variant.files[0].path, projector=folder / projector.path if projector else None
    )


async def fetch_model(
    choice: Choice, *, models_dir: Path, hub: Hub, report: Report, patience: Patience | None = None
) -> ModelPaths:
    """Make sure that a model is on this machine.

    Cancel-safe: what has come stays, for the next try.

    Args:
        choice: the model.
        models_dir: the folder for models.
        hub: where it comes from.
        report: is told the progress.
        patience: how to go on when the network does not.

    Raises:
        FetchError: it cannot be had; says what to do.
    """
    if missing_files(choice, models_dir):
        patience = patience or Patience()
        waiting = partial(report, "waiting for another download into the same folder to end")
        lock = folder_of(choice, models_dir) / LOCK_NAME
        with disk_errors(lock):
            async with held_lock(lock, on_wait=waiting), open_client(patience) as client:
                await _fetch_missing(client, choice, models_dir, hub=hub, patience=patience, report=report)
    return model_paths(choice, models_dir)


async def _fetch_missing(
    client: httpx.AsyncClient, choice: Choice, models_dir: Path, *, hub: Hub, patience: Patience, report: Report
) -> None:
    folder = folder_of(choice, models_dir)
    missing = missing_files(choice, models_dir)  # once more: who had the lock may have fetched it
    if not missing:
        return
    report(f"asking {hub.endpoint} for {choice.model.name} {choice.variant.quantization}")
    sources = [await find_file(client, hub, choice.model.repo, file, patience=patience) for file in missing]
    places = [folder / file.path for file in missing]
    require_space(folder, [(path, source.size_bytes) for path, source in zip(places, sources, strict=True)])
    for path, source in zip(places, sources, strict=True):
        started_at = trio.current_time()
        _log.info("fetch.started", file=source.name, size_bytes=source.size_bytes, site=source.host)
        await download(client, source, path, patience=patience, report=report)
        duration_ms = round((trio.current_time() - started_at) * 1000)
        _log.info("fetch.finished", file=source.name, duration_ms=duration_ms, is_verified=source.sha256 is not None)


def _files(choice: Choice) -> list[RemoteFile]:
    projector = choice.model.projector
    return [*choice.variant.files, *([projector] if projector else [])]


def _is_there(path: Path, file: RemoteFile) -> bool:
    try:
        size = path.stat().st_size
    except OSError:
        return False
    return size == file.size_bytes if file.size_bytes is not None else size > 0
