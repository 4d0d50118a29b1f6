"""What is done around a training's steps: log, stop, refuse a loss that is no number.

Of an adapter that routes, the load of its factors or experts is logged next to the loss: a collapse
is seen early.
"""

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from types import FrameType
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback

from varifocal.errors import RunError
from varifocal.models.distributed import in_world
from varifocal.progress import Progress
from varifocal.run import RunDirectory
from varifocal.tuners import LoraExpertsConfig, MixLoraConfig, factor_load, record_routing
from varifocal.tuners.mixlora import Load, RoutingRecord


class StopWish:
    """Whether somebody asked the training to stop."""

    def __init__(self) -> None:
        self.given = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Note a signal; let a second Ctrl-C interrupt at once.

        Schedulers repeat SIGTERM, or send it to every process while a launcher passes it on.
        """
        if self.given and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.given = True


@contextmanager
def stop_wish() -> Iterator[StopWish]:
    """Listen for SIGINT and SIGTERM while the block runs, if it runs in the main thread."""
    wish = StopWish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before: dict[int, Any] = {
        number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def anyone(wish: bool, device: torch.device) -> bool:
    """Tell whether any process wishes to stop; all of them must call it.

    Signals reach processes at different steps. If each one obeyed its own, one would save while
    the others wait for its gradient.
    """
    if not in_world():
        return wish
    flag = torch.tensor(float(wish), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)


SCALE_AT_LEAST = 1e-4
"""Below it, fp16's loss scale has been halved too often for its overflows to be chance."""
_NAMED = 8  # records that a sentence names


def is_finite(loss: torch.Tensor, norm: torch.Tensor | float, scaler: Any = None) -> bool:
    """Tell whether a step may be taken; one synchronisation with the device.

    Args:
        loss: a scalar, summed over the step's micro-batches, or over more.
        norm: of the gradient, as the clipping found it.
        scaler: fp16's. It looks for overflows by itself, skips their steps and lowers its scale;
            so with one, only a loss that is no number stops, or a scale that has run out.
    """
    if scaler is not None and scaler.is_enabled():
        return math.isfinite(loss.item()) and scaler.get_scale() >= SCALE_AT_LEAST
    if not isinstance(norm, torch.Tensor):
        return math.isfinite(norm) and math.isfinite(loss.item())
    whole: torch.Tensor = getattr(norm, "full_tensor", lambda: norm)()
    return bool(torch.isfinite(whole) & torch.isfinite(loss).to(whole.device))


def not_finite(
    what: str, where: str, fixes: Sequence[str], names: Sequence[str] = (), note: str = ""
) -> RunError:
    """Make the error of a step that is not taken.

    Args:
        what: the step and what of it is no number.
        where: in the data it stands.
        fixes: what a user can change.
        names: of the records it was made from.
        note: what is saved, and how to go on.
    """
    listed = ", ".join(names[:_NAMED])
    if len(names) > _NAMED:
        listed += f" and {len(names) - _NAMED} more"
    of = f" ({listed})" if listed else ""
    end = f"; {note}" if note else ""
    return RunError(f"{what}, on {where}{of}; it was not learned from. {'; or '.join(fixes)}{end}")


def rows_in_hand(trainer: Any) -> tuple[int, list[int]]:
    """The epoch, from 0, and the rows of it that this process's step in hand is made from."""
    args, size = trainer.args, trainer._train_batch_size
    num_rows = len(trainer.train_dataset)
    batches = -(-num_rows // (size * args.world_size))
    epoch, step = divmod(trainer.state.global_step, -(-batches // args.gradient_accumulation_steps))
    first = step * args.gradient_accumulation_steps
    rows = [
        (batch * args.world_size + args.process_index) * size + place
        for batch in range(first, min(first + args.gradient_accumulation_steps, batches))
        for place in range(size)
    ]
    return epoch, [row for row in rows if row < num_rows]


def step_not_finite(trainer: Any, loss: float, norm: float) -> RunError:
    """Say which step, from which rows, and what would help."""
    args, epoch, rows = trainer.args, *rows_in_hand(trainer)
    newest = RunDirectory(Path(str(args.output_dir)).parent).newest_checkpoint()
    names = getattr(trainer.train_dataset, "names", lambda row: [])
    fixes = [f"lower training.learning_rate (it is {args.learning_rate:g})"]
    if not 0 < args.max_grad_norm <= 1:
        fixes.append(f"set training.max_grad_norm to 1 (it is {args.max_grad_norm:g})")
    if args.fp16:
        fixes.append("set training.bf16 in place of training.fp16")
    if getattr(trainer.meter.base, "is_quantized", False):
        fixes.append("leave out model.quantization")
    return not_finite(
        f"step {trainer.state.global_step + 1} of {trainer.state.max_steps}: the loss is {loss:g} "
        f"and the norm of its gradient {norm:g}",
        f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows))} of epoch {epoch + 1}",
        fixes,
        [name for row in rows for name in names(row)],
        f"{newest.name} is kept, and --resume goes on from it" if newest else "",
    )


