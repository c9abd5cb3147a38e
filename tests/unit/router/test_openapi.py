"""The description of the API against what is really served, and against itself."""

from __future__ import annotations

import re
from typing import Any

import jsonschema_rs
import orjson
import pytest

from auxot.router import openapi
from auxot.router.app import App
from auxot.router.cors import Cors
from auxot.router.dialects.anthropic import ANTHROPIC, ANTHROPIC_COUNT
from auxot.router.dialects.openai_chat import OPENAI_CHAT
from auxot.router.pages import Parts, quart_app
from auxot.router.routes import Api, Route, resolve

DOCUMENT = openapi.document("1.2.3")
NOTHING: Any = None  # what no route is asked for here needs not be there
PARTS = Parts(
    pool=NOTHING,
    verifier=NOTHING,
    images=NOTHING,
    limits=NOTHING,
    openai=OPENAI_CHAT,
    anthropic=ANTHROPIC,
    anthropic_count=ANTHROPIC_COUNT,
    catalog=NOTHING,
    cors=Cors(frozenset({"*"})),
    quiet=NOTHING,
    draining=NOTHING,
    refusing=NOTHING,
    router_id="r",
    log=NOTHING,
)


def served() -> set[tuple[str, Route]]:
    """Return every method and route of the application, parameters as the description writes them."""
    found = {("POST", route) for route in App(PARTS)._endpoints}
    for rule in quart_app(PARTS).url_map.iter_rules():
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        api, _, rest = path[1:].partition("/")
        route = Route(Api(api), f"/{rest}") if api in (Api.OPENAI.value, Api.ANTHROPIC.value) else Route(Api.NONE, path)
        found |= {(method, route) for method in rule.methods or () if method != "HEAD"}
    plain = {(method, Route(Api.NONE, route.path)) for method, route in found if route.api is Api.OPENAI}
    return found - plain  # llama.cpp's own endpoints are described once, where OpenAI's are


def test_every_route_is_described_and_every_description_is_a_route():
    """A program that reads the description would miss an endpoint, or call one that does not exist."""
    assert {(one.method, one.route) for one in openapi.operations()} == served()


@pytest.mark.parametrize("operation", list(openapi.operations()), ids=lambda one: f"{one.method} {one.path}")
def test_the_path_that_is_described_leads_to_the_route(operation):
    """A client that follows the description would end up in the other API."""
    path = operation.path.replace("{", "").replace("}", "")
    assert resolve(path, ()) == Route(operation.route.api, operation.route.path.replace("{", "").replace("}", ""))


def test_every_reference_leads_somewhere_and_every_name_is_used_once():
    """A program that reads the description would stumble over a name."""
    text = orjson.dumps(DOCUMENT).decode()
    for reference in set(re.findall(r'"\$ref":"#/([^"]+)"', text)):
        target: Any = DOCUMENT
        for part in reference.split("/"):
            target = target[part]
    ids = re.findall(r'"operationId":"([^"]+)"', text)
    assert len(ids) == len(set(ids)) == len(list(openapi.operations()))
    assert all(re.fullmatch(r"\w+", one) for one in ids)


@pytest.mark.parametrize("name", [name for name in DOCUMENT["components"]["schemas"] if name.endswith("Request")])
def test_the_example_of_each_body_fits_its_schema(name):
    """People who try the example would be refused."""
    schema = DOCUMENT["components"]["schemas"][name]
    jsonschema_rs.validator_for({**schema, "components": DOCUMENT["components"]}).validate(schema["example"])


def test_a_dialects_tables_tell_which_fields_there_are():
    """A field that is honoured would not be described, or one that is refused would."""
    chat = DOCUMENT["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert chat["min_p"]
    assert chat["user"]["description"].startswith("ignored: ")
    assert "web_search_options" not in chat
    assert "mcp_servers" not in DOCUMENT["components"]["schemas"]["MessageRequest"]["properties"]
    assert "previous_response_id" not in DOCUMENT["components"]["schemas"]["ResponseRequest"]["properties"]
