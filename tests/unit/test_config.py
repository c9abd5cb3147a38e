from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot import kinds
from auxot.config import RouterConfig, WorkerConfig, load_router_config, load_worker_config, unknown_variables
from auxot.config_local import BenchConfig, DemoConfig, LlamaConfig, UpConfig, load_up_config
from auxot.core.errors import ConfigError
from auxot.core.keys import CHEAP, Role, generate_key, hash_key
from auxot.core.logs import Level
from auxot.core.sites import LLAMA_RELEASE, LLAMA_RELEASES
from auxot.knobs import MAX_DOTENV_BYTES, knobs_of, rows

KEY = generate_key(Role.WORKER)
HASH = hash_key(KEY, CHEAP)
ROUTER_ENV = {"AUXOT_ADMIN_KEY_HASH": HASH, "AUXOT_API_KEY_HASH": HASH}
WORKER_ENV = {"AUXOT_ROUTER_URL": "ws://127.0.0.1:8080", "AUXOT_GPU_KEY": KEY}
CLASSES = [RouterConfig, WorkerConfig, UpConfig, DemoConfig, LlamaConfig, BenchConfig]


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


def router(tmp_path, *argv, **environ):
    return load_router_config(argv, ROUTER_ENV | environ, tmp_path)


def fails(load, *argv, **environ):
    """Return the one line that the operator sees."""
    with pytest.raises(ConfigError) as excinfo:
        load(*argv, **environ)
    (line,) = str(excinfo.value).splitlines()
    return line


def test_router_defaults_are_those_of_the_original(tmp_path):
    """A router that took its defaults from the original would behave in another way."""
    config = router(tmp_path)
    assert attrs.asdict(config) == {
        "host": "0.0.0.0",
        "port": 8080,
        "redis_url": None,
        "admin_key_hash": HASH,
        "api_key_hash": HASH,
        "tools_key_hash": None,
        "api_keys_file": None,
        "model": "Qwen3-Coder-30B-A3B",
        "model_aliases": (),
        "quantization": "",
        "registry_file": None,
        "ctx_size": 131072,
        "max_parallel": 2,
        "worker_type": "gpu",
        "cli_type": "claude",
        "cli_tools": (),
        "heartbeat_interval_s": 15.0,
        "dead_worker_timeout_s": 45.0,
        "sweep_interval_s": 15.0,
        "job_timeout_s": 300.0,
        "queue_timeout_s": 300.0,
        "keep_alive_interval_s": 15.0,
        "max_queue": 10_000,
        "max_queue_bytes": 1024**3,
        "max_attempts": 3,
        "processes": 1,
        "affinity": True,
        "affinity_wait_s": 0.0,
        "max_body_bytes": 33554432,
        "cors_origins": (),
        "keep_billing_header": False,
        "shutdown_grace_s": 30.0,
        "shutdown_delay_s": 0.0,
        "auth_cache_ttl_s": 300.0,
        "allow_private_urls": False,
        "log_level": Level.INFO,
        "warnings": (),
    }


def test_worker_defaults_are_those_of_the_original(tmp_path, model):
    """A worker that took its defaults from the original would behave in another way."""
    config = load_worker_config(["--model-path", str(model)], WORKER_ENV, tmp_path)
    assert attrs.asdict(config) == {
        "router_url": "ws://127.0.0.1:8080",
        "gpu_key": KEY,
        "model_path": model,
        "registry_file": None,
        "cache_type": "f16",
        "memory": 0,
        "hf_endpoint": "https://huggingface.co",
        "hf_token": None,
        "llama_release": LLAMA_RELEASE,
        "llama_releases_url": LLAMA_RELEASES,
        "github_token": None,
        "models_dir": Path.home() / ".auxot/models",
        "llama_cache_dir": Path.home() / ".auxot/llama-server",
        "llama_binary": None,
        "llama_url": None,
        "heartbeat_interval_s": 10.0,
        "reconnect_delay_s": 2.0,
        "reconnect_max_delay_s": 60.0,
        "job_timeout_s": 1800.0,
        "threads": 0,
        "gpu_layers": 9999,
        "replicas": 0,
        "wedge_timeout_s": 300.0,
        "max_growth": 12_000_000_000,
        "log_level": Level.INFO,
        "debug": 0,
        "warnings": (),
    }


