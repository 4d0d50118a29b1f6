"""Multiple choice about images: AI2D, VSR, SNLI-VE, RealWorldQA."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from varifocal.data.example import Question
from varifocal.data.formats.base import short
from varifocal.data.formats.questions import LETTERS, question_text
from varifocal.data.json_files import parse_json, read_json_object, read_text
from varifocal.data.readers.base import Record
from varifocal.data.readers.images import locate_image
from varifocal.errors import DataError
from varifocal.evaluation.benchmark import Answered, Benchmark, Item, Measure, accuracy
from varifocal.evaluation.benchmarks.loading import (
    find_image,
    first_file,
    image_of,
    index_of,
    letter_index,
    make_item,
    needed_text,
    read_records,
    read_table,
    texts_of,
    value_of,
)
from varifocal.evaluation.choice_parser import parse_answer
from varifocal.evaluation.metrics.text_match import NUMBER_WORDS, read_short

_REALWORLDQA_FILES = "RealWorldQA's annotations.json and images/"
_AI2D_FILES = "AI2D's questions/, images/, abc_images/ and ai2d_test_ids.csv"
_VSR_FILES = "VSR's splits/random/test.jsonl and images/"
_SNLI_VE_FILES = "SNLI-VE's snli_ve_test.jsonl and flickr30k_images/"

_LISTED = re.compile(r"^\(?([A-Z])[.):]\s+(\S.*)$", re.MULTILINE)
_ENTAILS = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}


def load_ai2d(folder: Path, split: str | None) -> Iterator[Item]:
    """Yield AI2D's questions about the diagrams of the test list; split "all" takes every one.

    Raises:
        DataError: a file is missing or malformed.
    """
    split = split or "test"
    root = next(
        (path for path in (folder, folder / "ai2d") if (path / "questions").is_dir()),
        None,
    )
    if root is None:
        for record in read_table(folder, (split,), _AI2D_FILES):
            row, where = record.row, record.where
            asked, choices = needed_text(row, "question", where), texts_of(row, "options", where)
            gold = index_of(value_of(row, "answer", where), len(choices), where, "answer")
            yield _diagram(record.place, where, asked, choices, gold, record, folder)
        return
    chosen = None if split == "all" else _ai2d_test(folder, root)
    for file in sorted((root / "questions").glob("*.json"), key=lambda f: (len(f.name), f.name)):
        if chosen is None or file.name.split(".")[0] in chosen:
            yield from _ai2d_file(file, root)


def _ai2d_test(folder: Path, root: Path) -> frozenset[str]:
    file = first_file(folder, "ai2d_test_ids.csv") or first_file(root, "ai2d_test_ids.csv")
    if file is None:
        raise DataError(f"'{folder}' has no ai2d_test_ids.csv; with split 'all' none is needed")
    return frozenset(line.strip().split(".")[0] for line in read_text(file).splitlines())


def _ai2d_file(file: Path, root: Path) -> Iterator[Item]:
    """Yield the questions of one official file: an object of questions about one diagram.

    Those with `abcLabel` name places by letters, which only the diagrams of abc_images/ show.
    """
    row = read_json_object(file)
    name, questions = (
        needed_text(row, "imageName", str(file)),
        value_of(row, "questions", str(file)),
    )
    if not isinstance(questions, dict):
        raise DataError(f"{file}: 'questions' must be an object, not {short(questions)}")
    for asked, parts in questions.items():
        where = f"{file}: question {asked!r}"
        if not isinstance(parts, dict):
            raise DataError(f"{where} is no object")
        choices = texts_of(parts, "answerTexts", where)
        gold = index_of(value_of(parts, "correctAnswer", where), len(choices), where, "answer")
        images = root / ("abc_images" if parts.get("abcLabel") else "images")
        record = Record(str(file), asked, {"image": find_image([images], name, where)})
        yield _diagram(
            needed_text(parts, "questionId", where), where, asked, choices, gold, record, images
        )


def _diagram(
    name: str,
    where: str,
    asked: str,
    choices: Sequence[str],
    gold: int,
    record: Record,
    folder: Path,
) -> Item:
    image = image_of(record.row, "image", folder, where)
    prompt = question_text(asked, choices=choices)
    return make_item(
        name, where, prompt, image, question=Question(asked), choices=choices, gold=gold
    )


def load_vsr(folder: Path, split: str | None) -> Iterator[Item]:
    """Yield VSR's statements, of splits "random" (the default) or "zeroshot"; tag `relation`.

    Raises:
        DataError: a file is missing or malformed.
    """
    split = split or "random"
    held = (f"splits/{split}", f"data/splits/{split}", split, ".")
    file = first_file(folder, *(f"{place}/test.jsonl" for place in held))
    records = read_records(file) if file else read_table(folder, ("test",), _VSR_FILES, split)
    places = ("images", "trainval2017", "data/images", "data/trainval2017", "")
    folders = [folder / name for name in places]
    for record in records:
        row, where = record.row, record.where
        label = index_of(value_of(row, "label", where), 2, where, "label")
        statement, pil_image = needed_text(row, "caption", where), value_of(row, "image", where)
        image = (
            find_image(folders, pil_image, where)
            if isinstance(pil_image, str)
            else locate_image(pil_image, folder, where)
        )
        prompt = f"Is this true or false of the picture? {statement}"
        tags = {"relation": str(row.get("relation", ""))}
        yield make_item(
            record.place, where, prompt, image, choices=("true", "false"), gold=1 - label, tags=tags
        )


def load_snli_ve(folder: Path, split: str | None) -> Iterator[Item]:
    """Yield SNLI-VE's hypotheses about images; those without an agreed label are left out.

    Raises:
        DataError: a file is missing or malformed.
    """
    split = split or "test"
    file = first_file(folder, f"snli_ve_{split}.jsonl", f"*/snli_ve_{split}.jsonl")
    records = read_records(file) if file else read_table(folder, (split,), _SNLI_VE_FILES)
    folders = [folder / name for name in ("flickr30k_images", "flickr30k-images", "images", "")]
    labels, choices = list(_ENTAILS), tuple(_ENTAILS.values())
    for record in records:
        row, where = record.row, record.where
        if file and row.get("gold_label") == "-":
            continue
        key = "gold_label" if file else "label"
        label = value_of(row, key, where)
        if label not in labels:
            label = labels[index_of(label, len(labels), where, key)]
        name = row.get("Flickr30K_ID") or row.get("Flikr30kID")
        image = (
            find_image(folders, str(name).removesuffix(".jpg"), where)
            if name
            else image_of(row, "image", folder, where)
        )
        statement = needed_text(row, "sentence2" if file else "hypothesis", where)
        prompt = f"Is this true of the picture? Answer yes, maybe or no. {statement}"
        yield make_item(
            str(row.get("pairID") or record.place),
            where,
            prompt,
            image,
            choices=choices,
            gold=labels.index(label),
        )


def load_realworldqa(folder: Path, split: str | None) -> Iterator[Item]:
    """Yield RealWorldQA's questions as they are written, most with their options inside.

    Whether a question has options is read off its own text, never off its answer.

    Raises:
        DataError: a file is missing or malformed.
    """
    file = first_file(folder, "annotations.json", "realworldqa/annotations.json")
    if file is None:
        for record in read_table(folder, (split or "test", "train"), _REALWORLDQA_FILES):
            yield _real_world(record, folder)
        return
    rows = parse_json(read_text(file), f"'{file}'")
    if not isinstance(rows, list):
        raise DataError(f"'{file}' must hold a list of questions")
    folders = (file.parent / "images", file.parent)
    for number, row in enumerate(rows):
        where = f"{file}: row {number}"
        if not isinstance(row, dict):
            raise DataError(f"{where} is no object")
        named = value_of(row, "image", where)
        named = named.get("image_path", "") if isinstance(named, dict) else str(named)
        columns = {**row, "image": find_image(folders, named, where)}
        yield _real_world(Record(str(file), f"row {number}", columns), folder)


def _real_world(record: Record, folder: Path) -> Item:
    row, where = record.row, record.where
    asked, answer = needed_text(row, "question", where), needed_text(row, "answer", where)
    choices = _listed_options(asked)
    image = image_of(row, "image", folder, where)
    if not choices:
        references = (_as_digit(answer),)
        question = Question(asked)
        return make_item(
            record.place, where, asked, image, question=question, references=references
        )
    gold = letter_index(answer, len(choices), where, "answer")
    return make_item(
        record.place, where, asked, image,
        question=Question(asked), choices=choices, gold=gold, references=(LETTERS[gold],),
    )  # fmt: skip


def _listed_options(question: str) -> tuple[str, ...]:
    r"""Return the options that a question lists after A, B, C ..., or none.

    >>> _listed_options("Which way?\nA. Left.\nB. Right.\nAnswer with the letter.")
    ('Left.', 'Right.')
    """
    pairs = _LISTED.findall(question)
    letters = "".join(letter for letter, _ in pairs)
    known = len(pairs) >= 2 and LETTERS.startswith(letters)
    return tuple(text.strip() for _, text in pairs) if known else ()


def _as_digit(text: str) -> str:
    """Make a short answer plain, and a number word a digit."""
    answer = read_short(text) or ""
    return NUMBER_WORDS.get(answer, answer)


def _read_real_world(text: str, item: Item) -> str | None:
    """Return the letter of the option that is named, or a short answer made plain."""
    if not item.example.choices:
        return _as_digit(text) or None
    index = parse_answer(text, item.example.choices)
    return None if index is None else LETTERS[index]


def _measure(answered: Sequence[Answered]) -> list[Measure]:
    return [accuracy(answered)]


ROWS = (
    Benchmark(
        name="realworldqa",
        load=load_realworldqa,
        measure=_measure,
        method="generate",
        parse=_read_real_world,
        files=f"{_REALWORLDQA_FILES}; or xai-org/RealworldQA: data/test-*.parquet",
        protocol=(
            "the question as it is written; greedy answer, read as a listed option's letter or "
            "text, else compared exactly with number words as digits; accuracy"
        ),
        source="https://x.ai/blog/grok-1.5v (xAI 2024), CC BY-ND 4.0",
        main="accuracy",
    ),
    Benchmark(
        name="ai2d",
        load=load_ai2d,
        measure=_measure,
        files=f"{_AI2D_FILES}; or lmms-lab/ai2d: data/test-*.parquet",
        protocol=(
            "question and lettered choices; the likeliest choice's text, by the sum over its "
            "tokens; accuracy on the test diagrams (Kembhavi et al. 2016)"
        ),
        source="https://allenai.org/data/diagrams (Kembhavi et al. 2016), CC BY-SA",
        main="accuracy",
    ),
    Benchmark(
        name="vsr",
        load=load_vsr,
        measure=_measure,
        files=f"{_VSR_FILES}; or a directory of test-*.parquet with the images inside",
        protocol=(
            "a statement on where things lie; the likelier of true and false; accuracy on the "
            "random split's test set, or the zero-shot split's (Liu et al. 2023)"
        ),
        source="https://github.com/cambridgeltl/visual-spatial-reasoning (Liu et al. 2023), "
        "Apache-2.0; images of COCO",
        main="accuracy",
    ),
    Benchmark(
        name="snli_ve",
        load=load_snli_ve,
        measure=_measure,
        files=f"{_SNLI_VE_FILES}; or a directory of test-*.parquet with the images inside",
        protocol=(
            "a hypothesis about a picture; the likeliest of yes (entailment), maybe (neutral) and "
            "no (contradiction); accuracy on the test set (Xie et al. 2019)"
        ),
        source="https://github.com/necla-ml/SNLI-VE (Xie et al. 2019), BSD-3-Clause; images of "
        "Flickr30k",
        main="accuracy",
    ),
)
