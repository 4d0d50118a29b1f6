"""What a recipe needs to know of a kind of model that takes images, and which kind a model is.

A new family is one file in this package, which gives a `ModelFamily`, and one row of `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from varifocal.models.families.flops import ImageFlops
    from varifocal.models.features import FeatureStore
    from varifocal.models.sources import Checkpoint
    from varifocal.recipe import TunerSection

FAMILIES: dict[str, str] = {
    "grafted": "grafted",
    "llava": "llava",
    "vipllava": "llava",
    "qwen2_vl": "qwen_vl",
    "qwen2_5_vl": "qwen_vl",
    "idefics3": "smolvlm",
    "smolvlm": "smolvlm",
}
"""A config's `model_type` -> the module in this package whose `FAMILY` is the model's."""

ImageLoader = Callable[[Sequence[Any]], "Mapping[str, Tensor]"]
"""Images, each with an `open()`, -> the tensors that a model's forward pass takes."""


@dataclass(frozen=True)
class ImageTokens:
    """What stands for an image in a row.

    Attributes:
        token: the placeholder's text.
        token_id: its id.
        count: placeholders an image takes.
        chat_template: what writes a placeholder for each image; None for the tokenizer's own.
    """

    token: str
    token_id: int
    count: int
    chat_template: str | None


@dataclass(frozen=True)
class MetaImages:
    """How images come into a batch that is planned.

    Attributes:
        load: images -> tensors on the meta device; None for a model that takes no images.
        by_table: whether features are looked up, so that the tower runs once for each image.
        token_id: the images' placeholder.
        tokens: an image takes.
    """

    load: ImageLoader | None = None
    by_table: bool = False
    token_id: int | None = None
    tokens: int = 0


class ModelFamily(Protocol):
    """A kind of model that takes images, all of which take as many tokens.

    Attributes:
        connector_name: the dotted name of what stands between tower and language model; None for
            a family whose connector is not trained alone.
        connector_is_new: whether the connector's weights come from no checkpoint, but from here.
        needs_image_side: whether images take tokens by their size until `model.image_side` puts
            all on squares. Without a side such a model is asked as it is.
        prefixes_fit: whether what a row begins with is computed alike whatever follows, so that
            its cache serves another row.
    """

    connector_name: str | None
    connector_is_new: bool
    needs_image_side: bool
    prefixes_fit: bool

    def fits(self, config: PreTrainedConfig) -> bool:
        """Tell whether all images of a model of the family's `model_type` take as many tokens."""
        ...

    def check_image_side(self, checkpoint: Checkpoint, side: int | None) -> None:
        """Refuse a side of the images, in pixels, that the model cannot take.

        Args:
            checkpoint: the model's.
            side: of the recipe; None where it has none.

        Raises:
            ModelError: it does not fit, or there is none and the family needs one.
        """
        ...

    def load_processor(self, checkpoint: Checkpoint, side: int | None) -> Any:
        """Load tokenizer and image processor of a checkpoint.

        Args:
            checkpoint: the model's.
            side: of the images, checked.

        Raises:
            ModelError: it cannot be loaded, or does not belong to the model.
        """
        ...

    def image_tokens(self, processor: Any, config: PreTrainedConfig) -> ImageTokens:
        """Return what stands for an image in a row.

        Args:
            processor: as `load_processor` gives it.
            config: the model's.
        """
        ...

    def prepare(self, model: PreTrainedModel, side: int | None) -> None:
        """Let a model, fresh from its checkpoint, read packed rows and count its images.

        Args:
            model: changed in place; it gets the attribute `vision_passes`, how many images have
                gone through the tower.
            side: of the images, checked.
        """
        ...

    def image_loader(
        self, base: PreTrainedModel, processor: Any, fingerprint: str | None
    ) -> tuple[FeatureStore | None, ImageLoader]:
        """Choose how images reach a model.

        Args:
            base: the model inside any PEFT wrapper; a tuner may adapt its tower.
            processor: as `load_processor` gives it.
            fingerprint: of the frozen weights; without one no features are stored.

        Returns:
            The table of a frozen tower's features, where the family has one, and the loader.
        """
        ...

    def meta_images(self, base: PreTrainedModel) -> MetaImages:
        """Return how images come into a planned batch.

        Args:
            base: on the meta device, its tuner attached.
        """
        ...

    def image_flops(self, base: PreTrainedModel) -> ImageFlops:
        """Count what one image takes, backward through whatever trains."""
        ...

    def check_tuner(self, tuner: TunerSection) -> None:
        """Refuse a tuner that the family's models cannot take.

        Raises:
            RecipeError: it cannot be attached.
        """
        ...


def family_of(config: PreTrainedConfig) -> ModelFamily | None:
    """Look up a model's family by its config.

    Returns:
        None for a model that takes no images, or whose images take tokens by their size.
    """
    module = FAMILIES.get(config.model_type)
    if module is None:
        return None
    family: ModelFamily = import_module(f"varifocal.models.families.{module}").FAMILY
    return family if family.fits(config) else None


def family_with_side(config: PreTrainedConfig, side: int | None) -> ModelFamily | None:
    """Look up the family whose images all take as many tokens, given the recipe's side of them.

    Returns:
        As `family_of`; None too for a model that needs a side and has none: it is asked as it is.
    """
    family = family_of(config)
    return None if family is None or (family.needs_image_side and side is None) else family


def connector_name(model: nn.Module) -> str | None:
    """Return the dotted name of what stands between a model's tower and its language model.

    Args:
        model: a model of transformers without any PEFT wrapper.

    Returns:
        "connector" for a graft, "model.multi_modal_projector" for a LLaVA; None for a model that
        has none of its own.
    """
    config: Any = getattr(model, "config", None)
    family = None if config is None else family_of(config)
    return None if family is None else family.connector_name
