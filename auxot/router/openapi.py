"""The description of our HTTP API that `GET /openapi.json`'s readers get: OpenAPI 3.1. Pure.

    Operation (one row a method and route) -> document() -> JSON

Each route stands here once, under the shortest path that leads to it; clients may write others (see `routes`).
Forwarded endpoints come from their own table. A test compares the rows with the routes that are really served.

Source: https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import attrs

from auxot.core.forwarded import FORWARDED, ForwardedEndpoint
from auxot.router.openapi_requests import Schema, request_schemas
from auxot.router.openapi_responses import response_schemas
from auxot.router.routes import Api, Route

PATH = "/openapi.json"
UPLOAD = "multipart/form-data"  # in place of the schema of a body

_JSON, _SSE = "application/json", "text/event-stream"
_DESCRIPTION = """A router for language models that run on your own machines.

OpenAI's routes are served under `/v1/...`, `/api/openai/...` and `/api/openai/v1/...`, Anthropic's under
`/v1/messages`, `/api/anthropic/...` and `/api/anthropic/v1/...`. `/v1/models` answers in Anthropic's form to a request
with a header `x-api-key` or `anthropic-version`. Objects may have fields that are not described here."""
_ERRORS = {
    400: "The request is wrong: `param` or the message names the field; or the prompt is too long.",
    401: "No key, or not the right one.",
    404: "There is no such thing, or the model is not served.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is compressed (`Content-Encoding`).",
    429: "The key's limits are reached, the queue is full, or a worker's provider limits the rate; see `Retry-After`.",
    500: "The worker failed.",
    501: "No connected worker can do this, or this is not supported at all.",
    502: "The worker was lost.",
    503: "No worker was free in time, or the router is shutting down; see `Retry-After`.",
    504: "The job took too long.",
    529: "The queue is full: Anthropic's routes say so with this status; see `Retry-After`.",
}
_OF_A_READ = (401, 503)
_OF_A_JOB = tuple(_ERRORS)


@attrs.frozen(kw_only=True)
class Operation:
    """One method of one route.

    Attributes:
        route: API and path within it; `{name}` stands for a parameter.
        request: the schema of the body, None if there is none; UPLOAD for a form with a file.
        response: the schema of the answer with status 200; None if there is never one.
        streams: whether the answer can be a stream of events.
        errors: statuses of errors, each in the form of the route's API.
        needs_key: whether a key must be shown.
    """

    method: str
    route: Route
    summary: str
    request: str | None = None
    response: str | None = None
    streams: bool = False
    errors: tuple[int, ...] = _OF_A_READ
    needs_key: bool = True

    @property
    def path(self) -> str:
        """The path as clients write it."""
        if self.route.api is Api.NONE:
            return self.route.path
        is_anthropic = self.route.api is Api.ANTHROPIC and not self.route.path.startswith("/messages")
        return f"{'/api/anthropic' if is_anthropic else ''}/v1{self.route.path}"


def _job(api: Api, path: str, summary: str, *, request: str, response: str, streams: bool = True) -> Operation:
    return Operation(
        method="POST",
        route=Route(api, path),
        summary=summary,
        request=request,
        response=response,
        streams=streams,
        errors=_OF_A_JOB,
    )


def _read(api: Api, path: str, summary: str, *, response: str | None, method: str = "GET") -> Operation:
    errors = (*_OF_A_READ, 404) if "{" in path else _OF_A_READ
    return Operation(method=method, route=Route(api, path), summary=summary, response=response, errors=errors)


def _nothing_stored(path: str, method: str = "GET", status: int = 404) -> Operation:
    return Operation(
        method=method,
        route=Route(Api.OPENAI, path),
        summary="Nothing is stored here: always an error",
        errors=(*_OF_A_READ, status),
    )


def _no_batches(path: str, method: str) -> Operation:
    return Operation(
        method=method,
        route=Route(Api.ANTHROPIC, path),
        summary="Batches are not supported: always an error",
        errors=(*_OF_A_READ, 501),
    )


_OPERATIONS = (
    Operation(
        method="GET",
        route=Route(Api.NONE, "/health"),
        summary="Whether the router takes requests, and its workers and slots",
        response="Health",
        errors=(),
        needs_key=False,
    ),
    Operation(
        method="GET",
        route=Route(Api.NONE, PATH),
        summary="This description",
        response="Json",
        errors=(),
        needs_key=False,
    ),
    _job(
        Api.OPENAI,
        "/chat/completions",
        "Continue a conversation",
        request="ChatCompletionRequest",
        response="ChatCompletion",
    ),
    _job(Api.OPENAI, "/completions", "Continue a text", request="CompletionRequest", response="Completion"),
    _job(Api.OPENAI, "/responses", "Continue a conversation", request="ResponseRequest", response="Response"),
    _job(Api.ANTHROPIC, "/messages", "Continue a conversation", request="MessageRequest", response="Message"),
    _job(
        Api.ANTHROPIC,
        "/messages/count_tokens",
        "Count a prompt's tokens, exactly",
        request="CountTokensRequest",
        response="TokenCount",
        streams=False,
    ),
    _job(
        Api.OPENAI,
        "/responses/input_tokens",
        "Count the tokens of a request of `/responses`, exactly",
        request="CountResponseTokensRequest",
        response="InputTokens",
        streams=False,
    ),
    _job(
        Api.OPENAI,
        "/chat/completions/input_tokens",
        "Count the tokens of a request of `/chat/completions`, exactly",
        request="ChatCompletionRequest",
        response="InputTokens",
        streams=False,
    ),
    _read(Api.OPENAI, "/models", "List the models", response="OpenAIModelList"),
    _read(Api.OPENAI, "/models/{model_id}", "Show a model", response="OpenAIModel"),
    _read(Api.ANTHROPIC, "/models", "List the models", response="AnthropicModelList"),
    _read(Api.ANTHROPIC, "/models/{model_id}", "Show a model", response="AnthropicModel"),
    _read(Api.OPENAI, "/chat/completions", "List stored completions: there are none", response="StoredCompletionList"),
    _nothing_stored("/chat/completions/{completion_id}"),
    _nothing_stored("/chat/completions/{completion_id}", "DELETE", 400),
    _nothing_stored("/chat/completions/{completion_id}/messages"),
    _nothing_stored("/responses/{response_id}"),
    _nothing_stored("/responses/{response_id}", "DELETE"),
    _nothing_stored("/responses/{response_id}/input_items"),
    _nothing_stored("/responses/{response_id}/cancel", "POST"),
    _no_batches("/messages/batches", "GET"),
    _no_batches("/messages/batches", "POST"),
    _no_batches("/messages/batches/{batch_id}", "GET"),
    _no_batches("/messages/batches/{batch_id}", "DELETE"),
    _no_batches("/messages/batches/{batch_id}/cancel", "POST"),
    _no_batches("/messages/batches/{batch_id}/results", "GET"),
)
# What is known of the bodies of forwarded endpoints; others take and give any JSON.
_FORWARDED_SCHEMAS = {
    "/v1/embeddings": ("EmbeddingRequest", "EmbeddingList"),
    "/v1/rerank": ("RerankRequest", "Json"),
    "/tokenize": ("TokenizeRequest", "Json"),
    "/detokenize": ("DetokenizeRequest", "Json"),
    "/apply-template": ("ApplyTemplateRequest", "Json"),
    "/infill": ("InfillRequest", "Json"),
}


def operations() -> Iterator[Operation]:
    """Yield every operation of the API."""
    yield from _OPERATIONS
    for row in FORWARDED:
        for path in row.routes:
            yield _forwarded(row, path)


def _forwarded(row: ForwardedEndpoint, path: str) -> Operation:
    request, response = _FORWARDED_SCHEMAS.get(row.path, (UPLOAD if row.is_upload else "Json", "Json"))
    alias = f", also at `{path}`" if row.is_own else ""
    return Operation(
        method=row.method,
        route=Route(Api.OPENAI, path),
        summary=f"Forwarded to llama-server's `{row.path}`{alias}",
        request=request if row.method == "POST" else None,
        response=response,
        streams=row.streams,
        errors=_OF_A_JOB,
    )


def document(version: str) -> dict[str, Any]:
    """Return the whole description; `version` is the router's."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations():
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Auxot", "version": version, "description": _DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": {**request_schemas(), **response_schemas()},
            "headers": _HEADERS,
            "responses": dict(_error_responses()),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _header(description: str, *, kind: str = "string") -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}}


