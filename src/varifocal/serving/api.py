"""A trained run behind OpenAI's chat completions, for whatever speaks them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException

from varifocal import __version__
from varifocal.data.example import Message
from varifocal.errors import DataError, VarifocalError, nearest
from varifocal.serving import schema
from varifocal.serving.answers import Answer, completion, stream_events
from varifocal.serving.engine import Engine
from varifocal.serving.examples import example_questions
from varifocal.serving.guard import Guard
from varifocal.serving.images import read_image
from varifocal.serving.metrics import CONTENT_TYPE, ServerMetrics
from varifocal.serving.request import EngineClosed, QueueFull, Sampling
from varifocal.serving.settings import ServeSettings

PAGE = Path(__file__).parent / "page"
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.ErrorAnswer}
    for status in (400, 401, 403, 404, 413, 415, 422, 429, 500, 503, 504)
}


class Refused(Exception):  # noqa: N818 - the name says what happens
    """A request that is answered by a 4xx or 5xx."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param


def create_app(
    engine: Engine,
    *,
    name: str,
    settings: ServeSettings | None = None,
) -> FastAPI:
    """Make the server's app.

    Args:
        engine: answers; the app closes it when it ends.
        name: the model's, for clients; `NAME:base` is the model without its adapter, if it has one.
        settings: its bounds.

    Returns:
        An ASGI app: `/v1/chat/completions`, `/v1/models`, `/health`, `/metrics`, and the page.
    """
    bounds = settings or ServeSettings()
    server = _Server(engine, name, bounds)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        server.draining = True
        await run_in_threadpool(engine.close, drain=False)

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
    _add_state(app, server)
    _add_page(app, engine)
    app.add_middleware(Guard, settings=bounds)
    return app


class _Server:
    """What the handlers share."""

    def __init__(self, engine: Engine, name: str, settings: ServeSettings) -> None:
        self.engine, self.name, self.settings = engine, name, settings
        self.metrics = ServerMetrics(engine)
        self.started = int(time.time())
        self.draining = False

    @property
    def models(self) -> tuple[str, ...]:
        """The names that can be asked."""
        return (self.name, f"{self.name}:base") if self.engine.has_adapter else (self.name,)

    def uses_adapter(self, model: str) -> bool:
        """Tell whether a model is the trained one or the one without its adapter.

        Raises:
            Refused: it is none of them.
        """
        if model not in self.models:
            hint = nearest(model, self.models)
            told = f"there is no model {model!r} here, only {' and '.join(self.models)}{hint}"
            raise Refused(404, "model_not_found", told, "model")
        return model == self.name

    def sampling(self, asked: schema.ChatRequest) -> Sampling:
        limit = self.settings.max_new_tokens
        wanted = asked.max_completion_tokens or asked.max_tokens or limit
        if wanted > limit:
            told = f"this server writes at most {limit} tokens, not {wanted}"
            raise Refused(400, "max_tokens_too_large", told, "max_tokens")
        return Sampling(
            max_new_tokens=wanted,
            temperature=0.0 if asked.temperature is None else asked.temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            seed=asked.seed,
            stop=asked.stops(),
            logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        )

    def messages(self, asked: schema.ChatRequest) -> list[Message]:
        """Read a request's turns and pictures."""
        if len(asked.messages) > self.settings.max_messages:
            told = f"a conversation may have {self.settings.max_messages} messages"
            raise Refused(400, "too_many_messages", told, "messages")
        pictures = sum(
            isinstance(part, schema.ImagePart)
            for message in asked.messages
            if not isinstance(message.content, str)
            for part in message.content
        )
        if pictures > self.settings.max_images:
            told = f"a request may have {self.settings.max_images} pictures, not {pictures}"
            raise Refused(400, "too_many_images", told, "messages")
        if pictures and self.engine.load_images is None:
            told = "this model has no vision tower; it cannot see a picture"
            raise Refused(400, "no_vision", told, "messages")
        return [self._message(message) for message in asked.messages]

    def _message(self, message: schema.ChatMessage) -> Message:
        role = "system" if message.role == "developer" else message.role
        if isinstance(message.content, str):
            return Message(role, (message.content,))
        content = (
            part.text
            if isinstance(part, schema.TextPart)
            else read_image(part.image_url.url, self.settings)
            for part in message.content
        )
        return Message(role, tuple(content))


