"""transformers' own LLaVA models: where their parts are, and what a recipe needs to know of them.

A LLaVA is a language model, a vision tower and a projector, as a grafted model is, and takes as
many tokens for every picture. It is used as it is: no class of its own. What a graft does by itself
is done here from outside: count the pictures that go through the tower, and keep step with other
processes on a batch without one.

Letters: N images, B rows, T tokens, D language width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from varifocal.errors import ModelError
from varifocal.models.distributed import in_world, is_sharded, touch
from varifocal.models.grafted import GraftedConfig, GraftedForConditionalGeneration
from varifocal.models.vision import PREFIX_TOKENS, VISION_MODELS

PROJECTOR = "multi_modal_projector"
"""What transformers calls the connector of the LLaVA family."""
LLAVAS = ("llava", "vipllava")
"""The `model_type` of configs whose pictures take as many tokens each, given a tower that does."""


def connector_name(model: nn.Module) -> str | None:
    """Return the dotted name of what stands between a model's tower and its language model.

    Args:
        model: a model of transformers without any PEFT wrapper.

    Returns:
        "connector" for a graft, the projector's name for a LLaVA
        ("model.multi_modal_projector"), None for a model that has neither.
    """
    if isinstance(model, GraftedForConditionalGeneration):
        return "connector"
    names = (name for name, _ in model.named_modules() if name.rpartition(".")[2] == PROJECTOR)
    return next(names, None)


def has_connector(config: PreTrainedConfig) -> bool:
    """Tell by its config a model in which `connector_name` finds one."""
    return isinstance(config, GraftedConfig) or is_llava(config)


def is_llava(config: PreTrainedConfig) -> bool:
    """Tell by its config a LLaVA whose pictures all take as many tokens from any other model.

    A LLaVA with a tower that reads pictures of any size (Pixtral) is none of them.
    """
    vision: Any = getattr(config, "vision_config", None)
    return config.model_type in LLAVAS and vision.model_type in VISION_MODELS


def tokens_per_image(config: PreTrainedConfig, side: int) -> int:
    """Count the tokens that a LLaVA's projector gives for a picture.

    Args:
        config: the model's.
        side: of the pictures its image processor makes, in pixels.
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


def prepare_llava(model: PreTrainedModel) -> None:
    """Count a LLaVA's pictures, and keep it in step with other processes.

    Args:
        model: fresh from its checkpoint; it gets hooks and the attribute `vision_passes`, how many
            images have gone through the tower.
    """
    inner: Any = model.model
    counted: Any = model
    counted.vision_passes = 0
    inner.vision_tower.register_forward_pre_hook(partial(_count, model), with_kwargs=True)
    # no hook: ZeRO-3 writes down the order of modules, and a hook would run before `inner` itself
    inner.forward = partial(_forward_in_step, model, inner.forward)


def _count(model: Any, tower: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before the tower runs: count its pictures [N, 3, H, W]."""
    pixels = args[0] if args else kwargs["pixel_values"]
    model.vision_passes += pixels.shape[0]


def _forward_in_step(model: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a LLaVA without its head; lacking pictures, its decoder's input depends on the tower.

    Words are embedded first, as with pictures: sharded parts must run in one order everywhere.
    """
    seen = ("pixel_values", "mm_encoder_outputs")
    if not in_world() or any(kwargs.get(name) is not None for name in seen):
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

    No weight is looked at: ZeRO-3 would gather it, and wait for the processes with pictures.
    """
    parts = (inner.vision_tower, inner.multi_modal_projector)
    if not is_sharded(*parts):
        return touch(*parts) if inner.training else None
    passes, side = model.vision_passes, inner.config.vision_config.image_size
    pixels = embeds.new_zeros(1, 3, side, side)
    features = inner.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
    model.vision_passes = passes  # there was no picture
    return torch.stack([(feature * 0).sum() for feature in features]).sum()
