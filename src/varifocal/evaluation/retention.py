"""What a model's text skills lost while it learned: base, adapter off, adapter on.

Measured the same way in every column: perplexity of held-out text; accuracy on multiple-choice
questions without images, by likelihood; how far greedy answers to instructions stay those of the
base; and what is said after an image. For the answers the base writes once, and each model reads
it: a token agrees where the model would have written it too after the same beginning, and an answer
is the same where all its tokens and its end agree, which is when greedy decoding writes it. The
base's own agreement is measured like the others', so that rounding shows.

The first three take a model's text route. The last takes its image route: the base answers to an
image's description, and each model reads that answer after the image and the same description.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from peft import PeftModel

from varifocal.assemble import Assembly, assemble, open_run
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.json_files import OnBadRecord
from varifocal.evaluation.evaluated_model import without_images
from varifocal.evaluation.generation import evaluation_mode
from varifocal.evaluation.likelihood import (
    EncodedQuestion,
    best_option,
    score_options,
)
from varifocal.evaluation.readings import (
    Reading,
    after_images,
    greedy_continuations,
    measure_readings,
)
from varifocal.evaluation.retention_data import Material, choice_question, gather_material
from varifocal.evaluation.runner import MOST_NAMED
from varifocal.evaluation.statistics import (
    Interval,
    bootstrap_ratio,
    mcnemar,
    paired_bootstrap,
    wilson,
)
from varifocal.models.decoding import stop_ids
from varifocal.progress import Progress, silent
from varifocal.recipe import Recipe, leaves_text, load_recipe
from varifocal.run import RunDirectory
from varifocal.writing import write_json

LIMIT = 100
"""Texts, questions and instructions of each kind, unless another number is asked for."""

COLUMNS = ("base", "off", "on")
PERPLEXITY, RIGHT, TOKENS, SAME, AFTER_IMAGE, TOKENS_AFTER_IMAGE = (
    "perplexity",
    "questions right %",
    "answer tokens agreeing %",
    "answers the same %",
    "perplexity after an image",
    "answer tokens agreeing % after an image",
)
FACTORS = (PERPLEXITY, AFTER_IMAGE)
"""Measures whose change is a factor."""

_LEFT = (
    "{}, on: texts run the base model (tuner.text_route: base); what comes after an image runs the "
    "adapter"
)
_ROUTES = {
    "mma": [
        "mma, on: texts take its text route, the one of rows without an image in training and in "
        "chat; what comes after an image takes its image route"
    ]
}


@dataclass(frozen=True)
class RetentionLine:
    """One line of the table.

    Attributes:
        name: one of `PERPLEXITY`, `RIGHT`, `TOKENS`, `SAME`, `AFTER_IMAGE`, `TOKENS_AFTER_IMAGE`.
        count: texts, questions or instructions.
        base, off, on: the three models, with 95 % intervals.
        change: from base to on, on the same items: of a perplexity the factor, else points.
        p: McNemar's exact test of right answers won and lost.
    """

    name: str
    count: int
    base: Interval
    off: Interval
    on: Interval
    change: Interval | None
    p: float | None = None


@dataclass(frozen=True)
class Retention:
    """The table of a run.

    Attributes:
        run: its directory.
        base: the base model's name.
        tuner: `mma`, `lora`, `full` and so on.
        rows: one a measure.
        sources: what was measured on, in words.
        notes: what has to be known to read it.
        seed: of the bootstrap.
        left_out: one sentence for each record that could not be used.
        strength: factor on what the adapter changes, of the column `on`.
    """

    run: str
    base: str
    tuner: str
    rows: Sequence[RetentionLine]
    sources: Mapping[str, str]
    notes: Sequence[str]
    seed: int = 0
    left_out: Sequence[str] = ()
    strength: float = 1.0

    def write(self, directory: Path, command: str | None = None) -> Path:
        """Write `retention.json`, or a file named by the strength where that is not 1.

        Args:
            directory: the run's `eval`.
            command: what makes it again.
        """
        scaled = "" if self.strength == 1 else f"-strength-{self.strength:g}"
        file = directory / f"retention{scaled}.json"
        page = {**asdict(self), "left_out": list(self.left_out[:MOST_NAMED])}
        write_json(file, {**page, "records_left_out": len(self.left_out), "command": command})
        return file


@dataclass(frozen=True)
class _Column:
    """One model's results, in the order of the material."""

    texts: Sequence[Reading]
    right: Sequence[float]
    answers: Sequence[Reading]
    scenes: Sequence[Reading]


