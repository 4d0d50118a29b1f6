"""MixLoRA's routing through a forward pass, and what a cache remembers of it.

A pre-hook on the decoder turns the marks of a batch into routing groups, once, for all layers. Each
layer chooses for itself. What was chosen is kept with the cache object that the pass filled, so
that decoding goes on with it; it follows the cache when its rows are reordered, selected or
repeated, and when it is copied.

Dimensions: B rows, G routing groups, D width of a linear's input, R chosen factors.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..modality import RowModality, has_no_image, segments_of_positions
from ..plugin import (
    Contextual,
    cached_length,
    pop_marks,
    remember_in_recomputation,
    token_shape,
)
from .config import RoutedConfig
from .groups import Groups, find_groups, leave_out, valid_tokens
from .router import FactorChoice

ROUTING = "mixlora_routing"
"""Name under which a decoder holds its hooks."""

_REMEMBERED = "_mixlora_memory"  # a deep copy of a cache, as for prefix reuse, keeps it


@dataclass(frozen=True)
class CachedChoice:
    """What a linear goes on with after a cache.

    Attributes:
        choice: of each row's current turn, [B, 1, R].
        total: [B, 1, D], sum of the inputs of the prompt tokens so far; None where factors are
            drawn.
        count: [B, 1], their number.
    """

    choice: FactorChoice
    total: Tensor | None
    count: Tensor

    def rows(self, index: Tensor) -> "CachedChoice":
        """Take rows of the batch."""
        total = None if self.total is None else self.total[index.to(self.total.device)]
        return CachedChoice(self.choice.rows(index), total, self.count[index.to(self.count.device)])


@dataclass
class Memory:
    """What a cache object remembers: the adapter that filled it, and what its linears keep."""

    adapter: str
    cached: dict[str, CachedChoice]

    def take(self, index: Tensor) -> None:
        """Follow a reordering, selection or repetition of the cache's rows."""
        self.cached = {name: cached.rows(index) for name, cached in self.cached.items()}


@dataclass(frozen=True)
class Chosen:
    """A choice as it was made, for those who ask.

    Attributes:
        layer: the linear's name in the model.
        groups: of the batch.
        choice: without a graph.
    """

    layer: str
    groups: Groups
    choice: FactorChoice


@dataclass
class Context:
    """What a layer is told of a forward pass, and what it leaves after.

    Attributes:
        adapter: name of the adapter that runs.
        groups: the batch's routing groups; None: each row goes on with what it has.
        cached: by linear, what the cache's memory holds; None where there is no cache yet.
        keeping: whether to write into `memory`.
        memory: by linear, what to go on with.
        listeners: are told of every choice.
        balance: by linear, the terms of the balancing loss.
        published: the linears whose choice the listeners have.
        is_image: [B, T] bool, the tokens that the factors are for; None for all.
        is_left: whether they are for none of them, and no gradient is asked for.
    """

    adapter: str
    groups: Groups | None
    cached: dict[str, CachedChoice] | None = None
    keeping: bool = False
    memory: dict[str, CachedChoice] = field(default_factory=dict)
    listeners: list[Callable[[Chosen], None]] = field(default_factory=list)
    balance: dict[str, Tensor] = field(default_factory=dict)
    published: set[str] = field(default_factory=set)
    is_image: Tensor | None = None
    is_left: bool = False
    _totals: tuple[Tensor, Tensor] | None = None

    def totals(self, x: Tensor) -> Tensor:
        """Sum the members of each group, [B, G, D]; linears that share an input share the sum."""
        assert self.groups is not None
        assert self.groups.members is not None
        if self._totals is None or self._totals[0] is not x:
            self._totals = (x, torch.bmm(self.groups.members.to(x.dtype), x))
        return self._totals[1]

    def publish(self, layer: str, choice: FactorChoice, balance: Tensor | None) -> None:
        """Hand a fresh choice to those who ask; a recomputation tells nothing new."""
        assert self.groups is not None
        if balance is not None:
            self.balance[layer] = balance
        if self.listeners and layer not in self.published:
            self.published.add(layer)
            for listener in self.listeners:
                listener(Chosen(layer, self.groups, choice.detached()))