def test_tests_can_build_configurations_directly():
    """Tests would have to go through the environment."""
    assert RouterConfig(admin_key_hash=HASH, api_key_hash=HASH, heartbeat_interval_s=0.01).port == 8080
    assert WorkerConfig(router_url="ws://x", gpu_key=KEY).gpu_layers == 9999


def test_flag_beats_environment_beats_dotenv_beats_default(tmp_path):
    """An operator's override would not override."""
    (tmp_path / ".env").write_text("AUXOT_PORT=1\nAUXOT_HOST=dotenv\nAUXOT_MODEL='a b'\n")
    config = router(tmp_path, "--port", "3", AUXOT_PORT="2", AUXOT_HOST="environment")
    assert (config.port, config.host, config.model, config.max_parallel) == (3, "environment", "a b", 2)


def test_dotenv_has_quotes_comments_and_export_but_no_interpolation(tmp_path):
    """The `$` of a hash would be taken for a variable, or a file that worked before would not be read."""
    (tmp_path / ".env").write_text(
        f"# comment\nexport AUXOT_ADMIN_KEY_HASH='{HASH}'\n\nAUXOT_API_KEY_HASH={HASH} # why\n"
        'AUXOT_MODEL="${HOME} x"\r\nAUXOT_CLI_TOOLS=\nOTHER=1\n',
        newline="",
    )
    config = load_router_config([], {"HOME": "/nowhere"}, tmp_path)
    assert config.admin_key_hash == config.api_key_hash == HASH
    assert config.model == "${HOME} x"
    assert config.cli_tools == ()
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"AUXOT_PORT=1\nAUXOT_HOST\n", ".env, line 2: expected NAME=value"),
        (b"AUXOT_PORT=1\nAUXOT_MODEL='open\n", ".env, line 2: expected NAME=value"),
        (b"= 3\n", ".env, line 1: expected NAME=value"),
        (b"AUXOT_MODEL=\xff\n", ".env is not UTF-8 text"),
        (b"#" * (MAX_DOTENV_BYTES + 1), f".env is larger than {MAX_DOTENV_BYTES} bytes"),
        (b"AUXOT_PORT=many\n", "AUXOT_PORT (in .env): expected a whole number from 0 to 65535, got 'many'"),
    ],
)
def test_broken_dotenv_is_an_error(tmp_path, content, expected):
    """A typing error in .env would silently bring back a default."""
    (tmp_path / ".env").write_bytes(content)
    assert fails(router, tmp_path) == expected


def test_unreadable_dotenv_is_an_error(tmp_path):
    """A .env of another user would be ignored."""
    (tmp_path / ".env").mkdir()
    assert fails(router, tmp_path) == ".env cannot be read: Is a directory"


def test_empty_variable_is_not_set(tmp_path):
    """`AUXOT_PORT=${PORT:-}` in a compose file would be a bad number."""
    (tmp_path / ".env").write_text("AUXOT_PORT=1\n")
    assert router(tmp_path, AUXOT_PORT=" ").port == 8080  # it is in the environment, and that goes before .env


def test_a_file_of_keys_is_enough_to_let_callers_in(tmp_path):
    """A router whose keys all have names would need one more that has none."""
    environ = {"AUXOT_ADMIN_KEY_HASH": HASH, "AUXOT_API_KEYS_FILE": "keys.toml"}
    config = load_router_config([], environ, tmp_path)
    assert (config.api_key_hash, config.api_keys_file) == (None, Path("keys.toml"))


@pytest.mark.parametrize("missing", ["AUXOT_ADMIN_KEY_HASH", "AUXOT_API_KEY_HASH"])
def test_missing_hash_points_to_setup(tmp_path, missing):
    """A first user would not know where hashes come from; or the router would start open to all."""
    line = fails(load_router_config, [], {**ROUTER_ENV, missing: ""}, tmp_path)
    assert line.startswith(f"{missing} is required")
    assert "auxot-router setup" in line