def measure_retention(
    root: str | Path,
    *,
    data: Path | None = None,
    text: Path | None = None,
    limit: int = LIMIT,
    on_bad_record: OnBadRecord | None = None,
    strength: float = 1.0,
    progress: Progress | None = None,
) -> Retention:
    """Measure a run's text skills against those of its base.

    The models are held in float32, loaded one after the other, and take the same token ids.

    Args:
        root: the run.
        data: where questions and instructions lie, see `gather_material`.
        text: held-out text, see there.
        limit: of each kind.
        on_bad_record: another rule than the recipe's for records that cannot be read or asked.
        strength: factor on what the adapter changes.
        progress: called with (stage, done, total).

    Raises:
        RunError: the run has neither weights nor a checkpoint yet.
        DataError: there is nothing to measure on, it cannot be read, or a record is bad and is not
            to be left out.
        ModelError: the base has changed since.
    """
    tell = progress or silent
    recipe = load_recipe(RunDirectory.open(root).recipe, check_paths=False)
    base = assemble(_without_tower(recipe))
    encoder, rule = base.encoder, on_bad_record or recipe.data.on_bad_record
    material = gather_material(recipe, encoder, data, text, limit, rule)
    write = partial(greedy_continuations, base.model)
    written = write(encoder, material.instructions, partial(tell, "base writes"))
    about = [without_images(scene) for scene in material.scenes]
    described = write(encoder.for_prompts(None), about, partial(tell, "base describes"))
    measure = partial(_measure, encoder=encoder, material=material, written=written, tell=tell)
    columns = {"base": measure(base, scenes=described, stage="base")}
    del base, write
    gc.collect()
    _, parts = open_run(root, dtype="float32", strength=strength)
    scenes = after_images(parts.encoder, material.scenes, described)
    columns["off"], has_adapter = columns["base"], isinstance(parts.model, PeftModel)
    if isinstance(parts.model, PeftModel):
        with parts.model.disable_adapter():
            columns["off"] = measure(parts, scenes=scenes, stage="off")
    columns["on"] = measure(parts, scenes=scenes, stage="on")
    return Retention(
        str(root),
        recipe.model.language_model,
        recipe.tuner.type,
        _rows(columns, recipe.seed),
        material.sources,
        [*_notes(recipe, encoder, has_adapter, strength), *material.notes],
        recipe.seed,
        material.left_out,
        strength,
    )


def _notes(recipe: Recipe, encoder: Encoder, has_adapter: bool, strength: float) -> Iterator[str]:
    """Yield what has to be known of the three models."""
    kind = recipe.tuner.type
    if strength != 1:
        yield f"on: what the adapter changes is scaled by {strength:g} (--strength)"
    yield f"prompts over {encoder.max_length} tokens lose text from their middle, for all alike"
    if leaves_text(recipe.tuner):
        yield _LEFT.format(kind)
    else:
        yield from _ROUTES.get(kind, ())
    if not has_adapter:
        yield f"tuner '{kind}' has no adapter to switch off: off is the base model itself"


def _without_tower(recipe: Recipe) -> Recipe:
    """The recipe of the language model alone, in float32; nothing too long for it is left out."""
    alone = {"vision_tower": None, "connector": None, "dtype": "float32"}
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update=alone),
            "data": recipe.data.model_copy(update={"overflow": "truncate_prompt"}),
        }
    )


