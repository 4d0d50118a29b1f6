"""What a row of the table of benchmarks says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from varifocal.data.example import Example
from varifocal.evaluation.choice_parser import parse_answer
from varifocal.evaluation.statistics import wilson

if TYPE_CHECKING:
    from varifocal.models.likelihood import Normalisation


@dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    Attributes:
        id: its name, unique in the benchmark.
        example: the question. A closing assistant turn and `answer_index` are the gold answer; a
            model is only ever shown `asked`.
        references: the answers that count as right, as the benchmark's metric compares them.
        group: what is scored together: MME's image, POPE's split.
        tags: subject, grade, skill and the like, for measures by column.
    """

    id: str
    example: Example
    references: tuple[str, ...]
    group: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def asked(self) -> Example:
        """The question without its gold answer; all that the prompt is made of."""
        messages = self.example.messages
        if messages[-1].role == "assistant":
            messages = messages[:-1]
        return replace(self.example, messages=messages, answer_index=None)


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        text: what it wrote; None by likelihood.
        choice: the likeliest of the example's choices; None when it wrote.
        parsed: the answer that its text names, in the words of the item's references; by
            likelihood the choice's text. None: the text names none.
        scores: [choices] log-probabilities in nats, by likelihood.
        hits: [choices] tokens of each choice that the model would have written itself; empty where
            the asker does not count them.
        ids: the tokens it wrote, where the asker keeps them.
    """

    text: str | None = None
    choice: int | None = None
    parsed: str | None = None
    scores: tuple[float, ...] = ()
    hits: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A question as a model reads it.

    Attributes:
        key: every byte that the answer depends on: the prompt's and the options' ids, and the
            digests of its images.
        length: tokens of its row.
        was_cut: whether text was taken out of it to fit into the model's window.
        question: what the asker itself needs.
        option_lengths: tokens of each option, end of turn included; empty where none is scored.
    """

    key: bytes
    length: int
    was_cut: bool
    question: Any
    option_lengths: tuple[int, ...] = ()

    @property
    def sha(self) -> str:
        """SHA-256 of `key`, in hex."""
        return hashlib.sha256(self.key).hexdigest()


Method = Literal["likelihood", "generate"]
Answered = tuple[Item, Answer]


@dataclass(frozen=True)
class Measure:
    """One number of a benchmark.

    Attributes:
        name: its column in reports.
        value: percent, unless the name says another unit.
        low, high: 95 % interval in the value's unit; None where there is none.
        count: items that it is over.
        unparsed: of them, answers that name nothing; they earn nothing.
        chance: what guessing scores, every choice as likely as the others; None where it is not
            known.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    count: int
    unparsed: int = 0
    chance: float | None = None


def name_of_choice(text: str, item: Item) -> str | None:
    """Return the text of the choice that a written answer names; see `parse_answer`."""
    choices = item.example.choices
    index = parse_answer(text, choices)
    return None if index is None else choices[index]


def exact(item: Item, answer: Answer) -> float:
    """Give 1 for the right choice, or for a parsed answer that is one of the references; else 0."""
    if answer.choice is not None:
        return float(answer.choice == item.example.answer_index)
    return float(answer.parsed in item.references)


@dataclass(frozen=True)
class PromptStyle:
    """How a paper's code writes a benchmark's prompts, whatever the model's own chat template is.

    Attributes:
        name: as `--protocol` takes it.
        chat_template: a name of `choose_template`.
        answer_start: what each answer begins with; the model goes on after it.
    """

    name: str
    chat_template: str
    answer_start: str = ""


@dataclass(frozen=True)
class Benchmark:
    """A row of the table.

    Attributes:
        name: as `benchmark` takes it, of its data folder, and of the files of its scores.
        load: (folder, split or None for the one that is reported) -> items, from the official
            files or from a Hugging Face or parquet directory. DataError names what is missing.
        measure: items with their answers -> its numbers, the main one among them.
        files: what the folder has to hold, in words.
        protocol: how it is asked and scored, in a sentence.
        source: paper or address, and licence.
        main: name of the headline measure.
        method: "likelihood" takes the likeliest of the example's choices, "generate" lets the
            model write greedily.
        parse: (written text, item) -> the answer it names, or None.
        credit: what an answer earns, 0 to 1, as `correct` of the predictions; None: no such thing.
        max_new_tokens: of a written answer.
        normalisation: of the likelihood, "sum" or "mean" over a choice's tokens.
        columns: names the columns that a question counts in, for measures and comparisons.
        prompts: None takes the model's own chat template.
    """

    name: str
    load: Callable[[Path, str | None], Iterator[Item]]
    measure: Callable[[Sequence[Answered]], list[Measure]]
    files: str
    protocol: str
    source: str
    main: str
    method: Method = "likelihood"
    parse: Callable[[str, Item], str | None] = name_of_choice
    credit: Callable[[Item, Answer], float | None] = exact
    max_new_tokens: int = 16
    normalisation: Normalisation = "sum"
    columns: Callable[[Example], tuple[str, ...]] = lambda example: ()
    prompts: PromptStyle | None = None


def accuracy(answered: Sequence[Answered], name: str = "accuracy") -> Measure:
    """Count the answers that `exact` finds right: percent, with Wilson's interval.

    Raises:
        ValueError: there is nothing to count.
    """
    right = sum(int(exact(item, answer)) for item, answer in answered)
    low, high = wilson(right, len(answered))
    unparsed = sum(answer.parsed is None for _, answer in answered)
    value = 100 * right / len(answered)
    return Measure(name, value, 100 * low, 100 * high, len(answered), unparsed)