@pytest.mark.parametrize("variable", ["AUXOT_ADMIN_KEY_HASH", "AUXOT_API_KEY_HASH", "AUXOT_TOOLS_KEY_HASH"])
@pytest.mark.parametrize("value", [KEY, "=19=65536,t=3,p=4", HASH[:-1], "$argon2i$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaA"])
def test_bad_hash_is_an_error_that_does_not_show_it(tmp_path, variable, value):
    """The router would start and refuse everybody; or print the key that somebody put there."""
    line = fails(router, tmp_path, **{variable: value})
    assert line.startswith(f"{variable}: expected an Argon2id hash")
    assert "single quotes" in line
    assert value not in line


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("AUXOT_PORT", "65536", "a whole number from 0 to 65535"),
        ("AUXOT_PORT", "-1", "a whole number from 0 to 65535"),
        ("AUXOT_PORT", "80.5", "a whole number from 0 to 65535"),
        ("AUXOT_PORT", "8080 # web", "a whole number from 0 to 65535"),
        ("AUXOT_PORT", "٣", "a whole number from 0 to 65535"),
        ("AUXOT_PORT", "9" * 5000, "a whole number from 0 to 65535"),
        ("AUXOT_MAX_PARALLEL", "0", "a whole number from 1 to 1024"),
        ("AUXOT_JOB_TIMEOUT", "15", "a duration such as 15s, 5m or 1h30m, from 100ms to 168h"),
        ("AUXOT_JOB_TIMEOUT", "-5m", "a duration"),
        ("AUXOT_JOB_TIMEOUT", "0", "a duration"),
        ("AUXOT_JOB_TIMEOUT", "5 m", "a duration"),
        ("AUXOT_JOB_TIMEOUT", "1d", "a duration"),
        ("AUXOT_JOB_TIMEOUT", "9" * 400 + "s", "a duration"),
        ("AUXOT_LOG_LEVEL", "verbose", "debug, info, warn or error"),
        ("AUXOT_WORKER_TYPE", "tpu", "gpu or cli"),
        ("AUXOT_MODEL", "a\nb", "a text without control characters"),
    ],
)
def test_bad_value_names_variable_value_and_what_is_allowed(tmp_path, variable, value, allowed):
    """A typing error would silently bring back a default, or be hard to find."""
    line = fails(router, tmp_path, **{variable: value})
    assert line.startswith(f"{variable}: expected {allowed}")
    assert repr(value)[:60] in line
    assert len(line) < 300


@pytest.mark.parametrize(("given", "replicas"), [("auto", 0), ("AUTO", 0), ("1", 1), ("64", 64)])
def test_replicas_are_a_number_or_worked_out(tmp_path, given, replicas, model):
    """The word of the documentation is refused, or a number not taken."""
    config = load_worker_config(["--model-path", str(model), "--replicas", given], WORKER_ENV, tmp_path)
    assert config.replicas == replicas
    for wrong in ("0", "65", "-1", "many"):
        with pytest.raises(ConfigError, match="expected auto, or a whole number from 1 to 64"):
            load_worker_config(["--model-path", str(model), "--replicas", wrong], WORKER_ENV, tmp_path)


def test_bad_flag_names_the_flag(tmp_path):
    """The operator would look in the environment for what stands on the command line."""
    assert fails(router, tmp_path, "--port", "x", AUXOT_PORT="1") == (
        "--port: expected a whole number from 0 to 65535, got 'x'"
    )


@pytest.mark.parametrize("url", ["localhost:6379", "http://user:hunter2@host", "redis://", "redis://a b"])
def test_bad_redis_url_is_not_shown(tmp_path, url):
    """The password of a Redis would be in a terminal or a journal."""
    line = fails(router, tmp_path, AUXOT_REDIS_URL=url)
    assert line == "AUXOT_REDIS_URL: expected redis://... or rediss://... or unix://..."


