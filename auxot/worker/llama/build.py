"""Build llama-server from source, for platforms and GPUs that no release binary fits; tests and the demo use it too.

The source is the package llama-cpp-python, whose sdist carries llama.cpp whole, server included. pip fetches it from
whatever index the user's pip is configured for; its SHA-256 is pinned here and checked before anything in it is run.

    lock -> download -> unpack -> cmake -> ninja -> llama-server --version -> rename into the cache

One builder a cache at a time (flock). All work is done in a hidden folder beside the result, which is removed however
the build ends; the cache gets the finished binary in one rename. Programs run in process groups of their own that die
when the build is cancelled.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import os
import platform
import re
import shutil
import sys
import tarfile
import tempfile
import zlib
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path

import attrs
import trio

from auxot.core.errors import LlamaError
from auxot.worker.llama.binary import BINARY_NAME, is_executable, llama_server_version, platform_cache_dir
from auxot.worker.llama.build_program import run_pip, run_program
from auxot.worker.lock import held_lock

BUILD_LOCK = ".build.lock"  # in the cache; installers hold it too
_MIN_CMAKE = (3, 14)  # CMakeLists.txt of llama.cpp
_TOOLS = {"cmake": "cmake>=3.14,<5", "ninja": "ninja>=1.10"}  # program -> the package that carries it
_PROGRESS = re.compile(r"\[(\d+)/(\d+)\] ")
_NINJA_STATUS = "[%f/%t] "
# How long a step may take before it counts as stuck, in seconds.
_CONFIGURE_LIMIT_S = 600.0
_COMPILE_LIMIT_S = 4 * 3600.0  # CUDA for many GPU generations on a small machine
_CHECK_LIMIT_S = 60.0


class Backend(enum.Enum):
    """What computes: the word of `--backend`."""

    CPU = "cpu"
    CUDA = "cuda"
    VULKAN = "vulkan"
    METAL = "metal"


@attrs.frozen(kw_only=True)
class BuildProgress:
    """How far a step is: `done` of `total` files compiled."""

    done: int
    total: int
    step: str


@attrs.frozen(kw_only=True)
class SourcePackage:
    """An sdist that carries llama.cpp.

    Attributes:
        name, version: of the package.
        sha256: of the sdist, in hexadecimal.
    """

    name: str
    version: str
    sha256: str

    @property
    def folder(self) -> str:
        """Where llama.cpp stands in the sdist."""
        return f"{self.name.replace('-', '_')}-{self.version}/vendor/llama.cpp"


Report = Callable[[BuildProgress | str], None]

SOURCE = SourcePackage(
    name="llama-cpp-python",
    version="0.3.36",
    sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
)


def default_backend() -> Backend:
    """Return what to build for when nobody says: Metal on macOS, else the CPU."""
    return Backend.METAL if sys.platform == "darwin" else Backend.CPU


def build_name(*, backend: Backend, native: bool, source: SourcePackage = SOURCE) -> str:
    """Return the name of a build's folder in the cache."""
    return f"{source.name}-{source.version}-{backend.value}{'' if native else '-portable'}"


def cmake_flags(*, backend: Backend, native: bool) -> list[str]:
    """Return the definitions for one static llama-server, without its web page, tests and TLS."""
    switches = {
        "BUILD_SHARED_LIBS": False,
        "LLAMA_BUILD_TESTS": False,
        "LLAMA_BUILD_EXAMPLES": False,
        "LLAMA_BUILD_APP": False,
        "LLAMA_BUILD_UI": False,
        "LLAMA_USE_PREBUILT_UI": False,
        "LLAMA_OPENSSL": False,
        "GGML_NATIVE": native,
        "GGML_CUDA": backend is Backend.CUDA,
        "GGML_VULKAN": backend is Backend.VULKAN,
        "GGML_METAL": backend is Backend.METAL,  # would be on by default on macOS
    }
    return ["-DCMAKE_BUILD_TYPE=Release", *(f"-D{name}={'ON' if on else 'OFF'}" for name, on in switches.items())]


def parse_ninja_progress(line: str) -> tuple[int, int] | None:
    """Return (finished, all) of a line such as `[12/345] Building CXX object ...`, None for any other line."""
    match = _PROGRESS.match(line)
    return (int(match[1]), int(match[2])) if match else None


