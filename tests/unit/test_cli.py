from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio

import auxot
from auxot import cli, setup
from auxot.cli_progress import Progress
from auxot.config import load_router_config
from auxot.core import logs
from auxot.core.errors import AuxotError, ConfigError, KeyRefusedError, LlamaError
from auxot.core.keys import CHEAP, Role, generate_key, hash_key, key_digest, verify_key
from auxot.router.keyring import parse_keys

ROOT = Path(auxot.__file__).parent.parent
HASH = hash_key(generate_key(Role.API), CHEAP)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working folder, and no settings from the outside."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("AUXOT_")]:
        monkeypatch.delenv(name)
    yield tmp_path
    logs.configure()


def program(outcome):
    """A program whose only command ends with that: a code to return or an exception to raise."""

    def command(_argv):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return cli.Program(
        name="prog", commands={"serve": cli.Command(command, lambda: "help")}, default="serve", help=lambda: "help"
    )


def keys_in(text):
    """The keys that a text shows, by the variable that their prefix belongs to."""
    found = dict(re.findall(r"\b((?:adm|rtr|tls)_)([A-Za-z0-9_-]{43})", text))
    return {role: f"{role.value}_{found[f'{role.value}_']}" for role in Role if f"{role.value}_" in found}


def hashes_in(text):
    return dict(re.findall(r"(AUXOT_[A-Z]+_KEY_HASH)='(\$argon2id\$[^']+)'", text))


@pytest.mark.parametrize(
    ("outcome", "code", "line"),
    [
        (0, 0, ""),
        (5, 5, ""),
        (ConfigError("bad port"), 2, "prog: bad port"),
        (KeyRefusedError("the router refuses the key"), 3, "prog: the router refuses the key"),
        (LlamaError("no llama-server"), 1, "prog: no llama-server"),
        (KeyboardInterrupt(), 130, ""),
        (ExceptionGroup("g", [ExceptionGroup("h", [KeyRefusedError("no")])]), 3, "prog: no"),
        (BaseExceptionGroup("g", [KeyboardInterrupt(), AuxotError("late")]), 1, "prog: late"),
        (BaseExceptionGroup("g", [KeyboardInterrupt(), KeyboardInterrupt()]), 130, ""),
        (ExceptionGroup("g", [AuxotError("a"), ConfigError("b")]), 2, "prog: b"),
    ],
)
def test_exit_code_and_one_line(capsys, outcome, code, line):
    """A service manager would restart what cannot work, and the operator would read a traceback."""
    assert cli.run(program(outcome), []) == code
    captured = capsys.readouterr()
    assert captured.err.strip() == line
    assert captured.out == ""


@pytest.mark.parametrize("crash", [ZeroDivisionError("x"), ExceptionGroup("g", [AuxotError("a"), ValueError("x")])])
def test_crash_is_logged_with_its_traceback(capsys, crash):
    """A bug would be taken for an operator's mistake."""
    assert cli.run(program(crash), []) == 1
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["program"]) == ("main.crashed", "prog")
    assert "Traceback" in line["traceback"]


@pytest.mark.parametrize("one", [cli.ROUTER, cli.WORKER, cli.AUXOT])
@pytest.mark.parametrize("argv", [["help"], ["--help"], ["-h"]])
def test_help_tells_how_to_call_it(capsys, one, argv):
    """A new user would not find the commands."""
    assert cli.run(one, argv) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"usage: {one.name} ")
    assert captured.err == ""


@pytest.mark.parametrize(
    ("one", "argv", "words"),
    [
        (cli.ROUTER, ["serve", "--help"], ["--max-parallel", "AUXOT_API_KEY_HASH", "default 5m"]),
        (cli.ROUTER, ["setup", "-h"], ["--write-env", "--fly", "--cli", "--new-tools-key", "--model"]),
        (cli.WORKER, ["--port", "-h"], ["--gpu-key", "prefer the variable"]),
        (cli.WORKER, ["llama", "--help"], ["--backend", "vulkan", "--portable", "--force"]),
        (cli.AUXOT, ["demo", "--help"], ["--serve"]),
        (cli.AUXOT, ["up", "--help"], ["--model-path", "127.0.0.1"]),
    ],
)
def test_each_command_has_its_help(capsys, one, argv, words):
    """A user would have to read the source for a flag."""
    assert cli.run(one, argv) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(word in text for word in words)


