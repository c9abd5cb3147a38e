from __future__ import annotations

import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from auxot.core.errors import LlamaError
from auxot.worker.llama.socket_folder import socket_in_folder

ROOT = Path(__file__).parents[4]


def test_the_folder_is_the_users_own_and_goes() -> None:
    """Others on the machine can speak to llama-server, or old folders fill the disk."""
    with socket_in_folder() as socket:
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        socket.touch()
    assert not socket.parent.exists()


def test_the_first_folder_that_takes_it_is_used(tmp_path: Path) -> None:
    """A worker whose folder for temporary files is read-only, full, or deep in the tree has no llama-server."""
    (tmp_path / "file").touch()
    deep = tmp_path / ("d" * 90)
    for folder in (deep, tmp_path / "b", tmp_path / "c"):
        folder.mkdir()
    with socket_in_folder([tmp_path / "missing", tmp_path / "file", deep, tmp_path / "b", tmp_path / "c"]) as socket:
        assert socket.parent.parent == tmp_path / "b"


def test_why_there_is_no_folder(tmp_path: Path) -> None:
    """An operator reads a traceback in place of what to do."""
    (tmp_path / "file").touch()
    with pytest.raises(LlamaError) as caught, socket_in_folder([tmp_path / "file", tmp_path / ("d" * 90)]):
        pass
    assert f"{tmp_path / 'file'} (Not a directory), " in str(caught.value)
    assert "(its path is too long); set TMPDIR" in str(caught.value)


def test_a_process_that_cannot_write_temporary_files_has_a_socket() -> None:
    """A worker ends in a traceback where Python finds no folder for temporary files."""
    program = f"""
import resource, tempfile
resource.setrlimit(resource.RLIMIT_FSIZE, (0, {resource.RLIM_INFINITY}))
try:
    tempfile.gettempdir()
except FileNotFoundError:
    pass
else:
    raise SystemExit("temporary files can be written")
from auxot.worker.llama.socket_folder import socket_in_folder
with socket_in_folder() as socket:
    assert socket.parent.is_dir()
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=30)
