"""MixLoRA put into a model: layers around its linears, routing hooks on its decoders."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..modality import check_reads_images_only, check_text_is_untouched, reader_of
from ..sites import site_of
from ..targets import check_config
from .config import RoutedConfig
from .layer import MixLoraLayer
from .routing import ROUTING, DecoderRouting


class MixLoraModel(BaseTuner):
    """Puts MixLoRA layers around linears, and routing hooks on language model decoders.

    Merging is refused (`merge_and_unload`, `merge_adapter`): the update depends on the prompt.
    `route` gives the ordinary LoRA of one prompt.

    Args:
        model: any transformers model.
        peft_config: `MixLoraConfig`, alone or by adapter name.
        adapter_name: name of the adapter.
    """

    prefix = "mixlora_"
    tuner_layer_cls = MixLoraLayer
    layer_cls: type[MixLoraLayer] = MixLoraLayer

    def unload(self) -> nn.Module:
        """Return the base model without adapters or hooks."""
        model = super().unload()
        for decoder, routing in list(routed_decoders(model)):
            routing.remove_hooks()
            delattr(decoder, ROUTING)
        return model

    def _prepare_adapter_config(
        self, peft_config: PeftConfig, model_config: dict[str, Any]
    ) -> PeftConfig:
        config = cast(RoutedConfig, peft_config)
        if config.target_modules is None:
            config.target_modules = _linears_of_blocks(self.model)
        check_config(self.model, config)
        if config.text_route == "base":
            check_text_is_untouched(self.model, config.modules_to_save)
        return peft_config

    def _check_merge_allowed(self) -> None:
        raise ValueError(self.layer_cls.no_merge)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        config = cast(RoutedConfig, peft_config)
        site = site_of(self.model, current_key)
        in_decoder = site is not None and site.router == "modality"
        if config.text_route == "base" and not in_decoder:
            check_reads_images_only(self.model, current_key)
        layer = target if isinstance(target, MixLoraLayer) else None
        if layer is None:
            if target is _output_head(self.model):
                raise ValueError(
                    f"{current_key} is the output head, which sees only the tokens whose logits "
                    "are asked for, not the prompt; leave it out of target_modules"
                )
            layer = self.layer_cls(target, in_decoder, current_key)
            layer.set_adapter(self.active_adapters)
            setattr(parent, target_name, layer)
            if site is not None and in_decoder:
                inside = current_key[len(site.owner) + 1 :] if site.owner else current_key
                _routing(self.model, site.owner).layer_names.append(inside)
        layer.update_layer(adapter_name, config)


def routed_decoders(model: nn.Module) -> Iterator[tuple[nn.Module, DecoderRouting]]:
    """Walk through the decoders of a model that hold MixLoRA's hooks, with those."""
    for module in model.modules():
        routing = module._modules.get(ROUTING)
        if isinstance(routing, DecoderRouting):
            yield module, routing


def balance_loss(model: nn.Module) -> Tensor | None:
    """Return the load-balancing loss of the latest forward pass in training, once.

    The mean over linears of Switch Transformers' loss (1 where every factor is used alike), times
    `MixLoraConfig.balance`; to be added to the loss before its backward pass.

    Returns:
        A scalar with a graph; None if no balance is asked for, or nothing ran since.
    """
    terms: list[Tensor] = []
    for decoder, routing in routed_decoders(model):
        weight = _balance(routing, decoder)
        terms += [weight * term for term in routing.balance]
        routing.balance = []
    return torch.stack(terms).mean() if terms else None


def _balance(routing: DecoderRouting, decoder: nn.Module) -> float:
    layers = cast(list[MixLoraLayer], routing.layers(decoder))
    adapter = next((name for name in (layer.adapter() for layer in layers) if name), None)
    return 0.0 if adapter is None else layers[0].mixlora_config[adapter].balance


def _routing(model: nn.Module, owner: str) -> DecoderRouting:
    """Find or attach the hooks of the decoder of that name."""
    decoder = model.get_submodule(owner)
    if ROUTING not in decoder._modules:
        decoder.add_module(ROUTING, DecoderRouting(decoder, reader_of(model, owner)))
    return cast(DecoderRouting, decoder.get_submodule(ROUTING))


def _linears_of_blocks(model: nn.Module) -> list[str]:
    """Name every linear in the blocks of language model decoders.

    By their last parts where those mean no other module, such as a vision tower's `q_proj`.
    """
    names = []
    for name, module in model.named_modules():
        linear = getattr(module, "base_layer", module)
        inner = name.endswith(".base_layer")
        if isinstance(linear, (nn.Linear, Conv1D)) and not inner:
            site = site_of(model, name)
            if site is not None and site.router == "modality":
                names.append(name)
    if not names:
        raise ValueError(
            f"found no linear in a language model's blocks in {type(model).__name__}; name the "
            "linears in target_modules"
        )
    leaves = {name.rpartition(".")[2] for name in names}
    same = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in leaves}
    return sorted(leaves) if same == set(names) else names


def _output_head(model: nn.Module) -> nn.Module | None:
    head = getattr(model, "get_output_embeddings", lambda: None)
    return head()