@pytest.mark.parametrize("one", [cli.ROUTER, cli.WORKER, cli.AUXOT])
@pytest.mark.parametrize("argv", [["version"], ["--version"]])
def test_version_is_that_of_the_release(capsys, one, argv):
    """A bug report would name the wrong version."""
    assert cli.run(one, argv) == 0
    assert capsys.readouterr().out == f"{one.name} v{auxot.__version__}\n"


@pytest.mark.parametrize(
    ("one", "argv", "line"),
    [
        (cli.ROUTER, ["sevre"], "auxot-router: unknown command 'sevre' (see `auxot-router --help`)"),
        (cli.ROUTER, ["--prot", "1"], "auxot-router: unknown argument --prot (see `auxot-router --help`)"),
        (
            cli.ROUTER,
            ["serve", "--port", "x"],
            "auxot-router: --port: expected a whole number from 0 to 65535, got 'x'",
        ),
        (cli.ROUTER, ["setup", "--mdl"], "auxot-router: unknown argument --mdl (see `auxot-router setup --help`)"),
        (cli.WORKER, ["cache"], "auxot-worker: expected `auxot-worker cache list` or `auxot-worker cache prune`"),
        (
            cli.WORKER,
            ["llama", "build", "--backend", "tpu"],
            "auxot-worker: --backend: expected cpu or cuda or vulkan or metal, got 'tpu'",
        ),
        (cli.AUXOT, ["demo", "--serve=perhaps"], "auxot: --serve: expected true or false, got 'perhaps'"),
        (cli.AUXOT, ["up"], "auxot: AUXOT_MODEL_FILE or --model-path is required: the GGUF file of the model"),
        (cli.AUXOT, ["--port", "1"], "auxot: unknown command '--port' (see `auxot --help`)"),
    ],
)
def test_bad_command_line_is_one_line_and_code_2(capsys, one, argv, line):
    """A typing error would start something else."""
    assert cli.run(one, argv) == 2
    captured = capsys.readouterr()
    assert captured.err == line + "\n"
    assert captured.out == ""


