"""transformers' Trainer, with a loss that looks only where there is something to learn.

Schedules, precision, logging, checkpoints and launchers are the Trainer's. What is ours: logits at
supervised positions only, an own learning rate for the connector, checkpoints that are written
whole or not at all and hold no pickled arguments.

Legend: B rows, T tokens, S supervised positions, V vocabulary.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints

from varifocal.run import CHECKPOINT_PREFIX, disk_full_is_an_error, whole_directory

IGNORED = -100


def supervised_loss(
    model: nn.Module, batch: Mapping[str, Any], num_items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross-entropy of the next token at supervised positions; no other logits are computed.

    Args:
        model: any causal language model of transformers; its `logits_to_keep` takes an index.
        batch: what the model's forward takes, and `labels` [B, T], -100 where there is no loss.
        num_items: what the sum is divided by; the batch's own supervised tokens when None.

    Returns:
        the loss, a float32 scalar.
    """
    inputs = dict(batch)
    targets = inputs.pop("labels")[:, 1:]
    positions = (targets != IGNORED).any(0).nonzero().squeeze(1)  # [S], of any row
    logits = model(**inputs, logits_to_keep=positions, use_cache=False).logits  # [B, S, V]
    kept = targets[:, positions]
    total = F.cross_entropy(
        logits.float().flatten(0, 1), kept.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / (num_items if num_items is not None else (kept != IGNORED).sum().clamp_min(1))


@dataclass
class TokenCount:
    """Tokens of this process since it started, padding left out."""

    seen: int = 0
    supervised: int = 0

    def add(self, batch: Mapping[str, Any]) -> None:
        """Count one batch: prompt tokens and supervised ones."""
        supervised = int((batch["labels"] != IGNORED).sum())
        self.supervised += supervised
        self.seen += supervised + int(batch["prompt_mask"].sum())


class SupervisedTrainer(Trainer):
    """A Trainer for rows of segments.

    Args:
        connector_learning_rate: the peak for the connector's parameters; the common one when None.
        kwargs: as for `transformers.Trainer`.
    """

    def __init__(self, *, connector_learning_rate: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.connector_learning_rate = connector_learning_rate
        self.model_accepts_loss_kwargs = True
        self.tokens = TokenCount()
        self._staging: Path | None = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The supervised loss, scaled so that its mean over processes is the global mean."""
        self.tokens.add(inputs)
        loss = supervised_loss(model, inputs, num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, {"loss": loss}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As transformers', with the tokens of this process so far and their speed."""
        if "loss" in logs and start_time is not None:
            logs["tokens"] = self.tokens.seen
            logs["tokens_per_second"] = self.tokens.seen / (time.time() - start_time)
        super().log(logs, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make transformers' optimiser, the connector's parameters in groups of their own."""
        optimizer = super().create_optimizer(model)
        if self.connector_learning_rate is None:
            return optimizer
        trained = (self.model if model is None else model).named_parameters()
        connector = {id(p) for name, p in trained if ".connector." in f".{name}"}
        for group in list(optimizer.param_groups):
            own = [p for p in group["params"] if id(p) in connector]
            group["params"] = [p for p in group["params"] if id(p) not in connector]
            if own:
                optimizer.add_param_group(
                    {**group, "params": own, "lr": self.connector_learning_rate}
                )
        return optimizer

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the checkpoint aside, then rename it: a kill leaves the last whole one."""
        name = f"{CHECKPOINT_PREFIX}{self.state.global_step}"
        final = Path(self.args.output_dir) / name
        if not self.args.should_save:
            super()._save_checkpoint(model, trial)
            return
        with whole_directory(final) as staging:
            self._staging = staging
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
            for path in (staging / name).iterdir():
                os.replace(path, staging / path.name)
            (staging / name).rmdir()
        rotate_checkpoints(
            output_dir=self.args.output_dir, save_total_limit=self.args.save_total_limit
        )

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """The adapter's safetensors only: the recipe holds the arguments, so nothing is pickled."""
        if not self.args.should_save:
            return
        target = Path(output_dir or self.args.output_dir)
        with disk_full_is_an_error(target):
            self.model.save_pretrained(target, state_dict=state_dict)  # type: ignore[operator]