_OF_EVERY_ANSWER = ("x-request-id", "request-id")
_OF_A_JOBS_ANSWER = ("server-timing", "x-auxot-worker", "x-auxot-route")
_HEADERS = {
    "x-request-id": _header("The client's own id if it sent a sane one, else one of ours."),
    "request-id": _header("The same under Anthropic's name."),
    "server-timing": _header("Milliseconds in the queue, of prompt processing, of generation, and in all."),
    "x-auxot-worker": _header("The worker that had the job."),
    "x-auxot-route": _header("Why that one: `prefix` (it holds the beginning of the prompt) or `least-loaded`."),
    "retry-after": _header("Seconds until it is worth trying again.", kind="integer"),
}


def _operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _operation_id(operation),
        "tags": [operation.route.api.value],
        "security": _security(operation),
        "responses": dict(_responses(operation)),
    }
    parameters = re.findall(r"{(\w+)}", operation.path)
    if parameters:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in parameters
        ]
    if operation.request is not None:
        described["requestBody"] = {"required": True, "content": _request_content(operation.request)}
    return described


def _operation_id(operation: Operation) -> str:
    words = re.findall(r"\w+", operation.route.path.replace(".", "_"))
    return "_".join([operation.route.api.value, operation.method.lower(), *words])


def _security(operation: Operation) -> list[dict[str, list[str]]]:
    if not operation.needs_key:
        return []
    bearer: dict[str, list[str]] = {"bearer": []}
    return [{"apiKey": []}, bearer] if operation.route.api is Api.ANTHROPIC else [bearer]


