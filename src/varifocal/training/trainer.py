"""transformers' Trainer, with a loss that looks only where there is something to learn.

Schedules, precision, logging, checkpoints and launchers are the Trainer's. What is ours: logits at
supervised positions only, an own learning rate for the connector, checkpoints that are written
whole or not at all and hold no pickled arguments.
"""

import json
import time
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from varifocal.errors import RunError
from varifocal.models.distributed import gather_tensors, in_world, is_spread
from varifocal.models.loss import LossKernel, supervised_loss
from varifocal.recipe import TrainingSection
from varifocal.run import CHECKPOINT_PREFIX, UNLOGGED, RunDirectory
from varifocal.staging import delete, process_staging_path
from varifocal.trained_weights import TENSORS
from varifocal.training.callbacks import (
    RoutingWatch,
    anyone,
    is_finite,
    step_not_finite,
)
from varifocal.training.clock import Clock
from varifocal.training.cost import Meter
from varifocal.training.dry_build import check_fits
from varifocal.training.engines import (
    asks_for_fsdp,
    check_engine,
    gather_optimizer_state,
    load_optimizer_state,
    turn_on_fsdp2,
    wrap_present_layers,
)
from varifocal.training.full_tuning import saved_parameters, saved_tensors
from varifocal.training.resuming import take_rates
from varifocal.training.tuner import decayed_names, part_of
from varifocal.training.validation import Validation
from varifocal.tuners import balance_loss
from varifocal.writing import (
    atomic_directory,
    move_into,
    unwritable_is_an_error,
    write_json,
)

_IMAGES = ("pixel_values", "image_features")


