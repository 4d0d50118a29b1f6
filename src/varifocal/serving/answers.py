"""An engine's request as OpenAI's answer: whole, or as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from fastapi import Request as HttpRequest
from fastapi import Response

from varifocal.errors import DataError, VarifocalError
from varifocal.serving import schema
from varifocal.serving.error_response import Refused
from varifocal.serving.request import Piece, Request, SampledToken
from varifocal.serving.structured_output import SchemaError


@dataclass
class PendingAnswer:
    """A request on its way, and the name it goes by.

    Attributes:
        request: the engine's.
        model: as the client called it.
    """

    request: Request
    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))


async def completion(answer: PendingAnswer) -> schema.ChatCompletion:
    """Gather a whole answer.

    Raises:
        VarifocalError: the model failed.
    """
    pieces = [piece async for piece in answer.request.pieces()]
    logprobs = None
    if answer.request.sampling.logprobs is not None:
        logprobs = schema.Logprobs(content=_logprobs(pieces))
    choice = schema.Choice(
        message=schema.AnswerMessage(content="".join(piece.text for piece in pieces)),
        logprobs=logprobs,
        finish_reason=_reason(answer.request),
    )
    return schema.ChatCompletion(
        id=answer.id,
        created=answer.created,
        model=answer.model,
        choices=[choice],
        usage=_usage(answer.request),
        varifocal=_ours(answer.request),
    )


async def whole(
    client: HttpRequest,
    answer: PendingAnswer,
    result: Coroutine[Any, Any, Any],
    max_time_s: float,
    ended: Callable[[int], None],
) -> Any:
    """Wait for a whole answer, as long as somebody waits for it.

    Args:
        client: who waits.
        answer: the request; cancelled in the end.
        result: gathers it.
        max_time_s: most seconds it may take.
        ended: told the status in the end.

    Raises:
        Refused: the model failed, it took too long, or the conversation is at fault.
    """
    work = asyncio.ensure_future(result)
    gone = asyncio.ensure_future(_left(client))
    status = 499  # nginx's number for a client that has left
    try:
        await asyncio.wait({work, gone}, timeout=max_time_s, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            gathered = work.result()
            status = 200
            return gathered
        if gone.done():
            return Response(status_code=status)
        status = 504
        message = f"the answer took more than {max_time_s:g} s; ask for fewer tokens"
        raise Refused(504, "timeout", message)
    except SchemaError as error:
        status = 400
        raise bad_schema(error) from error
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


def bad_schema(error: SchemaError) -> Refused:
    """Refuse a schema that no answer can be held to."""
    return Refused(400, "invalid_schema", str(error), "response_format.json_schema.schema")


async def _left(client: HttpRequest) -> None:
    """Wait until the client has left."""
    while (await client.receive())["type"] != "http.disconnect":
        pass


async def stream_events(
    answer: PendingAnswer, max_time_s: float, *, usage: bool, ended: Callable[[int], None]
) -> AsyncIterator[str]:
    """Write an answer as it comes; the generator's end, however it comes, ends the request.

    Args:
        answer: the request.
        max_time_s: most seconds it may take.
        usage: whether a last event counts tokens.
        ended: told the status in the end.
    """
    status = 499
    try:
        yield _event(answer, {"role": "assistant", "content": ""}, usage=usage)
        async for piece in in_time(answer.request.pieces(), max_time_s):
            yield _event(answer, {"content": piece.text}, piece=piece, usage=usage)
        yield _event(answer, {}, reason=_reason(answer.request), usage=usage)
        if usage:
            counts = _usage(answer.request).model_dump()
            yield _line({**_head(answer), "choices": [], "usage": counts})
        status = 200
    except asyncio.TimeoutError:
        status = 504
        yield _failure("timeout", f"the answer took more than {max_time_s:g} s")
    except VarifocalError as error:
        status = 500
        yield _failure("engine_error", str(error))
    finally:
        answer.request.cancel()
        ended(status)
    yield "data: [DONE]\n\n"


async def in_time(pieces: AsyncIterator[Piece], max_time_s: float) -> AsyncIterator[Piece]:
    """Give pieces until the time is over; raises asyncio's TimeoutError then."""
    end = time.monotonic() + max_time_s
    while True:
        try:
            yield await asyncio.wait_for(anext(pieces), end - time.monotonic())
        except StopAsyncIteration:
            return


def _event(
    answer: PendingAnswer,
    delta: dict[str, str],
    *,
    usage: bool,
    piece: Piece | None = None,
    reason: str | None = None,
) -> str:
    choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": reason}
    choice["logprobs"] = None
    if piece is not None and answer.request.sampling.logprobs is not None:
        logprobs = schema.Logprobs(content=_logprobs([piece]))
        choice["logprobs"] = logprobs.model_dump()
    event = {**_head(answer), "choices": [choice]}
    if usage:
        event["usage"] = None
    if reason is not None:
        event["varifocal"] = _ours(answer.request).model_dump()
    return _line(event)


def _head(answer: PendingAnswer) -> dict[str, Any]:
    return {
        "id": answer.id,
        "object": "chat.completion.chunk",
        "created": answer.created,
        "model": answer.model,
    }


def _failure(code: str, message: str) -> str:
    error = schema.ErrorBody(message=message, type="server_error", code=code)
    return _line({"error": error.model_dump()})


def _line(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


def _reason(request: Request) -> Any:
    return "length" if request.finish_reason == "length" else "stop"


def _usage(request: Request) -> schema.Usage:
    return schema.Usage(
        prompt_tokens=request.prompt_tokens,
        completion_tokens=request.completion_tokens,
        total_tokens=request.prompt_tokens + request.completion_tokens,
        prompt_tokens_details=schema.PromptDetails(cached_tokens=request.continued_tokens),
    )


def _ours(request: Request) -> schema.Varifocal:
    """Say what OpenAI's form has no place for."""
    if not request.answer_scores:
        return schema.Varifocal(route=request.route)
    answers = [schema.AllowedAnswer(**vars(score)) for score in request.answer_scores]
    return schema.ScoredVarifocal(route=request.route, answers=answers)


def _logprobs(pieces: Sequence[Piece]) -> list[schema.TokenLogprob]:
    return [_token(token) for piece in pieces for token in piece.logprobs]


def _token(token: SampledToken) -> schema.TokenLogprob:
    top = [
        schema.TopLogprob(token=text, logprob=value, bytes=list(raw))
        for text, value, raw in token.top
    ]
    return schema.TokenLogprob(
        token=token.token, logprob=token.logprob, bytes=list(token.bytes), top_logprobs=top
    )
