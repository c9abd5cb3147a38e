"""`install`, `list`, `uninstall` below a folder that stands for a machine: what is written, and what is refused."""

from __future__ import annotations

import os
import plistlib
import re
import shutil
import subprocess
from pathlib import Path

import attrs
import pytest

from auxot import cli
from auxot.core.keys import CHEAP, Role, generate_key, hash_key
from auxot.units import launchd, systemd
from auxot.units.unit import Daemon, Scope, Unit

KEY = generate_key(Role.WORKER)
HASH = hash_key(generate_key(Role.API), CHEAP)
UNIT = Unit(
    daemon=Daemon.ROUTER,
    name="a",
    scope=Scope.SYSTEM,
    program=Path("/opt/my programs/100%/auxot-router"),
    settings_dir=Path("/etc/auxot/router-a"),
    stop_s=40,
    user="auxot",
    listen="[::1]:8080",
    writable=(Path("/srv/my models"),),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a model, and no settings from the outside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("AUXOT_")]:
        monkeypatch.delenv(name)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    server = tmp_path / "llama-server"
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def install_worker(folder, *flags, key=KEY):
    image = ["--system", "--root", str(folder / "image")]
    argv = ["install", *image, "--model-path", "m.gguf", "--router-url", "ws://router", "--gpu-key", key, *flags]
    return cli.run(cli.WORKER, argv)


def test_the_key_is_in_one_file_that_only_its_owner_reads(folder, capsys):
    """The worker's key would stand in a unit, in a list or in what the command says."""
    assert install_worker(folder, "--name", "gpu0") == 0
    env_file = folder / "image/etc/auxot/worker-gpu0/.env"
    assert env_file.stat().st_mode & 0o777 == 0o600
    lines = env_file.read_text().splitlines()
    assert f"AUXOT_GPU_KEY={KEY}" in lines
    assert f"AUXOT_MODEL_FILE={folder}/m.gguf" in lines  # the service starts elsewhere
    assert f"AUXOT_LLAMA_BINARY={folder}/llama-server" in lines  # and has another PATH
    assert cli.run(cli.WORKER, ["list", "--system", "--root", str(folder / "image")]) == 0
    others = [path for path in (folder / "image").rglob("*") if path.is_file() and path != env_file]
    assert [path.name for path in others] == ["auxot-worker-gpu0.service"]
    shown = capsys.readouterr()
    assert all(KEY not in text for text in (others[0].read_text(), shown.out, shown.err))
    assert f"gpu0  system  stopped  {KEY[:8]}  ws://router" in shown.out


def test_settings_that_are_not_given_again_are_kept(folder):
    """A change of one setting would lose the key, or one worker's settings would overwrite another's."""
    assert install_worker(folder) == install_worker(folder, "--name", "b") == 0
    image = ["--system", "--root", str(folder / "image")]
    assert cli.run(cli.WORKER, ["install", *image, "--threads", "7"]) == 0
    text = (folder / "image/etc/auxot/worker-default/.env").read_text()
    assert f"AUXOT_GPU_KEY={KEY}" in text
    assert "AUXOT_THREADS=7" in text
    assert "AUXOT_THREADS" not in (folder / "image/etc/auxot/worker-b/.env").read_text()


def test_uninstall_removes_what_install_wrote(folder, capsys):
    """A key would stay on a machine that was given away."""
    image = ["--system", "--root", str(folder / "image")]
    assert install_worker(folder) == 0
    assert cli.run(cli.WORKER, ["uninstall", *image]) == 0
    assert not [path for path in (folder / "image").rglob("*") if path.is_file()]
    assert cli.run(cli.WORKER, ["uninstall", *image]) == 1
    assert "no worker is installed under the name 'default'" in capsys.readouterr().err


