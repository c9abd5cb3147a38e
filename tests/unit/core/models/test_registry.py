from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from auxot.config import DEFAULT_MODEL
from auxot.core.errors import ConfigError
from auxot.core.models.entries import Registry, load_registry, packaged_registry, parse_registry
from auxot.core.models.lookup import Choice, choose_variant, nearest, resolve, shown_name, unknown_model, variant_id
from auxot.core.models.rows import IMAGE_GENERATION, parse_rows, shards, write_rows

DIGEST = "a" * 64


def registry(**changes: object) -> Registry:
    file = {"quant": "Q4_K_S", "file": "M-Q4_K_S.gguf"}
    row = {"name": "M", "repo": "owner/M-GGUF", "files": [file], **changes}
    return parse_registry(orjson.dumps({"format": 1, "models": [row]}), where="here")


def choice(name: str, quantization: str = "") -> Choice:
    found = resolve(packaged_registry(), name, quantization)
    assert isinstance(found, Choice)
    return found


def test_the_packaged_registry_is_large_and_in_order() -> None:
    """Models are missing, or two of them cannot be told apart."""
    models = packaged_registry()
    pairs = list(models.variants())
    assert len(pairs) >= 700
    assert len({variant_id(*pair) for pair in pairs}) == len(pairs)
    assert len({model.name.lower() for model in models.models}) == len(models.models)
    for model in models.models:
        assert model.parameters > 0
        assert model.context >= 2048
        assert ("vision" in model.capabilities) == (model.projector is not None), model.name
        assert model.attention or model.parameters < 36 * 10**9 or IMAGE_GENERATION in model.capabilities, model.name


def test_every_part_of_a_split_model_is_listed() -> None:
    """A model in several files is fetched with one of them."""
    found = choice("Kimi-K2.5", "q3_k_s")
    paths = [file.path for file in found.variant.files]
    assert len(paths) == 10
    assert paths[0] == "Q3_K_S/Kimi-K2.5-Q3_K_S-00001-of-00010.gguf"
    assert paths[-1] == "Q3_K_S/Kimi-K2.5-Q3_K_S-00010-of-00010.gguf"


@pytest.mark.parametrize("name", ["x-00002-of-00003.gguf", "x-00001-of-00000.gguf", "x-00001-of-99999.gguf"])
def test_a_name_that_counts_parts_wrongly_is_refused(name: str) -> None:
    """A file of the user would have a hundred thousand files fetched."""
    with pytest.raises(ValueError, match="first of at most"):
        shards(name)


def test_the_default_model_is_there() -> None:
    """A router with nothing configured offers what no worker can serve."""
    found = choice(DEFAULT_MODEL)
    assert (found.variant.quantization, found.model.kind) == ("Q4_K_S", "MoE")


def test_names_in_any_case_ids_and_quantizations() -> None:
    """A name is known to the original and not to us, or another quantization is served than asked for."""
    assert choice("qwen3-8B").variant.quantization == "Q4_K_S"
    assert choice("Qwen3-8B", "q6_k").variant.files[0].path == "Qwen3-8B-Q6_K.gguf"
    by_id = choice("qwen3-5-35b-a3b-q5-k-s", "Q8_0")  # an id goes before the quantization
    assert (by_id.model.name, by_id.variant.quantization) == ("Qwen3.5-35B-A3B", "Q5_K_S")
    assert resolve(packaged_registry(), "Qwen3-5-35B-A3B-Q5-K-S") is None  # ids are exact
    assert choice("DeepSeek-R1").variant.quantization == "Q6_K"  # the first of the usual ones that there is
    only_f16 = registry(files=[{"quant": "F16", "file": "M-F16.gguf"}]).models[0]
    assert choose_variant(only_f16, "").quantization == "F16"


