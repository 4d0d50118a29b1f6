"""Score held-out examples while a run trains: their loss, the run's own metric, sample answers.

The training does not notice: dropout is off meanwhile and on again after it, every random state is
what it was, and the time is counted apart. What was scored stands in the Trainer's history, which
every checkpoint holds, so a resumed run goes on with the same best checkpoint and the same
patience.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from varifocal.assemble import Assembly
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.encoding.samples import UsableSamples
from varifocal.data.rows.packing import PackedDataset
from varifocal.errors import DataError, RunError
from varifocal.evaluation.benchmark import Answer, Benchmark, Item, Prompt
from varifocal.evaluation.evaluated_model import EncodedAsker
from varifocal.evaluation.generation import evaluation_mode
from varifocal.evaluation.runner import Result, run
from varifocal.evaluation.sources import sample_questions
from varifocal.models.distributed import in_world
from varifocal.models.likelihood import Normalisation
from varifocal.models.loss import IGNORED, supervised_loss
from varifocal.progress import Progress, silent
from varifocal.recipe import Recipe, TrainingSection, leaves_text
from varifocal.recipe.data import MixtureSection
from varifocal.recipe.training import SPREAD_WEIGHTS
from varifocal.run import RunDirectory
from varifocal.training.cost import Meter
from varifocal.training.examples import open_samples
from varifocal.writing import atomic_file, write_json

if TYPE_CHECKING:
    from varifocal.training.trainer import SupervisedTrainer

NUM_SHOWN = 8
"""Sample answers of an evaluation that are written with their images."""
IMAGE_SIDE = 320
"""Pixels of the longer side of their images."""


@dataclass(frozen=True)
class Best:
    """The best of the evaluations so far; `best.json` of the run directory.

    Attributes:
        step: its optimiser step, of which there is a checkpoint.
        metric: what was compared, `loss` or `score`.
        value: its held-out loss, or its score in percent.
        patience: evaluations since the last one that was better by the threshold.
    """

    step: int
    metric: str
    value: float
    patience: int


def best_of(history: Sequence[Mapping[str, Any]], training: TrainingSection) -> Best | None:
    """Find the best evaluation in a Trainer's history; None before the first.

    >>> losses = [{"step": 1, "eval_loss": 2.0}, {"step": 2, "eval_loss": 1.0}]
    >>> best_of([*losses, {"step": 3, "eval_loss": 1.5}], TrainingSection())
    Best(step=2, metric='loss', value=1.0, patience=1)
    """
    metric = training.metric_for_best_model
    sign = -1 if metric == "loss" else 1
    best, mark, patience = None, -math.inf, 0
    for record in history:
        if "eval_loss" not in record:
            continue
        value = sign * record.get(f"eval_{metric}", math.nan)
        patience += 1
        if value - mark > training.early_stopping_threshold or mark == -math.inf < value:
            mark, patience = value, 0
        if best is None or value > sign * best.value or math.isnan(best.value):
            best = Best(record["step"], metric, sign * value, 0)
    return None if best is None else replace(best, patience=patience)


class Validation(TrainerCallback):
    """Scores a run on its `data.evaluate`, and decides what follows from it.

    Args:
        recipe: what is scored, and how often.
        run: where sample answers and `best.json` go.
        parts: the tuned model with its encoder and its image loader.
        progress: called at every evaluation.

    Raises:
        DataError: nothing of `data.evaluate` can be encoded or asked.
    """

    def __init__(
        self, recipe: Recipe, run: RunDirectory, parts: Assembly, progress: Progress
    ) -> None:
        self.training, self._run, self._parts = recipe.training, run, parts
        self._progress = progress
        self._rows = _rows(recipe, held_out_samples(recipe, parts.encoder, progress))
        number = self.training.eval_questions
        self._questions = list(sample_questions(recipe, parts, number)) if number else []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for an evaluation where one is due."""
        every = self.training.eval_interval(state.max_steps) or state.max_steps
        step = state.global_step
        control.should_evaluate = step % every == 0 or step == state.max_steps

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save what is the best so far; end where nothing gets better any more."""
        best = best_of(state.log_history, self.training)
        assert best is not None  # this evaluation is in the history
        if state.is_world_process_zero:
            write_json(self._run.best, asdict(best))
        if best.step == state.global_step:
            control.should_save = True
        if self.is_over(state.log_history):
            control.should_save = control.should_training_stop = True

    def is_over(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Tell whether the patience has come to its end."""
        best, patience = best_of(history, self.training), self.training.early_stopping_patience
        return best is not None and patience is not None and best.patience >= patience

    def best_checkpoint(self, history: Sequence[Mapping[str, Any]]) -> Path | None:
        """Return the best evaluation's checkpoint, or None before the first evaluation."""
        best = best_of(history, self.training)
        return None if best is None else self._run.checkpoint(best.step)

    def load_best(self, trainer: SupervisedTrainer) -> None:
        """Put the best checkpoint's weights in, where the recipe asks for them at the end."""
        best = self.best_checkpoint(trainer.state.log_history)
        if self.training.load_best_model_at_end and best is not None:
            trainer._load_from_checkpoint(str(best))

    def check_engine(self, trainer: SupervisedTrainer) -> None:
        """Refuse an engine that spreads the weights, however it was asked for.

        Raises:
            RunError: it is one.
        """
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise RunError(f"training.eval_steps {SPREAD_WEIGHTS}")

    def score(self, trainer: SupervisedTrainer) -> dict[str, float]:
        """Score the model as it is now; all processes must call it.

        Returns:
            `eval_loss` in nats per supervised token, `eval_score` in percent where questions are
            asked, each source's main measure, and `eval_runtime` in seconds.
        """
        started = time.monotonic()
        model: Any = trainer.model
        step = trainer.state.global_step
        self._progress("evaluate", 0, 1, f"step {step}")
        with trainer.meter.evaluation(), _same_randomness(), evaluation_mode(model), _eager():
            scores = {"eval_loss": self._loss(trainer)}
            if self._questions:
                asked = self._ask(step, trainer.meter) if trainer.is_world_process_zero() else {}
                scores |= _of_first_process(asked)
        self._progress("evaluate", 1, 1, f"held-out loss {scores['eval_loss']:.3f}")
        return {**scores, "eval_runtime": time.monotonic() - started}

    @torch.no_grad()
    def _loss(self, trainer: SupervisedTrainer) -> float:
        """Return the mean over the supervised tokens of all rows; each process scores its share."""
        args, rows, total, count = trainer.args, self._rows, 0.0, 0
        size, model = args.per_device_train_batch_size, cast(torch.nn.Module, trainer.model)
        for start in range(0, len(rows), size)[args.process_index :: args.world_size]:
            numbers = range(start, min(start + size, len(rows)))
            batch: Any = trainer.data_collator([cast(Any, rows[number]) for number in numbers])
            trainer.meter.add_evaluated(batch)
            batch = trainer._prepare_inputs(batch)
            count += int((batch["labels"][:, 1:] != IGNORED).sum())
            total += supervised_loss(model, batch, 1, **trainer.loss_options).item()
        sums = torch.tensor([total, count], dtype=torch.float64, device="cpu")
        if in_world():
            sums = sums.to(args.device)
            torch.distributed.all_reduce(sums)
        return (sums[0] / sums[1]).item()

    def _ask(self, step: int, meter: Meter) -> dict[str, float]:
        """Ask the sampled questions, and write what is shown of their answers."""
        folder = self._run.validation_at(step)
        asker = _CountedAsker(self._parts, meter)
        results = [
            run(benchmark, items, asker, folder, options=options)
            for benchmark, items, options in self._questions
        ]
        mains = {each.name: _main_measure(each) for each in results}
        samples = [sample for each in results for sample in self._samples(each, len(results))]
        write_json(folder / "samples.json", samples)
        scores = {f"eval_{name}": value for name, value in mains.items()} if len(mains) > 1 else {}
        return {"eval_score": fmean(mains.values()), **scores}

    def _samples(self, result: Result, num_sources: int) -> Iterator[dict[str, Any]]:
        """Yield a few questions with their answers, and write their images once."""
        for number, (item, answer) in enumerate(result.answered[: -(-NUM_SHOWN // num_sources)]):
            images = [
                self._write_image(f"{result.name}-{number}-{place}.jpg", image)
                for place, image in enumerate(item.asked.images)
            ]
            yield _sample_of(result.benchmark, item, answer, images)

    def _write_image(self, name: str, image: Any) -> str:
        file = self._run.validation / "images" / name
        if not file.is_file():
            small = image.open().convert("RGB")
            small.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(file) as staging:
                small.save(staging, "jpeg", quality=85)
        return name


def _sample_of(
    benchmark: Benchmark, item: Item, answer: Answer, images: Sequence[str]
) -> dict[str, Any]:
    """Return what `samples.json` holds of a question; `right` is None where nothing decides it."""
    said = answer.parsed if answer.text is None else answer.text
    credit = benchmark.credit
    return {
        "id": item.id,
        "question": item.asked.messages[-1].text,
        "choices": list(item.example.choices),
        "images": list(images),
        "answer": said or "",
        "references": list(item.references),
        "credit": None if credit is None else credit(item, answer),
    }


def _main_measure(result: Result) -> float:
    return next(each.value for each in result.measures if each.name == result.benchmark.main)


def held_out_samples(
    recipe: Recipe, encoder: Encoder, progress: Progress = silent
) -> UsableSamples:
    """Encode the held-out examples whose loss is scored: a sample by the recipe's seed.

    Args:
        recipe: its `data.evaluate`, each example once.
        encoder: makes token ids.
        progress: called after every example.

    Raises:
        DataError: a source cannot be read, or nothing of it can be encoded.
    """
    once = [
        source.model_copy(update=dict.fromkeys(("epochs", "weight", "max_per_task")))
        for source in recipe.data.evaluate
    ]
    data = recipe.data.model_copy(update={"train": tuple(once), "mixture": MixtureSection()})
    samples = open_samples(
        data,
        encoder,
        seed=recipe.seed,
        images_only=leaves_text(recipe.tuner),
        most=recipe.training.eval_samples,
    )
    usable = UsableSamples(samples, lambda *at: progress("encode held-out", *at))
    if not len(usable):
        raise DataError(f"data.evaluate: {samples.tally.nothing_left()}")
    return usable


def _rows(recipe: Recipe, samples: UsableSamples) -> PackedDataset:
    data = recipe.data
    row_length = data.row_length or data.max_length
    return PackedDataset(samples, row_length, recipe.seed, data.packing, samples.lengths.tolist())


class _CountedAsker(EncodedAsker):
    """Asks as `varifocal eval` does, and counts what goes through the model."""

    def __init__(self, parts: Assembly, meter: Meter) -> None:
        super().__init__(parts)
        self._meter = meter

    def score(self, prompts: Sequence[Prompt], normalisation: Normalisation) -> list[Answer]:
        self._meter.add_asked(
            [prompt.length for prompt in prompts], [sum(each.option_lengths) for each in prompts]
        )
        return super().score(prompts, normalisation)

    def write(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Answer]:
        self._meter.add_asked([prompt.length for prompt in prompts], [1] * len(prompts))
        return super().write(prompts, max_new_tokens)

    def _read(self, ids: Sequence[int]) -> str:
        self._meter.add_asked([len(ids)], [len(ids)])
        return super()._read(ids)


@contextmanager
def _same_randomness() -> Iterator[None]:
    """Give every random state back as it was."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        yield
    random.setstate(python)
    np.random.set_state(numpy)


@contextmanager
def _eager() -> Iterator[None]:
    """Run compiled layers as they are: answers have other lengths than rows at every step."""
    with torch.compiler.set_stance("force_eager"):
        yield


def _of_first_process(scores: dict[str, float]) -> dict[str, float]:
    """Return what the first process has; all processes must call it."""
    if not in_world():
        return scores
    shared: list[Any] = [scores]
    return broadcast_object_list(shared)[0]
