"""Which weights answer a row: the adapter's for text, the adapter's for images, the base's.

MMA's adapter is an affine map for each modality (`varifocal.tuners.mma.folding`), and a LoRA's
update is a sum of weights, so a linear that reads one becomes as many plain linears as there are
lanes. Rows of all lanes then go through the model as one batch, and each linear multiplies the rows
of a lane by that lane's weights: with one lane at what the base model costs. With `text_route:
base` text has the base's lane.

What has no such form is run as it is. Its rows share a batch where the adapter is on for all of
them or off for all of them, and stay alone where each prompt has a routing of its own (MixLoRA,
LoRA experts).

Letters: B rows, T tokens, D width, O a linear's outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from varifocal.serving.request import Route
from varifocal.tuners import text_is_base
from varifocal.tuners.mixlora.layer import MixLoraLayer
from varifocal.tuners.mma.folding import fold_linear, fold_maps, is_plain_linear, readers
from varifocal.tuners.mma.layer import MMALayer
from varifocal.tuners.mma.model import decoders
from varifocal.tuners.mma.routing import ModalityEmbedding

Model = TypeVar("Model", bound=nn.Module)


def copy_sharing_weights(model: Model) -> Model:
    """Copy a model's modules, hooks and settings, and share its tensors.

    What is done to the copy's modules (other forwards, adapters switched off, evaluation mode)
    does not reach the original, and the copy takes no memory for weights. A weight that is changed
    in place changes in both.

    Args:
        model: any model of transformers, bare, grafted or wrapped by PEFT.
    """
    memo: dict[int, Any] = {}
    for part in model.modules():
        own = [*part._parameters.values(), *part._buffers.values(), *vars(part).values()]
        memo |= {id(value): value for value in own if _is_shared(value)}
    return copy.deepcopy(model, memo)


def share_equal_weights(model: nn.Module, others: Iterable[nn.Module]) -> None:
    """Let a model hold the tensors of other models in place of its own where they are equal.

    Two runs over one base then take the memory of one base. A weight that is changed in place
    changes in all of them; quantised weights stay each model's own.

    Args:
        model: whose parameters and buffers are replaced.
        others: models on the same device, of the same number format.
    """
    known: dict[tuple[Any, ...], list[Tensor]] = {}
    for tensor in (tensor for other in others for tensor in _tensors(other)):
        known.setdefault(_sample(tensor), []).append(tensor)
    for tensor in _tensors(model):
        alike = known.get(_sample(tensor), ())
        equal = next((each for each in alike if torch.equal(each, tensor)), None)
        if equal is not None:
            tensor.data = equal.data


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    for tensor in (*model.parameters(), *model.buffers()):
        if type(tensor) in (nn.Parameter, Tensor) and tensor.numel():
            yield tensor


def _sample(tensor: Tensor) -> tuple[Any, ...]:
    """Return what equal tensors have in common and few others do: form and some of the numbers."""
    numbers = tensor.detach().reshape(-1)
    some = numbers[:: max(1, len(numbers) // 16)].tolist()
    return (tensor.shape, tensor.dtype, str(tensor.device), *some)


def _is_shared(value: Any) -> bool:
    """Whether a module's attribute is a tensor, or bitsandbytes' record of a quantised one."""
    return isinstance(value, Tensor) or type(value).__module__.startswith("bitsandbytes.")


_MOST_ROWS = 8
"""That are multiplied in the form for a few."""

Lane = str
"""MMA's "text" and "image"; "adapter" for any other adapter; "base"."""


@dataclass
class _Now:
    """The rows that go through the model now: a lane and how many rows, in their order."""

    runs: list[tuple[str, int]] = field(default_factory=list)


