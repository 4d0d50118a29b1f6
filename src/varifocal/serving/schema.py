"""The API's answers in OpenAI's form, as pydantic models; requests are in `chat_request.py`.

The package `openai` has these types, too. It is no dependency of the server: `import
openai.types.chat` (openai 3.54) takes 0.54 CPU seconds and 23 MB on top of FastAPI's 0.38 seconds,
this module 0.01 seconds and under 1 MB. `tests/serving/test_api.py` validates every answer strictly
against openai's types.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class TopLogprob(BaseModel):
    """A token that was likely at a place."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the answer, with the likeliest next to it."""

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
    """Of the prompt's tokens, those of an earlier request and its answer that it continues."""

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
    """Which weights answered: of rows without an image, with one, or the model without adapter."""


class AllowedAnswer(BaseModel):
    """How likely one of `allowed_answers` is."""

    text: str
    logprob: float
    probability: float


class ScoredVarifocal(Varifocal):
    """The same, of a request with `allowed_answers`."""

    answers: list[AllowedAnswer]


class ChatCompletion(BaseModel):
    """An answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    varifocal: ScoredVarifocal | Varifocal


class OutputText(BaseModel):
    """The text of a response."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[str] = []
    logprobs: list[str] = []


class OutputMessage(BaseModel):
    """What the model said, in the Responses API's form."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class InputTokensDetails(BaseModel):
    """Of the input's tokens, those of an earlier request and its answer that it continues."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    """Of the output's tokens."""

    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """Tokens in and out."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(BaseModel):
    """Why an answer was cut."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseObject(BaseModel):
    """An answer, in the Responses API's form."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    error: None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool = False
    previous_response_id: None = None
    store: bool = False
    temperature: float
    text: dict[str, Any]
    tool_choice: Literal["none"] = "none"
    tools: list[str] = []
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
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
    """An example for the page; `images` are `data:` URIs."""

    title: str
    text: str
    images: list[str] = []


class Limits(BaseModel):
    """What a request may hold, for the page to say before it asks.

    `window` counts the tokens of a conversation and its answer; `base_images` says whether the
    model without its adapter takes images.
    """

    images: bool
    base_images: bool
    max_images: int
    max_image_mpixels: float
    max_body_mib: float
    max_text_chars: int
    max_new_tokens: int
    window: int | None


class RoutingLayer(BaseModel):
    """How a layer mixes its two branches: [w0, w1] for a text row and for a row with an image."""

    layer: str
    text: list[float]
    image: list[float]


class Routing(BaseModel):
    """MMA's routing table; no layers where the run has none."""

    layers: list[RoutingLayer]
