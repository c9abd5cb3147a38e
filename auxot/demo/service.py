"""`auxot demo` and `auxot up`: the main job on one machine, from nothing.

Demo: a model whose answers are known, one question through each API, how to call it, and a clean end. Up: the same for
the user's own GGUF, with keys that stay.
"""

from __future__ import annotations

import os
import signal
import tempfile
from functools import partial
from pathlib import Path
from typing import Protocol

import trio

from auxot.config import RouterConfig, WorkerConfig
from auxot.config_local import DemoConfig, UpConfig
from auxot.core.keys import CHEAP, STANDARD
from auxot.demo.house import running_house
from auxot.demo.local_keys import LocalKeys, load_or_make_keys, new_keys
from auxot.demo.question import Question, anthropic_question, ask, openai_question
from auxot.demo.tiny_model import write_tiny_model
from auxot.worker.llama.binary import find_llama_server

DEMO_MODEL = "tiny-bigram"
DEMO_SLOTS = 4
DEMO_CTX_TOKENS = 16_384  # of a slot; 256 bytes of memory each
LOOPBACK = "127.0.0.1"
_ANY_HOST = ("0.0.0.0", "::")  # noqa: S104 -- compared with, not bound


class Out(Protocol):
    """Shows text to the person at the terminal."""

    def __call__(self, text: str, *, end: str = "\n") -> None:
        """Show it."""


async def run_demo(config: DemoConfig, *, out: Out) -> int:
    """Run the demo; return the exit code.

    Raises:
        AuxotError: llama-server is missing or does not start, or an answer is not what it must be.
    """
    binary = find_llama_server(given=config.llama_binary, cache_dir=config.llama_cache_dir)
    out(f"llama-server: {binary}")
    keys = new_keys(CHEAP)  # they live as long as this process
    with tempfile.TemporaryDirectory(prefix="auxot-demo-") as folder:
        model = Path(folder) / "tiny.gguf"
        await trio.to_thread.run_sync(write_tiny_model, model)
        out("starting a router, a worker and llama-server ...")
        make_worker = partial(
            _worker_config, keys, model=model, llama_binary=binary, llama_cache_dir=config.llama_cache_dir
        )
        async with running_house(_demo_router(config, keys), make_worker) as router:
            url = f"http://{LOOPBACK}:{router.addresses[0][1]}"
            out(f"ready: {url}\n")
            for question in _questions(keys.api_key):
                await _show_answer(question, base_url=url, out=out)
            out(how_to_call(url, keys.api_key if config.serve else "YOUR_KEY", DEMO_MODEL))
            if config.serve:
                await _wait_for_signal(out)
            out("stopping ...")
    out("stopped; nothing is left running")
    return 0


async def run_up(config: UpConfig, *, out: Out) -> int:
    """Serve the user's model until a signal; return the exit code.

    Raises:
        AuxotError: something could not start, or ended by itself.
    """
    binary = find_llama_server(given=config.llama_binary, cache_dir=config.llama_cache_dir)
    make_keys = partial(load_or_make_keys, Path.cwd(), os.environ, STANDARD)
    keys = await trio.to_thread.run_sync(make_keys)
    if keys.is_new:
        out("new keys: written to ./.env, which only you can read")
    model_name = config.model or config.model_path.stem
    router_config = RouterConfig(
        host=config.host,
        port=config.port,
        admin_key_hash=keys.admin_key_hash,
        api_key_hash=keys.api_key_hash,
        model=model_name,
        ctx_size=config.ctx_size,
        max_parallel=config.max_parallel,
    )
    make_worker = partial(
        _worker_config,
        keys,
        model=config.model_path,
        llama_binary=binary,
        llama_cache_dir=config.llama_cache_dir,
        threads=config.threads,
        gpu_layers=config.gpu_layers,
    )
    out(f"loading {config.model_path.name} ...")
    async with running_house(router_config, make_worker) as router:
        host = LOOPBACK if config.host in _ANY_HOST else config.host
        out(f"ready, {config.max_parallel} slots of {config.ctx_size} tokens\n")
        out(how_to_call(f"http://{host}:{router.addresses[0][1]}", keys.api_key, model_name))
        await _wait_for_signal(out)
        out("stopping ...")
    return 0


def how_to_call(url: str, key: str, model: str) -> str:
    """Return how to call the router: curl and both SDKs."""
    return f"""\
call it:
  curl {url}/v1/chat/completions -H "Authorization: Bearer {key}" \\
    -d '{{"model":"{model}","messages":[{{"role":"user","content":"hello"}}]}}'

  from openai import OpenAI
  OpenAI(base_url="{url}/v1", api_key="{key}")

  from anthropic import Anthropic
  Anthropic(base_url="{url}/api/anthropic", api_key="{key}")
"""


def _questions(key: str) -> tuple[Question, Question]:
    return openai_question(key, "What do you see?"), anthropic_question(key, "What do you see?")


async def _show_answer(question: Question, *, base_url: str, out: Out) -> None:
    out(f"{question.api} ({question.path}):\n  ", end="")
    timing = await ask(question, base_url=base_url, show=lambda text: out(text, end=""))
    speed = f"{timing.tokens_per_s:.0f} tokens/s" if timing.tokens_per_s else "one token"
    out(f"\n  first token after {timing.first_token_s * 1000:.1f} ms, {timing.n_tokens} tokens at {speed}\n")


def _demo_router(config: DemoConfig, keys: LocalKeys) -> RouterConfig:
    return RouterConfig(
        host=LOOPBACK,
        port=config.port,
        admin_key_hash=keys.admin_key_hash,
        api_key_hash=keys.api_key_hash,
        model=DEMO_MODEL,
        ctx_size=DEMO_CTX_TOKENS,
        max_parallel=DEMO_SLOTS,
    )


def _worker_config(
    keys: LocalKeys,
    port: int,
    *,
    model: Path,
    llama_binary: Path,
    llama_cache_dir: Path,
    threads: int = 0,
    gpu_layers: int = 9999,
) -> WorkerConfig:
    return WorkerConfig(
        router_url=f"ws://{LOOPBACK}:{port}",
        gpu_key=keys.gpu_key,
        model_path=model,
        llama_binary=llama_binary,
        llama_cache_dir=llama_cache_dir,
        threads=threads,
        gpu_layers=gpu_layers,
    )


async def _wait_for_signal(out: Out) -> None:
    out("Ctrl-C stops it.")
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            return
