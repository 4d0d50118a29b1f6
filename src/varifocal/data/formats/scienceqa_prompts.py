r"""What a ScienceQA problem is asked and answered with, in each of its published formats.

`published` writes what the code of ScienceQA and LaVIN writes, to the letter: empty parts keep
their line (`Context: N/A`), line breaks of lecture and explanation become the two characters `\n`,
two blanks become one, and the formats AL and AE have their reasons swapped. Otherwise empty parts
leave no line, and a format gives what its letters say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from varifocal.data.formats.questions import LETTERS, AnswerAs, option_texts

_SWAPPED = {"AL": "AE", "AE": "AL"}


@dataclass(frozen=True)
class ProblemTexts:
    """The parts of a problem.

    Attributes:
        question: what is asked.
        context: its hint, and its image's caption if that is to be read; "" for none.
        choices: the options.
        lecture: what is to be known; "" for none.
        solution: why the answer is right; "" for none.
    """

    question: str
    context: str
    choices: Sequence[str]
    lecture: str
    solution: str

    def reasons(self, letters: str) -> str:
        """Join lecture (L) and explanation (E) in the order of the letters."""
        return " ".join(self.lecture if letter == "L" else self.solution for letter in letters)


def write_prompt(problem: ProblemTexts, letters: str, *, published: bool = False) -> str:
    """Write what is asked.

    Args:
        problem: its parts.
        letters: the format's first half, such as "QCM" or "QCLEM".
        published: to the letter as the published code.

    >>> metals = ProblemTexts("Which is a metal?", "", ["iron", "wood"], "Metals shine.", "")
    >>> print(write_prompt(metals, "QCML"))
    Question: Which is a metal?
    Options: (A) iron (B) wood
    BECAUSE: Metals shine.
    >>> print(write_prompt(metals, "CQM", published=True))
    Context: N/A
    Question: Which is a metal?
    Options: (A) iron (B) wood
    """
    listed = zip(LETTERS, problem.choices, strict=False)
    texts = {
        "Q": ("Question", problem.question),
        "C": ("Context", problem.context or ("N/A" if published else "")),
        "M": ("Options", " ".join(f"({letter}) {choice}" for letter, choice in listed)),
    }
    lines: list[str] = []
    for part in re.findall(r"[LE]+|.", letters):
        reasons = problem.reasons(part)
        title, text = texts.get(part) or ("BECAUSE", reasons if published else reasons.strip())
        if text or published:
            lines.append(f"{title}: {text}")
    text = "\n".join(lines)
    return text.replace("  ", " ").lstrip() if published else text


def write_answer(
    problem: ProblemTexts, letters: str, answer_as: AnswerAs, *, published: bool = False
) -> tuple[list[str], tuple[str, ...]]:
    """Write what each choice is answered with, were it the right one.

    Args:
        problem: its parts.
        letters: the format's second half, such as "A" or "ALE".
        answer_as: how a choice is named.
        published: to the letter as the published code, which names it by its letter.

    Returns:
        The whole answers, and what of each stands for its choice when options are scored: with the
        mark of the reasons where these follow.

    >>> metals = ProblemTexts("Which is a metal?", "", ["iron", "wood"], "Metals shine.", "")
    >>> write_answer(metals, "AL", "letter")[0][0]
    'The answer is A. BECAUSE: Metals shine.'
    >>> write_answer(metals, "LA", "letter")[0][1]
    'Metals shine. The answer is B.'
    """
    swapped = _SWAPPED.get(letters, letters) if published else letters
    reasons = problem.reasons(swapped.replace("A", ""))
    options = option_texts(problem.choices, answer_as)
    gap = " " if answer_as == "letter" else "\n"  # a text may hold a full stop, so a line ends it
    if not published:
        reasons = reasons.strip()
        if not reasons:
            return list(options), options
    if len(letters) > 1 and letters.startswith("A"):
        options = tuple(f"{option}{gap}BECAUSE:" for option in options)
        answers = [f"{option} {reasons}" for option in options]
    else:
        answers = [f"{reasons}{gap}{option}" for option in options]
    if published:
        answers = [answer.replace("  ", " ").strip() for answer in answers]
    return answers, options
