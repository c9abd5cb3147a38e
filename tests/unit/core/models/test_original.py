"""Registries of the original Auxot, which users of it may have written for AUXOT_REGISTRY_FILE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from auxot.core.errors import ConfigError
from auxot.core.models.entries import Registry, load_registry, parse_registry
from auxot.core.models.lookup import Choice, resolve

ENTRY = {
    "id": "my-moe-35b-a3b-q4-k-s",
    "model_name": "My-MoE-35B-A3B",
    "huggingface_id": "owner/My-MoE-35B-A3B-GGUF",
    "quantization": "Q4_K_S",
    "family": "MoE",
    "parameters": "35B",
    "default_context_size": 32768,
    "max_context_size": 262144,
    "vram_requirements_gb": 17.5,
    "capabilities": ["vision"],
    "file_name": "My-MoE-35B-A3B-Q4_K_S.gguf",
    "file_size_bytes": 20_000_000_000,
    "mmproj_file_name": "mmproj-F16.gguf",
    "formats": [{"type": "gguf", "huggingface_id": "owner/My-MoE-35B-A3B-GGUF"}],
}
SPLIT = {
    **ENTRY,
    "id": "my-moe-35b-a3b-q8-0",
    "quantization": "Q8_0",
    "file_name": "Q8_0/My-MoE-35B-A3B-Q8_0-00001-of-00002.gguf",
    "file_size_bytes": None,
}
SMALL = {
    "id": "small-q8-0",
    "model_name": "Small",
    "huggingface_id": "owner/Small-GGUF",
    "quantization": "Q8_0",
    "family": "Dense",
    "parameters": "270M",
    "capabilities": ["chat"],
    "file_name": "Small-Q8_0.gguf",
}


def file_of(*entries: Any) -> bytes:
    return orjson.dumps({"version": "0.1.0", "generated_at": "2025-11-02T10:00:00Z", "models": entries})


def registry(*entries: Any) -> Registry:
    return parse_registry(file_of(*entries), where="here")


def test_a_registry_of_the_originals_is_read(tmp_path: Path) -> None:
    """A user who comes from the original Auxot has to write a registry anew."""
    file = tmp_path / "registry.json"
    file.write_bytes(file_of(ENTRY, SMALL, SPLIT))
    models = load_registry(file)
    large, small = models.models
    assert (large.name, large.kind, large.parameters, large.context) == ("My-MoE-35B-A3B", "MoE", 35 * 10**9, 262_144)
    assert large.capabilities == ("chat", "vision")
    assert large.projector is not None
    assert large.projector.path == "mmproj-F16.gguf"
    assert [one.quantization for one in large.variants] == ["Q4_K_S", "Q8_0"]
    assert [one.size_bytes for one in large.variants] == [20_000_000_000, None]
    assert (small.kind, small.parameters, small.context, small.projector) == ("dense", 270 * 10**6, 0, None)
    by_id = resolve(models, "my-moe-35b-a3b-q8-0")
    assert isinstance(by_id, Choice)
    assert [one.path for one in by_id.variant.files] == [
        "Q8_0/My-MoE-35B-A3B-Q8_0-00001-of-00002.gguf",
        "Q8_0/My-MoE-35B-A3B-Q8_0-00002-of-00002.gguf",
    ]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (["chat"], ("chat",)),
        (["code"], ("chat", "code")),
        (["reasoning"], ("chat", "reasoning")),
        (["vision"], ("chat",)),  # without eyes it does not see
        (["embedding"], ("embedding",)),
        (["image_generation"], ("image_generation",)),
    ],
)
def test_what_a_model_can_do(told: list[str], expected: tuple[str, ...]) -> None:
    """A model that thinks is not offered for chat, or one that paints is."""
    assert registry({**SMALL, "capabilities": told}).models[0].capabilities == expected


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([], "it has none"),
        (["x"], r"models\[0\] is no object"),
        ([ENTRY, {**SMALL, "file_name": None}], r"models\[1\] has no file_name"),
        ([{**SMALL, "model_name": ""}], r"models\[0\] has no model_name"),
        ([{**SMALL, "huggingface_id": "../../etc"}], "is not a repository"),
        ([{**SMALL, "file_name": "../x.gguf"}], "is not a file in a repository"),
        ([ENTRY, {**SPLIT, "huggingface_id": "other/repo"}], "My-MoE-35B-A3B is in several repositories"),
    ],
)
def test_a_wrong_one_is_refused_in_one_line(entries: list[Any], reason: str) -> None:
    """A mistake in a registry has a file fetched from elsewhere, or is a traceback."""
    with pytest.raises(ConfigError, match=reason) as caught:
        registry(*entries)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("models", [b"7", b"null", b"{}"])
def test_a_file_without_a_list_of_models_is_refused(models: bytes) -> None:
    """A file of another program is a traceback."""
    with pytest.raises(ConfigError, match='"models" is no list'):
        parse_registry(b'{"version": "1", "models": ' + models + b"}", where="here")
