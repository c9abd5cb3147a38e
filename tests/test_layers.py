"""Who may import whom. The rules stand here as tables; the test reads the imports of every file under auxot/.

cli -> {router,worker,tools}.service -> parts of that daemon -> core
config <- the command lines, the services and the demo only
router x worker x tools: never each other
pure files: no async def, nothing that does I/O
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import attrs
import pytest

PACKAGE = Path(__file__).parent.parent / "auxot"
DAEMONS = ("router", "worker", "tools")

PURE = (
    "auxot.bench.load",
    "auxot.core.errors",
    "auxot.core.forwarded",
    "auxot.core.jobs",
    "auxot.core.keys",  # hashing is CPU only; who waits for it does so in a thread
    "auxot.core.messages",
    "auxot.core.models*",
    "auxot.core.prefixes",
    "auxot.core.protocol",
    "auxot.core.sites",
    "auxot.core.sizes",
    "auxot.core.sse",
    "auxot.demo.tiny_model",
    "auxot.router.conduct",
    "auxot.router.cors",
    "auxot.router.dialects*",
    "auxot.router.draft",
    "auxot.router.fair_queue",
    "auxot.router.forward_table",
    "auxot.router.headers",
    "auxot.router.keyring",
    "auxot.router.models",
    "auxot.router.offer",
    "auxot.router.openapi*",
    "auxot.router.quotas",
    "auxot.router.shares",
    "auxot.router.web_address",
    "auxot.units.launchd",
    "auxot.units.systemd",
    "auxot.units.unit",
    "auxot.worker.llama.dial",
    "auxot.worker.pulse",
    "auxot.worker.toolcalls",
)
NOT_IN_PURE = (
    "asyncio",
    "fakeredis",
    "hiredis",
    "httpx",
    "hypercorn",
    "quart",
    "quart_trio",
    "redis",
    "socket",
    "subprocess",
    "threading",
    "trio",
    "trio_websocket",
    "websockets",
)

SERVING = (
    "auxot.router.app",
    "auxot.router.front",
    "auxot.router.http_server",
    "auxot.router.pages",
    "auxot.router.service",
    "auxot.router.streaming",
)
# A package that has its place: who may import it.
THIRD_PARTY = {
    "anyio": (),  # Trio is our only loop
    "asyncio": (),
    "fakeredis": ("auxot.router.store*",),
    "hiredis": ("auxot.router.store*",),
    "httpx": ("auxot.worker.*", "auxot.tools.*", "auxot.demo.question"),  # the demo is a client of the router
    "hypercorn": SERVING,
    "quart": SERVING,
    "quart_trio": SERVING,
    "redis": ("auxot.router.store*",),
    "trio_websocket": ("auxot.core.link",),
    "websockets": ("auxot.router.*", "auxot.bench.*"),
    "websockets.asyncio": (),  # its sans-I/O protocol is what we use
    "websockets.legacy": (),
    "websockets.sync": (),
    "wsproto": (),
}


@attrs.frozen
class Layer:
    """Modules of our own, and what of our own they may import."""

    modules: str
    may_import: tuple[str, ...]
    but_not: tuple[str, ...] = ()


CONFIG = (
    "auxot.config",
    "auxot.config_local",
    "auxot.config_models",
    "auxot.config_router",
    "auxot.config_shared",
    "auxot.config_worker",
    "auxot.kinds",
    "auxot.knobs",
)
SERVICES = tuple(f"auxot.{daemon}.service" for daemon in DAEMONS)
ASSEMBLY = ("auxot.router.assembly", "auxot.router.reload")  # what the router's service is cut into
COMMANDS = (
    "auxot.core",
    "auxot.bench.service",
    "auxot.demo",
    "auxot.router.heritage",
    "auxot.router.processes",
    "auxot.worker.doctor",
    "auxot.worker.findings",
    "auxot.worker.llama.binary",
    "auxot.worker.bundle",
    "auxot.worker.cache",
    "auxot.worker.fetch",
    "auxot.worker.llama.build",
    "auxot.worker.llama.install",
    "auxot.worker.machine",
    *CONFIG,
    *SERVICES,
)
CLI_PARTS = ("auxot.cli_fetch", "auxot.cli_models", "auxot.cli_progress", "auxot.cli_setup")
# The first one that matches holds.
LAYERS = (
    Layer("auxot.core*", ("auxot.core",)),
    *(Layer(module, ("auxot.core", *CONFIG)) for module in CONFIG),
    *(Layer(f"auxot.{daemon}.service", (f"auxot.{daemon}", "auxot.core", *CONFIG)) for daemon in DAEMONS),
    *(Layer(module, ("auxot.router", "auxot.core", *CONFIG), SERVICES) for module in ASSEMBLY),
    *(Layer(f"auxot.{daemon}*", (f"auxot.{daemon}", "auxot.core"), (*SERVICES, *ASSEMBLY)) for daemon in DAEMONS),
    Layer("auxot.bench*", ("auxot.bench", "auxot.core", *CONFIG)),  # it starts the programs that it measures
    Layer("auxot.demo*", COMMANDS),
    Layer("auxot.__main__", ("auxot.cli",)),
    Layer("auxot.units*", ("auxot.units", "auxot.setup", *COMMANDS), SERVICES),
    Layer("auxot*", (*COMMANDS, *CLI_PARTS, "auxot.setup", "auxot.units")),
)


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Return what is wrong with a module, a line each: `auxot.core.jobs:12 imports trio`."""
    tree = ast.parse(source)
    wrong = [
        f"{module}:{line} imports {name}"
        for line, name in imports(module, tree, is_package=is_package)
        if not may_import(module, name)
    ]
    if matches(module, PURE):
        wrong += [
            f"{module}:{node.lineno} async def" for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)
        ]
    return wrong


