"""The part of OpenAI's chat completions that is understood, as pydantic models.

Field names and meanings are those of https://platform.openai.com/docs/api-reference/chat. What a
client may send without harm is taken and left alone (`user`, `metadata`); what would change the
answer and cannot be done is refused by name; what nobody knows is refused with the nearest name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20
_Text = Annotated[str, Field(max_length=200_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Strict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: _Text


class ImageUrl(_Strict):
    """Where a picture is: a `data:` URI, or an address that the server allows."""

    url: Annotated[str, Field(min_length=1)]
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Strict):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(_Strict):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: _Text | list[Part]
    name: str | None = None


class StreamOptions(_Strict):
    """What a stream has besides text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ResponseFormat(_Strict):
    """The form of an answer; only plain text."""

    type: Literal["text"]


class ChatRequest(_Strict):
    """A request for an answer."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=200)]
        | Annotated[
            list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=MAX_STOPS)
        ]
        | None
    ) = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    n: Literal[1] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None

    @model_validator(mode="after")
    def _fields_fit(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's")
        return self

    def stops(self) -> tuple[str, ...]:
        """Return the texts that end an answer."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class TopLogprob(BaseModel):
    """A token that was likely at a place."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the answer, with the likeliest beside it."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """Natural logarithms of probabilities, a token each."""

    content: list[TokenLogprob]


class AnswerMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """The one answer."""

    index: int = 0
    message: AnswerMessage
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"]


class PromptDetails(BaseModel):
    """Of the prompt's tokens, those that were remembered from an earlier request."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens in and out."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Varifocal(BaseModel):
    """What OpenAI's form has no place for."""

    route: Literal["text", "image", "base"]
    """Which weights answered: of rows without a picture, with one, or the model without adapter."""


class ChatCompletion(BaseModel):
    """An answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    varifocal: Varifocal


class ModelCard(BaseModel):
    """A model that can be asked."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["varifocal"] = "varifocal"


class ModelList(BaseModel):
    """The models that can be asked."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorBody(BaseModel):
    """What was wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """An answer of status 4xx or 5xx."""

    error: ErrorBody


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok", "draining"]
    model: str
    running: int
    waiting: int


class Question(BaseModel):
    """An example for the page; `image` is a `data:` URI."""

    title: str
    text: str
    image: str | None = None


class RoutingLayer(BaseModel):
    """How a layer mixes its two branches: [w0, w1] for a text row and for a row with a picture."""

    layer: str
    text: list[float]
    image: list[float]


class Routing(BaseModel):
    """MMA's routing table; no layers where the run has none."""

    layers: list[RoutingLayer]


def unknown_field(error: dict[str, Any]) -> str | None:
    """Return the name of a field that nobody knows, if that is what is wrong."""
    return str(error["loc"][-1]) if error["type"] == "extra_forbidden" else None
