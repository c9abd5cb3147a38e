"""llama.cpp's releases on GitHub: which archive is for this machine, and what its SHA-256 is.

The pinned release needs no question: its archives and hashes stand here. For another one (AUXOT_LLAMA_RELEASE) GitHub's
API tells name, size and digest of each archive: https://docs.github.com/en/rest/releases/releases. An archive whose
hash nobody knows is not run.

CUDA: where a release has no CUDA archive for Linux, the Vulkan one serves, on the same driver; `auxot-worker llama
build --backend cuda` makes a CUDA one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import attrs
import httpx

from auxot.core.errors import FetchError
from auxot.core.sites import LLAMA_RELEASE, LLAMA_RELEASES
from auxot.worker.fetch.http import RefusedByServerError, ask, plain_url
from auxot.worker.fetch.source import Patience, Source

_DOWNLOADS = "https://github.com/ggml-org/llama.cpp/releases/download"
_MAX_ASSETS = 1000

# SHA-256 of the pinned release's archives that we would choose.
PINNED_SHA256: Mapping[str, str] = {
    "macos-arm64": "ebbeed128cde32077c5b430feafe57ce20b1bca545f430ff142472014f03bcec",
    "macos-x64": "12b4ff47c112329048e826da3fb49c674a381c2fe913311d1050f54d1f5024ab",
    "ubuntu-arm64": "36fb8a1d1836f575db78e56a875d040ddcd19694a60b67f4cce8bb6531d872ac",
    "ubuntu-rocm-7.14-x64": "712cee42f49d4ae627f621eaa352ccfcacf51547d0afc58ef4d1873c0d9d1e25",
    "ubuntu-vulkan-arm64": "d17bcd861df0b302696eca81214a0a26db368103b5f4d6f4910396a4cf5b74d4",
    "ubuntu-vulkan-x64": "cbf7354e70f9bcda5a389e1f02e2293414d47fe525b271c3a8063327754e3ef9",
    "ubuntu-x64": "b6a7ed005240eccd61e1af42debd75b876c639c1416bfa90985fd02618919a88",
}
_CPUS = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
# Kind of GPU -> what may stand in the archive's name, the best first. All contain the CPU's code too.
_LINUX = {
    "cuda": (r"ubuntu-cuda-[\d.]+-", "ubuntu-vulkan-", "ubuntu-"),
    "rocm": (r"ubuntu-rocm-[\d.]+-", "ubuntu-vulkan-", "ubuntu-"),
    "vulkan": ("ubuntu-vulkan-", "ubuntu-"),
    "cpu": ("ubuntu-",),
}


@attrs.frozen(kw_only=True)
class Release:
    """Which release, and where releases are listed. `token`: for GitHub, which answers strangers 60 times an hour."""

    tag: str = LLAMA_RELEASE
    site: str = LLAMA_RELEASES
    token: str | None = attrs.field(default=None, repr=False)


def variants_for(*, system: str, machine: str, gpu: str) -> list[str]:
    """Return patterns for the part of an archive's name that says what it is for, the best first.

    Args:
        system: of `platform.system()`.
        machine: of `platform.machine()`.
        gpu: "cuda", "rocm", "vulkan", "metal" or "cpu".

    Returns:
        The patterns; none if no release is made for this machine.
    """
    cpu = _CPUS.get(machine.lower())
    if cpu is None:
        return []
    if system == "Darwin":
        return [f"macos-{cpu}"]
    return [prefix + cpu for prefix in _LINUX.get(gpu, _LINUX["cpu"])] if system == "Linux" else []


async def find_archive(
    client: httpx.AsyncClient, release: Release, variants: Sequence[str], *, patience: Patience
) -> Source:
    """Find the archive of a release that serves best.

    Raises:
        FetchError: there is none, or it cannot be asked for; says what to do.
    """
    try:
        if release.tag == LLAMA_RELEASE and release.site == LLAMA_RELEASES:
            return await _pinned(client, variants, patience)
        return choose_archive(await _assets(client, release, patience), release.tag, variants)
    except FetchError as exc:
        raise FetchError(
            f"{exc}; or give a llama-server with --llama-server-path, or make one with `auxot-worker llama build`"
        ) from exc


def choose_archive(assets: Sequence[Mapping[str, Any]], tag: str, variants: Sequence[str]) -> Source:
    """Choose among the archives of a release, as GitHub lists them; of several versions of CUDA the lowest.

    Raises:
        FetchError: none is for this machine, or it has no hash.
    """
    by_name = {str(asset.get("name")): asset for asset in assets}
    for variant in variants:
        pattern = re.compile(rf"llama-{re.escape(tag)}-bin-{variant}\.(tar\.gz|zip)")
        for name in sorted(filter(pattern.fullmatch, by_name)):
            return _source(by_name[name])
    raise FetchError(f"release {tag} of llama.cpp has no archive for this machine ({', '.join(variants) or 'unknown'})")


def _source(asset: Mapping[str, Any]) -> Source:
    digest = re.fullmatch(r"sha256:([0-9a-f]{64})", str(asset.get("digest") or ""))
    if digest is None:
        raise FetchError(f"nobody says what the SHA-256 of {asset['name']} is: choose a newer AUXOT_LLAMA_RELEASE")
    url, size = asset.get("browser_download_url"), asset.get("size")
    if not isinstance(url, str) or type(size) is not int or not url.startswith(("https://", "http://")):
        raise FetchError(f"the list of releases says nothing useful of {asset['name']}")
    return Source(name=str(asset["name"]), url=url, size_bytes=size, sha256=digest[1])


async def _assets(client: httpx.AsyncClient, release: Release, patience: Patience) -> list[Mapping[str, Any]]:
    url = f"{release.site.rstrip('/')}/tags/{release.tag}"
    headers = {"accept": "application/vnd.github+json"}
    if release.token:
        headers["authorization"] = f"Bearer {release.token}"
    try:
        answer = (await ask(client, "GET", url, headers=headers, patience=patience)).json()
    except RefusedByServerError as exc:
        if exc.status == HTTPStatus.NOT_FOUND:
            raise FetchError(f"there is no release {release.tag} of llama.cpp (AUXOT_LLAMA_RELEASE)") from exc
        hint = (
            ": GitHub answers strangers 60 times an hour, set GITHUB_TOKEN"
            if exc.status == HTTPStatus.FORBIDDEN
            else ""
        )
        raise FetchError(f"{exc}{hint}") from exc
    except ValueError as exc:
        raise FetchError(f"{plain_url(url)}: the answer is no JSON") from exc
    assets = answer.get("assets") if isinstance(answer, dict) else None
    return [asset for asset in (assets or [])[:_MAX_ASSETS] if isinstance(asset, dict)]


async def _pinned(client: httpx.AsyncClient, variants: Sequence[str], patience: Patience) -> Source:
    found = (name for variant in variants for name in PINNED_SHA256 if re.fullmatch(variant, name))
    name = next(found, None)
    if name is None:
        raise FetchError(f"release {LLAMA_RELEASE} of llama.cpp has no archive for this machine")
    archive = f"llama-{LLAMA_RELEASE}-bin-{name}.tar.gz"
    url = f"{_DOWNLOADS}/{LLAMA_RELEASE}/{archive}"
    size_bytes = await _size(client, url, patience)
    return Source(name=archive, url=url, size_bytes=size_bytes, sha256=PINNED_SHA256[name])


async def _size(client: httpx.AsyncClient, url: str, patience: Patience) -> int:
    """Ask for the first byte: signed addresses, to which GitHub redirects, may not answer HEAD."""
    response = await ask(client, "GET", url, headers={"range": "bytes=0-0"}, patience=patience, follow=True)
    total = response.headers.get("content-range", "").rpartition("/")[2]
    if not total.isdecimal():
        raise FetchError(f"{plain_url(url)}: the site does not say how large the file is")
    return int(total)