def _request_content(name: str) -> dict[str, Any]:
    if name != UPLOAD:
        return {_JSON: {"schema": _ref(name)}}
    upload = {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "string", "contentMediaType": "audio/wav"}, "model": {"type": "string"}},
    }
    return {UPLOAD: {"schema": upload}}


def _responses(operation: Operation) -> Iterator[tuple[str, dict[str, Any]]]:
    if operation.response is not None:
        content: dict[str, Any] = {_JSON: {"schema": _ref(operation.response)}}
        if operation.streams:
            content[_SSE] = {"schema": {"description": "Server-sent events, if the request says `stream`."}}
        names = _OF_EVERY_ANSWER + (_OF_A_JOBS_ANSWER if operation.errors is _OF_A_JOB else ())
        yield "200", {"description": "The answer.", "headers": _header_refs(*names), "content": content}
    for status in sorted(operation.errors):
        yield str(status), {"$ref": f"#/components/responses/{_error_name(operation.route.api, status)}"}
    if not operation.needs_key and operation.path == "/health":
        unhealthy = {"schema": _ref("Health")}
        yield "503", {"description": "The router shuts down.", "content": {_JSON: unhealthy}}


def _error_responses() -> Iterator[tuple[str, dict[str, Any]]]:
    for api, schema in ((Api.OPENAI, "OpenAIError"), (Api.ANTHROPIC, "AnthropicError")):
        content = {_JSON: {"schema": _ref(schema)}}
        for status, description in _ERRORS.items():
            headers = _header_refs(*_OF_EVERY_ANSWER, *_OF_A_JOBS_ANSWER, "retry-after")
            yield _error_name(api, status), {"description": description, "headers": headers, "content": content}


def _error_name(api: Api, status: int) -> str:
    return f"{api.value}_{status}"


def _header_refs(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
