"""Plain tables: rows with named columns."""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from varifocal.data.example import Example, Image, Message, Question
from varifocal.data.formats.base import ParseOptions
from varifocal.data.formats.cells import (
    cell_or_none,
    fill_template,
    is_empty,
    needed_cell,
    raw_cell,
    template_columns,
    text_cell,
)
from varifocal.data.formats.choices import Choices, list_in_cell, read_choices
from varifocal.data.formats.gold import choice_text, gold_index, settle_integers
from varifocal.data.formats.questions import (
    PLACEHOLDER,
    Integers,
    option_texts,
    placed_turn,
    question_text,
    without_leading_places,
)
from varifocal.data.readers.base import Record
from varifocal.data.readers.images import image_cells, images_in, locate_image
from varifocal.errors import DataError, PlaceholderError, nearest


def right_answers(cell: Any) -> tuple[str, ...]:
    """Return the texts of a cell that holds all right answers; none for any other cell.

    >>> right_answers(["red", "Red"]), right_answers([{"answer": "2", "answer_id": 1}])
    (('red', 'Red'), ('2',))
    >>> right_answers({"text": ["a dog"], "answer_start": [3]}), right_answers("red")
    (('a dog',), ())
    >>> right_answers([{"text": "a dog", "answer_start": 3}])
    ('a dog',)
    """
    if isinstance(cell, Mapping):
        cell = cell.get("text")
    if isinstance(cell, str):
        cell = list_in_cell(cell)
    if not isinstance(cell, list):
        return ()
    texts = [
        answer.get("answer", answer.get("text")) if isinstance(answer, Mapping) else answer
        for answer in cell
    ]
    if not all(isinstance(text, (str, int, float)) for text in texts):
        return ()
    return tuple(filter(None, map(choice_text, texts)))


def most_given(answers: Sequence[str]) -> str:
    """Return the answer that most annotators gave, the first of equals; the one that is trained.

    >>> most_given(["blue", "red", "red"])
    'red'
    """
    return Counter(answers).most_common(1)[0][0]


COLUMNS = (
    *("question", "answer", "answers", "context", "choices", "choice_labels"),
    *("image", "id", "task", "split", "skill"),
)
"""What a table can be asked for; `question` and `answer` are needed, the others optional. `answers`
holds all right answers of a question that has several; then `answer` may be left out.
`choice_labels` holds the names of the choices that an answer may be, as ARC's "A" or "1"."""


def check_columns(columns: Mapping[str, str], place: str) -> None:
    """Refuse names that no table is asked for.

    Raises:
        DataError: with the nearest name.
    """
    for name in columns:
        if name not in COLUMNS:
            allowed = ", ".join(COLUMNS)
            hint = nearest(name, COLUMNS)
            raise DataError(f"'{place}': column '{name}' is none of {allowed}{hint}")


def is_table_row(record: Record) -> bool:
    """Tell whether a row has a table's two columns under our own names or a public set's."""
    row = with_our_names(record.row)
    return "question" in row and "answer" in row