class Lanes:
    """The lanes of one model.

    Args:
        model: bare, grafted, or wrapped by PEFT, in evaluation mode; nobody else's, for folding
            puts other forwards on its linears and switches adapters off in its decoder, until
            `close`.
        fold: whether to fold what can be folded.

    Attributes:
        has_adapter: whether there is one to leave out.
        is_folded: whether rows of all lanes share a batch.
        reason: why not; empty where they do.
    """

    def __init__(self, model: nn.Module, *, fold: bool = True) -> None:
        self.model = model
        self.has_adapter = isinstance(model, PeftModel)
        parts = list(model.modules())
        self._by_prompt = any(isinstance(part, MixLoraLayer) for part in parts)
        self._by_modality = any(isinstance(part, ModalityEmbedding) for part in parts)
        self._text_is_base = text_is_base(model)
        self._switches = cast(
            list[Any],
            [
                part
                for part in parts
                if isinstance(part, (BaseTunerLayer, AuxiliaryTrainingWrapper))
            ],
        )
        self._now = _Now()
        self._replaced: list[nn.Module] = []
        self._switched_off: list[Any] = []
        self.reason = self._fold(fold)
        self.is_folded = not self.reason
        for part in parts:
            if type(part) is nn.Linear and part not in self._replaced:
                forward = _plain_forward(part)
                part.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
                self._replaced.append(part)

    def lane(self, route: Route) -> Lane:
        """Return whose weights a route reads with; MMA has other ones for each modality."""
        if route == "base" or not self.has_adapter or (route == "text" and self._text_is_base):
            return "base"
        return route if self._by_modality else "adapter"

    def shares(self, route: Route) -> str | None:
        """Name the batch that a route's rows may share; None where each stays alone."""
        if self.is_folded:
            return "all"
        is_base = self.lane(route) == "base"
        if self._by_prompt and not is_base:
            return None
        return "base" if is_base else "adapter"

    @contextmanager
    def running(self, routes: Sequence[Route]) -> Iterator[None]:
        """Give each row of the batch its lane while the model runs.

        Args:
            routes: [B]; where nothing is folded, the base's lane for all rows or for none.
        """
        lanes = [self.lane(route) for route in routes]
        self._now.runs = [(lane, len(list(rows))) for lane, rows in groupby(lanes)]
        switch = switched_off(self._switches) if set(lanes) == {"base"} else nullcontext()
        try:
            with switch:
                yield
        finally:
            self._now.runs = []

    def close(self) -> None:
        """Leave the model as it was found."""
        for linear in self._replaced:
            del linear.forward
        for part in self._switched_off:
            part._disable_adapters = False
        self._replaced, self._switched_off = [], []

    def _fold(self, fold: bool) -> str:
        """Fold the adapter, or say why not."""
        if not self.has_adapter:
            return ""
        if not fold:
            return "folding was not asked for"
        if self._by_prompt:
            return "its factors or experts are chosen anew by prompt or token"
        try:
            folded = self._fold_mma() if self._by_modality else self._fold_lora()
        except ValueError as error:
            return str(error)
        for linear, base, weights in folded:
            forward = _LaneForward(base, weights, self._now)
            linear.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
            self._replaced.append(linear)
        if self._by_modality:
            inside = [part for _, decoder in decoders(self.model) for part in decoder.modules()]
            mma = (MMALayer, ModalityEmbedding)
            self._switched_off = [part for part in inside if isinstance(part, mma)]
            for part in self._switched_off:
                part._disable_adapters = True
        return ""

    def _fold_mma(self) -> list[tuple[nn.Module, nn.Module, dict[Lane, Any]]]:
        _refuse_trained_whole(self.model)
        lanes = {"image": 1} if self._text_is_base else {"text": 0, "image": 1}
        maps = {lane: fold_maps(self.model, number) for lane, number in lanes.items()}
        base = cast(PeftModel, self.model).get_base_model()
        folded = []
        for norm, linears in readers(self.model).items():
            for name in linears:
                linear = base.get_submodule(name)
                weight, bias = _matrix(linear)
                weights = {
                    lane: fold_linear(weight, bias, of_norm[norm]) for lane, of_norm in maps.items()
                }
                folded.append((linear, linear, weights))
        return folded

    def _fold_lora(self) -> list[tuple[nn.Module, nn.Module, dict[Lane, Any]]]:
        """Fold the LoRA layers of the decoder; those of a vision tower run as they are."""
        _refuse_trained_whole(self.model)
        base: Any = cast(PeftModel, self.model).get_base_model()
        inside = {id(part) for part in base.get_decoder().modules()}
        layers = [part for part in self._switches if isinstance(part, BaseTunerLayer)]
        outside = {id(part) for part in _tower_parts(base)}
        folded = []
        for layer in layers:
            if id(layer) in outside:
                continue
            if id(layer) not in inside or type(layer) is not LoraLinear:
                raise ValueError(
                    f"only linear LoRA layers inside the decoder are folded, not a "
                    f"{type(layer).__module__}.{type(layer).__name__}"
                )
            folded.append((layer, layer.base_layer, {"adapter": _lora_weights(layer)}))
        if not folded:
            raise ValueError("no LoRA layer was found in the decoder")
        return folded


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply x [B, T, D] by a weight [O, D]: [B, T, O], as `F.linear` does up to rounding.

    A decoding batch has few rows, and the libraries of CPUs multiply the weight by them in less
    time than them by the weight (`python -m benchmarks.decode_peers --products`).
    """
    rows = x.shape[:-1].numel()
    if x.device.type != "cpu" or x.dtype == torch.bfloat16 or not 1 < rows <= _MOST_ROWS:
        return F.linear(x, weight, bias)
    columns = x.reshape(rows, -1).t()
    if bias is None:
        product = torch.mm(weight, columns)
    else:
        product = torch.addmm(bias[:, None], weight, columns)
    return product.t().reshape(*x.shape[:-1], -1).contiguous()


class _LaneForward:
    """The forward of a linear with a weight for each lane."""

    def __init__(
        self, base: nn.Module, weights: dict[Lane, tuple[Tensor, Tensor | None]], now: _Now
    ) -> None:
        kind: Any = type(base)
        is_plain = kind is nn.Linear
        self.base = _plain_forward(base) if is_plain else partial(kind.forward, base)
        self.weights = weights
        self.now = now

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply each row of x [B, T, D] by its lane's weights: [B, T, O]."""
        runs = self.now.runs
        if len(runs) <= 1:  # outside of the engine's batches: the base
            return self._through(runs[0][0] if runs else "base", x)
        parts = x.split([rows for _, rows in runs])
        return torch.cat(
            [self._through(lane, part) for (lane, _), part in zip(runs, parts, strict=True)]
        )

    def _through(self, lane: Lane, x: Tensor) -> Tensor:
        if lane == "base":
            return self.base(x)
        return multiply(x, *self.weights[lane])


