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
from varifocal.data.formats.questions import LETTERS

MULTIPLE_CHOICE = (
    "{question}\n{options}",
    "Question: {question}\nOptions: {options}",
    "{question}\nChoose one of these:\n{options}",
    "Pick the right answer.\n{question}\n{options}",
    "{question}\nWhich of the following is correct?\n{options}",
    "Here is a question with several possible answers.\n{question}\n{options}\nWhich one fits?",
    "{question}\n\n{options}\n\nSelect the best answer.",
    "Only one of the options answers this question. Which?\n{question}\n{options}",
    "A quiz asks: {question}\nThe choices are:\n{options}\nYour choice?",
    "{options}\nOut of these, decide which answers the question: {question}",
    "Decide between the options below.\n{options}\nQuestion: {question}",
    "{question}\nPossible answers: {options}\nSay which is true.",
    "Please solve this multiple-choice item.\n{question}\n{options}",
    "Test question: {question}\nAnswer options: {options}\nCorrect option:",
    "Given the candidates {options}: {question}",
    "I was asked this in class: {question}\nI can answer with {options}. What should I say?",
    "{question}\nMark the answer you believe to be right.\n{options}",
    "Find the one suitable answer among the candidates.\nQ: {question}\nCandidates: {options}",
    "{question}\nTake one: {options}",
    "Read the question and every option before you decide.\n{question}\n{options}",
    "What would an expert choose here?\n{question}\n{options}",
    "Rule out the wrong answers and keep the right one.\n{question}\n{options}",
    "Problem: {question}\nSolutions on offer:\n{options}\nName the one that holds.",
    "From this list, what answers the question best?\n{options}\n{question}",
)

SHORT_ANSWER = (
    "{question}",
    "Question: {question}\nAnswer:",
    "{question}\nAnswer briefly.",
    "Answer in a few words: {question}",
    "{question}\nKeep the answer short.",
    "In one word or a short phrase: {question}",
    "Reply as tersely as you can.\n{question}",
    "Q: {question}\nA:",
    "{question}\nJust the answer, please.",
    "Give a short answer to the following question.\n{question}",
    "I need a quick answer: {question}",
    "Without any explanation, tell me: {question}",
    "{question}\nNo full sentence is needed.",
    "Fill in what is asked for.\n{question}",
    "Please state the answer and nothing more.\n{question}",
    "Somebody wants to know: {question}\nWhat do you reply, in short?",
    "Respond with the shortest answer that is complete.\n{question}",
    "{question}\nShort answer:",
    "Here is a question: {question}\nWrite down only its answer.",
    "A brief reply will do. {question}",
    "Put the answer in as few words as possible.\n{question}",
    "For a crossword I have to know this: {question}",
)

YES_NO = (
    "{question}\nAnswer {answers}.",
    "{question}\nIs it {answers}?",
    "Say {answers}: {question}",
    "{question}\nReply with {answers} and nothing else.",
    "Consider this: {question}\nYour verdict, {answers}?",
    "Decide with {answers}.\n{question}",
    "One word, {answers}: {question}",
    "{question} ({answers})",
    "Question: {question}\nPossible answers: {answers}\nAnswer:",
    "Judge the following, {answers}.\n{question}",
    "Would you say {answers}?\n{question}",
    "{question}\nThere are just two ways to answer, {answers}. Which is it?",
    "Check this carefully, then tell me {answers}.\n{question}",
    "Here only {answers} counts as an answer.\n{question}",
    "Please respond {answers} to what follows.\n{question}",
    "{question}\nI expect a plain {answers}.",
    "Make up your mind: {answers}?\n{question}",
    "Take a look at this and settle it.\n{question}\nWrite {answers}.",
    "Verify: {question}\nResult ({answers}):",
    "A colleague asks: {question}\nDo you tell them {answers}?",
    "{question}\nPick your answer, {answers}.",
    "Which is right here, {answers}?\n{question}",
)

REASONING = (
    "{question}\nThink step by step, then answer.",
    "{question}\nReason first, and end with the answer.",
    "Work this out before you answer.\n{question}",
    "{question}\nShow how you get to the answer.",
    "Explain your thoughts one after another and finish with the answer.\n{question}",
    "Question: {question}\nReasoning, then answer:",
    "Let us go through this slowly. {question}\nWhat follows from what, and what is the answer?",
    "{question}\nWrite down your reasoning; the answer comes last.",
    "Before you commit to an answer, lay out the steps that lead there.\n{question}",
    "Solve this and let me follow your thinking up to the result.\n{question}",
    "{question}\nStart from what you know and reach a conclusion.",
    "Break the problem into parts and close with what you conclude.\n{question}",
    "Think aloud about this question and state the answer at the end.\n{question}",
    "{question}\nFirst the why, then the answer.",
    "Derive the answer to this question.\n{question}",
    "Take your time: {question}\nGive the argument, then what it shows.",
    "As a teacher at the blackboard would, lead up to the answer.\n{question}",
    "{question}\nDo not jump to the answer; arrive at it.",
    "Q: {question}\nA, with the reasoning in front:",
    "Which considerations decide this, and to what end?\n{question}",
    "Reflect on the following, weigh the facts, and conclude.\n{question}",
    "{question}\nYour last sentence should hold the answer, the ones before it the reasons.",
)

EXPLANATION = (
    "{question}\nAnswer, then explain why.",
    "{question}\nGive the answer and your reasons for it.",
    "Answer this and justify your answer.\n{question}",
    "Question: {question}\nAnswer with explanation:",
    "{question}\nSay what is right, and afterwards what makes it right.",
    "State the answer first; the explanation follows.\n{question}",
    "What is the answer, and how can one know?\n{question}",
    "{question}\nTell me the answer and teach me the background.",
    "Reply with the answer and defend it.\n{question}",
    "Begin with the answer to this question, and go on with its grounds.\n{question}",
    "{question}\nI would like the solution and the reason behind it.",
    "A pupil asks: {question}\nAnswer, and help them understand.",
    "Respond to the question, and add why your response holds.\n{question}",
    "{question}\nName the answer. Why that one?",
    "Please answer, with a short lesson on what it rests on.\n{question}",
    "Q: {question}\nA, and because of what:",
    "Settle this question and account for your decision.\n{question}",
    "{question}\nDo not leave the answer alone: back it up.",
    "Provide the answer along with what supports it.\n{question}",
    "Once you have answered this, say how it comes about.\n{question}",
)

CONTEXT = (
    "Context: {context}\n",
    "{context}\n",
    "{context}\n\n",
    "Read this first: {context}\n",
    "Given: {context}\n",
    "Here is what you need to know. {context}\n",
    "Background: {context}\n",
    "Keep this in mind: {context}\n",
)
"""What stands before a question that has a context."""

LISTINGS = (
    ("({letter}) {choice}", " "),
    ("({letter}) {choice}", "\n"),
    ("{letter}. {choice}", "\n"),
)
"""How choices are listed: each of them, and what stands between; the first fits into a line."""


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
    and any process. Images and answers stay as they are.

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

    def __init__(self, *parts: object) -> None:
        digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
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
