"""Generating with a grafted model: images at prefill, and each row's modality ever after.

Letters: B rows, T tokens, N images, V visual tokens per image.
"""

from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor
from transformers import Cache, GenerationMixin

from varifocal.models.image_rows import (
    ROUTING_INPUTS,
    expand_images,
    fit_length,
    images_within,
    row_modality,
)

IMAGE_INPUTS = ("pixel_values", "image_features")


class RowMemory:
    """The modality of the rows in a cache, kept as long as the cache lives.

    A row that holds an image in its cache is an image row, though the token fed to it now is text.
    """

    def __init__(self) -> None:
        self._rows: WeakKeyDictionary[Cache, Tensor] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type["RowMemory"], tuple[()]]:
        """Copy and pickle as an empty memory: no cache goes along with a model."""
        return RowMemory, ()

    def note(self, cache: Any, modality_ids: Tensor | None) -> None:
        """Remember the modality of each row [B, T] whose tokens have gone into a cache."""
        if isinstance(cache, Cache) and modality_ids is not None:
            self._rows[cache] = modality_ids[:, -1].detach()

    def extend(
        self,
        cache: Cache | None,
        is_image: Tensor,
        segment_ids: Tensor | None,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
    ) -> Tensor:
        """Derive modality_ids [B, T] from placeholders, and from what a cache holds already."""
        if cache is None or not cache.get_seq_length():
            return row_modality(is_image, segment_ids, position_ids, attention_mask)
        modality = row_modality(is_image)  # a continued row is one sample
        before = self._rows.get(cache)
        if before is None or before.shape[0] != modality.shape[0]:
            return modality
        return modality | before[:, None].to(modality.device)


class GraftedGenerationMixin(GenerationMixin):
    """What a grafted model does otherwise than a language model when it generates."""

    config: Any
    tokens_per_image: int

    def see(self, pixel_values: Tensor) -> Tensor:
        """Run the vision tower; the model's own."""
        raise NotImplementedError

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Give the images at prefill only, and marks for exactly the tokens that are fed."""
        marks = {name: kwargs.pop(name, None) for name in ROUTING_INPUTS}
        images = {name: kwargs.pop(name, None) for name in IMAGE_INPUTS}
        mixin: Any = super()  # typed for more than a mixin has
        inputs = mixin.prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        fed = input_ids if inputs.get("input_ids") is None else inputs["input_ids"]
        num_tokens = fed.shape[1]
        for name, mark in marks.items():
            if mark is not None:
                inputs[name] = fit_length(mark, input_ids.shape[1])[:, -num_tokens:]
        if is_first_iteration or not kwargs.get("use_cache", True):
            is_image = input_ids == self.config.image_token_id
            for name, image in images.items():
                if image is not None:
                    inputs[name] = images_within(image, is_image, self.tokens_per_image, num_tokens)
        return inputs

    def _expand_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeat rows for beams and samples, and each row's images with it, in their order."""
        mixin: Any = super()
        expand = mixin._expand_inputs_for_generation
        images = {name: model_kwargs.pop(name, None) for name in IMAGE_INPUTS}
        given = {name: image for name, image in images.items() if image is not None}
        if expand_size > 1 and input_ids is not None:
            is_image = input_ids == self.config.image_token_id
            if "pixel_values" in given:  # see each image once, not once a beam
                given = {"image_features": self.see(given["pixel_values"])}
            given = {
                name: expand_images(image, is_image, self.tokens_per_image, expand_size)
                for name, image in given.items()
            }
        input_ids, model_kwargs = expand(expand_size, is_encoder_decoder, input_ids, **model_kwargs)
        return input_ids, {**model_kwargs, **given}
