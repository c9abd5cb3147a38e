"""What the registry knows of a model, and the file that holds it.

`registry.json` beside this file is written by `scripts/registry.py`: a model once, one line for each of its
quantizations. AUXOT_REGISTRY_FILE names another file of the same form, which takes the place of the packaged one.

Sizes and hashes are there where they are known; who downloads asks the site for those that are not.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path, PurePosixPath

import attrs
import cattrs
import orjson

from auxot.core.errors import ConfigError

FORMAT = 1
MAX_FILE_BYTES = 64 * 1024 * 1024  # of a registry
MAX_SHARDS = 999

CHAT, VISION, CODE, REASONING, EMBEDDING = "chat", "vision", "code", "reasoning", "embedding"
IMAGE_GENERATION = "image_generation"

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@attrs.frozen(kw_only=True)
class Attention:
    """What the KV cache is made of.

    Attributes:
        layers: how many keep keys and values; in hybrid models not all do.
        kv_heads: heads of keys and values in a layer.
        key_size, value_size: numbers in a key and in a value of one head.
    """

    layers: int
    kv_heads: int
    key_size: int
    value_size: int


@attrs.frozen(kw_only=True)
class RemoteFile:
    """One file of a repository. `size_bytes` and `sha256` (hexadecimal): None where they are not known."""

    path: str
    size_bytes: int | None = None
    sha256: str | None = None


@attrs.frozen(kw_only=True)
class Variant:
    """A model in one quantization: one file, or all parts of a split one in order."""

    quantization: str
    files: tuple[RemoteFile, ...]

    @property
    def size_bytes(self) -> int | None:
        """All of its files together; None if not all are known."""
        sizes = [file.size_bytes for file in self.files]
        return sum(size for size in sizes if size is not None) if None not in sizes else None


@attrs.frozen(kw_only=True)
class Model:
    """A model of the registry.

    Attributes:
        name: as in AUXOT_MODEL.
        repo: where its files are on Hugging Face, "owner/name".
        kind: "dense" or "MoE".
        parameters, active_parameters: how many it has, and how many of them each token uses; 0: not known.
        context: the longest that it was made for, in tokens.
        capabilities: such as "chat" and "vision".
        variants: its quantizations.
        attention: None where it is not known for certain.
        projector: of vision models the file that reads images.
        weight_bits: bits of an average weight where the name of the quantization does not tell, as of models that
            were trained in four bits; 0: it does.
    """

    name: str
    repo: str
    kind: str = "dense"
    parameters: int = 0
    active_parameters: int = 0
    context: int = 0
    capabilities: tuple[str, ...] = (CHAT,)
    variants: tuple[Variant, ...]
    attention: Attention | None = None
    projector: RemoteFile | None = None
    weight_bits: float = 0.0


@attrs.frozen
class Registry:
    """All models, by their names in lower case, in the order of the file."""

    models: tuple[Model, ...]
    _by_name: dict[str, Model] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {model.name.lower(): model for model in self.models})

    def model(self, name: str) -> Model | None:
        """Return the model of that name, in upper or lower case, or None."""
        return self._by_name.get(name.lower())

    def variants(self) -> Iterator[tuple[Model, Variant]]:
        """Yield each quantization of each model."""
        return ((model, variant) for model in self.models for variant in model.variants)


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


@functools.cache
def packaged_registry() -> Registry:
    """Return the registry that comes with Auxot."""
    return parse_registry(files(__package__).joinpath("registry.json").read_bytes(), where="registry.json")


def load_registry(path: Path | None) -> Registry:
    """Return the registry of a file, or the packaged one.

    Raises:
        ConfigError: the file cannot be read or is no registry.
    """
    if path is None:
        return packaged_registry()
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"AUXOT_REGISTRY_FILE: {path} cannot be read: {exc.strerror}") from exc
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"AUXOT_REGISTRY_FILE: {path} is larger than {MAX_FILE_BYTES} bytes")
    return parse_registry(content, where=f"AUXOT_REGISTRY_FILE: {path}")


def parse_registry(content: bytes, *, where: str) -> Registry:
    """Read a registry.

    Args:
        content: the JSON text.
        where: what to call it in an error.

    Raises:
        ConfigError: it is none; says what is wrong, in one line.
    """
    try:
        rows = parse_rows(content)
        registry = Registry(tuple(_model(row) for row in rows))
    except ValueError as exc:
        raise ConfigError(f"{where} is not a registry of models: {exc}") from exc
    if not registry.models:
        raise ConfigError(f"{where} is not a registry of models: it has none")
    return registry


def parse_rows(content: bytes) -> list[ModelRow]:
    """Return the models as they stand in the file; ValueError says what is wrong."""
    whole = orjson.loads(content)
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


def check_place(repo: str, path: str) -> None:
    """Raise ValueError for a repository or a file in it that could lead out of the folder of models."""
    if not _REPO.fullmatch(repo):
        raise ValueError(f"{repo!r} is not a repository such as owner/name")
    parts = PurePosixPath(path).parts
    if not path.endswith(".gguf") or not path.isprintable() or "\\" in path:
        raise ValueError(f"{path!r} is not the name of a .gguf file")
    if not parts or parts[0] == "/" or any(part.startswith(".") for part in parts):
        raise ValueError(f"{path!r} is not a file in a repository")


def _model(row: ModelRow) -> Model:
    variants = tuple(Variant(quantization=file.quant, files=_files(row.repo, file)) for file in row.files)
    if not variants:
        raise ValueError(f"{row.name} has no files")
    return Model(
        name=row.name,
        repo=row.repo,
        kind=row.kind,
        parameters=row.parameters,
        active_parameters=row.active,
        context=row.context,
        capabilities=row.capabilities,
        variants=variants,
        attention=_attention(row.attention) if row.attention else None,
        projector=_files(row.repo, row.projector)[0] if row.projector else None,
        weight_bits=row.weight_bits,
    )


def _files(repo: str, row: FileRow) -> tuple[RemoteFile, ...]:
    check_place(repo, row.file)
    paths = shards(row.file)
    if len(row.bytes) not in (0, len(paths)) or len(row.sha256) not in (0, len(paths)):
        raise ValueError(f"{row.file} has {len(paths)} parts, and another number of sizes or hashes")
    if not all(_SHA256.fullmatch(digest) for digest in row.sha256):
        raise ValueError(f"{row.file} has a hash that is not SHA-256 in hexadecimal")
    sizes, digests = row.bytes or (None,) * len(paths), row.sha256 or (None,) * len(paths)
    return tuple(
        RemoteFile(path=path, size_bytes=size, sha256=digest)
        for path, size, digest in zip(paths, sizes, digests, strict=True)
    )


def _attention(row: AttentionRow) -> Attention:
    return Attention(
        layers=row.layers,
        kv_heads=row.kv_heads,
        key_size=row.key_size or row.head_size,
        value_size=row.value_size or row.head_size,
    )


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
