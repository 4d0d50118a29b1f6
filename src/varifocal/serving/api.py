"""A trained run served by OpenAI's APIs of chat completions and responses."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import generate_latest
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from varifocal import __version__
from varifocal.errors import DataError, ModelError, VarifocalError, nearest
from varifocal.serving import schema
from varifocal.serving.answers import (
    PendingAnswer,
    bad_schema,
    completion,
    stream_events,
    whole,
)
from varifocal.serving.chat_request import ChatRequest
from varifocal.serving.engine import Engine
from varifocal.serving.error_response import Refused, fields_renamed
from varifocal.serving.metrics import CONTENT_TYPE, ServerMetrics
from varifocal.serving.middleware import Guard
from varifocal.serving.request import (
    ContextLengthError,
    EngineClosed,
    QueueFull,
    Route,
    Sampling,
)
from varifocal.serving.request_body import Reader
from varifocal.serving.responses_answer import response_events, response_object
from varifocal.serving.responses_request import PLACES, ResponsesRequest
from varifocal.serving.schema import Question
from varifocal.serving.settings import ServeSettings
from varifocal.serving.starters import example_questions
from varifocal.serving.structured_output import SchemaError

_Asked = TypeVar("_Asked", ChatRequest, ResponsesRequest)


PAGE = Path(__file__).parent / "page"
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.ErrorAnswer}
    for status in (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504)
}


def create_app(
    engine: Engine,
    *,
    name: str,
    settings: ServeSettings | None = None,
    others: Mapping[str, Engine] | None = None,
    starters: Sequence[Question] = (),
) -> FastAPI:
    """Make the server's app.

    Args:
        engine: answers; the app closes it when it ends.
        name: the model's, for clients; `NAME:base` is the model without its adapter, if it has one,
            and `NAME:text` the adapter's text route, to which images are not shown.
        settings: its bounds.
        others: further engines by their names, which a request's `model` chooses as well; the page
            talks to the first.
        starters: questions that the page offers where only this machine can reach it, since they
            hold a run's own images; elsewhere, and by default, general ones.

    Returns:
        An ASGI app: `/v1/chat/completions`, `/v1/responses`, `/v1/models`, `/health`, `/metrics`,
        and the page.
    """
    bounds = settings or ServeSettings()
    server = _Server({name: engine, **(others or {})}, bounds)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        server.draining = True
        for each in server.engines.values():
            await run_in_threadpool(each.close, drain=False)
        server.reader.close()

    app = FastAPI(
        title="Varifocal",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=_REFUSALS,
    )
    _add_refusals(app)
    _add_models(app, server)
    _add_chat(app, server)
    _add_responses(app, server)
    _add_state(app, server)
    _add_page(app, engine, starters if bounds.is_private else ())
    _add_limits(app, engine, bounds)
    _add_request_schema(app)
    app.add_middleware(Guard, settings=bounds)
    if bounds.allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(bounds.allow_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    return app


class _Server:
    """What the handlers share."""

    def __init__(self, engines: Mapping[str, Engine], settings: ServeSettings) -> None:
        self.engines, self.settings = engines, settings
        self.models: dict[str, tuple[Engine, Route | None]] = {}
        for name, engine in engines.items():
            self.models[name] = engine, None
            self.models.update({f"{name}:{route}": (engine, route) for route in engine.routes})
        self.metrics = ServerMetrics([*engines.values()])
        self.reader = Reader(settings)
        self.started = int(time.time())
        self.draining = False

    def choose(self, model: str) -> tuple[Engine, Route | None]:
        """Return a model's engine, and which weights answer; None lets the images decide.

        Raises:
            Refused: it is none of `models`.
        """
        if model not in self.models:
            hint = nearest(model, [*self.models])
            message = f"there is no model {model!r} here, only {' and '.join(self.models)}{hint}"
            raise Refused(404, "model_not_found", message, "model")
        return self.models[model]

    def submit(self, body: bytes, address: str, form: type[_Asked]) -> tuple[_Asked, PendingAnswer]:
        """Read a body and put it into the engine's queue; takes its time, in a thread.

        Args:
            body: JSON of that form.
            address: the client's.
            form: of chat completions or of responses.

        Raises:
            Refused: it cannot be read, or asks for what is not here.
            VarifocalError: as `Engine.submit`.
        """
        given = self.reader.parse(body, form)
        asked, first = given.chat() if isinstance(given, ResponsesRequest) else (given, 0)
        engine, route = self.choose(asked.model)
        sampling = self.sampling(asked)
        if engine.load_images is None and asked.has_images:
            message = "this model has no vision tower; it cannot see an image"
            raise Refused(400, "no_vision", message, "messages")
        client = json.dumps([address, asked.user])
        messages = self.reader.messages(asked, first)
        request = engine.submit(
            messages, sampling, adapter=route != "base", images=route != "text", client=client
        )
        return given, PendingAnswer(request, asked.model)

    def counting(self, started: float) -> Callable[[int], None]:
        """Return what counts a request once its status is known."""

        def ended(status: int) -> None:
            self.metrics.requests.labels(str(status)).inc()
            self.metrics.seconds.observe(time.monotonic() - started)

        return ended

    def sampling(self, asked: ChatRequest) -> Sampling:
        limit = self.settings.max_new_tokens
        wanted = asked.max_completion_tokens or asked.max_tokens or limit
        if wanted > limit:
            message = f"this server writes at most {limit} tokens, not {wanted}"
            param = "max_completion_tokens" if asked.max_completion_tokens else "max_tokens"
            raise Refused(400, "max_tokens_too_large", message, param)
        return Sampling(
            max_new_tokens=wanted,
            temperature=0.0 if asked.temperature is None else asked.temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            seed=asked.seed,
            stop=asked.stops(),
            logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
            json_schema=asked.response_format.schema_text() if asked.response_format else None,
            allowed_answers=tuple(asked.allowed_answers or ()),
        )


def _add_chat(app: FastAPI, server: _Server) -> None:
    body = {"schema": {"$ref": "#/components/schemas/ChatRequest"}}
    described = {"requestBody": {"required": True, "content": {"application/json": body}}}

    @app.post("/v1/chat/completions", response_model=schema.ChatCompletion, openapi_extra=described)
    async def chat_completions(request: Request) -> Any:
        """Answer a conversation of text and images, whole or as server-sent events."""
        started = time.monotonic()
        asked, answer = await _begin(server, request, ChatRequest)
        ended = server.counting(started)
        left = server.settings.max_time_s
        if asked.stream:
            usage = bool(asked.stream_options and asked.stream_options.include_usage)
            events = stream_events(answer, left, usage=usage, ended=ended)
            return StreamingResponse(events, media_type="text/event-stream")
        return await whole(request, answer, completion(answer), left, ended)


def _add_responses(app: FastAPI, server: _Server) -> None:
    body = {"schema": {"$ref": "#/components/schemas/ResponsesRequest"}}
    described = {"requestBody": {"required": True, "content": {"application/json": body}}}

    @app.post("/v1/responses", response_model=schema.ResponseObject, openapi_extra=described)
    async def responses(request: Request) -> Any:
        """Answer a conversation that is sent whole, whole or as server-sent events."""
        started = time.monotonic()
        with fields_renamed(PLACES):
            asked, answer = await _begin(server, request, ResponsesRequest)
            ended, left = server.counting(started), server.settings.max_time_s
            if asked.stream:
                events = response_events(answer, asked, left, ended=ended)
                return StreamingResponse(events, media_type="text/event-stream")
            return await whole(request, answer, response_object(answer, asked), left, ended)


async def _begin(
    server: _Server, request: Request, form: type[_Asked]
) -> tuple[_Asked, PendingAnswer]:
    """Read a request and put it into the engine's queue."""
    if server.draining:
        raise Refused(503, "shutting_down", "the server is shutting down")
    body = await request.body()
    address = request.client.host if request.client is not None else ""
    try:
        return await server.reader.run(lambda: server.submit(body, address, form))
    except QueueFull as error:
        raise Refused(429, "queue_full", str(error)) from error
    except EngineClosed as error:
        raise Refused(503, "shutting_down", str(error)) from error
    except ContextLengthError as error:
        raise Refused(400, "context_length_exceeded", str(error), "messages") from error
    except SchemaError as error:
        raise bad_schema(error) from error
    except (DataError, ModelError) as error:  # a template that refuses turns is a ModelError
        raise Refused(400, "invalid_messages", str(error), "messages") from error
    except VarifocalError as error:
        raise Refused(500, "engine_error", str(error)) from error


