"""Unpack an archive of a release; nothing is written outside of the folder, whatever the archive says."""

from __future__ import annotations

import platform
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path

from auxot.core.errors import FetchError
from auxot.worker.fetch.disk import MAKE_ROOM, is_full

MAX_MEMBERS = 20_000
MAX_BYTES = 8 * 1024**3  # CUDA's libraries are some 2 GB


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tar.gz or .zip file; runs in a thread.

    Args:
        archive: the file.
        folder: is made.

    Raises:
        FetchError: it is broken, too large, or holds something that leads out of the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if archive.name.endswith(".zip"):
            _unpack_zip(archive, folder)
        else:
            _unpack_tar(archive, folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError) as exc:
        raise FetchError(f"{archive.name} cannot be unpacked: {exc}") from exc
    except OSError as exc:
        advice = f": {MAKE_ROOM}" if is_full(exc) else ""
        raise FetchError(f"{archive.name} cannot be unpacked: {exc.strerror or exc}{advice}") from exc


def _unpack_tar(archive: Path, folder: Path) -> None:
    if not hasattr(tarfile, "data_filter"):  # comes with Python 3.11.4
        raise FetchError(f"Python {platform.python_version()} cannot unpack safely: use 3.11.4 or newer")
    n_bytes = n_members = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            n_bytes, n_members = n_bytes + member.size, n_members + 1
            _check_bounds(archive, n_bytes, n_members)
            tar.extract(member, folder, filter="data")


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        members = packed.infolist()
        _check_bounds(archive, sum(member.file_size for member in members), len(members))
        for member in members:
            if ".." in Path(member.filename).parts or member.filename.startswith(("/", "\\")):
                raise FetchError(f"{archive.name} holds {member.filename!r}, which leads out of it")
            path = Path(packed.extract(member, folder))
            mode = member.external_attr >> 16
            if stat.S_ISREG(mode) and mode & stat.S_IXUSR:
                path.chmod(0o755)


def _check_bounds(archive: Path, n_bytes: int, n_members: int) -> None:
    if n_bytes > MAX_BYTES or n_members > MAX_MEMBERS:
        raise FetchError(f"{archive.name} holds more than {MAX_BYTES // 1024**3} GiB or {MAX_MEMBERS} files")
