"""The HTTP application: generation endpoints as plain ASGI in front, everything else in a quart app behind.

    request -> routes.resolve -> POST of a generation endpoint -> exchange.Endpoint
                              '> anything else                 -> quart: models, health, errors in the API's own form

Each API answers errors, also 404 and 405, in the form that its clients parse.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs
from hypercorn.utils import UnexpectedMessageError

from auxot.core.errors import ErrorCode, RefusedError
from auxot.router import auth
from auxot.router.asgi import REQUEST_ID, Receive, Scope, Send, send_no_content, with_headers
from auxot.router.dialects.openai_completions import OPENAI_COMPLETIONS
from auxot.router.dialects.openai_count import InputTokens
from auxot.router.dialects.openai_responses import OPENAI_RESPONSES
from auxot.router.exchange import Endpoint, send_error
from auxot.router.forward import ForwardEndpoint
from auxot.router.forward_table import ROUTES
from auxot.router.headers import id_headers, request_id_of
from auxot.router.pages import PUBLIC_PATH, Parts, finish_recycling, quart_app
from auxot.router.routes import Api, Route, resolve

if TYPE_CHECKING:
    from auxot.core.forwarded import ForwardedEndpoint
    from auxot.router.dialects.base import Dialect


class App:
    """The router's ASGI application."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._quart = finish_recycling(quart_app(parts))
        self._endpoints: Mapping[Route, Endpoint] = {
            Route(Api.OPENAI, "/chat/completions"): self._endpoint(
                parts.openai, find_key=auth.openai_key, wrong_key=auth.OPENAI_INVALID_KEY
            ),
            Route(Api.OPENAI, "/responses"): self._endpoint(
                OPENAI_RESPONSES, find_key=auth.openai_key, wrong_key=auth.OPENAI_INVALID_KEY
            ),
            Route(Api.OPENAI, "/completions"): self._endpoint(
                OPENAI_COMPLETIONS, find_key=auth.openai_key, wrong_key=auth.OPENAI_INVALID_KEY
            ),
            Route(Api.OPENAI, "/responses/input_tokens"): self._endpoint(
                InputTokens(OPENAI_RESPONSES), find_key=auth.openai_key, wrong_key=auth.OPENAI_INVALID_KEY
            ),
            Route(Api.OPENAI, "/chat/completions/input_tokens"): self._endpoint(
                InputTokens(parts.openai), find_key=auth.openai_key, wrong_key=auth.OPENAI_INVALID_KEY
            ),
            Route(Api.ANTHROPIC, "/messages"): self._endpoint(
                parts.anthropic, find_key=auth.anthropic_key, wrong_key=auth.ANTHROPIC_INVALID_KEY
            ),
            Route(Api.ANTHROPIC, "/messages/count_tokens"): self._endpoint(
                parts.anthropic_count, find_key=auth.anthropic_key, wrong_key=auth.ANTHROPIC_INVALID_KEY
            ),
            **{route: self._forward_endpoint(row) for route, row in ROUTES.items()},
        }

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            await self._quart(scope, receive, send)
            return
        request_id = request_id_of(scope["headers"])
        headers, preflight = id_headers(request_id), None
        if self._parts.is_leaving() and scope["http_version"] in ("1.0", "1.1"):  # HTTP/2 has no such header
            headers = [*headers, (b"connection", b"close")]
        if self._parts.cors is not None:
            headers += self._parts.cors.headers(scope["headers"])
            preflight = self._parts.cors.preflight(scope["headers"]) if scope["method"] == "OPTIONS" else None
        send = with_headers(send, headers)
        if preflight is not None:
            await send_no_content(send, headers=preflight)
        else:
            await self._serve({**scope, REQUEST_ID: request_id}, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request that is no browser's preflight."""
        route = resolve(scope["path"], (name for name, _ in scope["headers"]))
        endpoint = self._endpoints.get(route)
        if endpoint is not None and scope["method"] == "POST":
            await self._generate(endpoint, scope, receive, send)
            return
        path = route.path if route.api is Api.NONE else f"/{route.api.value}{route.path}"
        await self._quart({**scope, "path": path, PUBLIC_PATH: scope["path"]}, receive, send)

    async def _generate(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await endpoint(scope, receive, send)
        except Exception:  # the wall of one request
            request_id = scope[REQUEST_ID]
            self._parts.log.exception("request.failed", request_id=request_id)
            error = RefusedError(ErrorCode.INTERNAL, "internal error")
            with suppress(UnexpectedMessageError):  # the response has begun: it ends short, which the client sees
                await send_error(send, dialect=endpoint.dialect, error=error, request_id=request_id)

    def _endpoint(self, dialect: Dialect, *, find_key: Any, wrong_key: str) -> Endpoint:
        parts = self._parts
        return Endpoint(
            dialect=dialect,
            find_key=find_key,
            wrong_key=wrong_key,
            pool=parts.pool,
            catalog=parts.catalog,
            verifier=parts.verifier,
            images=parts.images,
            limits=parts.limits,
            refusing=parts.refusing,
            router_id=parts.router_id,
            log=parts.log,
        )

    def _forward_endpoint(self, row: ForwardedEndpoint) -> ForwardEndpoint:
        like = self._endpoint(self._parts.openai, find_key=auth.openai_key, wrong_key=auth.OPENAI_INVALID_KEY)
        return ForwardEndpoint(row=row, **attrs.asdict(like, recurse=False))