def _add_models(app: FastAPI, server: _Server) -> None:
    @app.get("/v1/models")
    async def models() -> schema.ModelList:
        """List the runs, and each without its adapter."""
        cards = [schema.ModelCard(id=name, created=server.started) for name in server.models]
        return schema.ModelList(data=cards)

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> schema.ModelCard:
        """Describe one model."""
        server.choose(model)
        return schema.ModelCard(id=model, created=server.started)


def _add_state(app: FastAPI, server: _Server) -> None:
    @app.get("/health")
    async def health() -> schema.Health:
        """Say that the server answers."""
        stats = [engine.stats() for engine in server.engines.values()]
        return schema.Health(
            status="draining" if server.draining else "ok",
            model=next(iter(server.engines)),
            running=sum(each.running for each in stats),
            waiting=sum(each.waiting for each in stats),
        )

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Tell the server's figures in Prometheus's text form."""
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI, engine: Engine, starters: Sequence[Question]) -> None:
    questions = [*starters] or example_questions(images=engine.load_images is not None)
    layers = [
        schema.RoutingLayer(layer=name, text=table[0].tolist(), image=table[1].tolist())
        for name, table in (engine.routing or {}).items()
    ]

    @app.get("/v1/varifocal/examples")
    async def examples() -> list[schema.Question]:
        """Offer questions to begin with."""
        return questions

    @app.get("/v1/varifocal/routing")
    async def routing_table() -> schema.Routing:
        """Tell how each layer treats text rows and rows with an image."""
        return schema.Routing(layers=layers)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE), name="page")


def _add_limits(app: FastAPI, engine: Engine, bounds: ServeSettings) -> None:
    bounds_shown = schema.Limits(
        images=engine.load_images is not None,
        base_images=engine.load_images is not None and not engine.base_takes_no_images,
        max_images=bounds.max_images,
        max_image_mpixels=bounds.max_image_mpixels,
        max_body_mib=bounds.max_body_mib,
        max_text_chars=bounds.max_text_chars,
        max_new_tokens=bounds.max_new_tokens,
        window=engine.window,
    )

    @app.get("/v1/varifocal/limits")
    async def limits() -> schema.Limits:
        """Say what a request may hold."""
        return bounds_shown


def _add_refusals(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return Refused(error.status_code, "not_found", message).response(error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return Refused(400, "invalid_request", str(error)).response()

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        message = f"the server failed: {type(error).__name__}; its log says more"
        return Refused(500, "internal_error", message).response()


def _add_request_schema(app: FastAPI) -> None:
    """Put the request's form into the OpenAPI document, as FastAPI does not parse it."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            page = plain()
            _, definitions = models_json_schema(
                [(ChatRequest, "validation"), (ResponsesRequest, "validation")],
                ref_template="#/components/schemas/{model}",
            )
            page["components"]["schemas"].update(definitions["$defs"])
        return plain()

    app.openapi = openapi  # type: ignore[method-assign]
