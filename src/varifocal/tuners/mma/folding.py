"""Fold MMA into the linears that read its norms: plain weights, one set a modality.

In a language model the branch weights are a constant of each layer and modality, so an adapter is
an affine map of low rank, `z' = z + U D z + c`, and a linear that reads z' is a linear that reads
z: `W z' + b = (W + W U D) z + (b + W c)`. The vision towers' adapters are routed by each image's
own state and have no such form.

Dimensions: D width, R bottleneck, O a linear's outputs.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..plugin import Contextual, contexts_set, evaluating, plain_execution
from .layer import BranchUp, MMALayer, _block_matrix
from .model import decoders, no_routing
from .routing import ModalityEmbedding, TokenRouting, _token_weight


@dataclass(frozen=True)
class AffineMap:
    """What an adapter does to its norm's output z [D]: `z + up @ (down @ z) + bias`.

    Attributes:
        down: [R, D].
        up: [D, R].
        bias: [D]; zeros of an adapter that has no biases.
    """

    down: Tensor
    up: Tensor
    bias: Tensor


def fold_maps(
    model: nn.Module, modality: int, adapter_name: str | None = None
) -> dict[str, AffineMap]:
    """Write each adapted decoder norm's adapter as an affine map.

    Args:
        model: a model with an MMA adapter, as a `PeftModel` or not; its mode does not matter,
            dropout is left out.
        modality: 0 text, 1 image.
        adapter_name: the adapter; by default the active one.

    Returns:
        Maps by the norm's name in the base model, in order, in float32 or the adapter's own wider
        dtype, on the adapter's devices.

    Raises:
        ValueError: if no decoder holds that adapter.
    """
    maps = {}
    with torch.no_grad():
        for decoder, tokens, adapter in _holders(model, adapter_name):
            with evaluating(decoder):
                tables = tokens.tables(decoder, adapter)
            layers = cast(list[MMALayer], tokens.layers(decoder, adapter))
            for layer, table in zip(layers, tables, strict=True):
                maps[layer.name] = _map_of(layer, adapter, table[modality])
    return maps


def fold_linear(
    weight: Tensor, bias: Tensor | None, folded: AffineMap, *, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Fold a map into the linear that reads its result.

    Args:
        weight: [O, D].
        bias: [O], or None.
        folded: the map.
        dtype: of the results; by default the weight's. The arithmetic is float32 at least.

    Returns:
        weight [O, D] and bias [O].
    """
    wide = torch.promote_types(torch.promote_types(weight.dtype, folded.up.dtype), torch.float32)
    w = weight.to(wide)
    down, up, shift = (t.to(w) for t in (folded.down, folded.up, folded.bias))
    b = w @ shift if bias is None else bias.to(wide) + w @ shift
    return (w + (w @ up) @ down).to(dtype or weight.dtype), b.to(dtype or weight.dtype)


def readers(model: nn.Module, adapter_name: str | None = None) -> dict[str, tuple[str, ...]]:
    """Find the linears that read each adapted decoder norm, and prove that nothing else does.

    A few zero vectors run through the decoder. Which linears are given a norm's output is seen
    there; then, their outputs cut off from the graph, no gradient may be left from the decoder's
    output to a norm's.

    Args:
        model: a model with an MMA adapter, as a `PeftModel` or not, with real weights.
        adapter_name: the adapter; by default the active one.

    Returns:
        Names of linears in the base model, by the norm's name there.

    Raises:
        ValueError: something next to plain linears (a quantised one, another adapter, a residual)
            reads a norm, or no decoder holds that adapter.
    """
    linears: dict[str, tuple[str, ...]] = {}
    for decoder, tokens, adapter in _holders(model, adapter_name):
        layers = cast(list[MMALayer], tokens.layers(decoder, adapter))
        reading = _watch(decoder, tokens, adapter)
        names = {id(module): name for name, module in decoder.named_modules()}
        for layer, inside in zip(layers, tokens.layer_names[adapter], strict=True):
            prefix = layer.name.removesuffix(inside)
            linears[layer.name] = tuple(prefix + names[id(linear)] for linear in reading[id(layer)])
            if not linears[layer.name]:
                raise ValueError(f"no plain linear layer reads {layer.name}; it cannot be folded")
    return linears


