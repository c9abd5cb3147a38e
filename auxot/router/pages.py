"""The quart application behind the generation endpoints: models, health, and every error in its API's own form."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import orjson
import trio
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from auxot import __version__
from auxot.core.errors import ErrorCode, RefusedError
from auxot.core.keys import Role
from auxot.router import auth, openapi
from auxot.router.asgi import REQUEST_ID, address_of
from auxot.router.exchange import RETRY_AFTER_S, Limits
from auxot.router.forward_table import ROUTES
from auxot.router.routes import Api

if TYPE_CHECKING:
    from auxot.core.logs import Logger
    from auxot.core.messages import Capabilities
    from auxot.router.auth import KeyVerifier
    from auxot.router.cors import Cors
    from auxot.router.dialects.base import Dialect
    from auxot.router.images import Images
    from auxot.router.models import Catalog
    from auxot.router.pool import Pool

PUBLIC_PATH = "auxot.path"  # in the ASGI scope: the path as the client wrote it
LAST_BODY_TIMEOUT_S = 2.0
_CODES = {404: ErrorCode.NOT_FOUND, 405: ErrorCode.METHOD_NOT_ALLOWED}
_NO_STORED_COMPLETIONS = {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}
_NOT_STORED = "No chat completion found. Auxot does not store completions."


@attrs.frozen(kw_only=True)
class Parts:
    """What the application is made of."""

    pool: Pool
    verifier: KeyVerifier
    images: Images
    limits: Limits
    openai: Dialect
    anthropic: Dialect
    anthropic_count: Dialect
    catalog: Catalog
    cors: Cors | None  # None: no web page may call
    quiet: trio.Event
    draining: trio.Event
    refusing: trio.Event
    router_id: str
    log: Logger

    def is_leaving(self) -> bool:
        """Whether clients should go elsewhere."""
        return self.draining.is_set() or self.quiet.is_set()


def quart_app(parts: Parts) -> QuartTrio:
    """Return the application for everything that is not a generation."""
    app = QuartTrio("auxot.router", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.strict_slashes = False
    _Pages(parts).add_to(app)
    return app


def finish_recycling(app: Any) -> Any:
    """Shield the last message of each response.

    quart-trio 0.12 cancels a request's task while hypercorn 0.18 is still recycling the connection after the last
    body message; idle timers are then never armed and `Connection: close` is never obeyed. To be dropped when
    tests/daemon/test_front.py passes without it.
    """

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def send_shielded(message: Any) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                with trio.move_on_after(LAST_BODY_TIMEOUT_S, shield=True):
                    await send(message)
            else:
                await send(message)

        await app(scope, receive, send_shielded)

    return wrapped


@attrs.frozen
class _Pages:
    """The handlers. Paths are those of `routes.resolve`: `/openai/...`, `/anthropic/...`, or as they came."""

    parts: Parts

    def add_to(self, app: QuartTrio) -> None:
        """Register every route and the error handlers."""
        routes: list[tuple[str, str, Callable[..., Any]]] = [
            ("GET", "/health", self.health),
            ("GET", openapi.PATH, self.describe),
            ("GET", "/openai/models", self.openai_models),
            ("GET", "/openai/models/<path:model_id>", self.openai_model),
            ("GET", "/openai/chat/completions", self.stored_completions),
            ("GET", "/openai/chat/completions/<completion_id>", self.stored_completion),
            ("DELETE", "/openai/chat/completions/<completion_id>", self.delete_completion),
            ("GET", "/openai/chat/completions/<completion_id>/messages", self.stored_completion),
            ("GET", "/openai/responses/<response_id>", self.stored_response),
            ("DELETE", "/openai/responses/<response_id>", self.stored_response),
            ("GET", "/openai/responses/<response_id>/input_items", self.stored_response),
            ("POST", "/openai/responses/<response_id>/cancel", self.stored_response),
            ("GET", "/anthropic/models", self.anthropic_models),
            ("GET", "/anthropic/models/<path:model_id>", self.anthropic_model),
            ("GET", "/anthropic/messages/batches", self.message_batches),
            ("POST", "/anthropic/messages/batches", self.message_batches),
            ("GET", "/anthropic/messages/batches/<batch_id>", self.message_batches),
            ("DELETE", "/anthropic/messages/batches/<batch_id>", self.message_batches),
            ("POST", "/anthropic/messages/batches/<batch_id>/cancel", self.message_batches),
            ("GET", "/anthropic/messages/batches/<batch_id>/results", self.message_batches),
        ]
        for method, path, handler in routes:
            app.add_url_rule(path, f"{method} {path}", handler, methods=[method])
        # POST never comes here, see `app`; the rules make other methods a 405 and name POST in Allow.
        for path in (
            "/openai/chat/completions",
            "/openai/completions",
            "/openai/responses",
            "/openai/responses/input_tokens",
            "/openai/chat/completions/input_tokens",
            "/anthropic/messages",
            "/anthropic/messages/count_tokens",
        ):
            app.add_url_rule(path, f"POST {path}", self.unreachable, methods=["POST"])
        for route in ROUTES:
            path = route.path if route.api is Api.NONE else f"/{route.api.value}{route.path}"
            app.add_url_rule(path, f"POST {path}", self.unreachable, methods=["POST"])
        app.register_error_handler(RefusedError, self.on_refused)
        app.register_error_handler(HTTPException, self.on_http_exception)
        app.register_error_handler(Exception, self.on_fault)

    async def health(self) -> Response:
        """Tell how many workers and slots there are; 503 once the router shuts down, so that balancers move on."""
        pool = self.parts.pool
        count = pool.fleet.count()
        is_leaving = self.parts.is_leaving()
        body = {
            "status": "draining" if is_leaving else "ok",
            "workers": count.workers,
            "total_slots": count.total_slots,
            "active_jobs": count.active_jobs,
            "available": count.available,
            "waiting_requests": len(pool.relay),
            "queue": "ok" if pool.census.is_current else "unreachable",
            "all_routers": pool.census.whole(),
        }
        return _json(orjson.dumps(body), status=503 if is_leaving else 200)

    async def describe(self) -> Response:
        """Describe the API, for programs."""
        return _json(_description())

    async def openai_models(self) -> Response:
        """List the models in OpenAI's shape."""
        await self._check_openai_key()
        return _json(self.parts.openai.models(self.parts.catalog.cards(self._announced())))

    async def openai_model(self, model_id: str) -> Response:
        """Show one model in OpenAI's shape."""
        await self._check_openai_key()
        return _json(self.parts.openai.model(self.parts.catalog.card(model_id, self._announced())))

    async def anthropic_models(self) -> Response:
        """List the models in Anthropic's shape."""
        await self._check_anthropic_key()
        return _json(self.parts.anthropic.models(self.parts.catalog.cards(self._announced())))

    async def anthropic_model(self, model_id: str) -> Response:
        """Show one model in Anthropic's shape."""
        await self._check_anthropic_key()
        return _json(self.parts.anthropic.model(self.parts.catalog.card(model_id, self._announced())))

    async def stored_completions(self) -> Response:
        """List no stored completions: none are ever kept."""
        await self._check_openai_key()
        return _json(orjson.dumps(_NO_STORED_COMPLETIONS))

    async def stored_completion(self, completion_id: str) -> Response:  # noqa: ARG002 -- none exists, whatever its id
        """Refuse: none are kept."""
        await self._check_openai_key()
        raise RefusedError(ErrorCode.NOT_FOUND, _NOT_STORED)

    async def delete_completion(self, completion_id: str) -> Response:  # noqa: ARG002 -- none exists, whatever its id
        """Refuse: there is nothing to delete."""
        await self._check_openai_key()
        raise RefusedError(ErrorCode.INVALID_REQUEST, "Deleting completions is not supported: none are stored.")

    async def stored_response(self, response_id: str) -> Response:
        """Refuse: none are kept."""
        await self._check_openai_key()
        raise RefusedError(
            ErrorCode.NOT_FOUND,
            f"Response with id '{response_id[:200]}' not found. Auxot does not store responses.",
            param="response_id",
        )

    async def message_batches(self, batch_id: str = "") -> Response:  # noqa: ARG002 -- none exists, whatever its id
        """Refuse: a batch would have to be stored."""
        await self._check_anthropic_key()
        raise RefusedError(ErrorCode.NOT_IMPLEMENTED, "Message batches are not supported: send each message by itself.")

    async def unreachable(self) -> Response:
        """Stand for the endpoints that are served in front of this application."""
        raise RefusedError(ErrorCode.INTERNAL, "internal error")

    async def on_refused(self, error: RefusedError) -> Response:
        """Answer a refusal in the form of the request's API."""
        dialect = self._dialect()
        body = dialect.error_body(error, request_id=_told(REQUEST_ID))
        response = _json(body, status=dialect.status(error.code))
        if error.retry_after_s is not None:
            response.headers["retry-after"] = str(error.retry_after_s)
        return response

    async def on_http_exception(self, error: HTTPException) -> Response:
        """Answer an unknown route or a wrong method; what the framework's own errors say is for people."""
        code = _CODES.get(error.code or 500, ErrorCode.INVALID_REQUEST)
        response = await self.on_refused(RefusedError(code, self._wording(code)))
        response.status_code = error.code or 500
        allowed = getattr(error, "valid_methods", None)
        if allowed:
            response.headers["allow"] = ", ".join(sorted(set(allowed)))
        return response

    async def on_fault(self, error: Exception) -> Response:
        """Answer a fault of our own: the wall of one request."""
        log, name = self.parts.log, type(error).__name__
        log.exception("request.failed", error=name, request_id=_told(REQUEST_ID))  # noqa: LOG004 -- quart is handling it
        return await self.on_refused(RefusedError(ErrorCode.INTERNAL, "internal error"))

    def _wording(self, code: ErrorCode) -> str:
        path = _told(PUBLIC_PATH)[:200]
        if code is ErrorCode.NOT_FOUND:
            return f"there is no endpoint {request.method} {path}"
        if code is ErrorCode.METHOD_NOT_ALLOWED:
            return f"the endpoint {path} does not take {request.method}"
        return "bad request"

    def _dialect(self) -> Dialect:
        is_anthropic = request.path.startswith(f"/{Api.ANTHROPIC.value}/")
        return self.parts.anthropic if is_anthropic else self.parts.openai

    def _announced(self) -> list[Capabilities]:
        """Return what the workers that take jobs say of themselves."""
        sessions = self.parts.pool.fleet.members()
        return [session.capabilities for session in sessions if session.n_slots and session.capabilities]

    async def _check_openai_key(self) -> None:
        await self._check_key(auth.openai_key(request.scope["headers"]), auth.OPENAI_INVALID_KEY)

    async def _check_anthropic_key(self) -> None:
        await self._check_key(auth.anthropic_key(request.scope["headers"]), auth.ANTHROPIC_INVALID_KEY)

    async def _check_key(self, key: str, refusal: str) -> None:
        if self.parts.refusing.is_set():
            raise RefusedError(ErrorCode.UNAVAILABLE, "the router is shutting down", retry_after_s=RETRY_AFTER_S)
        await self.parts.verifier.verify(key, Role.API, address=address_of(request.scope), refusal=refusal)


@functools.cache
def _description() -> bytes:
    return orjson.dumps(openapi.document(__version__))


def _told(name: str) -> str:
    """Return what `app` has told of the request, under a name of ours in the ASGI scope."""
    return str(request.scope[name])  # type: ignore[literal-required]


def _json(body: bytes, *, status: int = 200) -> Response:
    return Response(body, status=status, content_type="application/json")
