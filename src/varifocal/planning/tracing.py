"""The memory of a training step, found by taking the step with tensors that hold no numbers.

The model stands on the meta device, so its tensors have shapes and sizes alone; forward and
backward run as they will, every tensor that comes up is counted while it lives, and the most that
live at once are the step's. Whole numbers (ids, positions, masks) are real, since what a model does
depends on them.

Legend: B rows, H heads, T tokens, D width of a head.
"""

from __future__ import annotations

import re
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from varifocal.errors import ModelError
from varifocal.models.loss import supervised_loss
from varifocal.models.shape_cache import ShapeCache
from varifocal.planning.repeated_layers import few_layers, growth, share_of_one

_NEEDS_NUMBERS = re.compile(r"on meta tensors|'Meta' backend|from the meta")
GRADIENTS = "gradients"
HEAD = "logits"
TOWER = "vision_tower"
FORWARD = "activations"
BACKWARD = "backward"


@dataclass
class Step:
    """What a training step holds at its peak, in bytes, weights and optimiser left out.

    Attributes:
        peak: the most that lived at once.
        by_part: of it, what came up in the layers (`activations`), the head and the loss
            (`logits`), the vision tower (`vision_tower`), the backward pass (`backward`), and
            `gradients` of parameters.
    """

    peak: int = 0
    by_part: dict[str, int] = field(default_factory=dict)

    def with_more(self, layer: Mapping[str, int], times: int) -> Step:
        """The step with what one layer holds, some times over."""
        more = {part: times * size for part, size in layer.items()}
        parts = {
            part: self.by_part.get(part, 0) + more.get(part, 0) for part in {**more, **self.by_part}
        }
        return Step(self.peak + sum(more.values()), parts)

    def of_rows(self, times: int) -> Step:
        """The step with a micro-batch some times as large; only gradients stay as they are."""
        parts = {
            part: size if part == GRADIENTS else times * size for part, size in self.by_part.items()
        }
        return Step(sum(parts.values()), parts)


def trace_step(
    model: nn.Module,
    base: PreTrainedModel,
    batch: Mapping[str, Tensor],
    *,
    autocast: torch.dtype | None = None,
    keep_gradients: bool = False,
    repeat: bool = True,
) -> Step:
    """Take a training step on the meta device.

    Args:
        model: on the meta device, its tuner attached; left in training mode, with gradients.
        base: the model inside any PEFT wrapper.
        batch: as a collator makes it, images on the meta device.
        autocast: the number format of matrix products under mixed precision.
        keep_gradients: whether gradients of an earlier step stand already, as when accumulating.
        repeat: whether a few decoder layers may stand for all where they are alike.

    Raises:
        ModelError: the model asks for a number that only a loaded model has.
    """
    model.train()
    live = _Live(model)
    parameters = [each for each in model.parameters() if each.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter) if keep_gradients else None
    with (
        few_layers(base, repeat) as left_out,
        growth(base, live.now) as notes,
        _marked(live, base),
        _on_meta(live, autocast),
    ):
        if keep_gradients:
            for parameter in parameters:
                live.enter(cast(Tensor, parameter.grad), GRADIENTS)
        _forward_and_backward(model, base, batch, live)
    for parameter in parameters:
        parameter.grad = None
    step = Step(live.peak, dict(live.at_peak))
    if not left_out:
        return step
    row = share_of_one(notes)
    gradients = sum(
        each.numel() * each.element_size()
        for each in left_out[0].parameters()
        if each.requires_grad
    )
    if gradients > row.total():
        return trace_step(
            model, base, batch, autocast=autocast, keep_gradients=keep_gradients, repeat=False
        )
    return step.with_more(row, len(left_out))


def _forward_and_backward(
    model: nn.Module, base: PreTrainedModel, batch: Mapping[str, Tensor], live: _Live
) -> None:
    try:
        loss = supervised_loss(model, batch)
        live.part = BACKWARD
        if loss.requires_grad:
            loss.backward()
    except (RuntimeError, NotImplementedError) as error:
        if not _NEEDS_NUMBERS.search(str(error)):
            raise
        raise ModelError(
            f"model: a {type(base).__name__} cannot be planned from its shapes, for what it "
            f"does depends on its numbers ({str(error).splitlines()[0]}); train it with "
            "training.max_steps=1 and look at the run's cost.json"
        ) from error


def switch_checkpointing(base: PreTrainedModel, on: bool, autocast: torch.dtype | None) -> None:
    """Switch gradient checkpointing for the traces that follow.

    Args:
        base: the model inside any PEFT wrapper.
        on: whether layers run again in the backward pass.
        autocast: as `trace_step` will be given it.
    """
    model: Any = base
    if not on:
        model.activation_checkpointing_disable()
        return

    def contexts() -> tuple[Any, Any]:
        # The backward pass, being a function of torch, runs outside the mode of its caller.
        return nullcontext(), _Functions(autocast)

    model.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})


