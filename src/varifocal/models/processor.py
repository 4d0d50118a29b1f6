"""The grafted model's processor: text with images in, the model's tensors out."""

import json
from typing import Any, cast

from transformers import AddedToken, AutoProcessor, PreTrainedTokenizerBase, ProcessorMixin

from varifocal.errors import ModelError
from varifocal.models.grafted import GraftedConfig
from varifocal.recipe.chat_templates import SETS_IMAGE_TOKEN

IMAGE_TOKEN = "<|image|>"

_TEXT_OF_PARTS = """{%- set seen = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message.content is defined and message.content is not string -%}
{%- set parts = namespace(text='') -%}
{%- for part in message.content -%}
{%- set parts.text = parts.text + (IMAGE if part.type == 'image' else part.text) -%}
{%- endfor -%}
{%- set seen.messages = seen.messages + [dict(message, content=parts.text)] -%}
{%- else -%}
{%- set seen.messages = seen.messages + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = seen.messages -%}{{- '' }}"""


def with_image_parts(template: str, image_token: str) -> str:
    """Let a chat template for text take content parts, with the placeholder for each image.

    The template of a text model joins `message.content` as a string. What is put before it turns
    `[{"type": "image"}, {"type": "text", "text": "What is it?"}]` into `"<|image|>What is it?"`,
    so that a grafted model's prompt without images is the language model's, to the letter. A
    template that sets `image_token` takes parts by itself.
    """
    if SETS_IMAGE_TOKEN in template:
        return template
    preamble = _TEXT_OF_PARTS.replace("IMAGE", json.dumps(image_token))
    return template if template.startswith(preamble) else preamble + template


class GraftedProcessor(ProcessorMixin):
    """Tokenizer and image processor, and the placeholders that join them.

    `processor(images=..., text=...)` writes each `image_token` of the text as `tokens_per_image`
    placeholders; `apply_chat_template` takes messages whose content is a string or a list of
    parts, `{"type": "image", "image": image}` and `{"type": "text", "text": ...}`.

    Args:
        image_processor: the tower's own, with its size, crop, mean and standard deviation.
        tokenizer: the language model's, which gets `image_token` added if it lacks it.
        chat_template: None takes the tokenizer's, extended to content parts.
        tokens_per_image: visual tokens an image becomes: the connector's.
        image_token: the placeholder's text.
    """

    tokens_per_image: int
    image_token: str
    image_token_id: int

    def __init__(
        self,
        image_processor: Any,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        tokens_per_image: int = 1,
        image_token: str = IMAGE_TOKEN,
    ) -> None:
        self.tokens_per_image = tokens_per_image
        self.image_token = image_token
        self.image_token_id = add_placeholder(tokenizer, image_token)
        own = chat_template or tokenizer.chat_template
        template = with_image_parts(own, image_token) if isinstance(own, str) else None
        super().__init__(image_processor, tokenizer, chat_template=template)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **_: Any) -> str:
        """Return the placeholders of one image."""
        return self.image_token * self.tokens_per_image

    def validate_inputs(self, *args: Any, **kwargs: Any) -> None:
        """Raise `ModelError` when text and images do not belong together."""
        try:
            super().validate_inputs(*args, **kwargs)
        except ValueError as error:
            raise ModelError(str(error)) from error


def add_placeholder(tokenizer: PreTrainedTokenizerBase, image_token: str = IMAGE_TOKEN) -> int:
    """Make sure that the placeholder is one token of the tokenizer, and return its id."""
    known = tokenizer.get_vocab()
    if image_token not in known:
        token = AddedToken(image_token, special=True, normalized=False)
        tokenizer.add_tokens([token], special_tokens=True)
    return cast(int, tokenizer.convert_tokens_to_ids(image_token))


AutoProcessor.register(GraftedConfig, GraftedProcessor, exist_ok=True)
