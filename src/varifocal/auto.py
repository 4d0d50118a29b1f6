"""A run directory for transformers' Auto classes: `from_pretrained("runs/demo")`.

A run holds an adapter and names its base models, so none of its files is a model's own config. Its
`config.json` names a model type of its own, by which the Auto classes come here, and get what
`open_run` gives. `registration` imports this right after transformers; the rest comes when a run
is opened.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from varifocal.errors import ModelError
from varifocal.run import MODEL_TYPE

_OF_THE_HUB = (
    "adapter_kwargs",
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
    "use_safetensors",
)
"""Options of `from_pretrained` that say where files come from; those of a run are its own."""


class RunConfig(PreTrainedConfig):
    """Stands for a run directory; the config of its model is the loaded model's."""

    model_type = MODEL_TYPE


class RunModel:
    """Opens a run where an Auto class asks for its model; there are no objects of this class."""

    config_class = RunConfig

    @classmethod
    def from_pretrained(
        cls,
        run: str | os.PathLike[str],
        *,
        config: PreTrainedConfig | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        **options: Any,
    ) -> PreTrainedModel:
        """Open a run's model with its adapter inside, in evaluation mode.

        Args:
            run: the run directory.
            config: the run's, which says nothing more.
            dtype: another number format of the frozen weights than the recipe's.
            device_map: one device; by default a GPU, where there is one.
            options: those that say where files come from are passed over.

        Raises:
            RunError: the run has no weights yet.
            ModelError: an option does not apply to a run, or its base models cannot be had.
        """
        from varifocal.assemble import open_run

        _refuse(options)
        if isinstance(device_map, Mapping):
            raise ModelError("device_map of a run is one device, such as 'cuda:1', and not a dict")
        _, parts = open_run(os.fspath(run), dtype=_name(dtype))
        base: Any = parts.base
        if parts.model is not base:
            base._hf_peft_config_loaded = True  # so that its adapter methods find the adapter
        if device_map not in (None, "auto"):
            base.to(device_map)
        return cast(PreTrainedModel, base.eval())


class RunProcessor:
    """Opens a run's processor where `AutoProcessor` asks; there are no objects of this class."""

    @classmethod
    def from_pretrained(cls, run: str | os.PathLike[str], **options: Any) -> Any:
        """Open a run's processor, or its tokenizer, with the chat template that was trained.

        Args:
            run: the run directory.
            options: passed over.

        Raises:
            RunError: the run has no weights yet.
            ModelError: its base models cannot be had.
        """
        from varifocal.assemble import open_processor

        return open_processor(os.fspath(run))


class RunTokenizer:
    """Opens a run's tokenizer where `AutoTokenizer` asks; there are no objects of this class."""

    @classmethod
    def from_pretrained(cls, run: str | os.PathLike[str], *_: Any, **options: Any) -> Any:
        """Open a run's tokenizer; see `RunProcessor.from_pretrained`."""
        processor = RunProcessor.from_pretrained(run)
        tokenizer = getattr(processor, "tokenizer", processor)
        tokenizer.chat_template = processor.chat_template
        return tokenizer


def _refuse(options: Mapping[str, Any]) -> None:
    """Refuse options that would have to change a run's model."""
    for name, value in options.items():
        if value is not None and name not in _OF_THE_HUB:
            raise ModelError(
                f"a run is opened as its recipe says, and {name} cannot be given; export the run "
                "with --to model, and give it there"
            )


def _name(dtype: str | torch.dtype | None) -> str | None:
    """Return a number format as recipes write it; None leaves the recipe's."""
    return None if dtype in (None, "auto") else str(dtype).removeprefix("torch.")


AutoConfig.register(MODEL_TYPE, RunConfig, exist_ok=True)
for _kind in (AutoModelForCausalLM, AutoModelForImageTextToText):
    _kind.register(RunConfig, cast(Any, RunModel), exist_ok=True)
AutoProcessor.register(RunConfig, cast(Any, RunProcessor), exist_ok=True)
AutoTokenizer.register(RunConfig, tokenizer_class=cast(Any, RunTokenizer), exist_ok=True)
