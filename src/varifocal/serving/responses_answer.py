"""An engine's request as an answer of OpenAI's Responses API: whole, or as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from varifocal.errors import VarifocalError
from varifocal.serving import schema
from varifocal.serving.answers import PendingAnswer, in_time
from varifocal.serving.request import Request
from varifocal.serving.responses_request import ResponsesRequest

_TEXT = {"type": "text"}


async def response_object(answer: PendingAnswer, asked: ResponsesRequest) -> schema.ResponseObject:
    """Gather a whole answer.

    Raises:
        VarifocalError: the model failed.
    """
    text = "".join([piece.text async for piece in answer.request.pieces()])
    return _response(answer, asked, text)


async def response_events(
    answer: PendingAnswer,
    asked: ResponsesRequest,
    max_time_s: float,
    *,
    ended: Callable[[int], None],
) -> AsyncIterator[str]:
    """Write an answer as it comes; the generator's end, however it comes, ends the request.

    Args:
        answer: the request.
        asked: as it was sent; the answer repeats parts of it.
        max_time_s: most seconds it may take.
        ended: told the status in the end.
    """
    status, events, text = 499, _Events(), ""
    message = {"output_index": 0}
    part = {**message, "item_id": _message_id(answer), "content_index": 0}
    try:
        begun = _response(answer, asked, None).model_dump()
        for kind in ("response.created", "response.in_progress"):
            yield events.event(kind, response=begun)
        item = _message(answer, "in_progress", None).model_dump()
        yield events.event("response.output_item.added", item=item, **message)
        empty = schema.OutputText(text="").model_dump()
        yield events.event("response.content_part.added", part=empty, **part)
        async for piece in in_time(answer.request.pieces(), max_time_s):
            text += piece.text
            delta = {"delta": piece.text, "logprobs": []}
            yield events.event("response.output_text.delta", **delta, **part)
        whole = _response(answer, asked, text)
        yield events.event("response.output_text.done", text=text, logprobs=[], **part)
        written = schema.OutputText(text=text).model_dump()
        yield events.event("response.content_part.done", part=written, **part)
        item = whole.output[0].model_dump()
        yield events.event("response.output_item.done", item=item, **message)
        yield events.event(f"response.{whole.status}", response=whole.model_dump())
        status = 200
    except asyncio.TimeoutError:
        status = 504
        sentence = f"the answer took more than {max_time_s:g} s"
        yield events.event("error", code="timeout", message=sentence, param=None)
    except VarifocalError as error:
        status = 500
        yield events.event("error", code="engine_error", message=str(error), param=None)
    finally:
        answer.request.cancel()
        ended(status)


class _Events:
    """Numbers events and writes them."""

    def __init__(self) -> None:
        self._next = 0

    def event(self, kind: str, **fields: Any) -> str:
        body = {"type": kind, "sequence_number": self._next, **fields}
        self._next += 1
        return f"event: {kind}\ndata: {json.dumps(body, ensure_ascii=False)}\n\n"


def _response(
    answer: PendingAnswer, asked: ResponsesRequest, text: str | None
) -> schema.ResponseObject:
    """Write the response around a text; None where it is still to come."""
    is_cut = answer.request.finish_reason == "length"
    done = "incomplete" if is_cut else "completed"
    settings = asked.text.model_dump(by_alias=True, exclude_none=True) if asked.text else {}
    return schema.ResponseObject(
        id=_id(answer, "resp"),
        created_at=answer.created,
        status="in_progress" if text is None else done,
        incomplete_details=schema.IncompleteDetails() if is_cut and text is not None else None,
        instructions=asked.instructions,
        max_output_tokens=asked.max_output_tokens,
        metadata=asked.metadata or {},
        model=answer.model,
        output=[] if text is None else [_message(answer, done, text)],
        temperature=asked.temperature or 0.0,
        text={"format": _TEXT, **settings},
        top_p=1.0 if asked.top_p is None else asked.top_p,
        usage=None if text is None else _usage(answer.request),
        user=asked.user,
        varifocal=schema.Varifocal(route=answer.request.route),
    )


def _message(answer: PendingAnswer, status: Any, text: str | None) -> schema.OutputMessage:
    content = [] if text is None else [schema.OutputText(text=text)]
    return schema.OutputMessage(id=_message_id(answer), status=status, content=content)


def _id(answer: PendingAnswer, kind: str) -> str:
    return f"{kind}_{answer.id.removeprefix('chatcmpl-')}"


def _message_id(answer: PendingAnswer) -> str:
    return _id(answer, "msg")


def _usage(request: Request) -> schema.ResponseUsage:
    return schema.ResponseUsage(
        input_tokens=request.prompt_tokens,
        input_tokens_details=schema.InputTokensDetails(cached_tokens=request.continued_tokens),
        output_tokens=request.completion_tokens,
        output_tokens_details=schema.OutputTokensDetails(),
        total_tokens=request.prompt_tokens + request.completion_tokens,
    )
