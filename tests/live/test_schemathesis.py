"""The description of the API against the whole house: schemathesis makes requests of it and judges the answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from auxot.router import openapi
from auxot.router.routes import Api
from tests.live.processes import API_KEY, House, running_router, running_worker

N_EXAMPLES = 20  # of each operation with a body, and mode: some 700 requests
# The model must not write for minutes.
BOUNDS = {"max_tokens": 8, "max_completion_tokens": 8, "max_output_tokens": 8, "n_predict": 8, "n": 2, "best_of": 2}
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
NOT_HERE = ("/v1/embeddings", "/v1/rerank", "/v1/reranking", "/v1/infill")  # what the tiny model cannot do
OPERATIONS = list(openapi.operations())
load_all_checks()


@pytest.fixture(scope="module")
def house(llama_server_binary: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    variables = {"AUXOT_LLAMA_BINARY": str(llama_server_binary), "AUXOT_MODEL_FILE": str(tiny_model)}
    with running_router(folder) as running, running_worker(running, **variables):
        running.wait_health(workers=1)
        yield running


@pytest.fixture(scope="module")
def schema(house: House) -> Any:
    return schemathesis.openapi.from_url(f"{house.url}/openapi.json")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["as described", "wrong"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: f"{one.method} {one.path}")
def test_every_answer_is_one_that_is_described(house, schema, operation, mode):
    """Some request would get a fault, or an answer that programs made from the description cannot read."""
    described = schema[operation.path][operation.method]
    if mode is GenerationMode.NEGATIVE and operation.request is None:
        mode = GenerationMode.POSITIVE  # nothing but a path can be wrong

    @settings(
        max_examples=N_EXAMPLES if operation.request else 3,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=described.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        _bound(case.body)
        response = case.call(headers=_key(operation), timeout=30)
        assert response.status_code < 500 or response.status_code == 501, response.text
        case.validate_response(response, checks=CHECKS)

    ask()
    assert house.health()["status"] == "ok"


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one.request], ids=lambda one: one.path)
def test_the_example_of_each_body_is_answered(schema, operation):
    """People who try the example of the description would be refused."""
    described = schema[operation.path][operation.method]
    example = openapi.document("x")["components"]["schemas"].get(operation.request, {}).get("example")
    if example is None:
        return
    case = described.Case(body=example, media_type="application/json")
    response = case.call(headers=_key(operation), timeout=30)
    assert response.status_code == (501 if operation.path in NOT_HERE else 200), response.text
    case.validate_response(response, checks=CHECKS)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: f"{one.method} {one.path}")
def test_what_needs_a_key_is_shut_without_one_and_the_rest_is_open(schema, operation):
    """An endpoint would be open to strangers, or a load balancer shut out."""
    case = schema[operation.path][operation.method].Case(path_parameters=dict.fromkeys(_parameters(operation), "x"))
    response = case.call(timeout=30)
    assert response.status_code == (401 if operation.needs_key else 200)
    case.validate_response(response, checks=CHECKS)


@pytest.mark.parametrize("path", sorted({one.path for one in OPERATIONS}))
def test_other_methods_are_refused_by_name(house, path):
    """A client would not learn which methods there are."""
    response = httpx.patch(house.url + path, trust_env=False)
    assert response.status_code == 405
    described = {one.method for one in OPERATIONS if one.path == path}
    assert described <= set(response.headers["allow"].split(", "))


def _key(operation: openapi.Operation) -> dict[str, str]:
    """Return the headers of a request with a key: `/v1/models` tells the APIs apart by them."""
    bearer = {"authorization": f"Bearer {API_KEY}"}
    return bearer if operation.route.api is Api.OPENAI else {**bearer, "x-api-key": API_KEY}


def _parameters(operation: openapi.Operation) -> list[str]:
    return [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]


def _bound(body: Any) -> None:
    """Keep an answer short without making a wrong request right."""
    if not isinstance(body, dict):
        return
    for name, bound in BOUNDS.items():
        if type(body.get(name)) in (int, float):
            body[name] = min(body[name], bound)
    if "messages" in body or "prompt" in body:
        body.setdefault("max_tokens", BOUNDS["max_tokens"])
    if "input" in body:
        body.setdefault("max_output_tokens", BOUNDS["max_output_tokens"])
