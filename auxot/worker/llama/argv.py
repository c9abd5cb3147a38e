"""The command line of llama-server, and its environment: pure.

The flags are llama.cpp's (`llama-server --help`, or tools/server/README.md of its source). What is not set here keeps
llama-server's default and can be set through its own LLAMA_ARG_* variables, which are passed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

BATCH_TOKENS = (
    512  # llama-server notices a cancelled prompt between two batches: its default of 2048 takes four times as long
)

# Ours hold keys; two tokens are for downloads; with LLAMA_API_KEY llama-server would refuse our own requests.
_WITHHELD_PREFIX = "AUXOT_"
_WITHHELD = frozenset({"HF_TOKEN", "GITHUB_TOKEN", "LLAMA_API_KEY", "LLAMA_ARG_API_KEY_FILE"})


@attrs.frozen(kw_only=True)
class LlamaSettings:
    """What llama-server is started with.

    Attributes:
        binary: the program.
        model: the GGUF file; of a split one the first part.
        slot_ctx_tokens: context of one slot; llama-server gets the sum, because it divides `--ctx-size` among slots.
        slots: how many jobs it runs at once; at least 1.
        mmproj: the vision projector, if the model has one.
        threads: CPU threads; 0: llama-server's choice.
        gpu_layers: how many layers go to the GPU; 0: llama-server's choice.
        cache_type: what the KV cache keeps its numbers in; "": llama-server's choice.
        devices: the GPUs that it is to use, as it calls them; none: its choice.
        shows_output: log all that it says (at level debug), not only what looks like trouble.
    """

    binary: Path
    model: Path
    slot_ctx_tokens: int
    slots: int
    mmproj: Path | None = None
    threads: int = 0
    gpu_layers: int = 0
    cache_type: str = ""
    devices: tuple[str, ...] = ()
    shows_output: bool = False


def llama_argv(settings: LlamaSettings, socket: Path) -> list[str]:
    """Return the command line.

    `--reasoning-budget` is not among the flags: 0 would switch thinking off for every request, and requests set it for
    themselves. `--swa-full` keeps the cache of sliding-window models whole, so that the next turn of a conversation
    finds its prefix there.

    Args:
        settings: what to serve.
        socket: the UNIX socket to listen on; llama-server takes a `--host` that ends in `.sock` as one.
    """
    argv = [str(settings.binary), "--model", str(settings.model)]
    if settings.mmproj is not None:
        argv += ["--mmproj", str(settings.mmproj)]
    argv += ["--ctx-size", str(settings.slot_ctx_tokens * settings.slots), "--parallel", str(settings.slots)]
    argv += ["--host", str(socket), "--batch-size", str(BATCH_TOKENS)]
    argv += ["--jinja", "--reasoning-format", "deepseek", "--swa-full"]
    if settings.threads > 0:
        argv += ["--threads", str(settings.threads)]
    if settings.gpu_layers > 0:
        argv += ["--n-gpu-layers", str(settings.gpu_layers)]
    if settings.devices:
        argv += ["--device", ",".join(settings.devices)]
    if settings.cache_type:
        argv += ["--cache-type-k", settings.cache_type, "--cache-type-v", settings.cache_type]
    return argv


def llama_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for llama-server: ours without the secrets in it."""
    return {name: value for name, value in environ.items() if not _is_withheld(name)}


def _is_withheld(name: str) -> bool:
    return name.startswith(_WITHHELD_PREFIX) or name in _WITHHELD
