"""The HTTP application: generation endpoints as plain ASGI in front, everything else in a quart app behind.

    request -> routes.resolve -> POST of a generation endpoint -> exchange.Endpoint
                              '> anything else                 -> quart: models, health, errors in the API's own form

Each API answers errors, also 404 and 405, in the form that its clients parse.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hypercorn.utils import UnexpectedMessageError

from auxot.core.errors import ErrorCode, RefusedError
from auxot.router import auth
from auxot.router.asgi import Receive, Scope, Send
from auxot.router.exchange import Endpoint, new_request_id, send_error
from auxot.router.pages import PUBLIC_PATH, Parts, finish_recycling, quart_app
from auxot.router.routes import Api, Route, resolve

if TYPE_CHECKING:
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
            Route(Api.ANTHROPIC, "/messages"): self._endpoint(
                parts.anthropic, find_key=auth.anthropic_key, wrong_key=auth.ANTHROPIC_INVALID_KEY
            ),
        }

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            await self._quart(scope, receive, send)
            return
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
            request_id = new_request_id()
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
            verifier=parts.verifier,
            limits=parts.limits,
            quiet=parts.quiet,
            router_id=parts.router_id,
            log=parts.log,
        )
