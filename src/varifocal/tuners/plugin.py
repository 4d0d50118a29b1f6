"""What a third-party tuner needs from PEFT and transformers: its name, and its forward pass.

It knows nothing of any method. `register` makes PEFT know one. The rest serves the context of a
forward pass: the marks a batch carries for tuners, the modality a cache object remembers, and the
three places where a tuner must step around torch (checkpoint recomputation, compiled layers,
running a decoder twice in one forward).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method
from torch import Tensor, nn

ROW_MARKS = ("modality_ids", "segment_ids", "prompt_mask")
"""Per-token marks [B, T] that a batch carries for tuners; no transformers decoder takes them."""


def register(
    name: str,
    config_cls: type[PeftConfig],
    model_cls: type[BaseTuner],
    *,
    shares_prefix: bool = False,
) -> None:
    """Make PEFT know a method, as if it were one of its own.

    PEFT looks methods up by members of its closed enum `PeftType` and offers no way to add one, so
    the member is added here, by the means of `enum` itself: to the member maps, and as a class
    attribute (Python 3.12 no longer falls back on the map). Registering the same classes again, as
    a module reload does, replaces them.

    Args:
        name: lower-case name of the method; its upper-case form is the `peft_type` in
            `adapter_config.json`.
        config_cls: the method's `PeftConfig`.
        model_cls: the method's `BaseTuner`; its `prefix` must be `name + "_"`.
        shares_prefix: whether its `prefix` is that of another method, whose tensor names it takes.
            PEFT's own function for a new method allows none to be shared.

    Raises:
        ValueError: if another method of that name is registered already.
    """
    value = name.upper()
    if value not in PeftType.__members__:
        member = str.__new__(PeftType, value)
        member._name_, member._value_ = value, value
        PeftType._member_names_.append(value)
        PeftType._member_map_[value] = member
        PeftType._value2member_map_[value] = member
        type.__setattr__(PeftType, value, member)
    peft_type = PeftType(value)
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type)
    if known is None and not shares_prefix:
        register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)
    elif known is None:
        PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] = model_cls.prefix
        PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config_cls
        PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = model_cls
    elif (known.__module__, known.__qualname__) == (config_cls.__module__, config_cls.__qualname__):
        PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config_cls
        PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = model_cls
    else:
        raise ValueError(
            f"PEFT already has a method '{value}': {known.__module__}.{known.__qualname__}"
        )


def pop_marks(kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """Take the row marks out of a decoder's keyword arguments; those absent or None are left out.

    Args:
        kwargs: the keyword arguments, changed in place.
    """
    marks = {name: kwargs.pop(name, None) for name in ROW_MARKS}
    return {name: mark for name, mark in marks.items() if mark is not None}


def token_shape(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """Read rows B and tokens T from the arguments of a decoder or a causal language model.

    Raises:
        ValueError: if there are neither `input_ids` nor `inputs_embeds`.
    """
    for tokens in (args[0] if args else None, kwargs.get("input_ids"), kwargs.get("inputs_embeds")):
        if tokens is not None:
            return tokens.shape[0], tokens.shape[1]
    raise ValueError("a decoder needs input_ids or inputs_embeds; got neither")


def cached_length(cache: Any) -> int:
    """Count the tokens a transformers cache object holds; 0 for None."""
    return 0 if cache is None else int(cache.get_seq_length())


class Contextual(Protocol):
    """A tuner layer that reads what the current forward pass set for it."""

    context: Any


@contextmanager
def contexts_set(layers: Sequence[Contextual], contexts: Sequence[Any]) -> Iterator[None]:
    """Give each layer its context, and put the earlier ones back at the end."""
    earlier = [layer.context for layer in layers]
    for layer, context in zip(layers, contexts, strict=True):
        layer.context = context
    try:
        yield
    finally:
        for layer, context in zip(layers, earlier, strict=True):
            layer.context = context


def remember_in_recomputation(
    decoder: nn.Module, layers: Sequence[Contextual]
) -> Callable[[], None]:
    """Make gradient checkpointing replay the layers' contexts; returns the function that undoes it.

    transformers checkpoints a decoder layer's `forward`, not its `__call__`, so no hook runs again
    when the backward pass recomputes the layer, and by then another forward pass may have set other
    contexts. The checkpoint function of each checkpointed block is therefore wrapped for the length
    of one forward pass, and what it checkpoints takes the contexts of that pass along.

    Args:
        decoder: the module whose blocks transformers may checkpoint.
        layers: tuner layers inside those blocks, their contexts set when a block runs.

    Raises:
        ValueError: if the checkpoints are reentrant, which would lose the contexts' gradients.
    """
    modules: list[Any] = list(decoder.modules())
    blocks = [
        (block, block._gradient_checkpointing_func)
        for block in modules
        if getattr(block, "gradient_checkpointing", False)
        and hasattr(block, "_gradient_checkpointing_func")
    ]

    for _, checkpoint in blocks:
        if getattr(checkpoint, "keywords", {}).get("use_reentrant"):
            raise ValueError(
                "reentrant gradient checkpointing loses the gradients of what a layer is given "
                "next to its inputs: set gradient_checkpointing_kwargs={'use_reentrant': False}"
            )

    def replaying(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        def checkpointed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            contexts = [layer.context for layer in layers]

            def replay(*args: Any, **kwargs: Any) -> Any:
                with contexts_set(layers, contexts):
                    return function(*args, **kwargs)

            return checkpoint(replay, *args, **kwargs)

        return checkpointed

    for block, checkpoint in blocks:
        block._gradient_checkpointing_func = replaying(checkpoint)

    def undo() -> None:
        for block, checkpoint in blocks:
            block._gradient_checkpointing_func = checkpoint

    return undo


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode; each of its parts has its own mode back afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def plain_execution(decoder: nn.Module) -> Iterator[None]:
    """Run a decoder's blocks without checkpoints and without their compiled forms.

    For an extra pass over a handful of tokens: recomputing it in the backward pass would find
    another state, and compiling it would cost a compilation per layer for nothing.
    """
    modules: list[Any] = list(decoder.modules())
    checkpointed = [m for m in modules if getattr(m, "gradient_checkpointing", False)]
    compiled = any(m._compiled_call_impl is not None for m in modules)
    for module in checkpointed:
        module.gradient_checkpointing = False
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        for module in checkpointed:
            module.gradient_checkpointing = True