@pytest.mark.parametrize("url", ["redis://localhost", "rediss://:pw@host:6380/1", "unix:///run/redis.sock"])
def test_redis_url_is_kept_as_it_is(tmp_path, url):
    """A queue would be kept elsewhere."""
    assert router(tmp_path, AUXOT_REDIS_URL=url).redis_url == url


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--prot", "1"], "unknown argument --prot"),
        (["--max-par", "1"], "unknown argument --max-par"),
        (["--router=x"], "unknown argument --router"),
        (["surplus"], "unknown argument surplus"),
        ([KEY], f"unknown argument {KEY[:8]}"),
        ([f"--gpu={KEY}"], "unknown argument --gpu"),
        (["--port"], "argument --port: expected one argument"),
        (["--admin-key-hash", HASH], "unknown argument --admin-key-hash"),
        (["--redis-url", "redis://x"], "unknown argument --redis-url"),
    ],
)
def test_unknown_flag_is_an_error_without_its_value(tmp_path, argv, expected):
    """A misspelt flag would be ignored, and a key behind it would be shown or sent elsewhere."""
    assert fails(router, tmp_path, *argv) == f"{expected} (see `auxot-router --help`)"


def test_times_that_contradict_each_other_are_an_error(tmp_path, model):
    """Living workers would be declared dead between two heartbeats."""
    line = fails(router, tmp_path, AUXOT_HEARTBEAT_INTERVAL="1m")
    assert line == "AUXOT_DEAD_WORKER_TIMEOUT must be longer than AUXOT_HEARTBEAT_INTERVAL"
    environ = WORKER_ENV | {"AUXOT_MODEL_FILE": str(model), "AUXOT_RECONNECT_MAX_DELAY": "1s"}
    line = fails(load_worker_config, [], environ, tmp_path)
    assert line == "AUXOT_RECONNECT_MAX_DELAY must not be shorter than AUXOT_RECONNECT_DELAY"


def test_aliases_are_names_of_the_routers_own_model(tmp_path):
    """A request for an alias of a model that nobody serves would be answered by another model."""
    config = router(tmp_path, AUXOT_MODEL="m", AUXOT_MODEL_ALIASES="gpt-4o=m, claude-* , big = m")
    assert config.model_aliases == (("gpt-4o", "m"), ("claude-*", ""), ("big", "m"))
    refused = fails(router, tmp_path, AUXOT_MODEL="m", AUXOT_MODEL_ALIASES="gpt-4o=other")
    assert refused == "AUXOT_MODEL_ALIASES: gpt-4o=other: the model of this router is 'm'"
    for broken in ("=m", "gpt-4o=", "a,=", "a\tb"):
        assert "expected names or patterns" in fails(router, tmp_path, AUXOT_MODEL="m", AUXOT_MODEL_ALIASES=broken)


@pytest.mark.parametrize(
    ("given", "origins"),
    [
        ("*", ("*",)),
        ("https://App.example.com, http://localhost:3000", ("https://app.example.com", "http://localhost:3000")),
        ("http://[::1]:8080,app://obsidian.md", ("http://[::1]:8080", "app://obsidian.md")),
        ("example.com", None),
        ("https://example.com/", None),
        ("https://*.example.com", None),
        ("null", None),
    ],
)
def test_origins_are_as_browsers_send_them(tmp_path, given, origins):
    """An origin that can never match would be taken for a setting that works."""
    if origins is None:
        assert "expected origins" in fails(router, tmp_path, AUXOT_CORS_ORIGINS=given)
    else:
        assert router(tmp_path, AUXOT_CORS_ORIGINS=given).cors_origins == origins


def test_cli_workers_have_their_own_defaults(tmp_path):
    """A coding assistant would get two jobs at once and the name of a GGUF model; or a set value would be lost."""
    config = router(tmp_path, AUXOT_WORKER_TYPE="CLI", AUXOT_CLI_TOOLS=" Read, Bash ,")
    assert (config.max_parallel, config.ctx_size, config.model) == (1, 200_000, "")
    assert config.cli_tools == ("Read", "Bash")
    config = router(tmp_path, "--max-parallel", "4", AUXOT_WORKER_TYPE="cli", AUXOT_MODEL="opus")
    assert (config.max_parallel, config.model) == (4, "opus")


