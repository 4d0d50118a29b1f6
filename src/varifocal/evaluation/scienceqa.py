"""ScienceQA's protocol: accuracy by subject, context and grade (Lu et al. 2022).

Columns are those of the official script: NAT, SOC, LAN by subject; TXT for every question with a
text context (a hint), IMG for every question with a picture (so a question with both counts in
both), NO for those with neither; G1-6 and G7-12 by grade; and the average over all questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Example, Message
from varifocal.errors import DataError
from varifocal.evaluation.baselines import of_choices
from varifocal.evaluation.generation import evaluation_mode, greedy_answers, parse_answer
from varifocal.evaluation.likelihood import (
    ImageLoader,
    Normalisation,
    Progress,
    Question,
    best_option,
    by_mean,
    score_options,
)
from varifocal.evaluation.statistics import wilson
from varifocal.models.decoding import stop_ids
from varifocal.writing import write_json, write_text

Method = Literal["likelihood", "generate"]

AVERAGE = "average"
MOST_NAMED = 100
"""Records left out that a score file names; all are counted."""

_SUBJECTS = {"NAT": "natural science", "SOC": "social science", "LAN": "language science"}
_GRADES = {"G1-6": range(1, 7), "G7-12": range(7, 13)}
COLUMNS = (*_SUBJECTS, "TXT", "IMG", "NO", *_GRADES, AVERAGE)


@dataclass(frozen=True)
class Prediction:
    """One answered question.

    Attributes:
        id: the record's.
        columns: where it counts.
        question: the user's turn, without pictures.
        options: what could be answered.
        gold: index of the right option.
        prediction: index of the option answered; None when the text names none.
        correct: whether they agree.
        scores: [options] log-probabilities in nats, sums over tokens, by likelihood.
        text: what the model wrote, when it wrote.
        num_tokens: [options] of each option, end of turn included, by likelihood.
    """

    id: str
    columns: tuple[str, ...]
    question: str
    options: tuple[str, ...]
    gold: int
    prediction: int | None
    correct: bool
    scores: tuple[float, ...] | None = None
    text: str | None = None
    num_tokens: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Score:
    """The accuracy of one column.

    Attributes:
        count: questions.
        correct: of them.
        unparsed: of them, answers that name no option; they are wrong.
        accuracy: percent; None when there are no questions.
        low, high: 95 % Wilson interval, percent.
        chance: percent right when every option is as likely as the others.
        majority, longest: percent right of `baselines.Baselines`' blind rules.
        majority_answer: what the first of them says.
        by_sum, by_mean: percent right by the sum over an option's tokens, and by their mean; None
            where answers are written.
    """

    count: int
    correct: int
    unparsed: int
    accuracy: float | None
    low: float | None
    high: float | None
    chance: float | None
    majority: float | None = None
    majority_answer: str = ""
    longest: float | None = None
    by_sum: float | None = None
    by_mean: float | None = None


@dataclass(frozen=True)
class Report:
    """A suite's scores, how they were made, and every prediction.

    Attributes:
        suite: its name in the run directory.
        protocol: method, normalisation and so on, as said in the JSON.
        columns: column name -> score, in `COLUMNS`' order.
        predictions: in the order of the examples.
        left_out: one sentence for each record that could not be asked; the scores are without it.
    """

    suite: str
    protocol: Mapping[str, Any]
    columns: Mapping[str, Score]
    predictions: Sequence[Prediction]
    left_out: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what `eval/SUITE.json` holds."""
        columns = {name: asdict(score) for name, score in self.columns.items()}
        return {
            "suite": self.suite,
            "protocol": dict(self.protocol),
            "columns": columns,
            "items": len(self.predictions),
            "items_left_out": len(self.left_out),
            "left_out": list(self.left_out[:MOST_NAMED]),
        }

    def write(self, directory: Path) -> tuple[Path, Path]:
        """Write `SUITE.json` and `SUITE.predictions.jsonl`, each whole or not at all.

        Args:
            directory: the run's `eval`.

        Returns:
            The two paths.
        """
        scores, lines = (
            directory / f"{self.suite}{end}" for end in (".json", ".predictions.jsonl")
        )
        records = (json.dumps(asdict(one), ensure_ascii=False) for one in self.predictions)
        write_text(lines, "".join(f"{record}\n" for record in records))
        write_json(scores, self.to_dict())
        return scores, lines


def columns_of(example: Example) -> tuple[str, ...]:
    """Name the columns a question counts in.

    Args:
        example: with the tags `subject`, `grade` ("grade3") and `hint` ("yes" or "no") of
            `load_scienceqa`, and its pictures.
    """
    tags = example.tags
    hint, picture = tags.get("hint") == "yes", bool(example.images)
    digits = tags.get("grade", "").removeprefix("grade")
    grade = int(digits) if digits.isdecimal() else 0
    member = {
        **{column: tags.get("subject") == subject for column, subject in _SUBJECTS.items()},
        "TXT": hint,
        "IMG": picture,
        "NO": not hint and not picture,
        **{column: grade in grades for column, grades in _GRADES.items()},
        AVERAGE: True,
    }
    return tuple(column for column in COLUMNS if member[column])


def tabulate(predictions: Iterable[Prediction]) -> dict[str, Score]:
    """Score every column; the average is over questions, not over columns."""
    predictions = list(predictions)
    return {
        column: _score([one for one in predictions if column in one.columns]) for column in COLUMNS
    }