def with_our_names(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add our columns to a row whose layout is a public set's of questions.

    Those are `answerKey` (ARC, CommonsenseQA, OpenBookQA), a question of `stem` and `choices` (the
    official files of the first two), SQuAD's `answers`, of which the first is taken, and VQA's, of
    which the most frequent one is.

    >>> row = with_our_names({"question": {"stem": "Which?", "choices": ["a"]}, "answerKey": "A"})
    >>> row["question"], row["choices"], row["answer"]
    ('Which?', ['a'], 'A')
    """
    ours: dict[str, Any] = {}
    question = row.get("question")
    if isinstance(question, Mapping) and "stem" in question:
        ours["question"] = question["stem"]
        ours["choices"] = question.get("choices")
    if "answer" not in row and "answerKey" in row:
        ours["answer"] = row["answerKey"]
    elif "answer" not in row and isinstance(answers := row.get("answers"), Mapping):
        texts = answers.get("text")
        ours["answer"] = texts[0] if isinstance(texts, list) and texts else None
    elif "answer" not in row and (right := right_answers(row.get("answers"))):
        ours["answer"] = most_given(right)
    return ChainMap(ours, row) if ours else row  # type: ignore[arg-type]  # only read


def parse_table_row(record: Record, asked: ParseOptions) -> Example:
    """Make an example of a row.

    `asked.columns` maps our names of `COLUMNS` to the file's; one that is not mapped has the same
    name there, or is absent. A dotted name leads into a cell ("answers.text.0"). `question` and
    `image` may be templates with columns in braces ("True or false? {sentence}",
    "coco/{image_id:012}.jpg"), and `question` the question of all rows ("What is shown?");
    `choices` may be the choices themselves ("true|false"), or several columns
    ("{option1}|{option2}"). With choices, `answer` names one of them as `gold.gold_index` says.
    `<image>` in a question is the place of its image; without it the images come first.

    Raises:
        DataError: a mapped column is not there, or a value cannot be used.
    """
    row, where = with_our_names(record.row), record.where
    answers = _answers(row, asked, where)
    row = _with_one_answer(row, asked, answers)
    images = _images(row, asked, where)
    context = text_cell(row, "context", asked, where)
    choices = _choices(row, asked, where)
    gold = _gold(row, choices, asked, where) if choices.raw else None
    options = option_texts(choices.texts, asked.answer_as)
    answer = needed_cell(row, "answer", asked, where) if gold is None else options[gold]
    question = without_leading_places(_question(row, asked, where), len(images))
    listed = bool(context or choices.raw)
    prompt = question_text(question, context, choices.texts) if listed else question
    if PLACEHOLDER in answer:
        raise PlaceholderError(
            f"{where}: {PLACEHOLDER} stands in the answer; only questions have it"
        )
    return Example(
        messages=(placed_turn(prompt, images, where), Message("assistant", (answer,))),
        id=text_cell(row, "id", asked, where) or record.place,
        source=record.source,
        task=text_cell(row, "task", asked, where) or asked.format,
        choices=choices.texts,
        answer_index=gold,
        options=options,
        question=Question(question, context),
        answers=() if choices.raw or len(answers) < 2 else answers,
        tags={
            key: value for key in ("split", "skill") if (value := text_cell(row, key, asked, where))
        },
    )


def _answers(row: Mapping[str, Any], asked: ParseOptions, where: str) -> tuple[str, ...]:
    """Return all right answers of a row, of its column `answers` or of a list in `answer`."""
    right = right_answers(raw_cell(row, "answers", asked, where))
    answer = cell_or_none(row, asked.columns.get("answer", "answer"))
    return right or (right_answers(answer) if not isinstance(answer, str) else ())


def _with_one_answer(
    row: Mapping[str, Any], asked: ParseOptions, answers: Sequence[str]
) -> Mapping[str, Any]:
    """Take one of several answers: the only element of a list, or the one that most gave."""
    column = asked.columns.get("answer", "answer")
    answer = cell_or_none(row, column)
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]  # as Super-NaturalInstructions has it
    elif answers and (
        isinstance(answer, list | Mapping) or (answer is None and "answer" not in asked.columns)
    ):
        answer = most_given(answers)
    else:
        return row
    return ChainMap({column: answer}, row)  # type: ignore[arg-type]  # only read


def _images(row: Mapping[str, Any], asked: ParseOptions, where: str) -> list[Image]:
    """Find the images of a row, in their order."""
    column = asked.columns.get("image")
    if column is None:
        values = image_cells(row, where)
    elif column in row or not set("{|") & set(column):
        values = images_in(raw_cell(row, "image", asked, where))
    else:
        parts = (_image_cell(part, row, asked, where) for part in column.split("|"))
        values = [value for value in parts if value not in (None, "")]
    return [locate_image(value, asked.image_folder, where) for value in values]


def _image_cell(part: str, row: Mapping[str, Any], asked: ParseOptions, where: str) -> Any:
    """Return a column's cell, or a template's text; None where all of its columns are empty."""
    names = [] if part in row else template_columns(part)
    if not names:
        return raw_cell(row, "image", replace(asked, columns={"image": part}), where)
    if all(is_empty(row, name) for name in names):
        return None
    return fill_template(part, row, "image", asked, where)


def _question(row: Mapping[str, Any], asked: ParseOptions, where: str) -> str:
    template = asked.columns.get("question", "")
    if _is_question(template) and template not in row:
        return template
    if "{" not in template:
        return needed_cell(row, "question", asked, where)
    return fill_template(template, row, "question", asked, where)


def _is_question(text: str) -> bool:
    """Tell a question of all rows ("What is shown?") from a column's name."""
    return " " in text and text.endswith(("?", ".")) and "{" not in text


def _choices(row: Mapping[str, Any], asked: ParseOptions, where: str) -> Choices:
    """Read the choices of a row: a cell, several columns, or the same ones for every row."""
    fixed = asked.columns.get("choices", "")
    if fixed in row or "|" not in fixed:
        value = raw_cell(row, "choices", asked, where)
        labels = raw_cell(row, "choice_labels", asked, where)
        if labels is not None:
            value = {"text": value, "label": labels}
        return Choices() if value in (None, "") else read_choices(value, where)
    parts = fixed.split("|")
    while len(parts) > 2 and _is_empty_column(parts[-1], row):
        del parts[-1]
    texts = [
        fill_template(part, row, "choices", asked, where) if "{" in part else part for part in parts
    ]
    return read_choices(texts, where)


def _is_empty_column(part: str, row: Mapping[str, Any]) -> bool:
    """Tell whether a template is one column that holds nothing, as the last of few choices."""
    names = template_columns(part)
    return [f"{{{name}}}" for name in names] == [part] and is_empty(row, names[0])


def _gold(row: Mapping[str, Any], choices: Choices, asked: ParseOptions, where: str) -> int:
    needed_cell(row, "answer", asked, where)
    return gold_index(
        raw_cell(row, "answer", asked, where),
        choices.raw,
        where,
        answer_is=asked.answer_is,
        integers=asked.integers,
        labels=choices.labels,
    )


def find_integers(rows: Iterable[Record | DataError], asked: ParseOptions) -> Integers | None:
    """Find out what the integer answers of a source are; see `gold.settle_integers`.

    Raises:
        DataError: its records contradict each other.
    """
    return settle_integers(_gold_cells(rows, asked))


def _gold_cells(
    records: Iterable[Record | DataError], asked: ParseOptions
) -> Iterator[tuple[str, Any, Sequence[Any]]]:
    """Yield place, answer and choices of the records that have both; broken ones are passed."""
    for record in records:
        if isinstance(record, DataError):
            continue
        row = with_our_names(record.row)
        try:
            choices = _choices(row, asked, record.where)
            if choices.raw and not choices.labels:
                yield record.where, raw_cell(row, "answer", asked, record.where), choices.raw
        except DataError:  # whoever asks for the record gets the error
            continue
