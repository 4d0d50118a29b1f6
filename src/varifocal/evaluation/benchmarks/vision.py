"""Short written answers about images: POPE, GQA, TextVQA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from varifocal.data.example import Image, Question
from varifocal.data.formats.base import short
from varifocal.data.json_files import read_json_object
from varifocal.data.readers.images import locate_image
from varifocal.errors import DataError
from varifocal.evaluation.benchmark import Answer, Answered, Benchmark, Item, Measure, accuracy
from varifocal.evaluation.benchmarks.loading import (
    find_image,
    first_file,
    image_of,
    make_item,
    needed_text,
    read_records,
    read_table,
    texts_of,
    value_of,
)
from varifocal.evaluation.metrics.text_match import (
    Confusion,
    confusion,
    normalise_short,
    read_short,
    read_yes_no,
)
from varifocal.evaluation.metrics.vqa import normalise, soft_accuracy
from varifocal.evaluation.statistics import Interval, bootstrap, bootstrap_mean

_POPE_FILES = "POPE's coco_pope_random.json, _popular and _adversarial, and COCO's val2014/"
_GQA_FILES = "GQA's testdev_balanced_questions.json and images/"
_TEXTVQA_FILES = "TextVQA_0.5.1_val.json and train_images/"

POPE_SPLITS = ("random", "popular", "adversarial")


def load_pope(folder: Path, split: str | None) -> Iterator[Item]:
    """Yield POPE's questions; `group` is the split, all three unless one is named.

    Raises:
        DataError: a file is missing or malformed.
    """
    if split not in (None, *POPE_SPLITS):
        raise DataError(f"POPE has no split '{split}' but {', '.join(POPE_SPLITS)}")
    folders = [folder / name for name in ("val2014", "images", "images/val2014", "")]
    wanted = POPE_SPLITS if split is None else (split,)
    files = [
        first_file(
            folder,
            f"coco_pope_{name}.json",
            f"*/coco_pope_{name}.json",
            f"*/*/coco_pope_{name}.json",
        )
        for name in wanted
    ]
    for split_name, file in zip(wanted, files, strict=True):
        if file is None:
            if any(files):
                raise DataError(
                    f"'{folder}' has no coco_pope_{split_name}.json, but others of the three"
                )
            yield from _pope_table(folder, wanted)
            return
        for record in read_records(file):
            row, where = record.row, record.where
            image = find_image(folders, needed_text(row, "image", where), where)
            asked, gold = needed_text(row, "text", where), needed_text(row, "label", where)
            yield _pope_item(
                f"{split_name}-{value_of(row, 'question_id', where)}",
                where,
                asked,
                image,
                gold,
                split_name,
            )


def _pope_table(folder: Path, wanted: Sequence[str]) -> Iterator[Item]:
    """Yield the rows of lmms-lab/POPE: `Full` with a file a split, or `data` with a column."""
    full = first_file(folder, "Full/*.parquet") is not None
    for splits in [(name,) for name in wanted] if full else [("test",)]:
        for record in read_table(folder, splits, _POPE_FILES, "Full" if full else "*"):
            row, where = record.row, record.where
            split_name = splits[0] if full else needed_text(row, "category", where)
            if split_name not in wanted:
                continue
            image = image_of(row, "image", folder, where)
            name = f"{split_name}-{value_of(row, 'question_id', where)}"
            asked, gold = needed_text(row, "question", where), needed_text(row, "answer", where)
            yield _pope_item(name, where, asked, image, gold, split_name)


def _pope_item(name: str, where: str, asked: str, image: Image, gold: str, split: str) -> Item:
    gold = gold.lower()
    if gold not in ("yes", "no"):
        raise DataError(f"{where}: the answer must be yes or no, not {gold!r}")
    prompt, question = f"{asked} Answer yes or no.", Question(asked)
    return make_item(name, where, prompt, image, question=question, references=(gold,), group=split)


def measure_pope(answered: Sequence[Answered]) -> list[Measure]:
    """Score each split, and the splits' mean F1; an unparsed answer is wrong and no yes."""
    by_split = {
        split: [pair for pair in answered if pair[0].group == split] for split in POPE_SPLITS
    }
    parts = {split: part for split, part in by_split.items() if part}
    measures = [_mean_f1(answered)]
    for split, part in parts.items():
        measures.append(accuracy(part, f"accuracy {split}"))
        for name, value in _POPE_SCORES.items():
            measures.append(_pope_measure(part, f"{name} {split}", value))
    return measures