def test_worker_has_no_default_router(tmp_path, model):
    """A worker that forgot its router would send its key to a stranger."""
    line = fails(load_worker_config, ["--model-path", str(model)], {"AUXOT_GPU_KEY": KEY}, tmp_path)
    assert line.startswith("AUXOT_ROUTER_URL or --router-url is required")


def test_worker_needs_a_key_that_could_be_one(tmp_path, model):
    """A worker would try a key for ever that cannot be one; or the error would show it."""
    environ = WORKER_ENV | {"AUXOT_MODEL_FILE": str(model)}
    line = fails(load_worker_config, [], environ | {"AUXOT_GPU_KEY": "hunter2"}, tmp_path)
    assert line == "AUXOT_GPU_KEY: expected a key: a prefix such as adm_ and 43 characters"
    line = fails(load_worker_config, [], environ | {"AUXOT_GPU_KEY": ""}, tmp_path)
    assert line.startswith("AUXOT_GPU_KEY or --gpu-key is required")
    config = load_worker_config(["--gpu-key", f"gpu_{KEY[4:]}"], environ, tmp_path)
    assert config.gpu_key == f"gpu_{KEY[4:]}"


def test_worker_needs_a_model_that_is_there(tmp_path, model):
    """A worker would join the router and then find that it has nothing to serve."""
    assert load_worker_config([], WORKER_ENV, tmp_path).model_path is None  # the router's, then
    line = fails(load_worker_config, [f"--model-path={model}x"], WORKER_ENV, tmp_path)
    assert line.endswith(f"there is no file '{model}x'")
    config = load_worker_config(["--llama-url", "http://127.0.0.1:8081"], WORKER_ENV, tmp_path)
    assert (config.llama_url, config.model_path) == ("http://127.0.0.1:8081", None)


@pytest.mark.parametrize(
    ("argv", "debug"), [([], 0), (["--debug"], 1), (["--debug", "2"], 2), (["--debug", "--threads", "3"], 1)]
)
def test_debug_flag_may_stand_alone(tmp_path, model, argv, debug):
    """`--debug` as the original has it would be an error."""
    config = load_worker_config([*argv, f"--model-path={model}"], WORKER_ENV, tmp_path)
    assert config.debug == debug


def test_negative_number_of_layers_is_a_value(tmp_path, model):
    """`--gpu-layers -1` would be taken for a flag."""
    config = load_worker_config(["--gpu-layers", "-1", "--model-path", str(model)], WORKER_ENV, tmp_path)
    assert config.gpu_layers == -1


def test_tilde_is_the_home_folder(tmp_path):
    """A folder named ~ would appear in the working folder."""
    environ = WORKER_ENV | {"AUXOT_LLAMA_URL": "http://x", "AUXOT_MODELS_DIR": "~/models"}
    assert load_worker_config([], environ, tmp_path).models_dir == Path.home() / "models"


def test_unknown_variables_are_told_with_the_nearest_known(tmp_path):
    """A misspelt variable would have no effect and nobody would know."""
    config = router(
        tmp_path,
        AUXOT_MAX_PARALEL="8",
        AUXOT_ALLOWED_TOOLS="web_fetch",
        AUXOT_TOOLS_WEB__TOKEN="hunter2",
        AUXOT_XYZZY="hunter2",
        AUXOT_GPU_KEY=KEY,  # the worker's: no warning
        AUXOT_TOOLS_KEY=KEY,
        PATH="/bin",
    )
    assert config.warnings == (
        "AUXOT_ALLOWED_TOOLS has no effect in this version",
        "AUXOT_MAX_PARALEL is not a setting: is AUXOT_MAX_PARALLEL meant?",
        "AUXOT_TOOLS_WEB__TOKEN has no effect in this version",
        "AUXOT_XYZZY is not a setting",
    )


def test_warnings_are_bounded():
    """A strange environment would fill the log."""
    assert len(unknown_variables([f"AUXOT_QQ{n}" for n in range(1000)])) == 20


