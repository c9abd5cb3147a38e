from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from auxot.core.errors import LlamaError
from auxot.worker.llama.binary import (
    LlamaServerVersion,
    find_llama_server,
    llama_server_version,
    parse_version,
    platform_cache_dir,
)


def program(path: Path, script: str = "exit 0", *, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)
    return path


def cached(cache_dir: Path, name: str, *, age_s: int = 0) -> Path:
    path = program(platform_cache_dir(cache_dir) / name / "llama-server")
    os.utime(path, (1_700_000_000 - age_s,) * 2)
    return path


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache, with nothing on PATH."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "cache"


def test_given_path_wins(cache_dir: Path, tmp_path: Path) -> None:
    """The operator's choice would be ignored when PATH has a llama-server too."""
    given = program(tmp_path / "mine" / "server")
    program(tmp_path / "bin" / "llama-server")
    assert find_llama_server(given=given, cache_dir=cache_dir) == given


@pytest.mark.parametrize("kind", ["missing", "folder", "not executable"])
def test_given_path_that_cannot_run_is_an_error(kind: str, cache_dir: Path, tmp_path: Path) -> None:
    """A mistyped path would silently run another llama-server."""
    given = tmp_path / "mine"
    if kind == "folder":
        given.mkdir()
    elif kind == "not executable":
        program(given, mode=0o644)
    cached(cache_dir, "x")
    with pytest.raises(LlamaError, match=str(given)):
        find_llama_server(given=given, cache_dir=cache_dir)


def test_path_comes_before_the_cache(cache_dir: Path, tmp_path: Path) -> None:
    """A system's own llama-server would not be used."""
    on_path = program(tmp_path / "bin" / "llama-server")
    cached(cache_dir, "x")
    assert find_llama_server(given=None, cache_dir=cache_dir) == on_path


def test_newest_of_the_cache(cache_dir: Path) -> None:
    """After a build for another backend the old one would still be used."""
    cached(cache_dir, "a", age_s=10)
    newest = cached(cache_dir, "b", age_s=0)
    cached(cache_dir, "c", age_s=20)
    assert find_llama_server(given=None, cache_dir=cache_dir) == newest


def test_unfinished_builds_are_not_found(cache_dir: Path) -> None:
    """A folder of a build under way, an empty file or one that may not be executed would be taken."""
    cached(cache_dir, ".build-1")
    cached(cache_dir, "empty").write_bytes(b"")
    cached(cache_dir, "plain").chmod(0o644)
    with pytest.raises(LlamaError, match="auxot-worker llama build"):
        find_llama_server(given=None, cache_dir=cache_dir)


def test_none_at_all_says_what_to_do(cache_dir: Path) -> None:
    """A first user would not know how to get a llama-server."""
    with pytest.raises(LlamaError, match="run `auxot-worker llama build`") as caught:
        find_llama_server(given=None, cache_dir=cache_dir)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "version: 0.5.0-dev (build 1, commit 0c1e570)\nbuilt with GNU 12.2.0 for Linux x86_64\n",
            LlamaServerVersion(release="0.5.0-dev", build=1, commit="0c1e570"),
        ),
        (
            "ggml_cuda_init: found 1 CUDA devices\nversion: 8925 (abcdef0)\nbuilt with cc\n",
            LlamaServerVersion(release="8925", build=8925, commit="abcdef0"),
        ),
        (
            "version: 0.5.0 (build 0, commit unknown)",
            LlamaServerVersion(release="0.5.0", build=0, commit="unknown"),
        ),
    ],
)
def test_versions_old_and_new(text: str, version: LlamaServerVersion) -> None:
    """A release's or our own build's version would not be understood."""
    assert parse_version(text) == version


@pytest.mark.parametrize("text", ["", "hello", "version: ", "version: abc (def)"])
def test_other_programs_have_no_version(text: str) -> None:
    """Any program would pass as a llama-server."""
    with pytest.raises(LlamaError):
        parse_version(text)


async def test_version_is_asked_for(tmp_path: Path) -> None:
    """The version would not be read from stderr, where some releases write it."""
    server = program(tmp_path / "llama-server", "echo 'version: 8925 (abcdef0)' >&2")
    with trio.fail_after(20):
        assert (await llama_server_version(server)).build == 8925


@pytest.mark.parametrize("script", ["exit 127", "echo hello"])
async def test_version_of_a_broken_program_is_an_error(script: str, tmp_path: Path) -> None:
    """A llama-server that cannot start would be kept."""
    with trio.fail_after(20), pytest.raises(LlamaError):
        await llama_server_version(program(tmp_path / "llama-server", script))


async def test_version_of_a_file_for_another_platform_is_an_error(tmp_path: Path) -> None:
    """The operating system's refusal would come through as a bare OSError."""
    server = tmp_path / "llama-server"
    server.write_bytes(b"\x00\x01\x02\x03")
    server.chmod(0o755)
    with trio.fail_after(20), pytest.raises(LlamaError, match="does not run"):
        await llama_server_version(server)
