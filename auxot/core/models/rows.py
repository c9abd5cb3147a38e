"""The file that holds the registry, as it stands there: a model once, one line for each of its quantizations.

`registry.json` beside this file is written by `scripts/registry.py`. What is not known is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import attrs
import cattrs
import orjson

FORMAT = 1
MAX_SHARDS = 999

CHAT, VISION, CODE, REASONING, EMBEDDING = "chat", "vision", "code", "reasoning", "embedding"
IMAGE_GENERATION = "image_generation"

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@attrs.frozen(kw_only=True)
class FileRow:
    """A line of the file: a quantization. `file` is the first part; sizes and hashes stand in the order of parts."""

    quant: str
    file: str
    bytes: tuple[int, ...] = ()
    sha256: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class AttentionRow:
    """See `Attention`; `head_size` stands for both sizes where they are equal."""

    layers: int
    kv_heads: int
    head_size: int = 0
    key_size: int = 0
    value_size: int = 0


@attrs.frozen(kw_only=True)
class ModelRow:
    """A model as it stands in the file; see `Model`."""

    name: str
    repo: str
    kind: str = "dense"
    parameters: int = 0
    active: int = 0
    context: int = 0
    capabilities: tuple[str, ...] = (CHAT,)
    weight_bits: float = 0.0
    attention: AttentionRow | None = None
    projector: FileRow | None = None
    files: tuple[FileRow, ...]


def parse_rows(content: bytes) -> list[ModelRow]:
    """Return the models as they stand in the file; ValueError says what is wrong."""
    return structured(orjson.loads(content))


def structured(whole: object) -> list[ModelRow]:
    """Return the models of a file that has been read as JSON; errors as `parse_rows`."""
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise ValueError(f'expected an object with "format": {FORMAT}')
    try:
        return [_CONVERTER.structure(row, ModelRow) for row in whole.get("models", [])]
    except (cattrs.errors.BaseValidationError, KeyError, TypeError, AttributeError) as exc:
        raise ValueError("; ".join(cattrs.transform_error(exc)[:3])) from exc


def write_rows(rows: Iterable[ModelRow]) -> bytes:
    """Return the text of the file: a model a paragraph, a quantization a line, what is not known left out."""
    return b'{"format": %d, "models": [\n\n%s\n\n]}\n' % (FORMAT, b",\n\n".join(_paragraph(row) for row in rows))


def shards(first: str) -> tuple[str, ...]:
    """Return the names of all parts of a split file, given the first; of another file just its name.

    Raises:
        ValueError: the name counts more parts than `MAX_SHARDS`, or is not that of a first one.
    """
    match = _SHARD.search(first)
    if match is None:
        return (first,)
    n = int(match[2])
    if match[1] != "00001" or not 1 <= n <= MAX_SHARDS:
        raise ValueError(f"{first} is not the first of at most {MAX_SHARDS} parts")
    return tuple(f"{first[: match.start()]}-{i:05d}-of-{n:05d}.gguf" for i in range(1, n + 1))


def part_paths(first: Path) -> list[Path]:
    """Return where all parts of a model's file are, given the first; errors as `shards`."""
    return [first.with_name(name) for name in shards(first.name)]


def check_place(repo: str, path: str) -> None:
    """Raise ValueError for a repository or a file in it that could lead out of the folder of models."""
    if not _REPO.fullmatch(repo):
        raise ValueError(f"{repo!r} is not a repository such as owner/name")
    parts = PurePosixPath(path).parts
    if not path.endswith(".gguf") or not path.isprintable() or "\\" in path:
        raise ValueError(f"{path!r} is not the name of a .gguf file")
    if not parts or parts[0] == "/" or any(part.startswith(".") for part in parts):
        raise ValueError(f"{path!r} is not a file in a repository")


def _paragraph(row: ModelRow) -> bytes:
    head = {name: value for name, value in attrs.asdict(row, recurse=False).items() if value and name not in _NESTED}
    head |= {name: _known(getattr(row, name)) for name in ("attention", "projector") if getattr(row, name)}
    lines = b",\n".join(b"  " + orjson.dumps(_known(file)) for file in row.files)
    return orjson.dumps(head)[:-1] + b',"files":[\n' + lines + b"]}"


def _known(row: FileRow | AttentionRow) -> dict[str, object]:
    return {name: value for name, value in attrs.asdict(row).items() if value}


def _strict(value: object, kind: type) -> object:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {value!r:.40}")
    return value


_NESTED = ("files", "attention", "projector")
_CONVERTER = cattrs.Converter(forbid_extra_keys=True)
_CONVERTER.register_structure_hook(str, _strict)
_CONVERTER.register_structure_hook(int, _strict)