_POPE_SCORES: dict[str, Callable[[Confusion], float]] = {
    "precision": lambda counts: counts.precision,
    "recall": lambda counts: counts.recall,
    "f1": lambda counts: counts.f1,
    "yes ratio": lambda counts: counts.yes_ratio,
}


def _pope_measure(
    part: Sequence[Answered], name: str, value: Callable[[Confusion], float]
) -> Measure:
    cells = _cells(part)
    interval = bootstrap(len(part), lambda picked: value(_added(cells[picked])))
    return _measure_of(interval, name, part)


def _mean_f1(answered: Sequence[Answered]) -> Measure:
    """Average the splits' F1, as papers report POPE in one number."""
    cells = _cells(answered)
    groups = np.array([POPE_SPLITS.index(item.group) for item, _ in answered])
    present = sorted(set(groups.tolist()))

    def value(picked: Any) -> float:
        parts = [_added(cells[picked[groups[picked] == group]]).f1 for group in present]
        return sum(parts) / len(parts)

    return _measure_of(bootstrap(len(answered), value), "f1", answered)


def measure_pope_pooled(answered: Sequence[Answered]) -> list[Measure]:
    """Score all splits as one set, as MLAN's code does.

    A question whose answer is yes, and that got neither yes nor no, is wrong, but no miss.
    """
    counted = [
        (item, answer)
        for item, answer in answered
        if item.references[0] == "no" or answer.parsed in ("yes", "no")
    ]
    unparsed = sum(answer.parsed is None for _, answer in answered)
    measures = (
        _pope_measure(counted or answered, name, _POPE_SCORES[name])
        for name in ("f1", "precision", "recall")
    )
    scores = [replace(each, count=len(answered), unparsed=unparsed) for each in measures]
    return [*scores, accuracy(answered)]


def _cells(answered: Sequence[Answered]) -> Any:
    """[N, 5], for each question the one cell of `Confusion` that it counts in."""
    counts = [confusion([(item.references[0], answer.parsed)]) for item, answer in answered]
    rows = [
        (count.hits, count.misses, count.alarms, count.passes, count.silences) for count in counts
    ]
    return np.array(rows, np.int64).reshape(len(rows), 5)


def _added(cells: Any) -> Confusion:
    return Confusion(*cells.sum(axis=0).tolist())


def load_gqa(folder: Path, split: str | None) -> Iterator[Item]:
    """Yield GQA's balanced test-dev questions.

    Tag `kind` is "binary" or "open"; `structure` is GQA's own, such as "verify".

    Raises:
        DataError: a file is missing or malformed.
    """
    split = split or "testdev_balanced"
    file = first_file(folder, f"{split}_questions.json", f"*/{split}_questions.json")
    images: dict[str, Any] = {}
    if file is None:
        short_name = split.split("_")[0]
        tables = (f"{split}_instructions", f"{split}_images")
        rows = read_table(folder, (short_name,), _GQA_FILES, tables[0])
        if (folder / tables[1]).is_dir():
            for record in read_table(folder / tables[1], (short_name,), _GQA_FILES):
                images[needed_text(record.row, "id", record.where)] = record.row.get("image")
        questions = ((needed_text(row.row, "id", row.where), row.where, row.row) for row in rows)
    else:
        questions = (
            (name, f"{file}: '{name}'", row) for name, row in read_json_object(file).items()
        )
    for name, where, row in questions:
        if not isinstance(row, dict):
            raise DataError(f"{where} is no object")
        pil_image = needed_text(row, "imageId", where)
        image = (
            locate_image(images[pil_image], folder, where)
            if pil_image in images
            else find_image([folder / "images", folder], pil_image, where)
        )
        question = Question(needed_text(row, "question", where))
        prompt = f"{question.text} Answer with one word or a short phrase."
        gold = normalise_short(needed_text(row, "answer", where))
        types = row.get("types")
        structure = types.get("structural") if isinstance(types, dict) else None
        kind = "open" if structure == "query" else "binary"
        tags = {"kind": kind, "structure": structure} if structure else {}
        yield make_item(
            name, where, prompt, image, question=question, references=(gold,), tags=tags
        )


def measure_gqa(answered: Sequence[Answered]) -> list[Measure]:
    """Count exact matches, over all questions and over the binary and the open ones."""
    measures = [accuracy(answered)]
    for kind in ("binary", "open"):
        part = [pair for pair in answered if pair[0].tags.get("kind") == kind]
        if part:
            measures.append(accuracy(part, f"accuracy {kind}"))
    return measures