class DecoderRouting(nn.Module):
    """The hooks on one language model decoder; no parameters.

    Args:
        decoder: the module that owns the decoder layers and the token embedding.
        reader: the vision-language model around it that sees `input_ids`, if there is one.
    """

    def __init__(self, decoder: nn.Module, reader: nn.Module | None) -> None:
        super().__init__()
        self._rows = RowModality(reader)
        self.layer_names: list[str] = []
        self.listeners: list[Callable[[Chosen], None]] = []
        self.balance: list[Tensor] = []
        self._context: Context | None = None
        self._undo_checkpoints: Callable[[], None] | None = None
        self._hooks = [
            decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            decoder.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]

    def remove_hooks(self) -> None:
        """Leave the decoder and its reader as they were found."""
        self._rows.remove_hooks()
        for hook in self._hooks:
            hook.remove()

    def layers(self, decoder: nn.Module) -> list[nn.Module]:
        """List the decoder's adapted linears."""
        return [decoder.get_submodule(name) for name in self.layer_names]

    def _before(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        marks = pop_marks(kwargs)
        modality_ids = marks.pop("modality_ids", None)
        layers = cast(list[Any], self.layers(decoder))
        adapter = next((name for name in (layer.adapter() for layer in layers) if name), None)
        if adapter is None:
            return args, kwargs
        config = next(layer.mixlora_config[adapter] for layer in layers if layer.adapter())
        self._context = self._context_of(adapter, config, marks, args, kwargs)
        self._context.keeping = config.routing_scope == "prompt" and _caches(decoder, kwargs)
        if config.text_route == "base":
            self._leave_text(self._context, modality_ids, args, kwargs)
        for layer in layers:
            layer.context = self._context
        if torch.is_grad_enabled():
            contextual = cast(list[Contextual], layers)
            self._undo_checkpoints = remember_in_recomputation(decoder, contextual)
        return args, kwargs

    def _leave_text(
        self,
        context: Context,
        modality_ids: Tensor | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Keep the factors for tokens of samples with an image."""
        ids = self._rows.read(modality_ids, args, kwargs)
        if ids is None:
            ids = torch.zeros(token_shape(args, kwargs), dtype=torch.long)
        context.is_image = ids.bool()
        if context.groups is not None:
            context.is_image = context.is_image.to(context.groups.segments.device)
            context.groups = leave_out(context.groups, context.is_image)
        context.is_left = not torch.is_grad_enabled() and has_no_image(ids)

    def _context_of(
        self,
        adapter: str,
        config: RoutedConfig,
        marks: dict[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Context:
        cache = kwargs.get("past_key_values")
        past = cached_length(cache)
        shape = token_shape(args, kwargs)
        device = next(
            t.device
            for t in (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
            if t is not None
        )
        mask = kwargs.get("attention_mask")
        if "segment_ids" not in marks and mask is None and not past:
            segment_ids = segments_of_positions(kwargs.get("position_ids"), shape)
            marks |= {} if segment_ids is None else {"segment_ids": segment_ids}
        valid = valid_tokens(mask, shape, device)
        if isinstance(mask, Tensor) and mask.dim() == 4 and "prompt_mask" in marks:
            # A mask of branches (options after one prompt) says of most keys only who may not
            # see them; what is marked as a prompt is no padding.
            valid = valid | marks["prompt_mask"].to(device).bool()
        groups = find_groups(config, marks, valid, past=past)
        cached = None
        if past and config.routing_scope == "prompt":
            cached = _recall(cache, adapter, past)
        return Context(adapter, groups, cached, listeners=self.listeners)

    def _after(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self._undo_checkpoints is not None:
            self._undo_checkpoints()
            self._undo_checkpoints = None
        for layer in cast(list[Contextual], self.layers(decoder)):
            layer.context = None
        self._rows.remember(output)
        context, self._context = self._context, None
        if context is None:
            return
        self.balance = list(context.balance.values())
        cache = getattr(output, "past_key_values", None)
        if cache is not None and context.memory:
            _remember(cache, Memory(context.adapter, context.memory))


def _caches(decoder: nn.Module, kwargs: dict[str, Any]) -> bool:
    use_cache = kwargs.get("use_cache")
    if use_cache is None:
        use_cache = getattr(getattr(decoder, "config", None), "use_cache", True)
    return bool(use_cache)


def _recall(cache: Any, adapter: str, past: int) -> dict[str, CachedChoice]:
    memory = getattr(cache, _REMEMBERED, None)
    if memory is None or memory.adapter != adapter:
        filled = "no adapter that routes" if memory is None else f"the adapter '{memory.adapter}'"
        raise RuntimeError(
            f"the cache holds {past} tokens and was filled with {filled}, so there is no choice of "
            f"factors that '{adapter}' could go on with; run the prompt again with that adapter"
        )
    return memory.cached


def _remember(cache: Any, memory: Memory) -> None:
    """Give a cache its memory, and make the memory follow the cache's rows."""
    if not hasattr(cache, _REMEMBERED):
        for name, following in _FOLLOWING.items():
            if hasattr(cache, name):
                setattr(cache, name, MethodType(following, cache))
    setattr(cache, _REMEMBERED, memory)


def _reorder_cache(cache: Any, beam_idx: Tensor) -> None:
    type(cache).reorder_cache(cache, beam_idx)
    getattr(cache, _REMEMBERED).take(beam_idx)


def _batch_select_indices(cache: Any, indices: Tensor) -> None:
    type(cache).batch_select_indices(cache, indices)
    getattr(cache, _REMEMBERED).take(indices)


def _batch_repeat_interleave(cache: Any, repeats: int) -> None:
    type(cache).batch_repeat_interleave(cache, repeats)
    memory: Memory = getattr(cache, _REMEMBERED)
    rows = len(next(iter(memory.cached.values())).count)
    memory.take(torch.arange(rows).repeat_interleave(repeats))


_FOLLOWING = {
    "reorder_cache": _reorder_cache,
    "batch_select_indices": _batch_select_indices,
    "batch_repeat_interleave": _batch_repeat_interleave,
}
