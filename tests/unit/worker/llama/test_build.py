"""The builds are real (pip, cmake, ninja, compiler), of a package with one small file instead of llama.cpp."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import shutil
import sys
import tarfile
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from auxot.core.errors import LlamaError
from auxot.worker.llama.binary import find_llama_server, platform_cache_dir
from auxot.worker.llama.build import (
    SOURCE,
    Backend,
    BuildProgress,
    SourcePackage,
    build_llama_server,
    build_name,
    cmake_flags,
    cmake_is_new_enough,
    parse_ninja_progress,
    require_compilers,
    unpack_source,
)

NAME, VERSION = "auxot-test-source", "1.0"
ROOT = f"auxot_test_source-{VERSION}"
CMAKE_LISTS = """
cmake_minimum_required(VERSION 3.14)
project(tiny CXX)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_executable(llama-server main.cpp)
"""
MAIN = '#include <cstdio>\nint main() { std::puts("version: 8925 (abcdef0)"); }\n'
# A build backend within the package: it needs nothing from an index, and leaves a trace when its code has been run.
BACKEND = """
import os, pathlib
def prepare_metadata_for_build_wheel(folder, settings=None):
    pathlib.Path(os.environ["AUXOT_TEST_TRACE"]).touch()
    info = pathlib.Path(folder, "auxot_test_source-1.0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: auxot-test-source\\nVersion: 1.0\\n")
    return info.name
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def tarball(path: Path, files: dict[str, str], *extra: tarfile.TarInfo) -> SourcePackage:
    """Write a sdist; return the package whose hash it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
        for member in extra:
            archive.addfile(member)
    return SourcePackage(name=NAME, version=VERSION, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def sdist(folder: Path, *, main: str = MAIN, cmake_lists: str = CMAKE_LISTS) -> SourcePackage:
    vendor = f"{ROOT}/vendor/llama.cpp"
    return tarball(
        folder / f"{ROOT}.tar.gz",
        {
            f"{ROOT}/PKG-INFO": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n",
            f"{ROOT}/pyproject.toml": PYPROJECT,
            f"{ROOT}/backend.py": BACKEND,
            f"{vendor}/CMakeLists.txt": cmake_lists,
            f"{vendor}/main.cpp": main,
            f"{vendor}/LICENSE": "MIT",
        },
    )


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that pip downloads from."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("AUXOT_TEST_TRACE", str(tmp_path / "code_was_run"))
    if shutil.which("cmake") and shutil.which("ninja"):  # else pip must fetch them
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def cache_content(cache_dir: Path) -> set[str]:
    folder = platform_cache_dir(cache_dir)
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


async def test_a_build_ends_in_the_cache(index: Path, tmp_path: Path) -> None:
    """The built binary would not be found by a worker, or its work folder would stay behind."""
    source = sdist(index)
    reports: list[BuildProgress | str] = []
    with trio.fail_after(120):
        binary = await build_llama_server(cache_dir=tmp_path, backend=Backend.CPU, source=source, report=reports.append)
    name = f"{NAME}-{VERSION}-cpu"
    assert cache_content(tmp_path) == {f"{name}/llama-server", f"{name}/LICENSE", ".build.lock"}
    assert find_llama_server(given=binary, cache_dir=tmp_path) == binary
    progress = [report for report in reports if isinstance(report, BuildProgress)]
    assert progress[-1] == BuildProgress(done=2, total=2, step="compiling")
    assert reports[-1] == f"built {binary}"


async def test_a_second_build_finds_the_first(index: Path, tmp_path: Path) -> None:
    """`make test` would compile for five minutes each time."""
    source = sdist(index)
    reports: list[BuildProgress | str] = []
    binary = platform_cache_dir(tmp_path) / build_name(backend=Backend.CPU, native=True, source=source) / "llama-server"
    binary.parent.mkdir(parents=True)
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    with trio.fail_after(20):
        found = await build_llama_server(cache_dir=tmp_path, backend=Backend.CPU, source=source, report=reports.append)
    assert found == binary
    assert reports == [f"found {binary}"]
    with trio.fail_after(120):
        await build_llama_server(
            cache_dir=tmp_path, backend=Backend.CPU, source=source, force=True, report=reports.append
        )
    assert reports[-1] == f"built {binary}"
    assert binary.read_bytes() != b"#!/bin/sh\n"


async def test_a_forged_package_is_refused_before_it_is_run(index: Path, tmp_path: Path) -> None:
    """Whoever controls an index would run code on the worker."""
    source = attrs.evolve(sdist(index), sha256="0" * 64)
    with trio.fail_after(60), pytest.raises(LlamaError, match=f"downloading {NAME} failed"):
        await build_llama_server(cache_dir=tmp_path, backend=Backend.CPU, source=source, report=print)
    assert not (tmp_path / "code_was_run").exists()
    assert cache_content(tmp_path) == {".build.lock"}


@pytest.mark.parametrize(
    ("main", "message"),
    [
        ("this is no C++\n", r"compiling llama.cpp failed .exit code(.|\n)*main\.cpp"),
        ("int main() { return 3; }\n", r"--version ended with 3"),
        ('#include <cstdio>\nint main() { std::puts("hello"); }\n', r"not the version of a llama-server"),
    ],
    ids=["does not compile", "does not run", "is another program"],
)
async def test_a_bad_build_never_gets_into_the_cache(main: str, message: str, index: Path, tmp_path: Path) -> None:
    """A worker would start a llama-server that cannot work."""
    source = sdist(index, main=main)
    with trio.fail_after(120), pytest.raises(LlamaError, match=message):
        await build_llama_server(cache_dir=tmp_path, backend=Backend.CPU, source=source, report=print)
    assert cache_content(tmp_path) == {".build.lock"}


async def test_a_cancelled_build_leaves_nothing(index: Path, tmp_path: Path) -> None:
    """ctrl-C would leave compilers running and half a gigabyte in the cache."""
    pid_file = tmp_path / "pid"
    slow = f'add_custom_target(slow COMMAND sh -c "echo $$ > {pid_file}; sleep 1000" VERBATIM)\n'
    source = sdist(index, cmake_lists=CMAKE_LISTS + slow + "add_dependencies(llama-server slow)\n")
    async with trio.open_nursery() as nursery:

        async def build() -> None:
            await build_llama_server(cache_dir=tmp_path, backend=Backend.CPU, source=source, report=print)

        nursery.start_soon(build)
        with trio.fail_after(120):
            while not pid_file.exists() or not pid_file.read_text().strip():
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    assert cache_content(tmp_path) == {".build.lock"}
    with trio.fail_after(10):
        while Path(f"/proc/{pid_file.read_text().strip()}").exists():
            await trio.sleep(0.01)


async def test_a_second_builder_waits_and_finds(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make test` and `make demo` at the same time would build twice, into each other."""
    del autojump_clock
    compiler = tmp_path / "bin" / "c++"
    folder = platform_cache_dir(tmp_path)
    binary = folder / build_name(backend=Backend.CPU, native=True) / "llama-server"
    for program in (compiler, binary):
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(compiler.parent))
    reports: list[object] = []
    with (folder / ".build.lock").open("ab") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        async with trio.open_nursery() as nursery:

            async def build() -> None:
                await build_llama_server(cache_dir=tmp_path, backend=Backend.CPU, report=reports.append)

            nursery.start_soon(build)
            await trio.sleep(10)
            assert reports == ["waiting for another build to end"]
            binary.chmod(0o755)
            fcntl.flock(first, fcntl.LOCK_UN)
    assert reports[-1] == f"found {binary}"