def test_router_without_hashes_points_to_setup(capsys):
    """The first start would fail without a word on what to do."""
    assert cli.run(cli.ROUTER, []) == 2
    assert "`auxot-router setup` makes one" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["auxot_router", "--help"], ["auxot_router", "version"], ["auxot_worker", "help"], ["auxot", "version"]]
)
def test_help_and_version_do_not_import_the_daemons(command):
    """`--help` would take half a second."""
    script = (
        "import sys; from auxot import cli; name = sys.argv.pop(1)\n"
        "try: getattr(cli, name)()\n"
        "except SystemExit as exc: assert exc.code == 0, exc.code\n"
        "heavy = {'trio', 'quart', 'hypercorn', 'redis', 'fakeredis', 'httpx', 'trio_websocket', 'websockets'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *command], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_module_runs_as_auxot():
    """`python -m auxot` would not be `auxot`."""
    done = subprocess.run(
        [sys.executable, "-m", "auxot", "version"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == f"auxot v{auxot.__version__}\n"


def test_setup_shows_keys_and_a_file_that_the_router_reads(capsys, folder):
    """The keys that setup shows would not open the router that it sets up."""
    assert cli.run(cli.ROUTER, ["setup", "--model", "My Model"]) == 0
    text = capsys.readouterr().out
    assert list(folder.iterdir()) == []
    keys, hashes = keys_in(text), hashes_in(text)
    assert set(keys) == set(Role)
    for role, variable in setup.HASH_VARIABLES.items():
        assert hashes[variable].startswith("$argon2id$v=19$m=65536,t=3,p=4$")
        assert verify_key(keys[role], hashes[variable])
    (folder / ".env").write_text(text[text.index("# Written by") :])
    config = load_router_config([], {}, folder)
    assert (config.admin_key_hash, config.model) == (hashes["AUXOT_ADMIN_KEY_HASH"], "My Model")


def test_setup_leaves_a_tools_key_in_use_alone(capsys, monkeypatch):
    """Tools workers would be locked out by a second setup."""
    monkeypatch.setenv("AUXOT_TOOLS_KEY_HASH", HASH)
    assert cli.run(cli.ROUTER, ["setup"]) == 0
    text = capsys.readouterr().out
    assert set(keys_in(text)) == {Role.WORKER, Role.API}
    assert "AUXOT_TOOLS_KEY_HASH" not in hashes_in(text)
    assert "# AUXOT_TOOLS_KEY_HASH=" in text


@pytest.mark.parametrize(("argv", "worker_type"), [([], "gpu"), (["--cli"], "cli")])
def test_write_env_writes_a_private_file_once(capsys, folder, argv, worker_type):
    """Hashes would be readable by others, or keys in use would be lost."""
    assert cli.run(cli.ROUTER, ["setup", "--write-env", *argv]) == 0
    first = capsys.readouterr().out
    file = folder / ".env"
    content = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not keys_in(content)
    config = load_router_config([], {}, folder)
    assert config.worker_type == worker_type
    assert verify_key(keys_in(first)[Role.API], config.api_key_hash or "")
    assert verify_key(keys_in(first)[Role.WORKER], config.admin_key_hash)
    assert cli.run(cli.ROUTER, ["setup", "--write-env"]) == 1
    captured = capsys.readouterr()
    assert not keys_in(captured.out)
    assert captured.err.startswith("auxot-router: .env exists already")
    assert file.read_text() == content


def test_write_env_does_not_follow_a_link(folder):
    """A link that somebody laid would have the file written elsewhere."""
    (folder / ".env").symlink_to(folder / "elsewhere")
    assert cli.run(cli.ROUTER, ["setup", "--write-env"]) == 1
    with pytest.raises(AuxotError, match=r"\.env cannot be written: File exists"):
        setup.write_env(folder / ".env", "X=1\n")
    assert not (folder / "elsewhere").exists()


def test_write_env_that_fails_leaves_nothing(folder):
    """A start after a full disk would find half a file."""
    with pytest.raises(AuxotError, match=r"^\.env cannot be written: No such file or directory$"):
        setup.write_env(folder / "missing" / ".env", "X=1\n")


def test_fly_shows_one_command_a_shell_understands(capsys):
    """The `$` of the hashes would be taken away by the shell."""
    assert cli.run(cli.ROUTER, ["setup", "--fly", "--model", "My Model"]) == 0
    text = capsys.readouterr().out
    script = 'fly() { shift 2; printf "%s\\n" "$@"; }\n' + text
    shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=10, check=True).stdout
    secrets = dict(line.split("=", 1) for line in shown.splitlines())
    assert secrets["AUXOT_MODEL"] == "My Model"
    for role, key in keys_in(text).items():
        assert verify_key(key, secrets[setup.HASH_VARIABLES[role]])


def test_new_tools_key_is_the_only_thing_made(capsys, folder):
    """The other keys would be replaced too."""
    assert cli.run(cli.ROUTER, ["setup", "--new-tools-key"]) == 0
    text = capsys.readouterr().out
    assert set(keys_in(text)) == {Role.TOOLS}
    assert verify_key(keys_in(text)[Role.TOOLS], hashes_in(text)["AUXOT_TOOLS_KEY_HASH"])
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "argv",
    [["--fly", "--write-env"], ["--fly", "--cli"], ["--new-tools-key", "--fly"], ["--new-tools-key", "--write-env"]],
)
def test_setup_refuses_what_does_not_go_together(capsys, folder, argv):
    """One of two wishes would be ignored without a word."""
    assert cli.run(cli.ROUTER, ["setup", *argv]) == 2
    assert not keys_in(capsys.readouterr().out)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("model", ["it's", "a\\b", "a\nAUXOT_PORT=1"])
def test_setup_refuses_a_model_name_that_files_would_misread(capsys, model):
    """A name could write further settings into .env."""
    assert cli.run(cli.ROUTER, ["setup", "--model", model]) == 2
    assert not hashes_in(capsys.readouterr().out)


def test_new_key_is_not_in_its_repr():
    """A traceback that shows it would show the key."""
    key = setup.make_key(Role.API, CHEAP)
    assert key.key not in repr(key)
    assert key.phc not in repr(key)


def test_llama_find_prints_the_path(capsys, folder):
    """Scripts could not ask which llama-server will run."""
    binary = folder / "llama-server"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    assert cli.run(cli.WORKER, ["llama", "find", "--llama-server-path", str(binary)]) == 0
    assert capsys.readouterr().out == f"{binary}\n"


def test_llama_find_says_what_to_do_without_one(capsys, folder, monkeypatch):
    """A user without llama-server would read a traceback."""
    monkeypatch.setenv("PATH", str(folder))
    assert cli.run(cli.WORKER, ["llama", "find", "--llama-cache-dir", str(folder)]) == 1
    assert "auxot-worker llama build" in capsys.readouterr().err


def test_build_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(capsys):
    """A log file would be full of bars, or a user would see nothing for five minutes."""
    from auxot.worker.llama.build import BuildProgress  # noqa: PLC0415 - imports what the commands import late

    for is_terminal in (True, False):
        with Progress(is_terminal=is_terminal) as report:
            report("downloading")
            for done in range(101):
                report(BuildProgress(done=done, total=100, step="compiling"))
            report("checking")
        captured = capsys.readouterr()
        assert captured.out == ""
        if is_terminal:
            assert captured.err.count("\r[") == 101
            assert f"[{'#' * 30}] 100/100 compiling\x1b[K\nchecking\n" in captured.err
        else:
            assert len(captured.err.splitlines()) == 2 + 11
            assert "\r" not in captured.err


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_download_is_shown_with_its_speed(capsys, is_terminal):
    """A user waits for an hour and does not know for how long still; a log file gets a line every second."""
    from auxot.worker.fetch.source import FetchProgress  # noqa: PLC0415

    with Progress(is_terminal=is_terminal) as report:
        for done in range(0, 4 * 10**9 + 1, 10**7):
            speed = done / 100
            report(
                FetchProgress(
                    name="m.gguf", doing="downloading", done_bytes=done, total_bytes=4 * 10**9, bytes_per_s=speed
                )
            )
    shown = capsys.readouterr().err
    if is_terminal:
        assert f"[{'#' * 15}{'.' * 15}] 2.0 GB/4.0 GB downloading m.gguf, 20.0 MB/s" in shown
    else:
        assert len(shown.splitlines()) == 11
        assert "downloading m.gguf, 20.0 MB/s: 2.0 GB of 4.0 GB\n" in shown


def test_reader_that_went_away_is_no_crash():
    """`auxot-router --help | head -1` would print a traceback."""
    script = "import sys; from auxot import cli; sys.argv[1:] = ['--help']; sys.stdin.read(); cli.auxot_router()"
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=write_fd,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )
    os.close(write_fd)
    assert (done.returncode, done.stderr) == (1, "")


