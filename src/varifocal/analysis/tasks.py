"""Which task an example belongs to, and a few examples of each task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from varifocal.data.encoding.encoder import Encoded, Encoder
from varifocal.data.example import Example
from varifocal.data.json_files import Examples, OnBadRecord
from varifocal.data.loading import check_images
from varifocal.data.source import open_source
from varifocal.errors import DataError, RecipeError, nearest
from varifocal.recipe import DataSection, FileSection, SourceSection
from varifocal.sciencebook import SKILLS

MAX_TASKS = 12
"""Tasks that are compared when none are named: as many as an image still shows."""

_SHORT = {skill.title: name for name, skill in SKILLS.items()}


@dataclass(frozen=True)
class TaskExamples:
    """Examples by task, and what was left out on the way.

    Attributes:
        by_task: at most so many of each task as were asked for, tasks in the order asked for, or
            the most frequent first.
        counts: how many each task has in the source, the tasks left out included.
        places: where they were read.
        left_out: one sentence for each record, or group of tasks, that is not among them.
    """

    by_task: Mapping[str, Sequence[Example]]
    counts: Mapping[str, int]
    places: Sequence[str]
    left_out: Sequence[str] = field(default_factory=tuple)


def name_task(example: Example) -> str:
    """Name an example's task: its skill, else its task, else the source it was read from.

    sciencebook's skills go by their short names.

    >>> from varifocal.data.example import Message
    >>> turns = (Message("user", ("2 + 2?",)), Message("assistant", ("4",)))
    >>> name_task(Example(turns, task="QCM-A", tags={"skill": "Read a thermometer"}))
    'thermometer'
    >>> name_task(Example(turns, source="data/sums.jsonl"))
    'sums'
    """
    skill = example.tags.get("skill", "")
    return _SHORT.get(skill, skill) or example.task or Path(example.source).stem or "examples"


def draw_tasks(
    examples: Iterable[Example],
    wanted: Sequence[str] | None = None,
    *,
    per_task: int,
    seed: int = 0,
    least: int = 2,
) -> TaskExamples:
    """Draw examples of each task in one pass; at most `per_task` a task are held.

    Args:
        examples: any number of them, as they come.
        wanted: names of tasks; the `MAX_TASKS` most frequent ones when None.
        per_task: how many of each task, by reservoir sampling: each is equally likely.
        seed: the same seed draws the same examples.
        least: a task with fewer is refused where it was asked for, and left out where not.

    Raises:
        DataError: a task is not there or too small, or there are no two tasks.
    """
    examples_of: dict[str, list[tuple[int, Example]]] = {}
    counts: Counter[str] = Counter()
    random: dict[str, np.random.Generator] = {}
    for number, example in enumerate(examples):
        task = name_task(example)
        counts[task] += 1
        if wanted is not None and task not in wanted:
            continue
        drawn = examples_of.setdefault(task, [])
        if len(drawn) < per_task:
            drawn.append((number, example))
            continue
        slot = int(random.setdefault(task, np.random.default_rng(seed)).integers(counts[task]))
        if slot < per_task:
            drawn[slot] = (number, example)
    chosen, left_out = _choose(counts, wanted, least)
    in_order = {task: sorted(examples_of[task], key=lambda pair: pair[0]) for task in chosen}
    by_task = {task: [example for _, example in pairs] for task, pairs in in_order.items()}
    return TaskExamples(by_task, dict(counts.most_common()), (), left_out)


def _choose(
    counts: Mapping[str, int], wanted: Sequence[str] | None, least: int
) -> tuple[list[str], list[str]]:
    """Decide on the tasks; a sentence says which were left out."""
    ordered = sorted(counts, key=lambda task: (-counts[task], task))
    names = ", ".join(ordered[:MAX_TASKS])
    if wanted is not None:
        for task in wanted:
            if task not in counts:
                raise DataError(
                    f"--tasks: no task '{task}'{nearest(task, ordered)} (there: {names})"
                )
            if counts[task] < least:
                raise DataError(
                    f"--tasks: '{task}' has {counts[task]} example, at least {least} are needed"
                )
        chosen, left_out = list(dict.fromkeys(wanted)), []
    else:
        large = [task for task in ordered if counts[task] >= least]
        chosen = large[:MAX_TASKS]
        more, small = len(large) - len(chosen), len(ordered) - len(large)
        left_out = [f"{more} less frequent tasks; name tasks with --tasks"] if more else []
        left_out += [f"{small} tasks with fewer than {least} examples"] if small else []
    if len(chosen) < 2:
        raise DataError(
            f"two tasks or more are compared, here there are {len(chosen)} ({names or 'none'}); "
            "name other data with --data, or other tasks with --tasks"
        )
    return chosen, left_out


def load_tasks(
    data: DataSection,
    wanted: Sequence[str] | None = None,
    *,
    path: Path | None = None,
    split: str | None = None,
    per_task: int,
    seed: int = 0,
) -> TaskExamples:
    """Draw examples of each task from what a run learned from, or from other data.

    Args:
        data: the run's data section; its `train` is read, or its `evaluate` if it has no `train`.
        wanted: names of tasks; the most frequent ones when None.
        path: read this instead, asked for as the first source is.
        split: another split.
        per_task: how many of each task.
        seed: of the draw.

    Raises:
        RecipeError: the run names no data.
        DataError: the data cannot be read, or as `draw_tasks`.
    """
    sources = _sources(data, path, split)
    skipped: list[str] = []
    stream = _read(sources, seed, data.on_bad_record, skipped)
    drawn = draw_tasks(stream, wanted, per_task=per_task, seed=seed)
    places = [source.place for source in sources]
    return TaskExamples(drawn.by_task, drawn.counts, places, [*skipped, *drawn.left_out])


def _sources(data: DataSection, path: Path | None, split: str | None) -> list[SourceSection]:
    given: list[SourceSection] = [*(data.train or data.evaluate)]
    if path is None and not given:
        raise RecipeError("the run's recipe names no data; name some with --data")
    if path is not None:
        like = given[0] if given else FileSection(path=str(path))
        given = [like.at(str(path.expanduser()))]
    return [source.model_copy(update={"split": split}) for source in given] if split else given


def _read(
    sources: Sequence[SourceSection], seed: int, on_bad_record: OnBadRecord, skipped: list[str]
) -> Iterable[Example]:
    """Yield the examples of all sources as they are parsed."""
    for source in sources:
        for result in open_source(source, seed):
            if not isinstance(result, DataError):
                yield result
            elif on_bad_record == "fail":
                raise result
            else:
                skipped.append(str(result))


def encode_tasks(
    drawn: TaskExamples, encoder: Encoder, on_bad_record: OnBadRecord, least: int = 2
) -> tuple[dict[str, list[Encoded]], list[str]]:
    """Encode the examples of each task.

    Returns:
        the encoded examples, and one sentence for each that was skipped or dropped.

    Raises:
        DataError: fewer than `least` examples of a task are left, or as `Encoder.encode`.
    """
    samples: dict[str, list[Encoded]] = {}
    left_out: list[str] = []
    for task, examples in drawn.by_task.items():
        whole = check_images(Examples(examples), on_bad_record)
        encoded = encoder.encode_all(whole, on_bad_record)
        left_out += [*whole.skipped, *encoded.skipped, *encoded.dropped]
        if len(encoded.samples) < least:
            raise DataError(
                f"task '{task}': {len(encoded.samples)} of {len(examples)} examples can be used, "
                f"at least {least} are needed"
            )
        samples[task] = encoded.samples
    return samples, left_out