async def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """A bad AUXOT_LLAMA_CACHE_DIR would end in a traceback."""
    (tmp_path / "file").touch()
    with trio.fail_after(20), pytest.raises(LlamaError, match="cannot write to the cache"):
        await build_llama_server(cache_dir=tmp_path / "file", backend=Backend.CPU, report=print)


def test_only_llama_cpp_is_unpacked(tmp_path: Path) -> None:
    """The rest of the package would lie about, or llama.cpp would be missing."""
    tree = unpack_source(sdist(tmp_path), tmp_path / f"{ROOT}.tar.gz", tmp_path / "out")
    assert {path.name for path in tree.iterdir()} == {"CMakeLists.txt", "main.cpp", "LICENSE"}
    assert {path.name for path in (tmp_path / "out" / ROOT).iterdir()} == {"vendor"}


def hard_member(name: str, *, kind: bytes, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(f"{ROOT}/vendor/llama.cpp/{name}")
    member.type, member.linkname = kind, link
    return member


@pytest.mark.parametrize(
    "member",
    [
        hard_member("../../../../escaped", kind=tarfile.REGTYPE),
        hard_member("absolute", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        hard_member("relative", kind=tarfile.SYMTYPE, link="../../../../escaped"),
        hard_member("device", kind=tarfile.CHRTYPE),
    ],
    ids=lambda member: Path(member.name).name,
)
def test_members_that_lead_out_are_refused(member: tarfile.TarInfo, tmp_path: Path) -> None:
    """An archive could write or read outside of the work folder."""
    path = tmp_path / "in" / "x.tar.gz"
    source = tarball(path, {}, member)
    with pytest.raises(LlamaError, match="cannot be unpacked"):
        unpack_source(source, path, tmp_path / "in" / "out")
    assert not (tmp_path / "escaped").exists()


def test_another_hash_is_refused(tmp_path: Path) -> None:
    """A file that somebody else put there would be compiled and run."""
    source = attrs.evolve(sdist(tmp_path), sha256="0" * 64)
    with pytest.raises(LlamaError, match="is not the expected file"):
        unpack_source(source, tmp_path / f"{ROOT}.tar.gz", tmp_path / "out")


def test_a_broken_archive_is_an_error(tmp_path: Path) -> None:
    """A package cut short, with its hash pinned, would end in a traceback."""
    path = tmp_path / "x.tar.gz"
    sdist(tmp_path)
    path.write_bytes((tmp_path / f"{ROOT}.tar.gz").read_bytes()[:-200])
    source = SourcePackage(name=NAME, version=VERSION, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(LlamaError, match="cannot be unpacked"):
        unpack_source(source, path, tmp_path / "out")


@pytest.mark.parametrize("backend", Backend)
def test_one_backend_is_on(backend: Backend) -> None:
    """A build would get another backend than asked for, as macOS turns Metal on by itself."""
    gpu = {"GGML_CUDA", "GGML_VULKAN", "GGML_METAL"}
    flags = dict(flag.removeprefix("-D").split("=") for flag in cmake_flags(backend=backend, native=True))
    on = {name for name in gpu if flags[name] == "ON"}
    assert on == ({f"GGML_{backend.value.upper()}"} & gpu)
    assert flags["BUILD_SHARED_LIBS"] == "OFF"
    assert flags["GGML_NATIVE"] == "ON"


def test_a_portable_build_is_another_build() -> None:
    """A binary for this very CPU would be taken for one that travels."""
    assert "-DGGML_NATIVE=OFF" in cmake_flags(backend=Backend.CPU, native=False)
    names = {build_name(backend=backend, native=native) for backend in Backend for native in (True, False)}
    assert len(names) == 2 * len(Backend)


def test_source_is_pinned() -> None:
    """The download could not be verified."""
    assert re.fullmatch("[0-9a-f]{64}", SOURCE.sha256)
    assert SOURCE.folder == f"llama_cpp_python-{SOURCE.version}/vendor/llama.cpp"


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        ("[12/345] Building CXX object x.o", (12, 345)),
        ("[1/1] ", (1, 1)),
        ("ninja: warning", None),
        ("main.cpp:[1/2] note", None),
        ("", None),
    ],
)
def test_ninja_progress(line: str, progress: tuple[int, int] | None) -> None:
    """The progress bar would stand still or jump."""
    assert parse_ninja_progress(line) == progress


@pytest.mark.parametrize(
    ("output", "enough"),
    [
        ("cmake version 3.25.1\n\nCMake suite", True),
        ("cmake version 4.0.0-rc1", True),
        ("cmake version 3.13.4", False),
        ("cmake3 is a thing of the past", False),
    ],
)
def test_an_old_cmake_is_not_used(output: str, *, enough: bool) -> None:
    """The build would fail on an old distribution, where pip's cmake works."""
    assert cmake_is_new_enough(output) is enough


def executables(folder: Path, *names: str) -> str:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("backend", "programs", "message"),
    [
        (Backend.CPU, (), "no C.. compiler"),
        (Backend.VULKAN, ("g++",), "no glslc"),
        (Backend.CUDA, ("clang++",), "no nvcc"),
    ],
)
def test_missing_compilers_are_told_first(
    backend: Backend, programs: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    """The user would wait for a download, and then read cmake's complaints."""
    environ = {"PATH": executables(tmp_path / "bin", *programs), "CUDA_HOME": str(tmp_path)}
    with pytest.raises(LlamaError, match=message):
        require_compilers(backend, environ)


def test_cuda_is_found_where_it_is_installed(tmp_path: Path) -> None:
    """NVIDIA's installer leaves nvcc outside PATH: the build would fail though everything is there."""
    path = executables(tmp_path / "bin", "c++")
    nvcc = executables(tmp_path / "cuda" / "bin", "nvcc") + "/nvcc"
    assert require_compilers(Backend.CUDA, {"PATH": path, "CUDA_HOME": str(tmp_path / "cuda")}) == {"CUDACXX": nvcc}
    assert require_compilers(Backend.CUDA, {"PATH": path, "CUDACXX": nvcc}) == {}


def test_the_users_own_compiler_counts(tmp_path: Path) -> None:
    """CXX, which cmake obeys, would be ignored."""
    path = executables(tmp_path / "bin", "mycc")
    assert require_compilers(Backend.CPU, {"PATH": path, "CXX": "mycc -O2"}) == {}


def test_metal_is_for_macos(tmp_path: Path) -> None:
    """A build for Metal elsewhere would fail after minutes."""
    environ = {"PATH": executables(tmp_path / "bin", "c++")}
    if sys.platform == "darwin":
        assert require_compilers(Backend.METAL, environ) == {}
    else:
        with pytest.raises(LlamaError, match="macOS only"):
            require_compilers(Backend.METAL, environ)