def _add_chat(app: FastAPI, server: _Server) -> None:
    @app.post("/v1/chat/completions", response_model=schema.ChatCompletion)
    async def chat_completions(asked: schema.ChatRequest, request: Request) -> Any:
        """Answer a conversation of text and pictures, whole or as server-sent events."""
        started = time.monotonic()
        answer = await _begin(server, asked)

        def ended(status: int) -> None:
            server.metrics.requests.labels(str(status)).inc()
            server.metrics.seconds.observe(time.monotonic() - started)

        left = server.settings.max_time_s
        if asked.stream:
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            events = stream_events(answer, left, usage=usage, ended=ended)
            return StreamingResponse(events, media_type="text/event-stream")
        return await _whole(request, answer, left, ended)


async def _begin(server: _Server, asked: schema.ChatRequest) -> Answer:
    """Put a request into the engine's queue."""
    adapter = server.uses_adapter(asked.model)
    if server.draining:
        raise Refused(503, "shutting_down", "the server is shutting down")

    def submit() -> Any:
        return server.engine.submit(server.messages(asked), server.sampling(asked), adapter=adapter)

    try:
        request = await run_in_threadpool(submit)
    except QueueFull as error:
        raise Refused(429, "queue_full", str(error)) from error
    except EngineClosed as error:
        raise Refused(503, "shutting_down", str(error)) from error
    except DataError as error:
        raise Refused(400, "invalid_messages", str(error), "messages") from error
    return Answer(request, asked.model)


async def _whole(request: Request, answer: Answer, left: float, ended: Any) -> Any:
    """Wait for the whole answer, as long as somebody waits for it."""
    work = asyncio.ensure_future(completion(answer))
    gone = asyncio.ensure_future(_left(request))
    status = 499  # nginx's number for a client that has left
    try:
        await asyncio.wait({work, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            result = work.result()
            status = 200
            return result
        if gone.done():
            return Response(status_code=status)
        status = 504
        raise Refused(504, "timeout", f"the answer took more than {left:g} s; ask for fewer tokens")
    except DataError as error:
        status = 400
        raise Refused(400, "invalid_messages", str(error), "messages") from error
    except VarifocalError as error:
        status = 500
        raise Refused(500, "engine_error", str(error)) from error
    finally:
        answer.request.cancel()
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)
        ended(status)


async def _left(request: Request) -> None:
    """Wait until the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_models(app: FastAPI, server: _Server) -> None:
    @app.get("/v1/models")
    async def models() -> schema.ModelList:
        """List the run, and the same model without its adapter."""
        cards = [schema.ModelCard(id=name, created=server.started) for name in server.models]
        return schema.ModelList(data=cards)

    @app.get("/v1/models/{model}")
    async def model(model: str) -> schema.ModelCard:
        """Describe one model."""
        server.uses_adapter(model)
        return schema.ModelCard(id=model, created=server.started)


def _add_state(app: FastAPI, server: _Server) -> None:
    @app.get("/health")
    async def health() -> schema.Health:
        """Say that the server answers."""
        stats = server.engine.stats()
        status = "draining" if server.draining else "ok"
        return schema.Health(
            status=status, model=server.name, running=stats.running, waiting=stats.waiting
        )

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Tell the server's figures in Prometheus's text form."""
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI, engine: Engine) -> None:
    questions = example_questions(pictures=engine.load_images is not None)
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
        """Tell how each layer treats text rows and rows with a picture."""
        return schema.Routing(layers=layers)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE), name="page")


def _add_refusals(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return _refusal(error.status, error.code, error.message, error.param)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        told = f"{request.method} {request.url.path}: {error.detail}"
        return _refusal(error.status_code, "not_found", told, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _refusal(400, "invalid_request", *_first_mistake(error))


def _first_mistake(error: RequestValidationError) -> tuple[str, str | None]:
    """Say what is wrong with a request in one sentence, and where."""
    mistake = dict(error.errors()[0])
    place = ".".join(str(step) for step in mistake["loc"] if step != "body")
    if (field := schema.unknown_field(mistake)) is not None:
        hint = nearest(field, schema.ChatRequest.model_fields)
        return f"{place}: this server does not know this field{hint}", place
    if mistake["type"] == "json_invalid":
        return f"the body is no JSON: {mistake['ctx']['error']}", None
    return f"{place}: {mistake['msg']}", place or None


def _refusal(
    status: int,
    code: str,
    message: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    body = schema.ErrorBody(message=message, type=kind, param=param, code=code)
    answer = schema.ErrorAnswer(error=body)
    extra = {"Retry-After": "1"} if status == 429 else {}
    return JSONResponse(answer.model_dump(), status, headers={**(headers or {}), **extra})


def parse_event(line: str) -> dict[str, Any] | None:
    """Read one line of a stream back; None for the last and for empty ones.

    >>> parse_event('data: {"id": "x"}')
    {'id': 'x'}
    >>> parse_event("data: [DONE]") is None
    True
    """
    body = line.removeprefix("data: ").strip()
    return json.loads(body) if body.startswith("{") else None