def test_a_dry_run_writes_nothing_and_shows_no_secret(folder, capsys, monkeypatch):
    """Who looks first would have installed, or have a key in a terminal's history."""
    monkeypatch.setenv("AUXOT_REDIS_URL", "redis://:hunter2@redis/0")
    hashes = {"AUXOT_ADMIN_KEY_HASH": HASH, "AUXOT_API_KEY_HASH": HASH}
    for name, value in hashes.items():
        monkeypatch.setenv(name, value)
    assert cli.run(cli.ROUTER, ["install", "--user", "--dry-run", "--port", "8123"]) == 0
    shown = capsys.readouterr().out
    assert "ListenStream=0.0.0.0:8123" in shown
    assert "systemctl --user enable auxot-router-default.service auxot-router-default.socket" in shown
    assert "hunter2" not in shown
    assert HASH not in shown
    assert not (folder / ".config").exists()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--name", "../x"], "--name: expected small letters"),
        (["--name", ""], "--name: expected small letters"),
        (["--threads", "many"], "--threads: expected a whole number"),
        (["--model-path", "nothing.gguf"], "there is no file"),
        (["--debug"], "--debug cannot be installed"),
        (["--user", "--system"], "not allowed with"),
        (["--llama-server-path", "nothing"], "nothing does not exist"),
    ],
)
def test_what_would_not_start_is_not_installed(folder, capsys, flags, line):
    """A service would be written that fails for ever, or a file elsewhere than meant."""
    assert install_worker(folder, *flags) == 2
    assert line in capsys.readouterr().err
    assert not (folder / "image").exists()


def test_units_pass_systemd_s_own_check(tmp_path):
    """Systemd would pass over a line that it does not understand."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / "my programs 100%" / "auxot-router"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    router = systemd.unit_texts(attrs.evolve(UNIT, program=program))
    worker = attrs.evolve(UNIT, daemon=Daemon.WORKER, listen=None, groups=("video",), program=program)
    for name, text in {**router, **systemd.unit_texts(worker)}.items():
        (tmp_path / name).write_text(text)
    files = sorted(str(path) for path in tmp_path.glob("auxot-*"))
    done = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for file, limit in (("auxot-router-a.service", 3.0), ("auxot-worker-a.service", 5.0)):
        rated = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", str(tmp_path / file)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "SYSTEMD_COLORS": "0"},
        )
        exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", rated.stdout)
        assert exposure is not None
        assert float(exposure[1]) <= limit


# Of launchd.plist(5): the keys that we use, and what their values must be.
LAUNCHD_KEYS = {
    "Label": str,
    "ProgramArguments": list,
    "WorkingDirectory": str,
    "RunAtLoad": bool,
    "KeepAlive": dict,
    "ThrottleInterval": int,
    "ExitTimeOut": int,
    "ProcessType": str,
    "SoftResourceLimits": dict,
    "StandardOutPath": str,
    "StandardErrorPath": str,
    "Umask": int,
    "UserName": str,
}


def test_a_property_list_says_what_to_run():
    """On macOS launchd would not take the file, or run the program elsewhere than beside its settings."""
    program = Path('/opt/my <programs> & "more"/100%/auxot-router')
    texts = launchd.unit_texts(attrs.evolve(UNIT, program=program))
    job = plistlib.loads(texts["com.auxot.router.a.plist"].encode(), fmt=plistlib.FMT_XML)
    assert {key: type(value) for key, value in job.items()} == LAUNCHD_KEYS
    assert job["Label"] == "com.auxot.router.a"  # launchd wants it to be the file's name
    assert job["ProgramArguments"] == [str(program)]
    assert (job["WorkingDirectory"], job["ExitTimeOut"], job["UserName"]) == ("/etc/auxot/router-a", 40, "auxot")
    assert (job["KeepAlive"], job["SoftResourceLimits"]) == ({"SuccessfulExit": False}, {"NumberOfFiles": 65536})
    assert job["ProcessType"] in ("Background", "Standard", "Adaptive", "Interactive")
    own = launchd.unit_texts(attrs.evolve(UNIT, scope=Scope.USER, user=None))["com.auxot.router.a.plist"]
    assert "UserName" not in plistlib.loads(own.encode())  # of an agent launchd says that it may not set it