class _Live(TorchDispatchMode):
    """Counts the bytes of tensors that live, by the part they came up in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.part = FORWARD
        self.peak = 0
        self.at_peak: Counter[str] = Counter()
        self._live: Counter[str] = Counter()
        self._total = 0
        self._shapes = ShapeCache()
        self._known: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
        for tensor in (*model.parameters(), *model.buffers()):
            self._known[tensor.untyped_storage()] = ["", 0]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation on shapes, or on whole numbers."""
        kwargs = kwargs or {}
        tensors = [*_tensors((*args, *kwargs.values()))]
        if any(each.is_meta for each in tensors):
            if not all(each.is_meta for each in tensors):
                args, kwargs = tree_map(_to_meta, (args, kwargs))
        elif "device" in kwargs and _makes_whole_numbers(func, args, kwargs, tensors):
            kwargs = {**kwargs, "device": torch.device("cpu")}
        result = self._shapes.run(func, args, kwargs)
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, Tensor):
                self.enter(each, self.part)
        return result

    def enter(self, tensor: Tensor, part: str) -> None:
        """Count a tensor's memory from now until it is freed."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        note = [part, storage.nbytes()]
        self._known[storage] = note
        weakref.finalize(storage, self._leave, note)
        self._move(part, note[1])

    def assign(self, tensor: Tensor, part: str) -> None:
        """Count a living tensor to another part."""
        note = self._known.get(tensor.untyped_storage())
        if note is not None and note[0]:
            self._live[note[0]] -= note[1]
            self._live[part] += note[1]
            note[0] = part

    def now(self) -> Counter[str] | None:
        """Bytes that live, by part; None in the backward pass."""
        return None if self.part == BACKWARD else self._live.copy()

    def _leave(self, note: list[Any]) -> None:
        self._move(note[0], -note[1])

    def _move(self, part: str, size: int) -> None:
        self._live[part] += size
        self._total += size
        if self._total > self.peak:
            self.peak = self._total
            self.at_peak = self._live.copy()


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for each in values:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, (tuple, list)):
            yield from _tensors(each)


def _to_meta(each: Any) -> Any:
    return each.to("meta") if isinstance(each, Tensor) and not each.is_meta else each


def _makes_whole_numbers(func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> bool:
    """Tell whether an operation makes ids, positions or masks on the meta device."""
    device = kwargs["device"]
    if device is None or torch.device(device).type != "meta":
        return False
    dtype = kwargs.get("dtype")
    if dtype is None and tensors:
        dtype = tensors[0].dtype
    if dtype is None:
        numbers = [each for each in args if isinstance(each, (int, float))]
        counts = func.overloadpacket is torch.ops.aten.arange
        return counts and all(isinstance(each, int) for each in numbers)
    return not dtype.is_floating_point


@contextmanager
def _marked(live: _Live, base: PreTrainedModel) -> Iterator[None]:
    """Tell the counter which part of the model runs."""
    model: Any = base
    parts = {HEAD: model.get_output_embeddings(), TOWER: getattr(model, TOWER, None)}
    hooks: list[Any] = []
    for part, module in parts.items():
        if module is None:
            continue
        hooks.append(module.register_forward_pre_hook(_switch(live, part)))
        if part != HEAD:  # what follows the head is the loss, and belongs to it
            hooks.append(module.register_forward_hook(_switch(live, FORWARD)))
    for parameter in base.parameters():
        if parameter.requires_grad:
            hooks.append(parameter.register_post_accumulate_grad_hook(_to_gradients(live)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _switch(live: _Live, part: str) -> Any:
    def switch(*_: Any) -> None:
        if live.part != BACKWARD:
            live.part = part

    return switch


def _to_gradients(live: _Live) -> Any:
    def move(parameter: Tensor) -> None:
        if parameter.grad is not None:
            live.assign(parameter.grad, GRADIENTS)

    return move


@contextmanager
def _on_meta(live: _Live, autocast: torch.dtype | None) -> Iterator[None]:
    """Let meta tensors pass where torch looks at a device's name."""
    with mock.patch.object(torch, "autocast", _Autocast), _Functions(autocast), live:
        yield


class _Autocast(torch.autocast):
    """torch.autocast, which knows no meta device."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "meta" else device_type, *args, **kwargs)


_PRODUCTS = frozenset(
    {F.linear, torch.matmul, torch.bmm, torch.mm, torch.addmm, torch.baddbmm, torch.conv2d}
    | {F.conv2d, torch.einsum, Tensor.matmul, Tensor.__matmul__, Tensor.bmm}
)


class _Functions(TorchFunctionMode):
    """Attention as kernels hold it, and matrix products in autocast's number format.

    On the meta device torch would take attention apart into its products, and never casts.
    """

    def __init__(self, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.autocast = autocast

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one function of torch."""
        kwargs = kwargs or {}
        if self.autocast is not None and (
            func in _PRODUCTS or func is F.scaled_dot_product_attention
        ):
            args, kwargs = tree_map(self._cast, (args, kwargs))
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return func(*args, **kwargs)

    def _cast(self, each: Any) -> Any:
        floats = isinstance(each, Tensor) and each.dtype in (torch.float32, torch.bfloat16)
        return each.to(cast(torch.dtype, self.autocast)) if floats else each


class _Attention(torch.autograd.Function):
    """What a fused kernel keeps: its inputs, its output, and a sum [B, H, T] in float32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return an output of the queries' shape [B, H, T, D]."""
        output = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return gradients of queries, keys and values."""
        query, key, value = ctx.saved_tensors[:3]
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