def test_a_quantization_that_is_not_there_names_those_that_are() -> None:
    """A user has to guess what can be served."""
    with pytest.raises(ConfigError, match=r"no quantization 'Q9' of Qwen3-8B: choose one of .*Q4_K_S, .*Q8_0"):
        resolve(packaged_registry(), "Qwen3-8B", "Q9")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("Qwen3-Codr-30B-A3B", "Qwen3-Coder-30B-A3B"), ("gtp-oss-20b", "gpt-oss-20b"), ("codr", "Qwen3-Coder-Next")],
)
def test_a_misspelt_name_gets_the_nearest(name: str, meant: str) -> None:
    """A typing error is answered with nothing to go on."""
    assert resolve(packaged_registry(), name) is None
    assert meant in nearest(packaged_registry(), name)
    assert meant in unknown_model(packaged_registry(), name)


def test_references_to_files() -> None:
    """A model outside of the registry cannot be served."""
    found = choice("hf:owner/My-GGUF:sub/My-7B-Q5_K_M-00001-of-00002.gguf")
    assert (found.model.repo, found.model.name, found.variant.quantization) == ("owner/My-GGUF", "My-7B", "Q5_K_M")
    assert [file.path for file in found.variant.files] == [
        "sub/My-7B-Q5_K_M-00001-of-00002.gguf",
        "sub/My-7B-Q5_K_M-00002-of-00002.gguf",
    ]
    assert resolve(packaged_registry(), "/models/My-7B-Q4_0.gguf") == Path("/models/My-7B-Q4_0.gguf")
    assert shown_name("/models/My-7B-Q4_0.gguf") == "My-7B"


@pytest.mark.parametrize(
    "reference",
    [
        "hf:owner:x.gguf",
        "hf:owner/repo",
        "hf:owner/repo:",
        "hf:../..:x.gguf",
        "hf:owner/repo:../x.gguf",
        "hf:owner/repo:/etc/x.gguf",
        "hf:owner/repo:x.bin",
        "hf:owner/repo:a\\..\\x.gguf",
        "hf:owner/repo:.hidden/x.gguf",
    ],
)
def test_a_reference_that_leads_elsewhere_is_refused(reference: str) -> None:
    """A router could have its workers write outside of their folder of models."""
    with pytest.raises(ConfigError, match=r"is not a reference such as hf:owner/repo:file\.gguf"):
        resolve(packaged_registry(), reference)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"repo": "../../etc"}, "is not a repository"),
        ({"files": [{"quant": "Q", "file": "../x.gguf"}]}, "is not a file in a repository"),
        ({"files": []}, "M has no files"),
        ({"files": [{"quant": "Q", "file": "x.gguf", "bytes": [1, 2]}]}, "another number of sizes"),
        ({"files": [{"quant": "Q", "file": "x.gguf", "sha256": ["x"]}]}, "not SHA-256"),
        ({"parameters": "8B"}, "invalid value for type, expected int|expected int"),
        ({"paramters": 8}, "paramters"),
        ({"attention": {"layers": 1}}, "kv_heads"),
    ],
)
def test_a_registry_that_is_wrong_is_refused_in_one_line(changes: dict[str, object], reason: str) -> None:
    """A mistake in a user's registry is found when a worker has downloaded half of it."""
    with pytest.raises(ConfigError, match=reason) as caught:
        registry(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"format": 2, "models": []}', b'{"format": 1, "models": []}', b"\xff"]
)
def test_a_file_that_is_no_registry_is_refused(tmp_path: Path, content: bytes) -> None:
    """A wrong path in AUXOT_REGISTRY_FILE is a traceback."""
    file = tmp_path / "registry.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="AUXOT_REGISTRY_FILE"):
        load_registry(file)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_registry(tmp_path / "missing")


def test_writing_what_was_read_changes_nothing() -> None:
    """A refresh of sizes turns the whole file over, or loses figures."""
    content = (Path(__file__).parents[4] / "auxot/core/models/registry.json").read_bytes()
    assert write_rows(parse_rows(content)) == content