def test_unknown_variables_are_logged_at_start(capsys):
    """A misspelt variable would have no effect and nobody would know."""
    cli._start_logs(logs.Level.INFO, ("AUXOT_PROT is not a setting: is AUXOT_PORT meant?",))
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["event"]) == ("warning", "config.no_effect")
    assert "AUXOT_PROT" in line["message"]


def test_trio_groups_are_unwrapped(capsys):
    """What a daemon's nursery raises would be printed as a crash."""

    async def daemon():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise KeyRefusedError("refused")

    one = cli.Program(
        name="prog",
        commands={"serve": cli.Command(lambda _argv: trio.run(daemon), lambda: "")},
        default="serve",
        help=lambda: "",
    )
    assert cli.run(one, []) == 3
    assert capsys.readouterr().err == "prog: refused\n"


def test_a_new_api_key_comes_with_the_entry_that_opens_for_it(capsys):
    """A key would be made that no router knows."""
    assert cli.run(cli.ROUTER, ["setup", "--new-api-key", "team-a"]) == 0
    told = capsys.readouterr().out
    key = next(word for word in told.split() if word.startswith("rtr_"))
    (entry,) = parse_keys(told[told.index("[[key]]") :].encode())
    assert (entry.principal.name, entry.digest) == ("team-a", key_digest(key))


@pytest.mark.parametrize("name", ["", "default", "a b", "x" * 65])
def test_a_name_that_no_key_can_have_is_refused(name, capsys):
    """An entry would be shown that the router refuses."""
    assert cli.run(cli.ROUTER, ["setup", "--new-api-key", name]) == cli.EXIT_BAD_CONFIG
    assert "rtr_" not in capsys.readouterr().out