def load_textvqa(folder: Path, split: str | None) -> Iterator[Item]:
    """Yield TextVQA's validation questions with their ten answers, without any OCR tokens.

    Raises:
        DataError: a file is missing or malformed.
    """
    split = split or "val"
    file = first_file(folder, f"TextVQA_*_{split}.json", f"*/TextVQA_*_{split}.json")
    if file is None:
        names = (split, "validation") if split == "val" else (split,)
        for record in read_table(folder, names, _TEXTVQA_FILES):
            row, where = record.row, record.where
            image = image_of(row, "image", folder, where)
            yield _textvqa_item(row, where, image)
        return
    rows = value_of(read_json_object(file), "data", str(file))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"'{file}': 'data' must be a list of objects, not {short(rows)}")
    folders = [folder / name for name in ("train_images", "train_val_images", "images", "")]
    for number, row in enumerate(rows):
        where = f"{file}: row {number}"
        yield _textvqa_item(
            row, where, find_image(folders, needed_text(row, "image_id", where), where)
        )


def _textvqa_item(row: Any, where: str, image: Image) -> Item:
    references = texts_of(row, "answers", where)
    if len(references) < 2:
        raise DataError(f"{where}: 'answers' must hold two answers or more, ten are usual")
    prompt = f"{needed_text(row, 'question', where)} Answer with a word or a short phrase."
    name = str(value_of(row, "question_id", where))
    return make_item(name, where, prompt, image, references=references)


def _vqa_credit(item: Item, answer: Answer) -> float:
    return 0.0 if answer.parsed is None else soft_accuracy(answer.parsed, item.references)


def measure_textvqa(answered: Sequence[Answered]) -> list[Measure]:
    """Average the soft accuracy."""
    credits = [_vqa_credit(item, answer) for item, answer in answered]
    return [_measure_of(bootstrap_mean(credits), "accuracy", answered)]


def _measure_of(interval: Interval, name: str, answered: Sequence[Answered]) -> Measure:
    """Turn shares into a measure in percent."""
    value, low, high = (100 * part for part in (interval.value, interval.low, interval.high))
    unparsed = sum(answer.parsed is None for _, answer in answered)
    return Measure(name, value, low, high, len(answered), unparsed)


ROWS = (
    Benchmark(
        name="pope",
        load=load_pope,
        measure=measure_pope,
        method="generate",
        parse=lambda text, item: read_yes_no(text),
        files=f"{_POPE_FILES}; or lmms-lab/POPE: Full/*.parquet or data/test-*.parquet",
        protocol=(
            "is there such a thing in the picture; greedy answer, its first sentence's yes or no "
            "(no or not); accuracy, precision, recall and F1 of yes and the ratio of yes by "
            "split, and the splits' mean F1 (Li et al. 2023); what says neither is wrong and no "
            "yes, where the official script takes it for a yes"
        ),
        source="https://github.com/AoiDragon/POPE (Li et al. 2023), MIT; images of COCO",
        main="f1",
    ),
    Benchmark(
        name="gqa",
        load=load_gqa,
        measure=measure_gqa,
        method="generate",
        parse=lambda text, item: read_short(text),
        files=f"{_GQA_FILES}; or lmms-lab/GQA: testdev_balanced_instructions and "
        "testdev_balanced_images",
        protocol=(
            "greedy answer, its first line without case and final full stop; exact match on the "
            "balanced test-dev questions (Hudson and Manning 2019)"
        ),
        source="https://cs.stanford.edu/people/dorarad/gqa (Hudson and Manning 2019), CC BY 4.0",
        main="accuracy",
    ),
    Benchmark(
        name="textvqa",
        load=load_textvqa,
        measure=measure_textvqa,
        method="generate",
        parse=lambda text, item: normalise(read_short(text) or "") or None,
        credit=_vqa_credit,
        files=f"{_TEXTVQA_FILES}; or lmms-lab/textvqa: data/validation-*.parquet",
        protocol=(
            "greedy answer's first line, without OCR tokens in the prompt; VQA soft accuracy "
            "against ten answers with TextVQA's normalisation, on the validation set "
            "(Singh et al. 2019)"
        ),
        source="https://textvqa.org (Singh et al. 2019), CC BY 4.0; images of Open Images",
        main="accuracy",
    ),
)
