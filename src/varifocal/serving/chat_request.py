"""A chat request in OpenAI's form: what is understood, what is left alone, what is refused.

Field names and meanings are those of https://platform.openai.com/docs/api-reference/chat. A null
means that a field is absent. What a client may send without harm is taken and left alone (`user`,
`metadata`); what would change the answer and cannot be done is refused by name; what nobody knows
is refused with the nearest name.

A request is validated with `Bounds` as pydantic's context, which stop it at the first message, part
or character too many: a body that is all parts is not built in memory to be refused afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from varifocal.serving.structured_output import ANY_OBJECT
from varifocal.serving.unsupported_fields import (
    OF_MESSAGES,
    OF_PARTS,
    UNSUPPORTED,
    Known,
    misfit,
    refuse_extras,
)

MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20
MAX_ANSWERS = 100
_MAX_ANSWER_CHARS = 500
_MAX_STOP_CHARS = 200
MAX_LIST = 1024
"""Longest list of parts in one message; `Bounds` counts those of all messages."""

TAGS = frozenset(
    {"<text>", "<list>", "<null>", "<part:text>", "<part:image_url>"}
    | {"<part:input_text>", "<part:output_text>", "<part:input_image>"}
)
"""What pydantic puts into an error's path for the branch of a union; no field is called so."""


@dataclass
class Bounds:
    """What one request may hold, and what was counted so far.

    Attributes:
        max_messages: turns of the conversation.
        max_parts: parts of all messages together.
        max_chars: characters of all texts together.
        max_images: images of all messages together.
    """

    max_messages: int
    max_parts: int
    max_chars: int
    max_images: int
    _counts: dict[str, int] = field(default_factory=dict)

    def add(self, what: str, number: int, most: int, message: str) -> None:
        """Count more of something.

        Raises:
            PydanticCustomError: it is more than may be.
        """
        self._counts[what] = self._counts.get(what, 0) + number
        if self._counts[what] > most:
            words = message.format(most=f"{most:,}")
            raise PydanticCustomError("too_many", "{message}", {"message": words, "what": what})


def _count_text(text: str, info: ValidationInfo) -> str:
    bounds: Bounds | None = info.context
    if bounds is not None:
        error = "the texts of a request may have {most} characters together; send less"
        bounds.add("characters", len(text), bounds.max_chars, error)
    return text


def count_part(part: Any, info: ValidationInfo) -> Any:
    """Count a part, and an image, of a request."""
    bounds: Bounds | None = info.context
    if bounds is not None:
        bounds.add("parts", 1, bounds.max_parts, "a request may have {most} parts; join its texts")
        if part.type in ("image_url", "input_image"):
            error = "a request may have {most} images; send fewer"
            bounds.add("images", 1, bounds.max_images, error)
    return part


def count_message(message: Any, info: ValidationInfo) -> Any:
    """Count a turn of a request."""
    bounds: Bounds | None = info.context
    if bounds is not None:
        error = "a conversation may have {most} messages; leave the oldest out"
        bounds.add("messages", 1, bounds.max_messages, error)
    return message


def _check_number(value: Any) -> Any:
    """Refuse what Python would read as a number: true as 1, "5" as 5."""
    if isinstance(value, bool | str):
        what = "a text" if isinstance(value, str) else "true or false"
        raise PydanticCustomError("not_a_number", "a number is needed, not {what}", {"what": what})
    return value


def _kind(value: Any) -> str | None:
    """Tell which branch of "a text or a list" a value is for."""
    if isinstance(value, str):
        return "<text>"
    if isinstance(value, list | tuple):
        return "<list>"
    return "<null>" if value is None else None


def by_kind(error: str, message: str) -> Discriminator:
    """Choose by `_kind`, and say what a value that is none of the three should be."""
    return Discriminator(_kind, custom_error_type=error, custom_error_message=message)


def _check_image_url(value: Any) -> Any:
    """Say in what form an image is asked for; a text is the mistake that people make."""
    if not isinstance(value, Mapping | ImageUrl):
        what = "a text" if isinstance(value, str) else type(value).__name__
        error = f'image_url must be an object, {{"url": "data:image/png;base64,..."}}, not {what}'
        raise PydanticCustomError("image_url_form", "{message}", {"message": error})
    return value


def part_type(value: Any) -> Any:
    """Return the type of a part, read or not."""
    return value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)


def _check_part(value: Any) -> Any:
    """Say which parts there are."""
    given = part_type(value)
    if not isinstance(value, Mapping | TextPart | ImagePart):
        raise PydanticCustomError("part_form", 'a part must be an object with a "type"')
    if given not in ("text", "image_url"):
        error = f"a part's type must be 'text' or 'image_url', not {repr(given)[:80]}"
        if given in ("input_text", "input_image"):
            here = {"input_text": "text", "input_image": "image_url"}[given]
            error += f"; {given} is of the Responses API, here it is {here}"
        raise misfit("type", error)
    return value


def _check_answers(answers: list[str], info: ValidationInfo) -> list[str]:
    if len({*answers}) < len(answers):
        raise PydanticCustomError("same_answers", "an answer is listed twice; list each once")
    for answer in answers:
        _count_text(answer, info)
    return answers


CountedText = Annotated[str, AfterValidator(_count_text)]
StrictFlag = Annotated[bool, Field(strict=True)]
PlainInt = Annotated[int, BeforeValidator(_check_number)]
PlainNumber = Annotated[float, BeforeValidator(_check_number), Field(allow_inf_nan=False)]


