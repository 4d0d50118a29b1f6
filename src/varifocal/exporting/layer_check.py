"""Hold each tensor that an adapter changes against the trained layer, one layer at a time.

Logits of a whole model hide a wrong tensor where the adapter has learnt little: what one layer of
it changes may lie below float32's rounding of thirty layers. So what a written layer adds to its
base is compared with what the trained one adds, for random inputs.

Letters: N inputs, D width, O a linear's outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from varifocal.errors import ModelError
from varifocal.exporting.merging import Produce, copied_without_hooks
from varifocal.tuners.mma.folding import readers
from varifocal.tuners.mma.layer import MMALayer
from varifocal.tuners.mma.model import decoders
from varifocal.tuners.mma.routing import ModalityEmbedding, TokenRouting

NUM_INPUTS = 16
# Of what the adapter adds to a layer's outputs, and of the outputs themselves: a weight that is
# held in float32 is off by up to 6e-8 of itself.
_OF_CHANGE, _OF_OUTPUT = 1e-4, 5e-7


@dataclass(frozen=True)
class Probe:
    """One adapted layer and what it does to some inputs.

    Attributes:
        name: the layer's, without adapters.
        base: the layer without its adapter, in float64.
        inputs: random ones.
        outputs: of the trained layer.
        replaced: the base's outputs for these inputs, before anything is changed.
    """

    name: str
    base: nn.Module
    inputs: Tensor
    outputs: Tensor
    replaced: Tensor


def check_layers(probes: Iterator[Probe], tensors: Mapping[str, Produce], what: str) -> int:
    """Hold the tensors of adapted layers against the trained layers, before they are rounded.

    Args:
        probes: the trained layers.
        tensors: what is to be written, by name.
        what: the export, for the error.

    Returns:
        How many layers were held.

    Raises:
        ModelError: one does something else.
    """
    count = 0
    with torch.no_grad():
        for probe in probes:
            changed = {
                part: tensors[f"{probe.name}.{part}"]().to(probe.outputs)
                for part in ("weight", "bias")
                if f"{probe.name}.{part}" in tensors
            }
            _check(probe, changed, what)
            count += 1
    return count


def _check(probe: Probe, changed: dict[str, Tensor], what: str) -> None:
    if probe.base.__dict__["_parameters"].get("bias") is None and "bias" in changed:
        probe.base.register_parameter("bias", nn.Parameter(torch.zeros_like(changed["bias"])))
    outputs = functional_call(probe.base, changed, (probe.inputs,))
    learnt = float((probe.outputs - probe.replaced).norm())
    missed = float((outputs - probe.outputs).norm())
    allowed = _OF_CHANGE * learnt + _OF_OUTPUT * float(probe.replaced.norm())
    if not missed <= allowed:
        raise ModelError(
            f"{what} is not the trained model: in {probe.name} the adapter changes {NUM_INPUTS} "
            f"random inputs' outputs by {learnt:.3g} (norm), and what would be written is "
            f"{missed:.3g} off (allowed: {allowed:.3g}); nothing was written. Report this with the "
            "run's recipe"
        )


def lora_probes(model: nn.Module) -> Iterator[Probe]:
    """Walk through the layers of a module that hold a LoRA, merged or not.

    Args:
        model: a language model, or a vision tower; names start there.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            trained = cast(Any, copied_without_hooks(layer)).double().eval()
            base = copy.deepcopy(cast(Any, layer).get_base_layer()).double()
            inputs = _inputs(base)
            yield Probe(name, base, inputs, trained(inputs), base(inputs))


def mma_probes(model: PeftModel, modality: int, prefix: str) -> Iterator[Probe]:
    """Walk through the linears that read a norm which an MMA adapter follows.

    Args:
        model: with an active MMA adapter.
        modality: 0 text, 1 image.
        prefix: of the language model's names in the base.
    """
    base = cast(nn.Module, model.get_base_model())
    linears = readers(model)
    for _, decoder in decoders(base):
        tokens = cast(ModalityEmbedding, decoder.modality_embedding)
        adapter = next(iter(tokens.active_adapters), "")
        with torch.no_grad():
            tables = tokens.tables(decoder, adapter)
        layers = cast(list[MMALayer], tokens.layers(decoder, adapter))
        for layer, table in zip(layers, tables, strict=True):
            adapt = _adapted(layer, adapter, table, modality)
            for name in linears[layer.name]:
                linear = copy.deepcopy(base.get_submodule(name)).double()
                inputs = _inputs(linear)
                outputs = linear(adapt(inputs))
                own = name.removeprefix(prefix)
                yield Probe(own, linear, inputs, outputs, linear(inputs))


def _adapted(layer: MMALayer, adapter: str, table: Tensor, modality: int) -> Any:
    """Return an MMA layer after its norm, for one modality: [N, D] -> [N, D]."""
    alone = copy.deepcopy(layer).double().eval()
    alone.base_layer = nn.Identity()
    route = F.one_hot(torch.tensor([[modality]]), 2).to(table.device, torch.float64)

    def adapt(states: Tensor) -> Tensor:
        routes = route.expand(1, len(states), 2)
        alone.context = TokenRouting(adapter, table.double(), routes)
        return alone(states[None])[0]

    return adapt


def _inputs(layer: Any) -> Tensor:
    """Draw inputs for a linear (also transformers' Conv1D), an embedding or a convolution."""
    weight = layer.weight
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    if isinstance(layer, nn.Embedding):
        ids = torch.randint(0, layer.num_embeddings, (NUM_INPUTS,), generator=generator)
        return ids.to(weight.device)
    if weight.dim() > 2:
        return draw(NUM_INPUTS, layer.in_channels, *layer.kernel_size).to(weight.device)
    width = layer.in_features if isinstance(layer, nn.Linear) else weight.shape[0]
    return draw(NUM_INPUTS, width).to(weight.device)
