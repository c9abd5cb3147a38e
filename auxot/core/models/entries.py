"""What the registry knows of a model, and the file that holds it.

AUXOT_REGISTRY_FILE names another file than the packaged `registry.json`, in its form (see `rows`) or in that of the
original Auxot (see `original`), which takes its place.

Sizes and hashes are there where they are known; who downloads asks the site for those that are not.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import attrs

from auxot.core.errors import ConfigError
from auxot.core.models.original import rows_of_either
from auxot.core.models.rows import CHAT, AttentionRow, FileRow, ModelRow, check_place, shards

MAX_FILE_BYTES = 64 * 1024 * 1024  # of a registry
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
        rows = rows_of_either(content)
        registry = Registry(tuple(_model(row) for row in rows))
    except ValueError as exc:
        raise ConfigError(f"{where} is not a registry of models: {exc}") from exc
    if not registry.models:
        raise ConfigError(f"{where} is not a registry of models: it has none")
    return registry


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