async def build_llama_server(
    *,
    cache_dir: Path,
    backend: Backend,
    native: bool = True,
    jobs: int | None = None,
    force: bool = False,
    source: SourcePackage = SOURCE,
    report: Report,
) -> Path:
    """Build llama-server into the cache, or find that this has been done.

    Cancel-safe: the programs under way are killed and the cache is as it was before.

    Args:
        cache_dir: the root of the cache, as for `find_llama_server`; is made if missing.
        backend: what it computes with; its development kit must be installed.
        native: for this very CPU; False makes a binary that runs on other machines too.
        jobs: compilers at the same time; None for one a CPU.
        force: build even if the cache has this build.
        source: what to build.
        report: is told each step as a line, and the compilation as BuildProgress.

    Returns:
        The path of the binary in the cache.

    Raises:
        LlamaError: no compiler, no pip, no network, a wrong hash, a failed or stuck step; tells the step and the end
            of its output.
    """
    folder = platform_cache_dir(cache_dir)
    binary = folder / build_name(backend=backend, native=native, source=source) / BINARY_NAME
    if not force and is_executable(binary):
        report(f"found {binary}")
        return binary
    environ = {**os.environ, **require_compilers(backend, os.environ), "NINJA_STATUS": _NINJA_STATUS}
    async with _only_builder(folder, report):
        if not force and is_executable(binary):  # somebody else has built it meanwhile
            report(f"found {binary}")
            return binary
        with _work_folder(folder) as work:
            tree = await _fetch(source, work=work, environ=environ, report=report)
            flags = cmake_flags(backend=backend, native=native)
            built = await _compile(work=work, tree=tree, flags=flags, jobs=jobs, environ=environ, report=report)
            await _check(built)
            _install(built, binary, license_file=tree / "LICENSE")
    report(f"built {binary}")
    return binary


def require_compilers(backend: Backend, environ: Mapping[str, str]) -> dict[str, str]:
    """Look for what the build cannot fetch by itself, before anything is downloaded.

    Returns:
        Environment variables that lead cmake to it; for CUDA outside PATH, CUDACXX.

    Raises:
        LlamaError: something is missing; says what to install.
    """
    if backend is Backend.METAL and sys.platform != "darwin":
        raise LlamaError("Metal exists on macOS only: choose --backend cpu, cuda or vulkan")
    search_path = environ.get("PATH", os.defpath)
    compilers = [environ.get("CXX", "").split(" ")[0], "c++", "g++", "clang++"]
    if not any(shutil.which(name, path=search_path) for name in compilers if name):
        raise LlamaError(
            "no C++ compiler: install one"
            " (Debian, Ubuntu: apt-get install build-essential; macOS: xcode-select --install)"
        )
    if backend is Backend.VULKAN and not shutil.which("glslc", path=search_path):
        raise LlamaError("no glslc: install the Vulkan SDK (Debian, Ubuntu: apt-get install libvulkan-dev glslc)")
    return _cuda_variables(environ, search_path) if backend is Backend.CUDA else {}


def _cuda_variables(environ: Mapping[str, str], search_path: str) -> dict[str, str]:
    if environ.get("CUDACXX") or shutil.which("nvcc", path=search_path):
        return {}
    root = environ.get("CUDA_HOME") or environ.get("CUDA_PATH") or "/usr/local/cuda"  # NVIDIA's own place
    nvcc = Path(root, "bin", "nvcc")
    if not is_executable(nvcc):
        raise LlamaError("no nvcc: install the CUDA toolkit, or set CUDA_HOME to where it is")
    return {"CUDACXX": str(nvcc)}


@contextlib.asynccontextmanager
async def _only_builder(folder: Path, report: Report) -> AsyncGenerator[None]:
    """Hold the cache's lock."""
    try:
        async with held_lock(folder / BUILD_LOCK, on_wait=partial(report, "waiting for another build to end")):
            yield
    except OSError as exc:
        raise LlamaError(f"cannot write to the cache {folder}: {exc.strerror}") from exc