class RoutingWatch:
    """Watches the steps that are logged; of MixLoRA and LoRA experts; of others nothing.

    Args:
        model: the model that is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        config = model.active_peft_config if isinstance(model, PeftModel) else None
        self.weighted = isinstance(config, LoraExpertsConfig)
        self.num_factors: int | None = None
        if isinstance(config, LoraExpertsConfig):
            self.num_factors = config.num_experts
        elif isinstance(config, MixLoraConfig):
            self.num_factors = config.num_factors
        self._records: list[RoutingRecord] = []

    @contextmanager
    def step(self, model: nn.Module, watched: bool) -> Iterator[None]:
        """Record what a forward pass chooses, if this step is watched."""
        if self.num_factors is None or not watched:
            yield
            return
        with record_routing(model) as records:
            yield
        self._records = records

    def figures(self) -> dict[str, float]:
        """What the last watched step chose, over all linears and both pools.

        Returns:
            `factor_entropy` (mean; 1: all factors are used alike), `factor_top_load` (the largest
            share of any factor) and `router_sharpness` (mean; 0: no preference); {} without any.
        """
        if not self._records or self.num_factors is None:
            return {}
        by_linear = factor_load(self._records, self.num_factors, weighted=self.weighted)
        loads: list[Load] = [load for pools in by_linear.values() for load in pools]
        sharpness = [load.sharpness for load in loads if load.sharpness is not None]
        return {
            "factor_entropy": fmean(load.entropy for load in loads),
            "factor_top_load": max(float(load.shares.max()) for load in loads),
            **({"router_sharpness": fmean(sharpness)} if sharpness else {}),
        }


class RunMetrics(TrainerCallback):
    """Writes `metrics.jsonl` and tells of every step."""

    def __init__(self, run: RunDirectory, progress: Progress) -> None:
        self.run, self.progress = run, progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show where a training begins."""
        if state.is_world_process_zero:
            self.progress("train", state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write what the Trainer logs."""
        if state.is_world_process_zero and logs and "loss" in logs:
            speed = logs.get("tokens_per_second", 0.0)
            note = f"loss {logs['loss']:.3f}, {speed:.0f} tokens/s"
            self.run.append_metrics({"step": state.global_step, **logs})
            self.progress("train", state.global_step, state.max_steps, note)
        elif state.is_world_process_zero and logs and "eval_loss" in logs:
            self.run.append_metrics({"step": state.global_step, **logs})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show a step that is not logged."""
        # Else the last line would hold the loss of an interval before.
        if state.global_step == state.max_steps:
            control.should_log = True
        if state.is_world_process_zero and not control.should_log:  # `on_log` tells of the others
            self.progress("train", state.global_step, state.max_steps)


def _ignore_sigterm(former: Callable[[int], None] | None, worker: int) -> None:
    """Start a process that prepares data: launchers and schedulers send all processes SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if former is not None:
        former(worker)


class StopTraining(TrainerCallback):
    """Ends the training after the step in hand, with a checkpoint, when somebody asked for it."""

    def __init__(self, wish: StopWish) -> None:
        self.wish = wish

    def on_train_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Let the processes that prepare data work until the step in hand is done."""
        if train_dataloader is not None:
            former = train_dataloader.worker_init_fn
            # accelerate's wrapper starts those of the loader inside, or of a copy of itself.
            for loader in (train_dataloader, getattr(train_dataloader, "base_dataloader", None)):
                if loader is not None:
                    loader.worker_init_fn = partial(_ignore_sigterm, former)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and end where any process was asked to."""
        if anyone(self.wish.given, args.device):
            self.wish.given = True  # another process's wish is this one's too
            control.should_save = control.should_training_stop = True
