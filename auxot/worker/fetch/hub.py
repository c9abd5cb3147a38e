"""Hugging Face: where a file of a repository is, how large, and what its SHA-256 is.

A request for HOST/OWNER/NAME/resolve/REVISION/PATH is redirected to wherever the bytes are. The redirect itself carries
`X-Linked-Size`, `X-Linked-Etag` (the SHA-256 of large files) and `X-Repo-Commit`; errors carry `X-Error-Code`:
https://huggingface.co/docs/huggingface_hub/package_reference/file_download. Mirrors (HF_ENDPOINT) do the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import PurePosixPath
from urllib.parse import quote, urljoin, urlsplit

import attrs
import httpx

from auxot.core.errors import FetchError
from auxot.core.models.entries import RemoteFile
from auxot.core.sites import HUB
from auxot.core.sizes import show_bytes
from auxot.worker.fetch.http import MAX_REDIRECTS, RefusedByServerError, ask, plain_url
from auxot.worker.fetch.source import Patience, Source

_SHA256 = re.compile(r'(?:W/)?"?([0-9a-f]{64})"?')
_GATED = "GatedRepo"


@attrs.frozen(kw_only=True)
class Hub:
    """Hugging Face or a mirror of it. `token` opens repositories that are not open to everybody."""

    endpoint: str = HUB
    token: str | None = attrs.field(default=None, repr=False)

    def url(self, repo: str, path: str, *, revision: str = "main") -> str:
        """Return the address of a file."""
        return f"{self.endpoint.rstrip('/')}/{repo}/resolve/{quote(revision, safe='')}/{quote(path)}"

    def headers(self) -> dict[str, str]:
        """Return what requests to the site itself carry."""
        return {"authorization": f"Bearer {self.token}"} if self.token else {}


async def find_file(client: httpx.AsyncClient, hub: Hub, repo: str, file: RemoteFile, *, patience: Patience) -> Source:
    """Ask where a file is and what it must be.

    What the registry says of it holds: a file that has changed since is not taken for it.

    Raises:
        FetchError: it is not there, or not for us; says what to do.
    """
    url = hub.url(repo, file.path)
    try:
        answer = await _head(client, url, hub.headers(), patience)
    except RefusedByServerError as exc:
        raise FetchError(_refusal(exc, hub, repo, file.path)) from exc
    except FetchError as exc:
        raise FetchError(
            f"{exc}; without a way to {hub.endpoint}, set HF_ENDPOINT to a mirror, or copy {file.path} to this machine"
            " and give it with --model-path"
        ) from exc
    size_bytes, sha256 = read_head(answer)
    if size_bytes is None:
        raise FetchError(f"{plain_url(url)}: the site does not say how large the file is")
    _check_unchanged(repo, file, size_bytes, sha256)
    commit = answer.get("x-repo-commit", "")
    return Source(
        name=PurePosixPath(file.path).name,
        url=hub.url(repo, file.path, revision=commit) if re.fullmatch(r"[0-9a-f]{40}", commit) else url,
        size_bytes=size_bytes,
        sha256=file.sha256 or sha256,
        headers=hub.headers(),
    )


def read_head(headers: Mapping[str, str]) -> tuple[int | None, str | None]:
    """Return size and SHA-256 from the headers of a file's address; None for what they do not tell."""
    size = headers.get("x-linked-size") or headers.get("content-length") or ""
    etag = _SHA256.fullmatch(headers.get("x-linked-etag") or headers.get("etag") or "")
    return (int(size) if size.isdecimal() else None), (etag[1] if etag else None)


async def _head(
    client: httpx.AsyncClient, url: str, headers: Mapping[str, str], patience: Patience
) -> Mapping[str, str]:
    """Return the headers that tell of a file: those of a redirect with `X-Linked-...`, else of the last answer.

    A renamed repository redirects to its new name first; the token goes with that only on the same site.
    """
    site = urlsplit(url)[:2]
    for _ in range(MAX_REDIRECTS + 1):
        response = await ask(
            client, "HEAD", url, headers=headers if urlsplit(url)[:2] == site else {}, patience=patience
        )
        if not response.has_redirect_location or "x-linked-size" in response.headers:
            return response.headers
        url = urljoin(url, response.headers["location"])
    raise FetchError(f"{plain_url(url)}: redirected too often")


def _check_unchanged(repo: str, file: RemoteFile, size_bytes: int, sha256: str | None) -> None:
    is_other_size = file.size_bytes not in (None, size_bytes)
    if is_other_size or (file.sha256 and sha256 and file.sha256 != sha256):
        raise FetchError(
            f"{file.path} in {repo} has changed since the registry was written (now {show_bytes(size_bytes)}, SHA-256"
            f" {sha256 or 'unknown'}): renew the registry, or name the file itself: hf:{repo}:{file.path}"
        )


def _refusal(exc: RefusedByServerError, hub: Hub, repo: str, path: str) -> str:
    """Return the sentence for a status that is an error."""
    page = f"{hub.endpoint.rstrip('/')}/{repo}"
    if exc.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        if hub.token is None:
            return (
                f"{repo} is not open to everybody, or does not exist (status {exc.status}): accept its terms at {page},"
                " then set HF_TOKEN"
            )
        why = "has not accepted its terms" if exc.reason_word == _GATED else "may not read it"
        return f"{repo} refuses HF_TOKEN (status {exc.status}): its owner {why}; see {page}"
    if exc.status == HTTPStatus.NOT_FOUND:
        return f"there is no {path} in {repo} (status 404): see {page}/tree/main for what there is"
    return f"{page} refuses {path}: status {exc.status}"
