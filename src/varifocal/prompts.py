"""From a recipe to the encoder of its prompts: its chat template, limits and image placeholder."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from varifocal.data.encoding.encoder import Encoder
from varifocal.data.encoding.named_template import choose_template
from varifocal.errors import ChatTemplateError
from varifocal.models.families.base import family_of
from varifocal.models.load import check_image_side, image_tokens, load_processor
from varifocal.models.processor import with_image_parts
from varifocal.models.sources import find_checkpoint
from varifocal.recipe import ModelSection, Recipe
from varifocal.recipe.chat_templates import CHAT_TEMPLATES


def make_encoder(processor: Any, recipe: Recipe) -> Encoder:
    """Make the encoder of a recipe's prompts.

    Args:
        processor: as `load_model` gives it; a chat template that the recipe names becomes its own.
        recipe: its data and model sections say what.

    Raises:
        ChatTemplateError: model or tokenizer cannot be used with the recipe's chat template.
    """
    options: dict[str, Any] = {
        "max_length": recipe.data.max_length,
        "overflow": recipe.data.overflow,
        "system_prompt": recipe.data.system_prompt,
        "train_on": recipe.data.train_on,
    }
    choice = recipe.data.chat_template
    if isinstance(processor, PreTrainedTokenizerBase):
        if choice is not None:
            processor.chat_template = choose_template(choice, processor)
        return Encoder(processor, **options)
    image = image_tokens(processor, recipe.model)
    tokens = image.token, image.token_id, image.count
    options["chat_template"] = image.chat_template
    if choice is not None:
        _check_frame(recipe.model, choice)
        chosen = choose_template(choice, processor.tokenizer, image.token)
        options["chat_template"] = processor.tokenizer.chat_template = chosen
        processor.chat_template = with_image_parts(chosen, image.token)
    return Encoder(processor.tokenizer, *tokens, **options)


def load_encoder(recipe: Recipe) -> Encoder:
    """Make the encoder that `assemble` gives, without loading any weights.

    Raises:
        ModelError: as `assemble`.
    """
    check_image_side(recipe.model)
    return make_encoder(load_processor(recipe.model), recipe)


def _check_frame(section: ModelSection, choice: str) -> None:
    """Refuse a named chat template for a model whose images stand in a frame of their own."""
    config = find_checkpoint(section.language_model).config
    family = family_of(config)
    if choice in CHAT_TEMPLATES and family is not None and family.needs_image_side:
        raise ChatTemplateError(
            f"data.chat_template: {choice} does not write the tokens around an image of a "
            f"{config.model_type}; leave it out, or give a file of Jinja that does"
        )
