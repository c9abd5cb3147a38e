"""A model's file on this machine, as the registry would tell of it: its size, and what its header says.

The registry does not know it (an operator's own file, `hf:owner/repo:file`), or not what its KV cache is made of.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from auxot.core.models.entries import Model, RemoteFile, Variant
from auxot.core.models.gguf import GgufError, Header, read_header
from auxot.core.models.lookup import Choice, shown_name
from auxot.core.models.rows import part_paths

_UNKNOWN = "file"  # stands for a repository, of which a file on a disk has none


def read_model_file(path: Path) -> Header:
    """Read the header of a model's file.

    Raises:
        GgufError: it is not a GGUF file, or a broken one.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return read_header(stream)


def choice_of_file(path: Path) -> Choice:
    """Return what a file holds; errors as `read_model_file`.

    Args:
        path: the file, or the first part of a split one; all parts are there.
    """
    header = read_model_file(path)
    files = tuple(RemoteFile(path=part.name, size_bytes=part.stat().st_size) for part in part_paths(path))
    variant = Variant(quantization=path.name, files=files)
    model = Model(
        name=shown_name(str(path)),
        repo=_UNKNOWN,
        context=header.context,
        attention=header.attention,
        variants=(variant,),
    )
    return Choice(model=model, variant=variant)


def completed(choice: Choice, path: Path) -> Choice:
    """Return a choice that has been downloaded, with what its file says where the registry said nothing.

    A header that cannot be read adds nothing: whether the file is one is for llama-server to say.
    """
    try:
        found = choice_of_file(path)
    except (GgufError, OSError):
        return choice
    variant = attrs.evolve(choice.variant, files=found.variant.files)
    return Choice(model=attrs.evolve(choice.model, attention=found.model.attention), variant=variant)