def _score(predictions: Sequence[Prediction]) -> Score:
    """Count one column."""
    count, correct = len(predictions), sum(one.correct for one in predictions)
    unparsed = sum(one.prediction is None for one in predictions)
    if not count:
        return Score(0, 0, 0, None, None, None, None)
    low, high = wilson(correct, count)
    blind = of_choices([(one.options, one.gold) for one in predictions])
    return Score(
        count,
        correct,
        unparsed,
        100 * correct / count,
        100 * low,
        100 * high,
        blind.chance,
        blind.majority,
        blind.majority_answer,
        blind.longest,
        _accuracy_by(predictions, "sum"),
        _accuracy_by(predictions, "mean"),
    )


def _accuracy_by(predictions: Sequence[Prediction], wanted: Normalisation) -> float | None:
    """Return the percent right by sums or by means, whichever the predictions were chosen by."""
    right = 0
    for one in predictions:
        if one.scores is None or one.num_tokens is None:
            return None
        scores = one.scores if wanted == "sum" else by_mean(one.scores, one.num_tokens)
        right += best_option(scores) == one.gold
    return 100 * right / len(predictions)


def evaluate(
    model: nn.Module,
    encoder: Encoder,
    examples: Sequence[Example],
    load_images: ImageLoader | None = None,
    *,
    method: Method = "likelihood",
    normalisation: Normalisation = "sum",
    blind: bool = False,
    token_budget: int = 4096,
    max_new_tokens: int = 64,
    suite: str = "scienceqa",
    progress: Progress | None = None,
    left_out: Sequence[str] = (),
) -> Report:
    """Ask every question and score the answers.

    Args:
        model: a causal language model of transformers, bare, grafted or wrapped by PEFT. It is put
            into evaluation mode for the while.
        encoder: for the model's tokenizer.
        examples: multiple-choice questions; their gold answers never reach a prompt.
        load_images: pictures of a batch -> the model's image tensors.
        method: "likelihood" takes the likeliest option; "generate" lets the model write greedily
            and reads its answer, and what names no option counts as unparsed.
        normalisation: of the likelihood, "sum" or "mean" over an option's tokens.
        blind: leave the pictures out of the prompts (the columns stay those of the questions).
        token_budget: most tokens of a batch, padding included.
        max_new_tokens: of a written answer.
        suite: the report's name in the run directory.
        progress: called with (questions done, questions in all).
        left_out: sentences on records that `examples` are without, for the report.

    Raises:
        DataError: there are no questions, or one has no choices or no gold answer.
    """
    if not examples:
        raise DataError("there are no questions to evaluate")
    questions = [ask(encoder, example, blind=blind) for example in examples]
    batching: dict[str, Any] = {"token_budget": token_budget, "progress": progress}
    protocol: dict[str, Any] = {"method": method, "blind": blind}
    with evaluation_mode(model):
        if method == "likelihood":
            protocol["normalisation"] = normalisation
            sums = score_options(model, questions, load_images, normalisation="sum", **batching)
            lengths = [tuple(map(len, question.option_ids)) for question in questions]
            answers = [_choose(*pair, normalisation) for pair in zip(sums, lengths, strict=True)]
        else:
            protocol["max_new_tokens"] = max_new_tokens
            batching["max_new_tokens"] = max_new_tokens
            texts = _write(model, encoder, questions, load_images, batching)
            answers = [
                _Answer(parse_answer(text, example.choices), text=text)
                for text, example in zip(texts, examples, strict=True)
            ]
    predictions = [_predict(*pair) for pair in zip(examples, answers, strict=True)]
    return Report(suite, protocol, tabulate(predictions), predictions, left_out)


def ask(encoder: Encoder, example: Example, *, blind: bool = False) -> Question:
    """Encode a question and its options.

    Args:
        encoder: for the model's tokenizer.
        example: a multiple-choice question.
        blind: leave its pictures out.

    Raises:
        DataError: it has no choices or no gold answer.
    """
    if example.answer_index is None:
        raise DataError(f"{example.name}: no gold answer to compare with")
    if blind:
        example = replace(example, messages=tuple(_blind(one) for one in example.messages))
    prompt, options = encoder.encode_options(example)
    return Question(prompt.input_ids, tuple(options), prompt.modality, prompt.images)


def _write(
    model: nn.Module,
    encoder: Encoder,
    questions: Sequence[Question],
    load_images: ImageLoader | None,
    batching: Mapping[str, Any],
) -> list[str]:
    """Let the model write its answers."""
    ends = stop_ids(model, encoder.end_of_turn_id)
    written = greedy_answers(model, questions, load_images, stop_ids=ends, **batching)
    return [encoder.read_answer(ids) for ids in written]


def _blind(message: Message) -> Message:
    """Take the pictures out of a turn."""
    return replace(
        message, content=tuple(part for part in message.content if isinstance(part, str))
    )


@dataclass(frozen=True)
class _Answer:
    """What came back for a question."""

    index: int | None
    scores: tuple[float, ...] | None = None
    text: str | None = None
    num_tokens: tuple[int, ...] | None = None


def _choose(
    sums: Sequence[float], lengths: tuple[int, ...], normalisation: Normalisation
) -> _Answer:
    """Take the likeliest option by sums or means."""
    scores = sums if normalisation == "sum" else by_mean(sums, lengths)
    return _Answer(best_option(scores), scores=tuple(sums), num_tokens=lengths)


def _predict(example: Example, answer: _Answer) -> Prediction:
    """Put a question and its answer side by side."""
    gold = example.answer_index
    assert gold is not None  # `ask` has refused others
    asked = next(one for one in reversed(example.messages) if one.role == "user")
    return Prediction(
        id=example.id,
        columns=columns_of(example),
        question=asked.text,
        options=example.choices,
        gold=gold,
        prediction=answer.index,
        correct=answer.index == gold,
        scores=answer.scores,
        text=answer.text,
        num_tokens=answer.num_tokens,
    )