class RequestForm(BaseModel):
    """An object of a request; what it does not know may come as null, or as `KNOWN` says."""

    model_config = ConfigDict(extra="allow")
    KNOWN: ClassVar[Known] = {}

    @model_validator(mode="after")
    def _knows_its_fields(self) -> RequestForm:
        refuse_extras(self.model_extra or {}, self.KNOWN, type(self))
        return self


class TextPart(RequestForm):
    """A piece of a message's text."""

    KNOWN = OF_PARTS
    type: Literal["text"]
    text: CountedText


class ImageUrl(RequestForm):
    """Where an image is: a `data:` URI, or an address that the server allows."""

    url: Annotated[str, Field(min_length=1)]
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(RequestForm):
    """An image in a message."""

    KNOWN = OF_PARTS
    type: Literal["image_url"]
    image_url: Annotated[ImageUrl, BeforeValidator(_check_image_url)]


Part = Annotated[
    Annotated[TextPart, Tag("<part:text>")] | Annotated[ImagePart, Tag("<part:image_url>")],
    Discriminator(lambda value: f"<part:{part_type(value)}>"),
    BeforeValidator(_check_part),
    AfterValidator(count_part),
]
Content = Annotated[
    Annotated[CountedText, Tag("<text>")]
    | Annotated[list[Part], Field(fail_fast=True, max_length=MAX_LIST), Tag("<list>")]
    | Annotated[None, Tag("<null>")],
    by_kind("content_form", "content must be a text or a list of parts"),
]


class ChatMessage(RequestForm):
    """A turn of a conversation; content may be null where an assistant has said nothing."""

    KNOWN = OF_MESSAGES
    role: Literal["system", "developer", "user", "assistant"]
    content: Content = None
    name: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> ChatMessage:
        if self.role != "assistant" and (self.content is None or self.content == []):
            error = "content must be a text or a list of parts, not empty"
            raise PydanticCustomError(
                "no_content", "{message}", {"message": error, "field": "content"}
            )
        if self.role != "user" and isinstance(self.content, list):
            for number, part in enumerate(self.content):
                if isinstance(part, ImagePart):
                    where = {"role": self.role, "field": f"content.{number}"}
                    raise PydanticCustomError(
                        "image_place",
                        "images stand in turns of the user, not of the {role}",
                        where,
                    )
        return self


class JsonSchemaForm(RequestForm):
    """A JSON schema and its name; an answer follows it whether it is `strict` or not."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Annotated[str, AfterValidator(_count_text)] | None = None
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]
    strict: StrictFlag | None = None


class ResponseFormat(RequestForm):
    """What an answer is: text, any JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaForm | None = None

    @model_validator(mode="after")
    def _fits(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise misfit("json_schema", "json_schema goes with type: json_schema, and only with it")
        return self

    def schema_text(self) -> str | None:
        """Return the JSON schema as text; None where an answer is text."""
        if self.json_schema is not None:
            return json.dumps(self.json_schema.json_schema)
        return ANY_OBJECT if self.type == "json_object" else None


class StreamOptions(RequestForm):
    """What a stream has besides text."""

    include_usage: StrictFlag | None = None
    include_obfuscation: StrictFlag | None = None


_Stop = Annotated[str, Field(min_length=1, max_length=_MAX_STOP_CHARS)]


class ChatRequest(RequestForm):
    """A request for an answer.

    Besides the fields of this list, those of `UNSUPPORTED` may come with values that change
    nothing.
    """

    KNOWN = UNSUPPORTED
    model: Annotated[str, Field(max_length=512)]
    messages: Annotated[
        list[Annotated[ChatMessage, AfterValidator(count_message)]],
        Field(fail_fast=True, min_length=1),
    ]
    stream: StrictFlag | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[PlainInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[PlainInt, Field(ge=1)] | None = None
    temperature: Annotated[PlainNumber, Field(ge=0, le=2)] | None = None
    top_p: Annotated[PlainNumber, Field(gt=0, le=1)] | None = None
    seed: Annotated[PlainInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[
        Annotated[_Stop, Tag("<text>")]
        | Annotated[list[_Stop], Field(fail_fast=True, max_length=MAX_STOPS), Tag("<list>")]
        | Annotated[None, Tag("<null>")],
        by_kind("stop_form", "stop must be a text or a list of texts"),
    ] = None
    logprobs: StrictFlag | None = None
    top_logprobs: Annotated[PlainInt, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    metadata: dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    allowed_answers: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=_MAX_ANSWER_CHARS)]],
            Field(fail_fast=True, max_length=MAX_ANSWERS),
            AfterValidator(_check_answers),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _fits(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise misfit("top_logprobs", "top_logprobs needs logprobs: true")
        if self.stream_options is not None and not self.stream:
            raise misfit("stream_options", "stream_options needs stream: true")
        if self.allowed_answers:
            self._check_likeliest()
        if self.messages[-1].role != "user":
            raise misfit(
                f"messages.{len(self.messages) - 1}.role",
                "the last message must be the user's; an answer that was begun is not continued",
            )
        return self

    def _check_likeliest(self) -> None:
        """Refuse what an answer that is the likeliest of a list cannot obey."""
        schema = self.response_format.schema_text() if self.response_format else None
        given = {
            "temperature": self.temperature,
            "stop": self.stop,
            "logprobs": self.logprobs,
            "response_format": schema,
        }
        for name, value in given.items():
            if value:
                raise misfit(name, f"allowed_answers takes the likeliest of them; leave {name} out")

    @property
    def has_images(self) -> bool:
        """Whether any turn has an image."""
        contents = [turn.content for turn in self.messages if isinstance(turn.content, list)]
        return any(isinstance(part, ImagePart) for parts in contents for part in parts)

    def stops(self) -> tuple[str, ...]:
        """Return the texts that end an answer."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
