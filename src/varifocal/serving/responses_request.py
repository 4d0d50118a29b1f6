"""A request of OpenAI's Responses API in its stateless form, read as the chat request that it is.

Field names and meanings are those of https://platform.openai.com/docs/api-reference/responses.
What stores anything (`previous_response_id`, `store: true`) and tools are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from varifocal.serving.chat_request import (
    MAX_LIST,
    ChatMessage,
    ChatRequest,
    CountedText,
    ImagePart,
    ImageUrl,
    JsonSchemaForm,
    PlainInt,
    PlainNumber,
    RequestForm,
    ResponseFormat,
    StrictFlag,
    TextPart,
    by_kind,
    count_message,
    count_part,
    part_type,
)
from varifocal.serving.unsupported_fields import (
    OF_INPUT_PARTS,
    OF_ITEMS,
    OF_RESPONSES,
    OF_TEXT,
    misfit,
)

PLACES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format.json_schema.schema": "text.format.schema",
}
"""Fields of a chat request that a refusal may name, and what they are here."""


class InputText(RequestForm):
    """A piece of text: `output_text` of the assistant, `input_text` of others."""

    KNOWN = OF_INPUT_PARTS
    type: Literal["input_text", "output_text"]
    text: CountedText


class InputImage(RequestForm):
    """An image: a `data:` URI, or an address that the server allows."""

    KNOWN = OF_INPUT_PARTS
    type: Literal["input_image"]
    image_url: Annotated[str, Field(min_length=1)]
    detail: Literal["auto", "low", "high", "original"] | None = None


def _check_input_part(value: Any) -> Any:
    given = part_type(value)
    if given not in ("input_text", "output_text", "input_image"):
        error = f"a part's type must be 'input_text' or 'input_image', not {repr(given)[:80]}"
        raise misfit("type", error)
    return value


_Part = Annotated[
    Annotated[InputText, Tag("<part:input_text>")]
    | Annotated[InputText, Tag("<part:output_text>")]
    | Annotated[InputImage, Tag("<part:input_image>")],
    Discriminator(lambda value: f"<part:{part_type(value)}>"),
    BeforeValidator(_check_input_part),
    AfterValidator(count_part),
]


def _check_item(value: Any) -> Any:
    """Say which items there are."""
    given = value.get("type") if isinstance(value, Mapping) else "message"
    if given not in (None, "message"):
        raise misfit("type", f"an item of input must be a message, not {repr(given)[:80]}")
    return value


class InputMessage(RequestForm):
    """A turn of the conversation."""

    KNOWN = OF_ITEMS
    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[CountedText, Tag("<text>")]
        | Annotated[list[_Part], Field(fail_fast=True, max_length=MAX_LIST), Tag("<list>")],
        by_kind("content_form", "content must be a text or a list of parts"),
    ]

    @model_validator(mode="after")
    def _fits(self) -> InputMessage:
        if self.role != "assistant" and self.content == []:
            raise misfit("content", "content must be a text or a list of parts, not empty")
        parts = self.content if isinstance(self.content, list) else []
        for number, part in enumerate(parts):
            if isinstance(part, InputImage) and self.role != "user":
                error = f"images stand in turns of the user, not of the {self.role}"
                raise misfit(f"content.{number}", error)
        return self

    def chat_message(self) -> ChatMessage:
        """Return the same turn of a chat request."""
        if isinstance(self.content, str):
            return ChatMessage(role=self.role, content=self.content)
        parts = [
            ImagePart(type="image_url", image_url=ImageUrl(url=part.image_url))
            if isinstance(part, InputImage)
            else TextPart(type="text", text=part.text)
            for part in self.content
        ]
        return ChatMessage(role=self.role, content=parts)


class TextFormat(RequestForm):
    """What an answer is: text, any JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")] | None = None
    description: CountedText | None = None
    json_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: StrictFlag | None = None

    @model_validator(mode="after")
    def _fits(self) -> TextFormat:
        for field, value in (("schema", self.json_schema), ("name", self.name)):
            if self.type == "json_schema" and value is None:
                raise misfit(field, f"type: json_schema needs a {field}")
            if self.type != "json_schema" and value is not None:
                raise misfit(field, f"{field} goes with type: json_schema")
        return self

    def response_format(self) -> ResponseFormat:
        """Return the same of a chat request."""
        if self.json_schema is None:
            return ResponseFormat(type=self.type)
        form = JsonSchemaForm.model_validate({"name": self.name, "schema": self.json_schema})
        return ResponseFormat(type=self.type, json_schema=form)


class TextSettings(RequestForm):
    """What is asked of an answer's text."""

    KNOWN = OF_TEXT
    format: TextFormat | None = None


class ResponsesRequest(RequestForm):
    """A request for an answer; the conversation is sent whole.

    Besides the fields of this list, those of `OF_RESPONSES` may come with values that change
    nothing.
    """

    KNOWN = OF_RESPONSES
    model: Annotated[str, Field(max_length=512)]
    input: Annotated[
        Annotated[CountedText, Tag("<text>")]
        | Annotated[
            list[
                Annotated[InputMessage, BeforeValidator(_check_item), AfterValidator(count_message)]
            ],
            Field(fail_fast=True, min_length=1),
            Tag("<list>"),
        ],
        by_kind("input_form", "input must be a text or a list of messages"),
    ]
    instructions: CountedText | None = None
    max_output_tokens: Annotated[PlainInt, Field(ge=1)] | None = None
    temperature: Annotated[PlainNumber, Field(ge=0, le=2)] | None = None
    top_p: Annotated[PlainNumber, Field(gt=0, le=1)] | None = None
    text: TextSettings | None = None
    stream: StrictFlag | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    metadata: dict[str, str] | None = None

    @model_validator(mode="after")
    def _fits(self) -> ResponsesRequest:
        if isinstance(self.input, list) and self.input[-1].role != "user":
            raise misfit(
                f"input.{len(self.input) - 1}.role",
                "the last message must be the user's; an answer that was begun is not continued",
            )
        return self

    def chat(self) -> tuple[ChatRequest, int]:
        """Return the chat request that asks the same, and the number of its first turn here."""
        messages: list[ChatMessage] = []
        if self.instructions is not None:
            messages.append(ChatMessage(role="system", content=self.instructions))
        if isinstance(self.input, str):
            messages.append(ChatMessage(role="user", content=self.input))
        else:
            messages += [item.chat_message() for item in self.input]
        form = self.text.format if self.text else None
        request = ChatRequest(
            model=self.model,
            messages=messages,
            stream=self.stream,
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            user=self.user,
            response_format=form.response_format() if form else None,
        )
        return request, 0 if self.instructions is None else -1
