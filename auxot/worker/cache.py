"""What this worker has downloaded and built: a list, and what of it can go.

Models count as used when a worker last started with them (see `mark_used`), llama-servers when they were installed.
What is being downloaded now is never removed.
"""

from __future__ import annotations

import contextlib
import enum
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from auxot.worker.fetch.models import LOCK_NAME
from auxot.worker.llama.binary import BINARY_NAME
from auxot.worker.llama.build import BUILD_LOCK
from auxot.worker.llama.install import DOWNLOADS
from auxot.worker.lock import free_lock

_PARTS = (".part", ".part.json", ".part.new")


class Kind(enum.Enum):
    """What something in the cache is."""

    MODEL = "model"
    BROKEN_OFF = "broken off"
    LLAMA_SERVER = "llama-server"


@attrs.frozen(kw_only=True)
class Item:
    """A file or a folder of the cache. `used_at`: Unix seconds; `lock`: who holds it uses the item."""

    kind: Kind
    path: Path
    size_bytes: int
    used_at: float
    lock: Path


def list_cache(*, models_dir: Path, llama_cache_dir: Path) -> list[Item]:
    """Return what there is, the largest first."""
    items = [*_models(models_dir), *llama_servers(llama_cache_dir), *_archives(llama_cache_dir)]
    return sorted(items, key=lambda item: -item.size_bytes)


def llama_servers(llama_cache_dir: Path) -> list[Item]:
    """Return the llama-servers of the cache, the newest first."""
    found = []
    for binary in llama_cache_dir.glob(f"*/[!.]*/{BINARY_NAME}"):
        folder = binary.parent
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        lock = folder.parent / BUILD_LOCK
        used_at = binary.stat().st_mtime
        found.append(Item(kind=Kind.LLAMA_SERVER, path=folder, size_bytes=size, used_at=used_at, lock=lock))
    return sorted(found, key=lambda item: -item.used_at)


def prunable(items: Sequence[Item], *, unused_for_s: float, now: float) -> list[Item]:
    """Return what can go: broken-off downloads, llama-servers older than the newest of their platform, old models.

    Args:
        items: of `list_cache`.
        unused_for_s: models that have not been used for so long can go; 0: none.
        now: Unix seconds.
    """
    newest: dict[Path, Item] = {}
    for item in items:
        if item.kind is Kind.LLAMA_SERVER:
            platform = item.path.parent
            newest[platform] = max(item, newest.get(platform, item), key=lambda one: one.used_at)
    return [
        item
        for item in items
        if item.kind is Kind.BROKEN_OFF
        or (item.kind is Kind.LLAMA_SERVER and item not in newest.values())
        or (item.kind is Kind.MODEL and unused_for_s > 0 and now - item.used_at > unused_for_s)
    ]


def remove(item: Item) -> bool:
    """Remove something, unless somebody uses it now; tell whether it is gone."""
    with free_lock(item.lock) as is_free:
        if is_free and item.path.is_dir():
            shutil.rmtree(item.path, ignore_errors=True)
        elif is_free:
            item.path.unlink(missing_ok=True)
        return is_free


def mark_used(model: Path) -> None:
    """Note that a model is used now."""
    with contextlib.suppress(OSError):  # another user's file: it is used all the same
        os.utime(model)


def _archives(llama_cache_dir: Path) -> Iterator[Item]:
    """Yield what is left of downloads of releases: one that has been unpacked is gone."""
    for path in sorted(llama_cache_dir.glob(f"*/{DOWNLOADS}/*")):
        stat, lock = path.stat(), path.parent.parent / BUILD_LOCK
        size = stat.st_blocks * 512
        yield Item(kind=Kind.BROKEN_OFF, path=path, size_bytes=size, used_at=stat.st_mtime, lock=lock)


def _models(models_dir: Path) -> Iterator[Item]:
    for folder in sorted(path for path in models_dir.glob("[!.]*") if path.is_dir()):
        for path in sorted(folder.rglob("*")):
            is_part = path.name.endswith(_PARTS)
            if path.is_file() and (is_part or path.suffix == ".gguf"):
                stat = path.stat()
                yield Item(
                    kind=Kind.BROKEN_OFF if is_part else Kind.MODEL,
                    path=path,
                    size_bytes=stat.st_blocks * 512,
                    used_at=stat.st_mtime,
                    lock=folder / LOCK_NAME,
                )