def is_plain_linear(module: nn.Module) -> bool:
    """Tell a linear whose weight can be rewritten: no quantised one, none inside an adapter.

    `weight` is [O, D] in an `nn.Linear`, [D, O] in transformers' `Conv1D`.
    """
    if not isinstance(module, nn.Linear) and type(module).__name__ != "Conv1D":
        return False
    weight = cast(Tensor, module.weight)
    return weight.is_floating_point() and weight.dim() == 2


def _holders(
    model: nn.Module, adapter_name: str | None
) -> Iterator[tuple[nn.Module, ModalityEmbedding, str]]:
    """Walk through the decoders that hold the adapter."""
    none = True
    for _, decoder in decoders(model):
        tokens = cast(ModalityEmbedding, decoder.modality_embedding)
        adapter = adapter_name or next(iter(tokens.active_adapters), "")
        if adapter in tokens.layer_names:
            none = False
            yield decoder, tokens, adapter
    if none:
        raise ValueError(no_routing(model, adapter_name))


def _map_of(layer: MMALayer, adapter: str, shares: Tensor) -> AffineMap:
    down, up = cast(nn.Linear, layer.mma_down[adapter]), cast(BranchUp, layer.mma_up[adapter])
    dtype = torch.promote_types(down.weight.dtype, torch.float32)
    shares = shares.to(down.weight.device, dtype)
    weight = torch.einsum("b,bdk->dk", shares, up.weight.to(dtype))
    shift = None if up.bias is None else (shares @ up.bias.to(dtype))[None]
    block = _block_matrix(weight[None], shift, down.out_features)
    block = block * layer.mma_config[adapter].scale
    bias = block[-1]
    if layer.mma_config[adapter].projection_bias:
        bias = down.bias.to(dtype) @ block[:-1] + bias
    return AffineMap(down.weight.to(dtype), block[:-1].T.contiguous(), bias)


def _watch(
    decoder: nn.Module, tokens: ModalityEmbedding, adapter: str
) -> dict[int, list[nn.Module]]:
    """Run zeros through a decoder; list the linears that read each layer, by the layer's id."""
    layers = cast(list[MMALayer], tokens.layers(decoder, adapter))
    outputs: dict[int, Tensor] = {}
    reading: dict[int, list[nn.Module]] = {id(layer): [] for layer in layers}

    def note_output(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        outputs[id(layer)] = output.detach().requires_grad_()
        return outputs[id(layer)]

    def cut_reader(linear: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        for layer, read in outputs.items():
            if args and args[0] is read:
                reading[layer].append(linear)
                return output.detach()
        return None

    like = _token_weight(decoder)
    with torch.no_grad(), evaluating(decoder):
        tables = tokens.tables(decoder, adapter)
    contexts = [TokenRouting(adapter, table.detach(), None) for table in tables]
    adapters = {id(part) for layer in layers for part in layer.modules()}
    linears = [m for m in decoder.modules() if is_plain_linear(m) and id(m) not in adapters]
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(evaluating(decoder))
        stack.enter_context(contexts_set(cast(list[Contextual], layers), contexts))
        stack.enter_context(plain_execution(decoder))
        for layer in layers:
            stack.enter_context(_hooked(layer, note_output))
        for linear in linears:
            stack.enter_context(_hooked(linear, cut_reader))
        vectors = like.new_zeros(1, 3, like.shape[1])
        output = decoder.forward(inputs_embeds=vectors, use_cache=False).last_hidden_state
        _check_cut(output, layers, outputs)
    return reading


def _check_cut(output: Tensor, layers: list[MMALayer], outputs: dict[int, Tensor]) -> None:
    if not output.requires_grad:
        return
    states = [outputs[id(layer)] for layer in layers]
    gradients = torch.autograd.grad(output.sum(), states, allow_unused=True)
    for layer, gradient in zip(layers, gradients, strict=True):
        if gradient is not None:
            raise ValueError(
                f"something next to plain linear layers reads {layer.name} (a quantised linear, "
                "another adapter, a residual path), so its adapter cannot be folded into them"
            )


@contextmanager
def _hooked(module: nn.Module, hook: Any) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
