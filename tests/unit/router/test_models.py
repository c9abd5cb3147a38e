from typing import Any

import pytest

from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.messages import Capabilities
from auxot.router.models import Catalog


def catalog(*aliases: str) -> Catalog:
    return Catalog(name="tiny", created=5, context_size=4096, aliases=aliases)


def worker(**changes: Any) -> Capabilities:
    return Capabilities(**{"backend": "llama.cpp", "model": "file.gguf", "ctx_size": 2048, **changes})


@pytest.mark.parametrize("name", ["tiny", "gpt-4o", "", "claude-3-5-sonnet"])
def test_without_aliases_any_name_is_served(name):
    """A tool whose model name cannot be set would not work."""
    catalog().check(name)


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("tiny", True),
        ("gpt-4o", True),
        ("claude-opus-4", True),
        ("claude-", True),
        ("gpt-4o-mini", False),
        ("xclaude-1", False),
        ("TINY", False),
    ],
)
def test_with_aliases_only_they_and_the_models_own_name_are_served(name, served):
    """A typing error in a model's name would go unnoticed, or an alias would not be taken."""
    strict = catalog("gpt-4o", "claude-*")
    assert strict.serves(name) is served
    if not served:
        with pytest.raises(RefusedError) as excinfo:
            strict.check(name)
        assert (excinfo.value.code, excinfo.value.param) == (ErrorCode.MODEL_NOT_FOUND, "model")
        with pytest.raises(RefusedError):
            strict.card(name, [])
    else:
        assert strict.card(name, []).id == name


def test_a_request_that_names_no_model_is_served():
    """A request to an endpoint that needs no model's name, such as a count of tokens, would be refused."""
    assert catalog("gpt-4o").serves("")


def test_a_name_of_megabytes_is_not_sent_back():
    """An error would be as large as the request."""
    with pytest.raises(RefusedError) as excinfo:
        catalog("a").check("x" * 1_000_000)
    assert len(excinfo.value.message) < 300


def test_the_list_shows_names_and_no_patterns():
    """A user would choose `claude-*` from a menu of models."""
    cards = catalog("gpt-4o", "claude-*", "tiny", "gpt-4o").cards([])
    assert [card.id for card in cards] == ["tiny", "gpt-4o"]
    assert {(card.created, card.context_size, card.capabilities) for card in cards} == {(5, 4096, ("chat",))}


def test_a_name_that_only_any_name_covers_is_not_a_model_of_its_own():
    """Every name in the world would have a page."""
    with pytest.raises(RefusedError):
        catalog().card("gpt-4o", [])


def test_what_workers_announce_replaces_what_is_configured():
    """Agents would fill a context that is smaller than they were told, or send images to a model that is blind."""
    (card,) = catalog().cards([worker(model_capabilities=("chat", "vision"))])
    assert (card.context_size, card.capabilities) == (2048, ("chat", "vision"))


def test_of_different_workers_what_all_can_do_is_shown():
    """A request that fits the list would fail on the worker that happens to get it."""
    big = worker(ctx_size=8192, model_capabilities=("vision", "audio", "code"))
    small = worker(ctx_size=1024, model_capabilities=("code", "vision"))
    (card,) = catalog().cards([big, small, worker(ctx_size=0, model_capabilities=("code", "vision", "audio"))])
    assert (card.context_size, card.capabilities) == (1024, ("chat", "vision", "code"))