def test_variables_of_the_worker_and_of_dotenv_are_checked_too(tmp_path, model):
    """The same for the other daemon and the file."""
    (tmp_path / ".env").write_text("AUXOT_THREDS=3\n")
    config = load_worker_config([f"--model-path={model}"], WORKER_ENV, tmp_path)
    assert config.warnings == ("AUXOT_THREDS is not a setting: is AUXOT_THREADS meant?",)


def test_secrets_are_not_in_the_repr(tmp_path, model):
    """A crash report that shows the configuration would show its secrets."""
    assert "hunter2" not in repr(router(tmp_path, AUXOT_REDIS_URL="redis://:hunter2@h", AUXOT_TOOLS_KEY_HASH=HASH))
    assert HASH not in repr(router(tmp_path))
    assert KEY not in repr(load_worker_config([f"--model-path={model}"], WORKER_ENV, tmp_path))


@pytest.mark.parametrize("cls", CLASSES)
def test_every_setting_is_in_the_table(cls):
    """A setting would be missing from the documentation and from --help."""
    table = list(rows(cls))
    assert [row.name for row in table] == [field.name for field in attrs.fields(cls) if field.name != "warnings"]
    assert all(row.help and (row.variable or row.flag) for row in table)
    assert len({row.flag for row in table if row.flag}) == sum(bool(row.flag) for row in table)


@pytest.mark.parametrize("cls", CLASSES)
def test_defaults_in_the_table_can_be_set(cls):
    """The documentation would show a default that the program does not take, or that means another value."""
    defaults = {field.name: field.default for field in attrs.fields(cls)}
    for row in rows(cls):
        if row.default:
            default = defaults[row.name]
            value = default.factory() if hasattr(default, "factory") else default
            assert knobs_of(cls)[row.name].kind.parse(row.default) == value


def test_only_the_workers_key_is_a_secret_with_a_flag():
    """Another secret would be readable in the list of processes."""
    secrets = {one.flag for cls in CLASSES for one in knobs_of(cls).values() if one.is_secret}
    assert secrets == {None, "--gpu-key"}


def test_up_shares_settings_with_the_daemons(tmp_path, model):
    """`auxot up` would not understand what the router and the worker understand."""
    environ = {"AUXOT_PORT": "9000", "AUXOT_LLAMA_BINARY": "/opt/llama-server", "AUXOT_GPU_LAYERS": "5"}
    config = load_up_config(["--model-path", str(model), "--max-parallel", "4"], environ, tmp_path)
    assert (config.port, config.host, config.max_parallel, config.gpu_layers) == (9000, "127.0.0.1", 4, 5)
    assert config.llama_binary == Path("/opt/llama-server")
    assert fails(load_up_config, [], {}, tmp_path).startswith("AUXOT_MODEL_FILE or --model-path is required")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15s", 15),
        ("5m", 300),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("1.5s", 1.5),
        (".5h", 1800),
        ("0", 0),
        ("1h2m3.5s", 3723.5),
        ("250us", 0.00025),
        ("250µs", 0.00025),
        ("100ns", 1e-7),
    ],
)
def test_durations_have_gos_syntax(text, seconds):
    """A value that the original takes would be an error here."""
    assert kinds.parse_duration(text) == pytest.approx(seconds)


@given(st.text(alphabet="0123456789.hmsnuµ -+", max_size=12))
def test_durations_are_read_or_refused(text):
    """A strange duration would crash with another error, or be read in part."""
    try:
        seconds = kinds.parse_duration(text)
    except ValueError:
        return
    assert seconds >= 0
    assert text.strip("0123456789.hmsnuµ") == ""


@given(st.integers(0, 10**9))
def test_shown_duration_is_read_back(milliseconds):
    """The documentation would show a duration that means another."""
    seconds = milliseconds / 1000
    assert kinds.parse_duration(kinds.show_duration(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("YES", True), ("1", True), ("false", False), ("0", False), ("off", False)]
)
def test_booleans(text, value):
    """A switch would be on when it says off."""
    assert kinds.boolean().parse(text) is value


@pytest.mark.parametrize("text", ["", "2", "maybe", "truee"])
def test_what_is_no_boolean_is_refused(text):
    """A typing error would switch something off."""
    with pytest.raises(ValueError, match=r"^$"):
        kinds.boolean().parse(text)
