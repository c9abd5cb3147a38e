"""Registries in the form of the original Auxot: an entry for each quantization, the model told anew in each.

    {"version": "0.1.0", "generated_at": "...", "models": [{"id": ..., "model_name": ..., "quantization": ..., ...}]}

What its entries say of memory is not used: it leaves the KV cache out, and we compute it. What else we do not know is
passed over, as the original does with ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from auxot.core.models.rows import CHAT, EMBEDDING, IMAGE_GENERATION, VISION, FileRow, ModelRow, shards, structured

_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_NO_CHAT = {IMAGE_GENERATION, EMBEDDING}


def rows_of_either(content: bytes) -> list[ModelRow]:
    """Return the models of a file in our form or in the original's; ValueError says what is wrong."""
    whole = orjson.loads(content)
    if isinstance(whole, dict) and "format" not in whole and "version" in whole:
        return original_rows(whole.get("models"))
    return structured(whole)


def original_rows(entries: object) -> list[ModelRow]:
    """Return the models of such a file, in its order.

    Raises:
        ValueError: an entry lacks what is needed, or two say that a model is in different places.
    """
    if not isinstance(entries, list):
        raise ValueError('"models" is no list')  # noqa: TRY004 - the file is wrong, not the call
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"models[{number}] is no object")  # noqa: TRY004 - the file is wrong, not the call
        by_name.setdefault(_text(entry, "model_name", number), []).append({**entry, "number": number})
    return [_model(name, same) for name, same in by_name.items()]


def _model(name: str, entries: Sequence[Mapping[str, Any]]) -> ModelRow:
    first = entries[0]
    repos = {_text(entry, "huggingface_id", entry["number"]) for entry in entries}
    if len(repos) > 1:
        raise ValueError(f"{name} is in several repositories: {', '.join(sorted(repos)[:3])}")
    projector = first.get("mmproj_file_name")
    return ModelRow(
        name=name,
        repo=repos.pop(),
        kind="MoE" if first.get("family") == "MoE" else "dense",
        parameters=_parameters(first),
        context=_count(first.get("max_context_size")),
        capabilities=_capabilities(first, has_projector=bool(projector)),
        projector=FileRow(quant="F16", file=str(projector)) if projector else None,
        files=tuple(_files(entries)),
    )


def _files(entries: Iterable[Mapping[str, Any]]) -> Iterable[FileRow]:
    for entry in entries:
        file = _text(entry, "file_name", entry["number"])
        size = _count(entry.get("file_size_bytes"))
        is_sized = size > 0 and len(shards(file)) == 1  # of a split one it may be the size of all parts
        yield FileRow(quant=_text(entry, "quantization", entry["number"]), file=file, bytes=(size,) if is_sized else ())


def _capabilities(entry: Mapping[str, Any], *, has_projector: bool) -> tuple[str, ...]:
    """Return what a model can do; the original does not say of one that sees or thinks that it can chat too."""
    told = [word for word in entry.get("capabilities") or () if isinstance(word, str)]
    if _NO_CHAT & set(told):
        return tuple(told)
    sees = [VISION] if has_projector else []
    return tuple(dict.fromkeys([CHAT, *(word for word in told if word != VISION), *sees]))


def _parameters(entry: Mapping[str, Any]) -> int:
    """Read "35B" or "270M"; 0 for what is not written so."""
    text = str(entry.get("parameters") or "").strip().upper()
    try:
        return round(float(text[:-1]) * _UNITS[text[-1:]])
    except (KeyError, ValueError, OverflowError):
        return 0


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0


def _text(entry: Mapping[str, Any], name: str, number: int) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(f"models[{number}] has no {name}")
    return value
