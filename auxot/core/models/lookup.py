"""From what an operator writes to a model: names, quantizations, and references to files. Pure.

Qwen3-Coder-30B-A3B              a name of the registry, in upper or lower case
qwen3-coder-30b-a3b-q4-k-s       name and quantization as one word, in lower case: the original's ids
hf:owner/repo:folder/file.gguf   a file on Hugging Face; of a split one the first part
/models/file.gguf                a file on the worker's own disk
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path, PurePosixPath

import attrs

from auxot.core.errors import ConfigError
from auxot.core.models.entries import Model, Registry, RemoteFile, Variant
from auxot.core.models.rows import CHAT, check_place, shards

_HUB_PREFIX = "hf:"
# What is taken when no quantization is named: the first of these that there is.
_PREFERRED = ("Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0")
_UNPACKED = ("F16", "BF16", "F32")
_MAX_NEAREST = 5
_QUANTIZATION = re.compile(r"[-_.]((?:UD-)?I?Q[1-8](?:_[A-Z0-9]+)*|B?F16|F32|MXFP4(?:_MOE)?|TQ[12]_0)$", re.IGNORECASE)


@attrs.frozen(kw_only=True)
class Choice:
    """A model in the quantization that is to be served."""

    model: Model
    variant: Variant


def resolve(registry: Registry, name: str, quantization: str = "") -> Choice | Path | None:
    """Find what an operator asks for.

    Args:
        registry: the models.
        name: one of the forms above.
        quantization: such as "Q4_K_M"; "": the first of the usual ones.

    Returns:
        A choice; the path of a file on the worker's disk; None for a name that nobody knows.

    Raises:
        ConfigError: there is no such quantization of that model, or a reference that is none.
    """
    if name.startswith(_HUB_PREFIX):
        return _on_hub(name)
    if is_path(name):
        return Path(name).expanduser()
    exact = _by_id(registry, name)
    if exact is not None:
        return exact
    model = registry.model(name)
    return None if model is None else Choice(model=model, variant=choose_variant(model, quantization))


def is_path(name: str) -> bool:
    """Tell whether a name is meant as a path."""
    return name.endswith(".gguf") and name.startswith(("/", "~", "./", "../"))


def shown_name(name: str) -> str:
    """Return what clients are told that they are served: a name itself, of a file its name without quantization."""
    if not (is_path(name) or name.startswith(_HUB_PREFIX)):
        return name
    stem = PurePosixPath(name.rpartition(":")[2]).name.removesuffix(".gguf")
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", stem)
    return _QUANTIZATION.sub("", stem) or stem


def choose_variant(model: Model, quantization: str) -> Variant:
    """Return the quantization that is asked for, or the one that is usual.

    Raises:
        ConfigError: there is none of that name; tells those that there are.
    """
    by_name = {variant.quantization.lower(): variant for variant in model.variants}
    if quantization:
        if quantization.lower() not in by_name:
            there = ", ".join(variant.quantization for variant in model.variants)
            raise ConfigError(f"there is no quantization {quantization!r} of {model.name}: choose one of {there}")
        return by_name[quantization.lower()]
    usual = (by_name[word.lower()] for word in _PREFERRED if word.lower() in by_name)
    packed = (variant for variant in model.variants if variant.quantization not in _UNPACKED)
    return next(usual, None) or next(packed, model.variants[0])


def variant_id(model: Model, variant: Variant) -> str:
    """Return the original's id of a quantization: qwen3-5-35b-a3b-q4-k-s."""
    return re.sub(r"[^a-z0-9]+", "-", f"{model.name}-{variant.quantization}".lower()).strip("-")


def nearest(registry: Registry, name: str) -> list[str]:
    """Return names that may be meant: those like it, then those that contain it or a word like it."""
    wanted = name.lower()
    names = {model.name.lower(): model.name for model in registry.models}
    alike = difflib.get_close_matches(wanted, names, n=_MAX_NEAREST, cutoff=0.6)
    words = {word for low in names for word in low.split("-")}
    parts = [wanted, *difflib.get_close_matches(wanted, words, n=2, cutoff=0.75)]
    containing = [low for low in sorted(names) if len(wanted) > 1 and any(part in low for part in parts)]
    return [names[low] for low in dict.fromkeys([*alike, *containing])][:_MAX_NEAREST]


def unknown_model(registry: Registry, name: str) -> str:
    """Return the sentence for a name that nobody knows."""
    near = nearest(registry, name)
    meant = f": is {' or '.join(near)} meant?" if near else ""
    return f"there is no model {name!r} in the registry{meant} (`auxot-router models` lists all)"


def _by_id(registry: Registry, name: str) -> Choice | None:
    found = ((model, variant) for model, variant in registry.variants() if variant_id(model, variant) == name)
    pair = next(found, None)
    return None if pair is None else Choice(model=pair[0], variant=pair[1])


def _on_hub(reference: str) -> Choice:
    repo, _, path = reference.removeprefix(_HUB_PREFIX).partition(":")
    try:
        check_place(repo, path)
        files = tuple(RemoteFile(path=part) for part in shards(path))
    except ValueError as exc:
        raise ConfigError(f"{reference!r} is not a reference such as hf:owner/repo:file.gguf: {exc}") from exc
    name = shown_name(reference)
    match = _QUANTIZATION.search(re.sub(r"-\d{5}-of-\d{5}$", "", path.removesuffix(".gguf")))
    variant = Variant(quantization=match[1].upper() if match else "", files=files)
    return Choice(model=Model(name=name, repo=repo, capabilities=(CHAT,), variants=(variant,)), variant=variant)