def _plain_forward(linear: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: multiply(x, cast(Tensor, linear.weight), cast("Tensor | None", linear.bias))


@contextmanager
def switched_off(switches: Sequence[Any]) -> Iterator[None]:
    """Run without adapters, and without modules that were trained whole.

    PEFT's own `disable_adapter` turns all of them on again at the end, those too that were off,
    and walks through the model; this is called for every token.

    Args:
        switches: PEFT's layers and wrappers in the model.
    """
    on = [part for part in switches if not part._disable_adapters]
    for part in on:
        part._disable_adapters = True
    try:
        yield
    finally:
        for part in on:
            part._disable_adapters = False


def _refuse_trained_whole(model: nn.Module) -> None:
    """Refuse modules in the language model that the adapter has trained whole."""
    base: Any = cast(PeftModel, model).get_base_model()
    for part in (*base.get_decoder().modules(), base.get_output_embeddings()):
        if isinstance(part, AuxiliaryTrainingWrapper):
            raise ValueError("the adapter has trained parts of the language model whole")


def _tower_parts(base: Any) -> Iterator[nn.Module]:
    for name, part in base.named_modules():
        if "vision_tower" in name.split("."):
            yield part


def _matrix(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return a linear's weight [O, D] and its bias; a Conv1D has them the other way round."""
    weight = cast(Tensor, linear.weight)
    if not isinstance(linear, nn.Linear):
        weight = weight.T
    return weight, cast("Tensor | None", linear.bias)


def _lora_weights(layer: LoraLinear) -> tuple[Tensor, Tensor | None]:
    base = layer.base_layer
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if not is_plain_linear(base) or layer.merged or layer.lora_variant:
        raise ValueError("only plain LoRA on plain linears is folded")
    if any(layer.lora_bias[name] for name in active):
        raise ValueError("LoRA with a bias of its own is not folded")
    weight, bias = _matrix(base)
    wide = torch.promote_types(weight.dtype, torch.float32)
    total = weight.to(wide)
    for name in active:
        down, up = cast(nn.Linear, layer.lora_A[name]), cast(nn.Linear, layer.lora_B[name])
        total = total + layer.scaling[name] * (up.weight.to(wide) @ down.weight.to(wide))
    return total.to(weight.dtype), bias
