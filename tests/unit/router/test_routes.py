import pytest

from auxot.router.routes import Api, Route, resolve


@pytest.mark.parametrize(
    ("path", "api", "rest"),
    [
        ("/api/openai/chat/completions", Api.OPENAI, "/chat/completions"),
        ("/api/openai/v1/chat/completions", Api.OPENAI, "/chat/completions"),
        ("/api/openai/v1/v1/chat/completions", Api.OPENAI, "/chat/completions"),
        ("/api/openai", Api.OPENAI, "/"),
        ("/api/openai/v1", Api.OPENAI, "/"),
        ("/api/openai/v1beta/x", Api.OPENAI, "/v1beta/x"),
        ("/api/anthropic/messages", Api.ANTHROPIC, "/messages"),
        ("/api/anthropic/v1/messages", Api.ANTHROPIC, "/messages"),
        ("/api/anthropic/v1/v1/messages", Api.ANTHROPIC, "/messages"),
        ("/api/anthropic/v1", Api.ANTHROPIC, "/"),
        ("/v1/chat/completions", Api.OPENAI, "/chat/completions"),
        ("/v1/messages", Api.ANTHROPIC, "/messages"),
        ("/v1/messages/count_tokens", Api.ANTHROPIC, "/messages/count_tokens"),
        ("/v1/messagesx", Api.OPENAI, "/messagesx"),
        ("/health", Api.NONE, "/health"),
        ("/api/openaix/chat", Api.NONE, "/api/openaix/chat"),
        ("/", Api.NONE, "/"),
    ],
)
def test_every_way_of_writing_a_base_address_leads_to_its_api(path, api, rest):
    """A client with or without /v1 in its base address would miss the endpoint."""
    assert resolve(path, ()) == Route(api, rest)


@pytest.mark.parametrize("header", [b"anthropic-version", b"x-api-key"])
def test_anthropic_clients_get_their_shape_of_models_from_the_plain_alias(header):
    """An Anthropic client would be given OpenAI's list of models."""
    assert resolve("/v1/models/m", [b"host", header]) == Route(Api.ANTHROPIC, "/models/m")
    assert resolve("/v1/models", [b"host"]) == Route(Api.OPENAI, "/models")
