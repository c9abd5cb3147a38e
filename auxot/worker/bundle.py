"""`auxot bundle`: one archive with all that a worker without a network needs; unpack it anywhere and run it.

    auxot-worker           starts the worker; takes its flags and variables
    python/                Auxot and the packages that it needs
    models/ llama-server/  as in the caches of a worker
    registry.json          if the model came from a registry of the user's

It runs where Python has the same version, on the same system and kind of CPU. Nothing is compressed: models would not
become smaller.
"""

from __future__ import annotations

import contextlib
import platform
import re
import shlex
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

import attrs
import trio

import auxot
from auxot.core.errors import FetchError
from auxot.core.models.lookup import Choice
from auxot.worker.fetch.models import model_paths
from auxot.worker.fetch.source import MIB, FetchProgress, Report
from auxot.worker.llama.binary import platform_cache_dir

ROOT = "auxot"
_PACKAGE = "auxot"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_STEP_BYTES = 256 * MIB

_SCRIPT = """\
#!/bin/sh
# Starts the Auxot worker of this folder: {model} {quantization}, for {platform} and Python {python}.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd) || exit 1
python=${{PYTHON:-python{python}}}
command -v "$python" > /dev/null || python=python3
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != ({python_tuple}))' || {{
    echo "auxot-worker: this bundle needs Python {python}; set PYTHON to where it is" >&2
    exit 2
}}
export PYTHONPATH="$here/python"
export AUXOT_MODELS_DIR="${{AUXOT_MODELS_DIR:-$here/models}}"
export AUXOT_LLAMA_CACHE_DIR="${{AUXOT_LLAMA_CACHE_DIR:-$here/llama-server}}"
export AUXOT_LLAMA_RELEASE="${{AUXOT_LLAMA_RELEASE:-none}}"
[ ! -f "$here/registry.json" ] || export AUXOT_REGISTRY_FILE="${{AUXOT_REGISTRY_FILE:-$here/registry.json}}"
exec "$python" -c 'from auxot.cli import auxot_worker; auxot_worker()' "$@"
"""


@attrs.frozen(kw_only=True)
class Contents:
    """What goes into a bundle; the model's files are in `models_dir`."""

    choice: Choice
    models_dir: Path
    llama_server: Path
    registry_file: Path | None = None

    @property
    def name(self) -> str:
        """The bundle's usual file name."""
        model = re.sub(r"[^\w.-]+", "-", f"{self.choice.model.name}-{self.choice.variant.quantization}")
        return f"auxot-{model}-{_platform()}.tar"


async def write_bundle(contents: Contents, output: Path | None, *, report: Report) -> Path:
    """Write a bundle.

    Args:
        contents: what goes in; all of it is on this machine.
        output: the archive; None: its usual name in this folder.
        report: is told how far it is.

    Returns:
        The path of the archive.

    Raises:
        FetchError: it cannot be written.
    """
    path = (output or Path(contents.name)).absolute()
    report(f"writing {path}")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            draft = Path(file.name)
        with _renamed_when_written(draft, path):
            await trio.to_thread.run_sync(partial(_write, contents, draft, report), abandon_on_cancel=True)
    except OSError as exc:
        raise FetchError(f"{path} cannot be written: {exc.strerror or exc}") from exc
    return path


def packages(name: str = _PACKAGE) -> dict[str, metadata.Distribution]:
    """Return a package's installed requirements, and theirs; what is not installed is not for this machine."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [name]
    while waiting:
        one = waiting.pop()
        with contextlib.suppress(metadata.PackageNotFoundError):
            distribution = metadata.distribution(one)
            key = re.sub(r"[-_.]+", "-", one).lower()
            if key not in found:
                found[key] = distribution
                waiting += [need for need in map(_required, distribution.requires or ()) if need]
    return found


def _required(requirement: str) -> str | None:
    """Return the name in a requirement; None if only an extra needs it."""
    name, _, marker = requirement.partition(";")
    match = _NAME.match(name)
    return match[0] if match and "extra" not in marker else None


def _write(contents: Contents, draft: Path, report: Report) -> None:
    with tarfile.open(draft, "w") as tar:
        _add_script(tar, contents)
        for source, name in _files(contents):
            total = source.stat().st_size
            tar.add(source, f"{ROOT}/{name}", recursive=False)
            if total >= MIB:
                report(FetchProgress(name=name, doing="packing", done_bytes=total, total_bytes=total, bytes_per_s=0))


def _files(contents: Contents) -> Iterator[tuple[Path, str]]:
    """Yield each file and its place in the bundle."""
    yield from ((path, f"python/{name}") for path, name in _code())
    folder = contents.llama_server.parent
    is_whole = folder.is_relative_to(platform_cache_dir(folder.parent.parent))  # of the cache, with its libraries
    place = f"llama-server/{platform_cache_dir(Path()).name}/{folder.name if is_whole else 'bundled'}"
    for path in sorted(folder.rglob("*")) if is_whole else [contents.llama_server]:
        if path.is_file():
            yield path, f"{place}/{path.relative_to(folder)}"
    paths = model_paths(contents.choice, contents.models_dir)
    files = [*contents.choice.variant.files, *([contents.choice.model.projector] if paths.projector else [])]
    repo = contents.choice.model.repo.replace("/", "_")
    for file in files:
        if file is not None:
            yield contents.models_dir / repo / file.path, f"models/{repo}/{file.path}"
    if contents.registry_file is not None:
        yield contents.registry_file, "registry.json"


def _code() -> Iterator[tuple[Path, str]]:
    ours = Path(auxot.__file__).parent
    for path in sorted(ours.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path, f"{_PACKAGE}/{path.relative_to(ours)}"
    for name, distribution in packages().items():
        for file in (distribution.files or ()) if name != _PACKAGE else ():
            path = Path(str(file.locate()))
            if ".." not in file.parts and path.is_file() and "__pycache__" not in file.parts:
                yield path, str(file)


def _add_script(tar: tarfile.TarFile, contents: Contents) -> None:
    version = sys.version_info
    text = _SCRIPT.format(
        model=shlex.quote(contents.choice.model.name),
        quantization=contents.choice.variant.quantization,
        platform=_platform(),
        python=f"{version.major}.{version.minor}",
        python_tuple=f"{version.major}, {version.minor}",
    )
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        member = tar.gettarinfo(file.name, f"{ROOT}/auxot-worker")
        member.mode = 0o755
        with Path(file.name).open("rb") as script:
            tar.addfile(member, script)


@contextlib.contextmanager
def _renamed_when_written(draft: Path, path: Path) -> Iterator[None]:
    try:
        yield
        draft.chmod(0o644)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _platform() -> str:
    return f"{platform.system().lower()}-{platform.machine().lower()}"