def imports(module: str, tree: ast.AST, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute dotted name) of each import, at whatever depth; `from a import b` is `a.b`."""
    parents = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def may_import(module: str, name: str) -> bool:
    """Tell whether a module may import that name."""
    if matches(module, PURE) and is_within(name, NOT_IN_PURE):
        return False
    if not is_within(name, ("auxot",)):
        return all(matches(module, allowed) for package, allowed in THIRD_PARTY.items() if is_within(name, (package,)))
    if name in ("auxot", "auxot.__version__"):
        return True
    layer = next(layer for layer in LAYERS if fnmatchcase(module, layer.modules))
    return is_within(name, layer.may_import) and not is_within(name, layer.but_not)


def is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def matches(module: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_file_keeps_to_its_layer(path: Path) -> None:
    """A part would reach across daemons, or into a layer above it."""
    source = path.read_text(encoding="utf-8")
    assert violations(module_name(path), source, is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("auxot.core.jobs", "import trio"),
        ("auxot.core.jobs", "async def f(): pass"),
        ("auxot.router.dialects.openai_chat", "class A:\n    async def f(self): pass"),
        ("auxot.router.dialects.openai_chat", "def f():\n    from redis import exceptions"),
        ("auxot.core.link", "import auxot.router.queue"),
        ("auxot.core.link", "from auxot import config"),
        ("auxot.core.link", "from websockets.asyncio.client import connect"),
        ("auxot.router.queue", "import redis.exceptions"),
        ("auxot.router.queue", "from auxot.worker.execute import run"),
        ("auxot.router.queue", "from auxot import worker"),
        ("auxot.router.queue", "from ..worker import execute"),
        ("auxot.router.queue", "from . import service"),
        ("auxot.router.queue", "from auxot.config import RouterConfig"),
        ("auxot.router.queue", "from auxot.router.assembly import open_pool"),
        ("auxot.router.reload", "from auxot.router.service import main"),
        ("auxot.router.relay", "import quart"),
        ("auxot.router.relay", "import httpx"),
        ("auxot.router.session", "from websockets.sync.server import serve"),
        ("auxot.router.service", "from auxot.worker import service"),
        ("auxot.worker.execute", "from websockets.protocol import State"),
        ("auxot.worker.execute", "import asyncio"),
        ("auxot.worker.llama.client", "from auxot.worker.service import main"),
        ("auxot.config", "import auxot.cli"),
        ("auxot.cli", "from auxot.router.queue import Queue"),
    ],
)
def test_a_violation_is_seen(module: str, source: str) -> None:
    """The check itself would let things through."""
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("auxot.cli", "from auxot.worker.service import main\nfrom auxot.worker.llama.build import build_llama_server"),
        ("auxot.core.link", "import trio_websocket\nfrom auxot import __version__"),
        ("auxot.router.dialects.anthropic", "from auxot.core.jobs import Job\nfrom .base import Encoder"),
        ("auxot.router.front", "import hypercorn.trio\nfrom websockets.server import ServerProtocol"),
        ("auxot.router.service", "from auxot.config import RouterConfig\nfrom auxot.router.queue import Queue"),
        ("auxot.router.store_redis", "import redis.connection"),
        ("auxot.worker.llama.client", "import httpx, trio"),
    ],
)
def test_what_is_allowed_is_allowed(module: str, source: str) -> None:
    """The check would forbid what the house is built on."""
    assert violations(module, source) == []


def test_relative_imports_of_a_package_are_resolved() -> None:
    """`from . import x` in an __init__.py would be taken for its parent's."""
    assert violations("auxot.router", "from . import service", is_package=True) == [
        "auxot.router:1 imports auxot.router.service"
    ]
