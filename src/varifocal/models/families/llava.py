"""transformers' own LLaVA models: where their parts are, and what a recipe needs to know of them.

A LLaVA is a language model, a vision tower and a projector, as a grafted model is, and takes as
many tokens for every image. It is used as it is: no class of its own. What a graft does by itself
is done here from outside: count the images that go through the tower, and keep step with other
processes on a batch without one.

Letters: N images, B rows, T tokens, D language width.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from varifocal.errors import ModelError
from varifocal.models.distributed import in_world, is_sharded, touch
from varifocal.models.families.base import ImageLoader, ImageTokens, MetaImages, ModelFamily
from varifocal.models.families.flops import ImageFlops, sum_products
from varifocal.models.features import FeatureStore
from varifocal.models.preprocessing import (
    check_words,
    image_side,
    load_image_processor,
    load_own_processor,
    pixel_loader,
)
from varifocal.models.sources import Checkpoint, clear_loading_errors
from varifocal.models.vision import PREFIX_TOKENS, VISION_MODELS
from varifocal.recipe import TunerSection

PROJECTOR = "multi_modal_projector"
"""What transformers calls the connector of the LLaVA family."""


class LlavaFamily:
    """LLaVA 1.5 and ViP-LLaVA as they are; a tower that reads images of any size (Pixtral) is not.

    Their features are not stored: the models take pixels alone.
    """

    connector_name: str | None = f"model.{PROJECTOR}"
    connector_is_new = False
    needs_image_side = False
    prefixes_fit = True

    def fits(self, config: PreTrainedConfig) -> bool:
        """Tell a LLaVA whose tower reads images of one size; see `ModelFamily`."""
        vision: Any = getattr(config, "vision_config", None)
        return vision.model_type in VISION_MODELS

    def check_image_side(self, checkpoint: Checkpoint, side: int | None) -> None:
        """See `ModelFamily`; the tower has a size of its own."""

    def load_processor(self, checkpoint: Checkpoint, side: int | None) -> Any:
        """Load its own processor, with the image processor that needs PIL alone."""
        processor = load_own_processor(checkpoint)
        with clear_loading_errors(checkpoint.name, checkpoint.path):
            check_llava(checkpoint.name, checkpoint.config, processor)
        processor.image_processor = load_image_processor(checkpoint)
        check_words(checkpoint, processor)
        return processor

    def image_tokens(self, processor: Any, config: PreTrainedConfig) -> ImageTokens:
        """Count the projector's tokens; see `ModelFamily`."""
        token, template = processor.image_token, processor.chat_template
        count = llava_tokens_per_image(config, image_side(processor.image_processor))
        return ImageTokens(token, processor.image_token_id, count, template)

    def prepare(self, model: PreTrainedModel, side: int | None) -> None:
        """Count its images, and keep it in step with other processes; see `ModelFamily`."""
        inner: Any = model.model
        counted: Any = model
        counted.vision_passes = 0
        inner.vision_tower.register_forward_pre_hook(partial(_count, model), with_kwargs=True)
        # no hook: ZeRO-3 writes down the order of modules, and a hook would run before `inner`
        inner.forward = partial(_forward_in_step, model, inner.forward)

    def image_loader(
        self, base: PreTrainedModel, processor: Any, fingerprint: str | None
    ) -> tuple[FeatureStore | None, ImageLoader]:
        """Load pixels in the tower's number format; see `ModelFamily`."""
        return None, pixel_loader(processor, cast(Any, base).model.vision_tower.dtype)

    def meta_images(self, base: PreTrainedModel) -> MetaImages:
        """Load pixels of the tower's size; see `ModelFamily`."""
        config: Any = base.config
        side = config.vision_config.image_size

        def load(images: Sequence[Any]) -> Mapping[str, Tensor]:
            shape = (len(images), 3, side, side)
            return {"pixel_values": torch.empty(shape, dtype=base.dtype, device="meta")}

        tokens = llava_tokens_per_image(config, side)
        return MetaImages(load, False, config.image_token_index, tokens)

    def image_flops(self, base: PreTrainedModel) -> ImageFlops:
        """Count its ViT, and the projector that runs on every cell; see `ModelFamily`."""
        model: Any = base
        vision = model.config.vision_config
        cells = (vision.image_size // vision.patch_size) ** 2
        weights, trained = sum_products(model.model.vision_tower)
        attention = 2 * vision.num_hidden_layers * vision.hidden_size * cells * cells
        forward = 2 * (cells * weights + attention)
        joined, moved = sum_products(model.model.multi_modal_projector)
        from_features = 2 * cells * 2 * moved
        tower_back = 2 * cells * trained + 2 * (cells * weights + 2 * attention) if trained else 0
        back = from_features + tower_back
        return ImageFlops(forward, 2 * cells * joined, back, from_features, bool(moved or trained))

    def check_tuner(self, tuner: TunerSection) -> None:
        """See `ModelFamily`; a LLaVA takes every tuner."""


FAMILY: ModelFamily = LlavaFamily()


def llava_tokens_per_image(config: PreTrainedConfig, side: int) -> int:
    """Count the tokens that a LLaVA's projector gives for an image.

    Args:
        config: the model's.
        side: of the images its image processor makes, in pixels.
    """
    vision: Any = config.vision_config
    tower = VISION_MODELS[vision.model_type]
    states = (side // vision.patch_size) ** 2 + PREFIX_TOKENS[tower]
    # ViP-LLaVA has no choice of states: it always leaves the first out
    strategy = getattr(config, "vision_feature_select_strategy", "default")
    return states - 1 if strategy == "default" else states


def check_llava(name: str, config: PreTrainedConfig, processor: Any) -> None:
    """Refuse a LLaVA whose image token, or the tower's states that it reads, are not there.

    Args:
        name: what error texts call the checkpoint.
        config: the model's.
        processor: as loaded from the same checkpoint.

    Raises:
        ModelError: it has no processor of images and texts, the two name different image tokens,
            or the tower has no such block.
    """
    whole: Any = config
    if not hasattr(processor, "image_token"):
        raise ModelError(
            f"{name!r}: its processor reads no images, it is a {type(processor).__name__}; restore "
            "its processor_config.json"
        )
    token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    if token != whole.image_token_id:
        raise ModelError(
            f"{name!r}: config.json says that images stand at token {whole.image_token_id}, and "
            f"the processor writes {processor.image_token!r}, which is {token}; take both from one "
            "checkpoint"
        )
    layers = whole.vision_feature_layer
    blocks = whole.vision_config.num_hidden_layers
    for layer in layers if isinstance(layers, list | tuple) else [layers]:
        if not -blocks - 1 <= layer <= blocks:
            raise ModelError(
                f"{name!r}: config.json reads the states at vision_feature_layer {layer}, and its "
                f"vision tower has {blocks} blocks; restore config.json"
            )


def _count(model: Any, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before the tower runs: count its images [N, 3, H, W]."""
    pixels = args[0] if args else kwargs["pixel_values"]
    model.vision_passes += pixels.shape[0]


def _forward_in_step(model: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a LLaVA without its head; lacking images, its decoder's input depends on the tower.

    Words are embedded first, as with images: sharded parts must run in one order everywhere.
    """
    inputs = ("pixel_values", "mm_encoder_outputs")
    if not in_world() or any(kwargs.get(name) is not None for name in inputs):
        return forward(*args, **kwargs)
    inner = model.model
    embeds = kwargs.get("inputs_embeds")
    if embeds is None:
        embeds = inner.get_input_embeddings()(kwargs["input_ids"])
    zero = _zero(model, inner, embeds)
    if zero is not None:
        embeds = embeds + zero.to(embeds.device, embeds.dtype)
    return forward(*args, **{**kwargs, "input_ids": None, "inputs_embeds": embeds})


def _zero(model: Any, inner: Any, embeds: Tensor) -> Tensor | None:
    """Return a zero that depends on tower and projector; see `varifocal.models.distributed`.

    No weight is looked at: ZeRO-3 would gather it, and wait for the processes with images.
    """
    parts = (inner.vision_tower, inner.multi_modal_projector)
    if not is_sharded(*parts):
        return touch(*parts) if inner.training else None
    passes, side = model.vision_passes, inner.config.vision_config.image_size
    pixels = embeds.new_zeros(1, 3, side, side)
    features = inner.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
    model.vision_passes = passes  # there was no image
    return torch.stack([(feature * 0).sum() for feature in features]).sum()