def _measure(
    parts: Assembly,
    *,
    encoder: Encoder,
    material: Material,
    written: Sequence[EncodedQuestion],
    scenes: Sequence[EncodedQuestion],
    tell: Progress,
    stage: str,
) -> _Column:
    """Measure one model on everything."""
    model = parts.model
    right: list[float] = []
    ends = stop_ids(model, encoder.end_of_turn_id)
    with evaluation_mode(model):
        texts = measure_readings(model, material.texts, progress=partial(tell, f"{stage}: text"))
        if material.questions:
            asked = [choice_question(encoder, question) for question in material.questions]
            scores = score_options(model, asked, progress=partial(tell, f"{stage}: questions"))
            pairs = zip(material.questions, scores, strict=True)
            right = [
                float(best_option(of_one) == question.answer_index) for question, of_one in pairs
            ]
        answers = measure_readings(
            model, written, ends=ends, progress=partial(tell, f"{stage}: answers")
        )
        after = measure_readings(
            model,
            scenes,
            parts.load_images,
            ends=ends,
            progress=partial(tell, f"{stage}: after an image"),
        )
    return _Column(texts, right, answers, after)


def _rows(columns: Mapping[str, _Column], seed: int) -> list[RetentionLine]:
    """Lay the columns side by side, a line a measure that has items."""
    base, off, on = (columns[name] for name in COLUMNS)
    rows = []
    if base.texts:
        texts = [column.texts for column in (base, off, on)]
        rows.append(_perplexities(PERPLEXITY, texts, seed))
    if base.right:
        won = sum(b > a for a, b in zip(base.right, on.right, strict=True))
        lost = sum(b < a for a, b in zip(base.right, on.right, strict=True))
        change = _times(paired_bootstrap(base.right, on.right, seed=seed), 100)
        shares = [_share(column.right) for column in (base, off, on)]
        rows.append(_line(RIGHT, len(base.right), shares, change, mcnemar(won, lost)))
    if base.answers:
        answers = [column.answers for column in (base, off, on)]
        same = [
            _share([float(reading.hits == reading.tokens) for reading in column])
            for column in answers
        ]
        rows.append(_agreement(TOKENS, answers, seed))
        rows.append(_line(SAME, len(base.answers), same))
    if base.scenes:
        after = [column.scenes for column in (base, off, on)]
        rows.append(_perplexities(AFTER_IMAGE, after, seed))
        rows.append(_agreement(TOKENS_AFTER_IMAGE, after, seed))
    return rows


def _agreement(name: str, columns: Sequence[Sequence[Reading]], seed: int) -> RetentionLine:
    """Percent of the base's tokens that each model would have written."""
    shares = [
        bootstrap_ratio(
            [reading.hits for reading in column], [reading.tokens for reading in column], seed=seed
        )
        for column in columns
    ]
    return _line(name, len(columns[0]), [_times(share, 100) for share in shares])


def _perplexities(name: str, columns: Sequence[Sequence[Reading]], seed: int) -> RetentionLine:
    """Perplexities a token, and the factor between the first and the last."""
    tokens = [reading.tokens for reading in columns[0]]
    nats = [[reading.nats for reading in column] for column in columns]
    each = [_exp(bootstrap_ratio(column, tokens, seed=seed)) for column in nats]
    more = [after - before for before, after in zip(nats[0], nats[2], strict=True)]
    return _line(name, len(tokens), each, _exp(bootstrap_ratio(more, tokens, seed=seed)))


def _line(
    name: str,
    count: int,
    columns: Sequence[Interval],
    change: Interval | None = None,
    p: float | None = None,
) -> RetentionLine:
    base, off, on = columns
    return RetentionLine(name, count, base, off, on, change, p)


def _share(values: Sequence[float]) -> Interval:
    right = int(sum(values))
    return _times(Interval(right / len(values), *wilson(right, len(values))), 100)


def _times(interval: Interval, factor: float) -> Interval:
    return Interval(factor * interval.value, factor * interval.low, factor * interval.high)


def _exp(interval: Interval) -> Interval:
    return Interval(math.exp(interval.value), math.exp(interval.low), math.exp(interval.high))
