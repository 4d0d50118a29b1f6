"""Soft accuracy of visual question answering (Antol et al. 2015), in VQA v2's and TextVQA's words.

An answer earns min(1, matches / 3), averaged over the sets that leave one of the annotators out;
so with ten annotators two that agree earn 0.6, three 0.9, four 1. Answers are compared
after a normalisation of case, punctuation, number words, articles and contractions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from varifocal.evaluation.metrics.text_match import NUMBER_WORDS

Dialect = Literal["textvqa", "vqa2"]

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = frozenset(("a", "an", "the"))
_DIGITS = {"none": "0", **NUMBER_WORDS}
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The official pattern means to spare "3." as well, but its look-behind is misspelt and never holds.
_PERIOD = re.compile(r"\.(?!\d)")

_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't
    mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
    should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't
    what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
    who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd
    you'd've you'll you're you've
"""


def _misspellings(word: str) -> list[str]:
    """Leave out each apostrophe in turn: "y'all'd" -> "yall'd", "y'alld"."""
    places = [place for place, letter in enumerate(word) if letter == "'"]
    return [word[:place] + word[place + 1 :] for place in places]


_CONTRACTIONS = {wrong: word for word in _CONTRACTED.split() for wrong in _misspellings(word)}
_CONTRACTIONS["somebody'd"] = "somebodyd"  # the wrong way round in the official table


def normalise(text: str, dialect: Dialect = "textvqa") -> str:
    """Write an answer as the official evaluators compare it.

    "vqa2" is VQA v2's script; "textvqa" is TextVQA's (the one of EvalAI), which before that
    leaves out commas and question marks and parts the genitive's 's.

    >>> normalise("The two dogs!")
    '2 dogs'
    >>> normalise("It doesnt say John's, no."), normalise("1,000", "vqa2")
    ("it doesn't say john 's no", '1000')
    """
    text = _bare(text)
    if dialect == "textvqa":
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    words = (_DIGITS.get(word, word) for word in _without_punctuation(text).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def soft_accuracy(answer: str, references: Sequence[str], dialect: Dialect = "textvqa") -> float:
    """Return what an answer earns, 0 to 1.

    Args:
        answer: as the model wrote it, or normalised already; the normalisation changes nothing
            of what is normal.
        references: the annotators' answers, ten by the protocol and at least two.
        dialect: "vqa2" compares as written where all annotators agree, as its script does;
            "textvqa" normalises always.

    Raises:
        ValueError: fewer than two references.

    >>> tens = ["red"] * 2 + ["blue"] * 8
    >>> round(soft_accuracy("Red.", tens), 3), soft_accuracy("blue", tens)
    (0.6, 1.0)
    """
    if len(references) < 2:
        raise ValueError(f"one annotator cannot be left out of {len(references)}; 10 are usual")
    answer, references = _bare(answer), [_bare(text) for text in references]
    if dialect == "textvqa" or len(set(references)) > 1:
        answer = normalise(answer, dialect)
        references = [normalise(text, dialect) for text in references]
    matches = [reference == answer for reference in references]
    total = sum(matches)
    return sum(min(1.0, (total - match) / 3) for match in matches) / len(matches)


def _bare(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
    """Drop a mark next to a blank, or in a text with a number like "1,000"; else put a blank."""
    out = text
    in_number = _COMMA_IN_NUMBER.search(text) is not None
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_blank or in_number else " ")
    return _PERIOD.sub("", out)
