"""Decoder layers that are alike: a trace takes a few of them and multiplies one by the rest.

A layer's share is what lives when the next one begins and did not when it began itself. Left out
are those whose gradients outweigh that, since then the fullest moment moves with their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from unittest import mock

from torch import nn
from transformers import PreTrainedModel

TRACED = 4
"""Layers that are traced: the first may have no gradient to keep, the last is next to the head."""


@contextmanager
def few_layers(base: PreTrainedModel, repeat: bool = True) -> Iterator[list[nn.Module]]:
    """Let only the first layers of a decoder do anything, if all are alike.

    Args:
        base: the model inside any PEFT wrapper.
        repeat: False lets all work.

    Yields:
        the layers that hand on what they get.
    """
    decoder: Any = cast(Any, base).get_decoder()
    layers = getattr(decoder, "layers", None)
    kinds = getattr(getattr(decoder, "config", None), "layer_types", None) or ()
    if not repeat or not isinstance(layers, nn.ModuleList) or not alike(layers, kinds):
        yield []
        return
    idle = list(layers[TRACED:])
    with ExitStack() as stack:
        for layer in idle:  # they stay in place, for a tuner may know them by their names
            stack.enter_context(mock.patch.object(layer, "forward", _hand_on))
        yield idle


def _hand_on(hidden_states: Any, *_: Any, **__: Any) -> Any:
    return hidden_states


def alike(layers: nn.ModuleList, kinds: Any = ()) -> bool:
    """Tell whether layers can stand for one another, by their parts, shapes and what is trained."""
    if len(layers) <= TRACED or len(set(kinds)) > 1:
        return False
    return all(_form(layer) == _form(layers[0]) for layer in layers)


def _form(layer: nn.Module) -> list[Any]:
    modules: list[Any] = [(name, type(each)) for name, each in layer.named_modules()]
    return modules + [
        (name, each.shape, each.dtype, each.requires_grad)
        for name, each in layer.named_parameters()
    ]


@contextmanager
def growth(
    base: PreTrainedModel, live: Callable[[], Counter[str] | None]
) -> Iterator[list[Counter[str]]]:
    """Note what lives when each layer begins, in the forward pass.

    Args:
        base: its layers, as they stand.
        live: tells the bytes that live now, by part; None in the backward pass, where
            checkpointing comes by again.

    Yields:
        what lived before each of the first layers, as it is found.
    """
    notes: list[Counter[str]] = []
    layers = getattr(cast(Any, base).get_decoder(), "layers", ())[:TRACED]

    def note(*_: Any) -> None:
        if (lives := live()) is not None:
            notes.append(lives)

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield notes
    finally:
        for hook in hooks:
            hook.remove()


def share_of_one(notes: list[Counter[str]]) -> Counter[str]:
    """What one layer leaves after, by part.

    It is the difference between the last two notes of a pass, summed over the passes: MMA routes by
    a pass of its own.

    >>> one_pass = [Counter(a=1), Counter(a=2), Counter(a=3), Counter(a=6, b=1)]
    >>> share_of_one(one_pass)
    Counter({'a': 3, 'b': 1})
    >>> share_of_one(one_pass * 2)
    Counter({'a': 6, 'b': 2})
    """
    share: Counter[str] = Counter()
    for start in range(0, len(notes), TRACED):
        before, after = notes[start + TRACED - 2 : start + TRACED]
        share.update({part: size - before[part] for part, size in after.items()})
    return share
