from __future__ import annotations

from typing import Any

import pytest

from auxot.core.errors import ConfigError
from auxot.core.models.entries import packaged_registry
from auxot.router.offer import Offer, cli_offer, gpu_offer


def offer(model: str, quantization: str = "", ctx_tokens: int = 131_072) -> Offer:
    return gpu_offer(packaged_registry(), model=model, quantization=quantization, ctx_tokens=ctx_tokens, slots=2)


def test_workers_are_told_the_registrys_names() -> None:
    """A worker does not find in its registry what the operator wrote in another way."""
    policy = offer("qwen3-vl-8b").policy
    assert (policy.model_name, policy.quantization, policy.context_size) == ("Qwen3-VL-8B", "Q4_K_S", 131_072)
    assert set(policy.capabilities) == {"chat", "vision"}


def test_a_context_beyond_the_models_is_clamped_and_said() -> None:
    """llama-server is started with a context in which the model writes nonsense."""
    made = offer("Qwen3-8B")
    assert made.policy.context_size == 40_960
    assert "made for 40960 tokens" in made.warnings[0]


def test_an_unknown_name_is_served_with_a_warning() -> None:
    """A model that the workers bring themselves cannot be served, or a misspelt one is not noticed."""
    made = offer("Qwen3-Codr-30B-A3B", "Q4_K_M", 4096)
    assert (made.name, made.policy.model_name, made.policy.quantization) == (*("Qwen3-Codr-30B-A3B",) * 2, "Q4_K_M")
    assert "Qwen3-Coder-30B-A3B" in made.warnings[0]


@pytest.mark.parametrize(
    ("model", "shown"), [("hf:o/r:d/My-7B-Q4_K_M.gguf", "My-7B"), ("/models/My-7B-Q4_K_M.gguf", "My-7B")]
)
def test_a_file_is_told_whole_and_shown_short(model: str, shown: str) -> None:
    """Clients see a path, or workers do not learn where the file is."""
    made = offer(model)
    assert (made.name, made.policy.model_name, made.warnings) == (shown, model, ())


@pytest.mark.parametrize(
    ("model", "quantization", "reason"),
    [("Qwen3-8B", "Q9", "no quantization"), ("FLUX.1-schnell", "", "makes images"), ("hf:o/r", "", "not a reference")],
)
def test_what_no_worker_can_serve_ends_the_start(model: str, quantization: str, reason: str) -> None:
    """A router starts with a model that every worker refuses."""
    with pytest.raises(ConfigError, match=reason):
        offer(model, quantization)


def test_cli_workers_are_told_of_their_program() -> None:
    """A CLI worker gets a GPU worker's policy."""
    settings: dict[str, Any] = {"model": "opus", "cli_type": "claude", "tools": ("Bash",), "ctx_tokens": 9, "slots": 1}
    policy = cli_offer(**settings).policy
    assert (policy.worker_type, policy.cli_type, policy.builtin_tools) == ("cli", "claude", ("Bash",))