class SupervisedTrainer(Trainer):
    """A Trainer for rows of segments.

    Args:
        connector_learning_rate: the peak for the connector's parameters; the common one when None.
        loss_chunk, loss_kernel, reference_weight: as `supervised_loss` takes them.
        clock: of the stages before the training.
        schedule: the section whose schedule is held against the run's steps; None checks nothing.
        validation: what scores held-out examples every so many steps; None scores nothing.
        kwargs: as for `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        connector_learning_rate: float | None = None,
        loss_chunk: int | None = None,
        loss_kernel: LossKernel | None = None,
        reference_weight: float = 1.0,
        clock: Clock | None = None,
        schedule: TrainingSection | None = None,
        validation: Validation | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.schedule, self.validation = schedule, validation
        self.connector_learning_rate = connector_learning_rate
        self.loss_options: dict[str, Any] = {"chunk": loss_chunk, "kernel": loss_kernel}
        self.loss_options["reference_weight"] = reference_weight
        self.model_accepts_loss_kwargs = True
        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        again = getattr(self.args, "activation_checkpointing", False)
        self.meter = Meter(
            cast(PreTrainedModel, model), clock, checkpointing=again, loss_chunk=loss_chunk
        )
        self.routing = RoutingWatch(cast(nn.Module, self.model))
        self._staging: Path | None = None
        self._saw_image = False
        self.add_callback(_Steps(self))
        if validation is not None:
            validation.check_engine(self)
            self.add_callback(validation)

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers', with FSDP2 on CPUs too."""
        check_engine(self.args)
        super().create_accelerator_and_postprocess()
        turn_on_fsdp2(self)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The supervised loss, scaled so that its mean over processes is the global mean."""
        self.meter.step(inputs)
        self._saw_image |= any(len(inputs.get(name, ())) > 0 for name in _IMAGES)
        with self.routing.step(model, self._is_logged()):
            loss = supervised_loss(model, inputs, num_items_in_batch, **self.loss_options)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        balance = balance_loss(model)
        if balance is not None:
            loss = loss + balance / self.args.gradient_accumulation_steps
        if not loss.requires_grad and torch.is_grad_enabled():
            loss = loss + _nothing(model)  # a connector alone learns nothing from text
        return (loss, {"loss": loss}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As transformers', with the tokens so far and their speed."""
        if "loss" in logs and start_time is not None:
            tokens, before = self.meter.spent.tokens, self.meter.resumed.tokens
            logs["tokens"] = tokens
            seconds = time.time() - start_time
            seconds -= self.meter.clock.own_stage_seconds("evaluation")
            logs["tokens_per_second"] = (tokens - before) / seconds
            logs |= self.routing.figures()
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the held-out examples, log it, and let the callbacks see it."""
        assert self.validation is not None
        scores = self.validation.score(self)
        self.log(scores)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, cast(Any, scores)
        )
        return scores

    def _is_logged(self) -> bool:
        """Whether a line of metrics follows the step in hand."""
        step = self.state.global_step + 1
        is_first = step == 1 and self.args.logging_first_step
        is_last = step == self.state.max_steps
        return is_first or is_last or step % max(int(self.state.logging_steps), 1) == 0

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the parameters that weight decay shrinks; transformers goes by names."""
        return decayed_names(model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make transformers' optimiser, the connector's parameters in groups of their own."""
        optimizer = super().create_optimizer(model)
        if self.connector_learning_rate is None:
            return optimizer
        trained = cast(nn.Module, model or self.model).named_parameters()
        connector = {id(p) for name, p in trained if part_of(name) == "connector"}
        for group in list(optimizer.param_groups):
            own = [p for p in group["params"] if id(p) in connector]
            group["params"] = [p for p in group["params"] if id(p) not in connector]
            if own:
                optimizer.add_param_group(
                    {**group, "params": own, "lr": self.connector_learning_rate}
                )
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """As transformers'; refuse a schedule whose parts do not fit into the run's steps."""
        check_fits(self.schedule, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As transformers', which asks for it before every update; refuse one that is no number."""
        norm = super()._get_grad_norm(model, grad_norm)
        loss = cast(torch.Tensor, self._tr_loss)
        total = cast("torch.Tensor | float", norm)
        if not is_finite(loss, total, self.accelerator.scaler):
            raise step_not_finite(self, loss.item(), float(total))
        return norm

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run what is left of an epoch; transformers takes one step of a finished run, too."""
        stopped = self.validation is not None and self.validation.is_over(self.state.log_history)
        if self.state.global_step < self.state.max_steps and not stopped:
            super()._run_epoch(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the checkpoint aside, then rename it: a kill leaves the last whole one.

        Every other process writes its random state into a directory of its own, and the first
        one takes those files along.
        """
        name = f"{CHECKPOINT_PREFIX}{self.state.global_step}"
        final = Path(str(self.args.output_dir)) / name
        unlogged = {**self._unlogged(), **self.meter.state()}
        if not self.args.should_save:
            aside = process_staging_path(final, self.args.process_index)
            self._write_aside(aside, model, trial)
            self.accelerator.wait_for_everyone()
            return
        with atomic_directory(final, noted="*") as staging:
            self._write_aside(staging, model, trial)
            self.accelerator.wait_for_everyone()
            write_json(staging / name / UNLOGGED, unlogged)
            others = [process_staging_path(final, n) for n in range(self.args.world_size)]
            for part in [staging, *others]:
                if (part / name).is_dir():  # not where another machine has a disk of its own
                    move_into(part / name, staging)
            for part in [staging / name, *others]:
                delete(part)
        best = self.validation and self.validation.best_checkpoint(self.state.log_history)
        RunDirectory(final.parent.parent).keep_newest(self.args.save_total_limit, best)

    def _write_aside(self, directory: Path, model: nn.Module, trial: Any) -> None:
        """Let transformers write this process's part of a checkpoint into another directory."""
        self._staging = directory
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None

    @property
    def total_loss(self) -> float:
        """The losses of all steps, those before a resumption too while none has been logged."""
        return cast(Any, self)._total_loss_scalar

    def _unlogged(self) -> dict[str, Any]:
        """What a checkpoint keeps next to transformers' files; all processes must call it."""
        loss = cast(torch.Tensor, self._tr_loss).item()
        args = self.args
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        return {
            "losses": gather_object([loss]) if in_world() else [loss],
            "logged_at": self._globalstep_last_logged,
            "rows_per_step": rows * args.world_size,
            "optimizer": str(getattr(args.optim, "value", args.optim)),
        }

    def drop_zeros(self) -> None:
        """Where no process saw an image, take the zeros away that stand for a gradient there.

        They kept the processes in step, or let a connector alone run backward. Adam moves no
        parameter without a gradient; of zeros it would move what it remembers. DeepSpeed keeps
        gradients to itself, and there they stay.
        """
        if self.is_deepspeed_enabled:
            return
        saw_image, self._saw_image = anyone(self._saw_image, self.args.device), False
        for name, parameter in cast(nn.Module, self.model).named_parameters():
            if not saw_image and part_of(name) in ("connector", "vision_tower"):
                parameter.grad = None

    def take_up_unlogged(self) -> None:
        """Resume the sums of the checkpoint that training starts from, if it has them."""
        name = f"{CHECKPOINT_PREFIX}{self.state.global_step}"
        file = Path(str(self.args.output_dir)) / name / UNLOGGED
        if not self.state.global_step or not file.is_file():
            return
        since = json.loads(file.read_text())
        losses = since["losses"] if "losses" in since else [since["loss"]]  # 0.1 kept one
        own = len(losses) == self.args.world_size
        self._tr_loss += losses[self.args.process_index] if own else sum(losses) / len(losses)
        self._globalstep_last_logged = since["logged_at"]
        if "spent" in since:  # a checkpoint of Varifocal 0.1 has only counts of tokens
            self.meter.take_up(since, self.args.process_index, self.args.world_size)

    def train(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, resume_from_checkpoint: Any = None, **kwargs: Any
    ) -> Any:
        """As transformers'; under FSDP2 the weights are loaded before they are spread."""
        if self.is_fsdp_enabled:
            wrap_present_layers(self)
        if self.is_fsdp_enabled and resume_from_checkpoint:
            self._load_from_checkpoint(str(resume_from_checkpoint))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def check_spread(self) -> None:
        """Refuse to train whole copies where shards were asked for.

        Raises:
            RunError: the parameters are not sharded.
        """
        if asks_for_fsdp(self.args) and not is_spread(cast(nn.Module, self.model)):
            raise RunError("training.fsdp was asked for, and accelerate has not spread the model")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As transformers'; under FSDP2 as one process would write it, for any number to read."""
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = gather_optimizer_state(cast(torch.optim.Optimizer, self.optimizer))
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As transformers', but with the learning rates that are given now."""
        given = list(getattr(self.lr_scheduler, "base_lrs", []))
        if not self.is_fsdp_enabled or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            optimizer, schedule = (
                torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True)
                for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
            )
            load_optimizer_state(cast(torch.optim.Optimizer, self.optimizer), optimizer)
            cast(Any, self.lr_scheduler).load_state_dict(schedule)
        take_rates(cast(torch.optim.Optimizer, self.optimizer), self.lr_scheduler, given)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As transformers', with what is spread over processes put together, the trained alone."""
        model = cast(nn.Module, self.model)
        if is_spread(model):
            self._save(output_dir, gather_tensors(model, saved_parameters(model)))
        else:
            super().save_model(output_dir, _internal_call)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Only what no base holds: the recipe holds the arguments, so nothing is pickled."""
        if not self.args.should_save:
            return
        target = Path(output_dir or cast(str, self.args.output_dir))
        with unwritable_is_an_error(target):
            if isinstance(self.model, PeftModel):
                # else PEFT adds the frozen table that an adapted head or embedding stands on
                cast(Any, self.model).save_pretrained(
                    target, state_dict=state_dict, save_embedding_layers=False
                )
            else:
                target.mkdir(parents=True, exist_ok=True)
                save_file(saved_tensors(cast(nn.Module, self.model), state_dict), target / TENSORS)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """As transformers', which warns of every tensor that a checkpoint does not hold."""
        file = Path(resume_from_checkpoint) / TENSORS
        into = cast(nn.Module, model or self.model)
        if self.is_fsdp_enabled and is_spread(into):
            return  # `train` has loaded it
        if not file.is_file():
            super()._load_from_checkpoint(resume_from_checkpoint, cast(Any, model))
            return
        tensors = load_file(file)
        wanted = saved_tensors(into, None).keys()
        # An older version left a frozen connector out; `start_connector` has restored it.
        trained = {name for name, each in into.named_parameters() if each.requires_grad}
        if not trained <= tensors.keys() <= wanted:
            raise RunError(f"{file} holds other tensors than are trained; start the run anew")
        into.load_state_dict(tensors, strict=False)


def _nothing(model: nn.Module) -> torch.Tensor:
    """Return a zero with a graph to one trained parameter, so that a backward pass can run."""
    trained = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    return (trained * 0).sum().float()


class _Steps(TrainerCallback):
    """Calls the trainer where transformers calls nothing but callbacks."""

    def __init__(self, trainer: SupervisedTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.check_spread()
        self.trainer.take_up_unlogged()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.drop_zeros()
