from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auxot.core.messages import WORKER_FEATURES, Policy
from auxot.worker.llama.facts import LlamaFacts, model_name, read_facts

POLICY = Policy(model_name="X", quantization="", context_size=1, max_parallelism=1, capabilities=("chat",))

PROPS = {
    "default_generation_settings": {"n_ctx": 4096},
    "total_slots": 4,
    "modalities": {"vision": True},
    "build_info": "b1-0c1e570",
}
MODELS = {"data": [{"id": "/m/Qwen3-Coder-30B-A3B-Q4_K_M.gguf", "meta": {"n_params": 30_532_122_624}}]}


def test_what_llama_server_says_is_announced() -> None:
    """The router thinks of other slots, context or abilities than the worker has."""
    facts = read_facts(PROPS, MODELS)
    assert facts == LlamaFacts(
        model="Qwen3-Coder-30B-A3B",
        slot_ctx_tokens=4096,
        slots=4,
        parameters="30B",
        has_vision=True,
        build="b1-0c1e570",
    )
    capabilities = facts.capabilities(POLICY)
    assert capabilities.model_capabilities == ("chat", "vision")
    assert (capabilities.total_slots, capabilities.ctx_size) == (4, 4096)


def test_only_what_works_is_announced() -> None:
    """The router sends a worker jobs that its llama-server was not started for, or none that it could do."""
    bare = read_facts(PROPS, MODELS).capabilities(POLICY)
    assert bare.features == tuple(word for word in WORKER_FEATURES if word != "count")
    props = {**PROPS, "modalities": {"audio": True}}
    able = read_facts(props, MODELS, abilities=("embeddings", "count")).capabilities(POLICY)
    assert able.features == (*WORKER_FEATURES, "embeddings", "audio")
    assert able.model_capabilities == ("chat", "embeddings", "audio")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("tiny.gguf", "tiny"),
        (r"C:\models\Llama-3.1-8B.Q8_0.GGUF", "Llama-3.1-8B"),
        ("gpt-oss-20b-MXFP4.gguf", "gpt-oss-20b"),
        ("Qwen2.5-7B-IQ2_XXS.gguf", "Qwen2.5-7B"),
        ("Q8_0.gguf", "Q8_0"),
    ],
)
def test_model_name(path: str, name: str) -> None:
    """The announced model is called after its quantisation."""
    assert model_name(path) == name


@pytest.mark.parametrize(("n_params", "text"), [(1_417_728, "1M"), (620_000_000, "620M"), (None, None), ("7B", None)])
def test_parameters(n_params: Any, text: str | None) -> None:
    """A model's size is announced wrongly."""
    assert read_facts({}, {"data": [{"id": "x", "meta": {"n_params": n_params}}]}).parameters == text


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from([*PROPS, "data", "meta", "id", "n_ctx", "vision"]), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(props=st.dictionaries(st.sampled_from(list(PROPS)), _JSON), models=st.dictionaries(st.just("data"), _JSON))
def test_any_answer_gives_usable_facts(props: dict[str, Any], models: dict[str, Any]) -> None:
    """A server of another version makes the worker crash, or announce no slots."""
    facts = read_facts(props, models)
    assert facts.slots >= 1
    assert facts.slot_ctx_tokens >= 1


def test_a_model_without_its_projector_does_not_see() -> None:
    """A worker takes images because the router believes that its model can see, and fails each of them."""
    policy = attrs.evolve(POLICY, capabilities=("chat", "vision"))
    assert read_facts(PROPS, MODELS).capabilities(policy).model_capabilities == ("chat", "vision")
    blind = {**PROPS, "modalities": {"vision": False}}
    assert read_facts(blind, MODELS).capabilities(policy).model_capabilities == ("chat",)
