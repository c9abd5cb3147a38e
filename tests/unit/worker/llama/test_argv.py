from __future__ import annotations

from pathlib import Path

from auxot.worker.llama.argv import LlamaSettings, llama_argv, llama_environment

SETTINGS = LlamaSettings(binary=Path("/opt/llama-server"), model=Path("/m/x.gguf"), slot_ctx_tokens=4096, slots=3)


def flag(argv: list[str], name: str) -> str:
    return argv[argv.index(name) + 1]


def test_context_is_that_of_all_slots() -> None:
    """A slot gets only its share of the policy's context."""
    argv = llama_argv(SETTINGS, Path("/tmp/l.sock"))
    assert argv[0] == "/opt/llama-server"
    assert (flag(argv, "--ctx-size"), flag(argv, "--parallel")) == ("12288", "3")
    assert (flag(argv, "--model"), flag(argv, "--host")) == ("/m/x.gguf", "/tmp/l.sock")


def test_thinking_is_left_on() -> None:
    """`--reasoning-budget 0` switches thinking off for every request."""
    assert "--reasoning-budget" not in llama_argv(SETTINGS, Path("/tmp/l.sock"))


def test_optional_flags_only_when_set() -> None:
    """A flag is passed with a value that llama-server does not take, or a setting is not passed."""
    bare = llama_argv(SETTINGS, Path("/tmp/l.sock"))
    assert not {"--threads", "--n-gpu-layers", "--mmproj", "--device"} & set(bare)
    full = LlamaSettings(
        binary=Path("l"),
        model=Path("m"),
        slot_ctx_tokens=1,
        slots=1,
        mmproj=Path("p"),
        threads=4,
        gpu_layers=99,
        devices=("CUDA0", "CUDA2"),
    )
    argv = llama_argv(full, Path("/tmp/l.sock"))
    assert (flag(argv, "--mmproj"), flag(argv, "--threads"), flag(argv, "--n-gpu-layers")) == ("p", "4", "99")
    assert flag(argv, "--device") == "CUDA0,CUDA2"


def test_secrets_do_not_reach_the_process() -> None:
    """llama-server's environment, which crash reports show, holds the worker's key."""
    environ = {"AUXOT_GPU_KEY": "adm_x", "HF_TOKEN": "t", "LLAMA_API_KEY": "k", "PATH": "/bin", "LLAMA_ARG_FIT": "off"}
    assert llama_environment(environ) == {"PATH": "/bin", "LLAMA_ARG_FIT": "off"}
