"""PEFT's LoRA for samples with an image alone: text runs the base model.

A method of its own for PEFT, `IMAGE_LORA`, so that no program without it takes the adapter for a
LoRA of every token. Its tensors have LoRA's names.

Dimensions: B rows, T tokens, r rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.model import LoraModel
from peft.utils import PeftType
from torch import Tensor, nn

from .modality import (
    RowModality,
    TextRoute,
    check_reads_images_only,
    check_text_is_untouched,
    reader_of,
)
from .plugin import pop_marks, register, remember_in_recomputation, token_shape
from .sites import site_of

GATE = "image_gate"
"""Name under which a decoder holds the hooks."""

NO_MERGE = (
    "a LoRA with text_route='base' cannot be merged into the base weights: text would get it too. "
    "Export the image route instead, or train with text_route='trained'"
)

_PLAIN_STARTS = (True, False, "gaussian", "orthogonal")
_FIELDS_OF_TEXT = (
    *("layer_replication", "trainable_token_indices", "target_parameters"),
    *("lora_bias", "use_qalora"),
)


@dataclass
class ImageLoraConfig(LoraConfig):
    """Settings of a LoRA that tokens of samples with an image run through, and no others.

    With `B A x` a LoRA's update, `g` 1 for tokens of samples with an image and 0 for others:
    `y = W x + g * lora_alpha / r * B A x`. A sample is a segment of a packed row or a whole row,
    told by `modality_ids` [B, T] among the model's arguments or by its image placeholders. Text has
    the base model's logits to the last bit, and teaches the adapter nothing.

    Linears in the decoder's layers and in vision towers are adapted. What changes text otherwise
    (DoRA and other variants, biases, starts that rewrite the base weights) is refused.

    Raises:
        ValueError: naming the setting that would change text.
    """

    text_route: ClassVar[TextRoute] = "base"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("IMAGE_LORA")
        variants = [
            name
            for name, field in type(self).__dataclass_fields__.items()
            if field.metadata.get("is_lora_variant")
        ]
        for name in (*variants, *_FIELDS_OF_TEXT):
            if getattr(self, name, None):
                raise ValueError(f"text_route='base' cannot be kept with {name}; leave it unset")
        if self.bias != "none":
            raise ValueError(f"text_route='base' cannot be kept with bias='{self.bias}': set none")
        if self.init_lora_weights not in _PLAIN_STARTS:
            raise ValueError(
                f"text_route='base' cannot be kept with init_lora_weights="
                f"'{self.init_lora_weights}', which rewrites the base weights; set true"
            )


class ImageGate(nn.Module):
    """The hooks that stop text before a decoder's LoRA layers; no parameters.

    One before the decoder finds the tokens of samples with an image; one after each
    down-projection sets the other tokens' r numbers to zero.

    Attributes:
        context: [B, T] bool, True for tokens of samples with an image; None outside of a pass.

    Args:
        decoder: the module that owns the decoder layers and the token embedding.
        reader: the vision-language model around it that sees `input_ids`, if there is one.
    """

    def __init__(self, decoder: nn.Module, reader: nn.Module | None) -> None:
        super().__init__()
        self.context: Tensor | None = None
        self._rows = RowModality(reader)
        self._undo_checkpoints: Any = None
        self._hooks = [
            decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            decoder.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]

    def remove_hooks(self) -> None:
        """Leave the decoder and its reader as they were found; layers take theirs along."""
        self._rows.remove_hooks()
        for hook in self._hooks:
            hook.remove()

    def stop_text(self, down: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Set text tokens of a down-projection's output [B, T, r] to zero.

        Raises:
            RuntimeError: if it runs outside its decoder's forward pass.
            ValueError: if its rows and tokens are not the decoder's.
        """
        if self.context is None:
            raise RuntimeError(
                "a LoRA layer with text_route='base' ran outside its decoder's forward pass, where "
                "its samples are found. Checkpoint activations through transformers "
                "(gradient_checkpointing), and spread over devices with torchrun, not "
                "nn.DataParallel"
            )
        if output.shape[:-1] != self.context.shape:
            raise ValueError(
                f"a LoRA layer with text_route='base' needs inputs of {list(self.context.shape)} "
                f"rows and tokens; got {list(output.shape[:-1])}. Leave it out of target_modules"
            )
        return output.masked_fill(~self.context.to(output.device)[..., None], 0)

    def _before(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids = self._rows.read(pop_marks(kwargs).get("modality_ids"), args, kwargs)
        shape = token_shape(args, kwargs)
        self.context = torch.zeros(shape, dtype=torch.bool) if ids is None else ids.bool()
        if torch.is_grad_enabled():
            self._undo_checkpoints = remember_in_recomputation(decoder, [self])
        return args, kwargs

    def _after(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self._undo_checkpoints is not None:
            self._undo_checkpoints()
            self._undo_checkpoints = None
        self.context = None
        self._rows.remember(output)


class ImageLoraModel(LoraModel):
    """PEFT's `LoraModel`, with a gate before the LoRA layers of language model decoders.

    Merging is refused (`merge_and_unload`, `merge_adapter`): text would get the update too.
    """

    def unload(self) -> nn.Module:
        """Return the base model without adapters or hooks."""
        model = super().unload()
        for decoder in gated_decoders(model):
            getattr(decoder, GATE).remove_hooks()
            delattr(decoder, GATE)
        return model

    def _prepare_adapter_config(
        self, peft_config: PeftConfig, model_config: dict[str, Any]
    ) -> PeftConfig:
        config = cast(LoraConfig, super()._prepare_adapter_config(peft_config, model_config))
        check_text_is_untouched(self.model, config.modules_to_save)
        return config

    def _check_merge_allowed(self) -> None:
        raise ValueError(NO_MERGE)

    def _create_and_replace(
        self,
        lora_config: LoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        site = site_of(self.model, current_key)
        in_decoder = site is not None and site.router == "modality"
        if not in_decoder:
            check_reads_images_only(self.model, current_key)
        super()._create_and_replace(
            lora_config, adapter_name, target, target_name, parent, current_key, **kwargs
        )
        layer = cast(LoraLayer, getattr(parent, target_name))
        if site is None or not in_decoder or adapter_name not in layer.r:
            return
        if adapter_name in layer.lora_variant or adapter_name not in layer.lora_A:
            raise ValueError(
                f"text_route='base' has no gate for {current_key}: it is no plain LoRA"
            )
        gate = _gate(self.model, site.owner)
        layer.lora_A[adapter_name].register_forward_hook(gate.stop_text)


def gated_decoders(model: nn.Module) -> Iterator[nn.Module]:
    """Walk through the language model decoders of a model whose LoRA layers are gated."""
    for module in list(model.modules()):
        if isinstance(module._modules.get(GATE), ImageGate):
            yield module


def _gate(model: nn.Module, owner: str) -> ImageGate:
    """Find or attach the gate of the decoder of that name."""
    decoder = model.get_submodule(owner)
    if GATE not in decoder._modules:
        decoder.add_module(GATE, ImageGate(decoder, reader_of(model, owner)))
    return cast(ImageGate, decoder.get_submodule(GATE))


register("image_lora", ImageLoraConfig, ImageLoraModel, shares_prefix=True)
