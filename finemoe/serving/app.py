"""The server's application: Transformers' own, without the routes that load, unload and list models."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import BaseGenerateManager

from finemoe.errors import EngineError, FinemoeError
from finemoe.serving.gateway import ENDPOINTS, Gateway
from finemoe.serving.generating import OneModel
from finemoe.serving.handlers import Chats, Completions, Responses
from finemoe.serving.health import engine_failure
from finemoe.serving.metrics import Metrics
from finemoe.serving.refusals import Cancelled, Refusal, refusal_of
from finemoe.serving.running import RunningRequests
from finemoe.serving.served_model import ServedModel

if TYPE_CHECKING:
    from finemoe.runtime.engine import Engine

_KEPT = (*ENDPOINTS, "/v1/models")


def make_app(
    served: ServedModel, manager: BaseGenerateManager, engine: "Engine", running: RunningRequests, api_key: str | None = None
) -> Gateway:
    """The ASGI application.

    Args:
        served: the model. manager: generates. engine: holds the model's experts. running: where requests are noted.
        api_key: see Gateway.
    """
    state, metrics = OneModel(manager), Metrics(engine, running)

    def is_engine_usable() -> bool:
        return not engine_failure(engine)

    absent: Any = None  # handlers of routes that are closed below
    app = build_server(
        served,
        Chats(served, state),
        completion_handler=Completions(served, state),
        response_handler=Responses(served, state),
        transcription_handler=absent,
        systemone_handler=absent,
        generation_state=state,
    )
    app.router.routes[:] = [route for route in app.routes if getattr(route, "path", None) in _KEPT]
    _add_routes(app, served, engine, metrics)
    _answer_errors(app, is_engine_usable)
    return Gateway(app, running, metrics, api_key, is_engine_usable)


def _add_routes(app: FastAPI, served: ServedModel, engine: "Engine", metrics: Metrics) -> None:
    @app.get("/v1/models/{name:path}")
    def read_model(name: str) -> JSONResponse:
        served.require_served(name)
        return JSONResponse(served.get_gen_models()[0])

    @app.get("/health")
    def health() -> JSONResponse:
        reason = engine_failure(engine)
        body = {"status": "unhealthy", "reason": reason} if reason else {"status": "ok"}
        return JSONResponse(body, 503 if reason else 200)

    @app.get("/metrics")
    def read_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _answer_errors(app: FastAPI, is_engine_usable: Callable[[], bool]) -> None:
    async def answer(_: Request, error: Any) -> JSONResponse:
        refusal = refusal_of(error, is_engine_usable())
        return JSONResponse(refusal.body, refusal.status)

    async def answer_status(request: Request, error: Any) -> JSONResponse:
        if error.status_code == 400:
            return await answer_unreadable(request, error)
        what = {404: "no such endpoint", 405: "no such method"}.get(error.status_code, str(error.detail))
        refusal = Refusal(f"{request.method} {request.url.path}: {what}", error.status_code)
        return JSONResponse(refusal.body, refusal.status)

    async def answer_unreadable(_: Request, error: Any) -> JSONResponse:
        return JSONResponse(Refusal("the body must be a JSON object, sent as application/json").body, 400)

    for kind in (Refusal, Cancelled, FinemoeError, EngineError, Exception):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(HTTPException, answer_status)
    app.add_exception_handler(RequestValidationError, answer_unreadable)