@contextlib.contextmanager
def _work_folder(folder: Path) -> Generator[Path]:
    """Make a folder for one build, on the cache's file system so that its result can be renamed into place.

    It is removed without a thread: nothing else waits on this loop, and a cancelled build must leave nothing either.
    """
    for left_behind in folder.glob(".build-*"):  # by a builder that was killed: we hold the lock
        shutil.rmtree(left_behind, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-", ignore_cleanup_errors=True) as work:
        yield Path(work)


async def _fetch(source: SourcePackage, *, work: Path, environ: Mapping[str, str], report: Report) -> Path:
    """Download, verify and unpack the sdist; return llama.cpp's folder."""
    report(f"downloading {source.name} {source.version}, which carries the source of llama.cpp")
    requirements = work / "requirements.txt"
    requirements.write_text(f"{source.name}=={source.version} --hash=sha256:{source.sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--no-binary", source.name, "--require-hashes"]
    arguments = ["download", *options, "--dest", str(work / "sdist"), "--requirement", str(requirements)]
    await run_pip(arguments, doing=f"downloading {source.name}", environ=environ)
    report("unpacking")
    sdist = next((work / "sdist").glob("*.tar.gz"))
    return await trio.to_thread.run_sync(unpack_source, source, sdist, work / "source")


def unpack_source(source: SourcePackage, sdist: Path, folder: Path) -> Path:
    """Unpack llama.cpp from a sdist, after a look at its hash.

    Args:
        source: what the file must be.
        sdist: the .tar.gz file.
        folder: is made; nothing is written outside of it, whatever the archive says.

    Returns:
        The folder with llama.cpp's CMakeLists.txt.

    Raises:
        LlamaError: another hash, a broken archive, or a member that leads out of `folder`.
    """
    with sdist.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != source.sha256:
        raise LlamaError(f"{sdist.name} is not the expected file: its SHA-256 is {actual}, not {source.sha256}")
    if not hasattr(tarfile, "data_filter"):  # comes with Python 3.11.4
        raise LlamaError(f"Python {platform.python_version()} cannot unpack safely: use 3.11.4 or newer")

    def choose(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        return tarfile.data_filter(member, path) if member.name.startswith(f"{source.folder}/") else None

    try:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter=choose)  # noqa: S202 - data_filter refuses what leads out of it
    except (tarfile.TarError, EOFError, OSError, zlib.error) as exc:
        raise LlamaError(f"{sdist.name} cannot be unpacked: {exc}") from exc
    return folder / source.folder


async def _compile(
    *, work: Path, tree: Path, flags: Sequence[str], jobs: int | None, environ: Mapping[str, str], report: Report
) -> Path:
    """Configure and build; return the binary in the work folder."""
    environ = await _with_tools(work / "tools", environ, report)
    cmake, build = _which("cmake", environ), work / "build"
    report("configuring")
    configure = [cmake, "-S", str(tree), "-B", str(build), "-G", "Ninja", *flags]
    await run_program(configure, doing="configuring llama.cpp", limit_s=_CONFIGURE_LIMIT_S, environ=environ)

    def on_line(line: str) -> None:
        progress = parse_ninja_progress(line)
        if progress is not None:
            report(BuildProgress(done=progress[0], total=progress[1], step="compiling"))

    report("compiling")
    make = [cmake, "--build", str(build), "--target", BINARY_NAME, "--parallel", str(jobs or _n_cpus())]
    await run_program(make, doing="compiling llama.cpp", limit_s=_COMPILE_LIMIT_S, environ=environ, on_line=on_line)
    return build / "bin" / BINARY_NAME


def _n_cpus() -> int:
    """Return how many CPUs this process may use, which in a container is not all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


async def _with_tools(folder: Path, environ: Mapping[str, str], report: Report) -> Mapping[str, str]:
    """Return an environment in which cmake and ninja are found; pip fetches those that the system lacks."""
    missing = [program for program in _TOOLS if not await _is_usable(program, environ)]
    if not missing:
        return environ
    report(f"fetching {' and '.join(missing)}")
    arguments = ["install", "--only-binary", ":all:", "--target", str(folder), *(_TOOLS[name] for name in missing)]
    await run_pip(arguments, doing=f"fetching {' and '.join(missing)}", environ=environ)
    return {
        **environ,
        "PATH": os.pathsep.join([str(folder / "bin"), environ.get("PATH", os.defpath)]),
        "PYTHONPATH": str(folder),  # the package's cmake is a Python program
    }


async def _is_usable(program: str, environ: Mapping[str, str]) -> bool:
    path = shutil.which(program, path=environ.get("PATH"))
    if path is None or program != "cmake":
        return path is not None
    try:
        output = await run_program([path, "--version"], doing="asking cmake", limit_s=_CHECK_LIMIT_S, environ=environ)
    except LlamaError:
        return False  # pip's will do
    return cmake_is_new_enough(output)


def cmake_is_new_enough(version_output: str) -> bool:
    """Tell from the output of `cmake --version` whether it can build llama.cpp."""
    match = re.search(r"cmake version (\d+)\.(\d+)", version_output)
    return match is not None and (int(match[1]), int(match[2])) >= _MIN_CMAKE


def _which(program: str, environ: Mapping[str, str]) -> str:
    path = shutil.which(program, path=environ.get("PATH"))
    if path is None:
        raise LlamaError(f"no {program} on PATH")
    return path


async def _check(built: Path) -> None:
    """Run the new binary once, so that one that cannot start never gets into the cache."""
    with trio.move_on_after(_CHECK_LIMIT_S) as scope:
        await llama_server_version(built)
    if scope.cancelled_caught:
        raise LlamaError("the new llama-server does not answer")


def _install(built: Path, binary: Path, *, license_file: Path) -> None:
    """Move the binary into the cache at once; a server that runs from an older file goes on with that."""
    binary.parent.mkdir(exist_ok=True)
    shutil.copyfile(license_file, binary.parent / "LICENSE")
    built.replace(binary)
