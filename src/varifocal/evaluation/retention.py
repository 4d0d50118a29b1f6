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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from peft import PeftModel

from varifocal.assemble import assemble, open_run
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.json_files import OnBadRecord
from varifocal.evaluation.evaluated_model import without_images
from varifocal.evaluation.readings import TokenReader, after_images
from varifocal.evaluation.retention_data import Material, gather_material
from varifocal.evaluation.runner import MOST_NAMED, About
from varifocal.evaluation.sources import about_run
from varifocal.evaluation.statistics import (
    Interval,
    bootstrap_ratio,
    mcnemar,
    paired_bootstrap,
    wilson,
)
from varifocal.locking import alone
from varifocal.models.likelihood import EncodedQuestion, Rating
from varifocal.progress import Progress
from varifocal.recipe import Recipe, leaves_text, load_recipe
from varifocal.run import RunDirectory
from varifocal.trained_weights import find_trained
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

    texts: Sequence[Rating]
    right: Sequence[float]
    answers: Sequence[Rating]
    scenes: Sequence[Rating]


@dataclass(frozen=True)
class _Given:
    """What every model is asked: the base's encoder, the material, and what the base said to it."""

    encoder: Encoder
    material: Material
    written: Sequence[EncodedQuestion]
    described: Sequence[EncodedQuestion]


def measure_retention(
    root: str | Path,
    *,
    data: Path | None = None,
    text: Path | None = None,
    limit: int = LIMIT,
    on_bad_record: OnBadRecord | None = None,
    strength: float = 1.0,
    command: str | None = None,
    progress: Progress | None = None,
) -> tuple[Retention, Path]:
    """Measure a run's text skills against those of its base, and write them into the run.

    The models are held in float32, loaded one after the other, and take the same token ids. What
    they answered lies in `eval/retention`, where a stopped call goes on.

    Args:
        root: the run.
        data: where questions and instructions lie, see `gather_material`.
        text: held-out text, see there.
        limit: of each kind.
        on_bad_record: another rule than the recipe's for records that cannot be read or asked.
        strength: factor on what the adapter changes.
        command: what repeats it.
        progress: called with (stage, done, total).

    Returns:
        The table, and its file.

    Raises:
        RunError: the run has neither weights nor a checkpoint yet, or another process measures it.
        DataError: there is nothing to measure on, it cannot be read, or a record is bad and is not
            to be left out.
        ModelError: the base has changed since.
    """
    run = RunDirectory.open(root)
    recipe = load_recipe(run.recipe, check_paths=False)
    scores, rule = run.evaluations_at(find_trained(run).step), recipe.data.on_bad_record
    gather = partial(
        gather_material, data=data, text=text, limit=limit, on_bad_record=on_bad_record or rule
    )
    with alone(scores, "retention"):
        given, base = _of_base(recipe, scores / "retention", gather, progress)
        gc.collect()
        columns = _of_run(root, recipe, scores / "retention", given, strength, progress)
        notes = _notes(recipe, given.encoder, "off" in columns, strength)
        measured = Retention(
            str(root),
            recipe.model.language_model,
            recipe.tuner.type,
            _rows({"base": base, "off": base, **columns}, recipe.seed),
            given.material.sources,
            [*notes, *given.material.notes],
            recipe.seed,
            given.material.left_out,
            strength,
        )
        return measured, measured.write(scores, command)


def _of_base(
    recipe: Recipe, folder: Path, gather: Callable[..., Material], progress: Progress | None
) -> tuple[_Given, _Column]:
    """Let the base write its answers, and measure it."""
    parts = assemble(_without_tower(recipe))
    material, prompts = gather(recipe, parts.encoder), parts.encoder.for_prompts(None)
    about = About(recipe.model.language_model, None, parts.fingerprint, recipe.seed, "float32")
    reader = TokenReader(parts, parts.encoder, folder, about, progress)
    written = reader.write("base-writes", material.instructions)
    described = replace(reader, encoder=prompts).write(
        "base-describes", [without_images(scene) for scene in material.scenes]
    )
    given = _Given(parts.encoder, material, written, described)
    return given, _measure(reader, "base", given, described)


def _of_run(
    root: str | Path,
    recipe: Recipe,
    folder: Path,
    given: _Given,
    strength: float,
    progress: Progress | None,
) -> dict[str, _Column]:
    """Measure the run, its adapter on and, where it has any, off."""
    _, parts = open_run(root, dtype="float32", strength=strength)
    about = replace(about_run(root, recipe, parts, strength=strength), dtype="float32")
    reader = TokenReader(parts, given.encoder, folder, about, progress)
    scenes, columns = after_images(parts.encoder, given.material.scenes, given.described), {}
    if isinstance(parts.model, PeftModel):
        off = replace(reader, about=replace(about, strength=1.0))
        with parts.model.disable_adapter():
            columns["off"] = _measure(off, "off", given, scenes)
    return {**columns, "on": _measure(reader, "on", given, scenes)}


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
    return recipe.model_copy(
        update={
            "model": recipe.model.without_tower(dtype="float32"),
            "data": recipe.data.model_copy(update={"overflow": "truncate_prompt"}),
        }
    )


def _measure(
    reader: TokenReader, name: str, given: _Given, scenes: Sequence[EncodedQuestion]
) -> _Column:
    """Measure one model on everything there is."""
    return _Column(
        reader.read(f"{name}-text", given.material.texts),
        reader.choose(f"{name}-questions", given.material.questions),
        reader.read(f"{name}-answers", given.written),
        reader.read(f"{name}-after-image", scenes),
    )


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
        same = [_share([float(rating.greedy) for rating in column]) for column in answers]
        rows.append(_agreement(TOKENS, answers, seed))
        rows.append(_line(SAME, len(base.answers), same))
    if base.scenes:
        after = [column.scenes for column in (base, off, on)]
        rows.append(_perplexities(AFTER_IMAGE, after, seed))
        rows.append(_agreement(TOKENS_AFTER_IMAGE, after, seed))
    return rows


def _agreement(name: str, columns: Sequence[Sequence[Rating]], seed: int) -> RetentionLine:
    """Percent of the base's tokens that each model would have written."""
    shares = [
        bootstrap_ratio(
            [rating.hits for rating in column], [rating.tokens for rating in column], seed=seed
        )
        for column in columns
    ]
    return _line(name, len(columns[0]), [_times(share, 100) for share in shares])


def _perplexities(name: str, columns: Sequence[Sequence[Rating]], seed: int) -> RetentionLine:
    """Perplexities a token, and the factor between the first and the last."""
    tokens = [rating.tokens for rating in columns[0]]
    nats = [[-rating.score for rating in column] for column in columns]
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
