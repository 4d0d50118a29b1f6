"""A request that is refused: its status, and its body in OpenAI's form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ValidationError

from varifocal.serving import schema
from varifocal.serving.chat_request import TAGS

_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refused(Exception):  # noqa: N818 - the name says what happens
    """A request that is answered by a 4xx or 5xx."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        """Write it as an answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        body = schema.ErrorBody(
            message=self.message,
            type=_KINDS.get(self.status, kind),
            param=self.param,
            code=self.code,
        )
        extra = {"Retry-After": "1"} if self.status == 429 else {}
        answer = schema.ErrorAnswer(error=body)
        return JSONResponse(answer.model_dump(), self.status, headers={**(headers or {}), **extra})


@contextmanager
def fields_renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Let refusals name fields as another form of request does.

    Args:
        names: fields, whole or the beginning of a path, and what they are called there.
    """
    try:
        yield
    except Refused as error:
        for name, other in names.items():
            if error.param is not None and f"{error.param}.".startswith(f"{name}."):
                error.param = other + error.param.removeprefix(name)
        raise


def first_mistake(error: ValidationError) -> Refused:
    """Say in one sentence what is wrong with a body, and name the field."""
    mistake: Any = error.errors(include_url=False, include_input=False)[0]
    context = mistake.get("ctx", {})
    if mistake["type"] == "json_invalid":
        return Refused(400, "invalid_json", f"the body is no JSON: {context['error']}")
    steps = [str(step) for step in mistake["loc"] if step not in TAGS]
    steps += [context["field"]] if "field" in context else []
    place = ".".join(steps)[:200]
    code = f"too_many_{context['what']}" if mistake["type"] == "too_many" else "invalid_request"
    message = mistake["msg"].replace(" after validation", "")
    return Refused(400, code, f"{place}: {message}" if place else message, place or None)
