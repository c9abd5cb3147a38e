from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from auxot.worker.cache import Kind, list_cache, mark_used, prunable, remove
from auxot.worker.fetch.models import LOCK_NAME

DAY_S = 86_400
NOW = time.time()


def put(path: Path, *, days_ago: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 5000)
    os.utime(path, (NOW - days_ago * DAY_S,) * 2)
    return path


def pruned(tmp_path: Path, unused_for_s: float = 0.0) -> set[str]:
    items = list_cache(models_dir=tmp_path / "models", llama_cache_dir=tmp_path / "llama")
    return {str(item.path.relative_to(tmp_path)) for item in prunable(items, unused_for_s=unused_for_s, now=NOW)}


def test_everything_is_listed_once_with_its_kind(tmp_path: Path) -> None:
    """A disk is full, and the list does not say of what."""
    put(tmp_path / "models/o_r/Q8_0/m-00001-of-00002.gguf")
    put(tmp_path / "models/o_r/x.gguf.part")
    put(tmp_path / "models/o_r/x.gguf.part.json")
    put(tmp_path / "llama/linux-x86_64/b1/llama-server")
    put(tmp_path / "llama/linux-x86_64/b1/libggml.so")
    put(tmp_path / "llama/linux-x86_64/.install-x/llama-server")
    put(tmp_path / "llama/linux-x86_64/.downloads/llama-b2.tar.gz.part")
    items = list_cache(models_dir=tmp_path / "models", llama_cache_dir=tmp_path / "llama")
    kinds = sorted((item.kind.value, item.path.name) for item in items)
    assert kinds == [
        ("broken off", "llama-b2.tar.gz.part"),
        ("broken off", "x.gguf.part"),
        ("broken off", "x.gguf.part.json"),
        ("llama-server", "b1"),
        ("model", "m-00001-of-00002.gguf"),
    ]
    assert next(item for item in items if item.kind is Kind.LLAMA_SERVER).size_bytes == 10_000
    assert list_cache(models_dir=tmp_path / "none", llama_cache_dir=tmp_path / "none") == []


def test_only_what_nobody_needs_is_pruned(tmp_path: Path) -> None:
    """A model in use goes, or a disk stays full of old builds."""
    put(tmp_path / "models/o_r/old.gguf", days_ago=40)
    put(tmp_path / "models/o_r/new.gguf", days_ago=1)
    put(tmp_path / "models/o_r/x.gguf.part")
    put(tmp_path / "llama/linux-x86_64/b1/llama-server", days_ago=9)
    put(tmp_path / "llama/linux-x86_64/b2/llama-server", days_ago=2)
    put(tmp_path / "llama/linux-arm64/b1/llama-server", days_ago=9)
    put(tmp_path / "llama/linux-arm64/.downloads/b2.tar.gz.part")
    always = {"models/o_r/x.gguf.part", "llama/linux-arm64/.downloads/b2.tar.gz.part", "llama/linux-x86_64/b1"}
    assert pruned(tmp_path) == always
    assert pruned(tmp_path, unused_for_s=30 * DAY_S) == always | {"models/o_r/old.gguf"}
    mark_used(tmp_path / "models/o_r/old.gguf")
    assert pruned(tmp_path, unused_for_s=30 * DAY_S) == always


def test_a_download_under_way_is_not_removed(tmp_path: Path) -> None:
    """A prune breaks the download of another worker."""
    part = put(tmp_path / "models/o_r/x.gguf.part")
    (item,) = list_cache(models_dir=tmp_path / "models", llama_cache_dir=tmp_path)
    with (part.parent / LOCK_NAME).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not remove(item)
        assert part.exists()
    assert remove(item)
    assert not part.exists()
