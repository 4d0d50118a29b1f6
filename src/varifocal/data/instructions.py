"""Questions worded in many ways: an example's question, put by a template that is drawn for it.

MLAN (arXiv 2411.10557) draws one of twenty wordings for each kind of question; these are our own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeVar

from varifocal.data.example import Example, Message
from varifocal.data.questions import LETTERS
from varifocal.data.wordings import (
    CONTEXT,
    EXPLANATION,
    LISTINGS,
    MULTIPLE_CHOICE,
    REASONING,
    SHORT_ANSWER,
    YES_NO,
)

Kind = Literal["multiple_choice", "short_answer", "yes_no", "reasoning", "explanation"]

WORDINGS: dict[Kind, tuple[str, ...]] = {
    "multiple_choice": MULTIPLE_CHOICE,
    "short_answer": SHORT_ANSWER,
    "yes_no": YES_NO,
    "reasoning": REASONING,
    "explanation": EXPLANATION,
}
"""Kind of question -> its wordings. `reasoning` ends with the answer, `explanation` starts so."""

SHORT = 12
"""Words of an answer that still counts as a short one."""

_PAIRS = (("yes", "no"), ("true", "false"))
_CONCLUSION = re.compile(r"[.!?;\n].*\banswer\s*(?:is|:)", re.IGNORECASE | re.DOTALL)
_T = TypeVar("_T")


def vary(example: Example, seed: int) -> Example:
    """Word an example's question by a template.

    The template is drawn from the seed, the example's id and what is asked: the same in any order
    and any process. Pictures and answers stay as they are.

    Args:
        example: left as it is if its format gives no `question`, or if its answer is free text,
            for which none of the wordings asks.
        seed: of the run.

    The kind of a question without choices shows in its answer, so a wording can give away that the
    answer is yes or no. Only questions with choices are worded independently of the right answer.

    >>> from varifocal.data.example import Question
    >>> turns = (Message("user", ("Is iron a metal?",)), Message("assistant", ("yes",)))
    >>> example = Example(turns, id="7", question=Question("Is iron a metal?"))
    >>> print(vary(example, seed=1).messages[0].text)
    Is iron a metal?
    Pick your answer, yes or no.
    """
    kind = kind_of(example)
    place = max((n for n, m in enumerate(example.messages) if m.role == "user"), default=0)
    turn = example.messages[place]
    texts = sum(isinstance(part, str) for part in turn.content)
    if example.question is None or kind is None or texts != 1:
        return example
    text = _word(example, kind, _Lot(seed, example.id, example.question.text))
    content = tuple(text if isinstance(part, str) else part for part in turn.content)
    messages = list(example.messages)
    messages[place] = Message("user", content)
    return replace(example, messages=tuple(messages))


def kind_of(example: Example) -> Kind | None:
    """Tell which wordings ask for an example's answer; None where none does."""
    last = example.messages[-1]
    answer = last.text if last.role == "assistant" else ""
    if example.choices:
        if example.is_option_complete:
            named = example.options == example.choices
            return "yes_no" if named and _pair_of(example.choices) else "multiple_choice"
        option = example.options[example.answer_index or 0]
        return "explanation" if answer.startswith(option) else "reasoning"
    if any(_bare(answer) in pair for pair in _PAIRS):
        return "yes_no"
    if _CONCLUSION.search(answer):
        return "reasoning"
    return "short_answer" if len(answer.split()) <= SHORT else None


class _Lot:
    """Draws that depend on nothing but what it is made of."""

    def __init__(self, *told: object) -> None:
        digest = hashlib.sha256("\0".join(map(str, told)).encode()).digest()
        self._number = int.from_bytes(digest, "big")

    def draw(self, among: Sequence[_T]) -> _T:
        self._number, index = divmod(self._number, len(among))
        return among[index]


def _word(example: Example, kind: Kind, lot: _Lot) -> str:
    assert example.question is not None
    template = lot.draw(WORDINGS[kind])
    question, context = example.question.text, example.question.context
    fields = {"question": question}
    if kind == "yes_no":
        pair = _pair_of(example.choices) or _pair_of([example.messages[-1].text])
        fields["answers"] = " or ".join(example.choices or pair)
    elif kind == "multiple_choice":
        alone = "{options}" in template.split("\n")
        fields["options"] = _list(example.choices, lot.draw(LISTINGS) if alone else LISTINGS[0])
    elif example.choices:
        fields["question"] = f"{question}\n{_list(example.choices, lot.draw(LISTINGS))}"
    before = lot.draw(CONTEXT).format(context=context) if context else ""
    return before + template.format(**fields)


def _list(choices: Sequence[str], listing: tuple[str, str]) -> str:
    each, between = listing
    pairs = zip(LETTERS, choices, strict=False)
    return between.join(each.format(letter=letter, choice=choice) for letter, choice in pairs)


def _pair_of(answers: Sequence[str]) -> tuple[str, ...]:
    """Return the two answers of which one, or both, are given; nothing for other answers.

    >>> _pair_of(["True.", "false"]), _pair_of(["no"]), _pair_of(["yes", "maybe"])
    (('true', 'false'), ('yes', 'no'), ())
    """
    bare = {_bare(answer) for answer in answers}
    return next((pair for pair in _PAIRS if bare and bare <= set(pair)), ())


def _bare(answer: str) -> str:
    return answer.strip().rstrip(".").casefold()
