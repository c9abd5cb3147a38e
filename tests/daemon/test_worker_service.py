"""The worker before it has a llama-server: what it tells the router, and when it gives up."""

from __future__ import annotations

import itertools
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from auxot.config import WorkerConfig
from auxot.core.errors import ConfigError, KeyRefusedError, LlamaError
from auxot.core.messages import ROUTER_FEATURES, Hello, HelloAck, RouterMessage
from auxot.worker.service import serve
from tests.daemon.worker_harness import POLICY, WELCOME, stand_in_router

GPU_KEY = "adm_" + "k" * 43
PROGRAM = """
import sys, trio
from pathlib import Path
from auxot.config import WorkerConfig
from auxot.worker.service import main
config = WorkerConfig(router_url=sys.argv[1], gpu_key="adm_" + "k" * 43, llama_url="http://127.0.0.1:1")
sys.exit(trio.run(main, config))
"""


def config(url: str, **fields: Any) -> WorkerConfig:
    """Return the settings of a worker whose llama-server never answers."""
    return WorkerConfig(
        router_url=url,
        gpu_key=GPU_KEY,
        **{"llama_url": "http://127.0.0.1:1", "reconnect_delay_s": 0.05, "reconnect_max_delay_s": 0.1, **fields},
    )


async def test_first_connection_asks_for_the_policy_only() -> None:
    """The router gives jobs to a worker that has no llama-server yet."""
    with trio.fail_after(10):
        async with stand_in_router() as router, trio.open_nursery() as nursery:
            nursery.start_soon(serve, config(router.url))
            end = await router.ends.receive()
            assert end.hello.capabilities is not None
            assert (end.hello.capabilities.backend, end.hello.capabilities.ctx_size) == ("pending", 0)
            await end.closed.wait()
            nursery.cancel_scope.cancel()


async def test_policy_is_asked_for_again() -> None:
    """A worker that starts before its router gives up."""
    tries = itertools.count()

    def answer(_: Hello) -> RouterMessage:
        return WELCOME if next(tries) >= 2 else HelloAck(success=False, error="starting", features=ROUTER_FEATURES)

    with trio.fail_after(10):
        async with stand_in_router(answer) as router, trio.open_nursery() as nursery:
            nursery.start_soon(serve, config(router.url))
            await router.ends.receive()
            assert router.n_connections == 3
            nursery.cancel_scope.cancel()


async def test_refused_key_ends_the_worker() -> None:
    """A worker with a wrong key hammers its router."""
    with trio.fail_after(10):
        async with stand_in_router(lambda _: HelloAck(success=False, error="authentication failed")) as router:
            with pytest.raises(KeyRefusedError):
                await serve(config(router.url))
            assert router.n_connections == 1


async def test_router_for_cli_workers() -> None:
    """A worker starts llama-server for a router that wants something else."""
    welcome = attrs.evolve(WELCOME, policy=attrs.evolve(POLICY, worker_type="cli"))
    with trio.fail_after(10):
        async with stand_in_router(lambda _: welcome) as router:
            with pytest.raises(ConfigError):
                await serve(config(router.url))


async def test_no_model(tmp_path: Path) -> None:
    """A worker without a file for a model that nobody knows starts llama-server with nothing."""
    with trio.fail_after(10):
        async with stand_in_router() as router:
            with pytest.raises(ConfigError, match=r"asks for a model that this worker has no file of: .*'Tiny'"):
                await serve(config(router.url, llama_url=None, models_dir=tmp_path, llama_cache_dir=tmp_path))


async def test_no_llama_server(tmp_path: Path) -> None:
    """A worker with a wrong path to llama-server connects first."""
    with pytest.raises(LlamaError, match="does not exist"):
        await serve(
            config(
                "ws://127.0.0.1:1",
                llama_url=None,
                model_path=tmp_path / "m.gguf",
                llama_binary=tmp_path / "none",
            )
        )


@pytest.mark.parametrize("has_router", [True, False])
async def test_stops_at_once_when_nothing_runs(has_router: bool) -> None:
    """A worker that waits for its router or its llama-server cannot be stopped in order."""
    quiet = trio.Event()
    with trio.fail_after(5):
        async with stand_in_router() as router, trio.open_nursery() as nursery:
            url = router.url if has_router else "ws://127.0.0.1:1"
            nursery.start_soon(
                partial(serve, config(url, reconnect_delay_s=9.0, reconnect_max_delay_s=9.0), quiet=quiet)
            )
            await trio.sleep(0.2)
            quiet.set()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_the_program_with_zero(sign: signal.Signals) -> None:
    """A service manager sees a failure when it stops the worker."""
    with trio.fail_after(15):
        async with stand_in_router() as router, trio.open_nursery() as nursery:
            run = partial(trio.run_process, [sys.executable, "-c", PROGRAM, router.url], check=False)
            process = await nursery.start(run)
            end = await router.ends.receive()
            await end.closed.wait()
            process.send_signal(sign)
            assert await process.wait() == 0
