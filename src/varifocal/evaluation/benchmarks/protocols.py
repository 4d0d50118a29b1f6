"""How the papers' code asks and reads benchmarks: MLAN's nine, and MME by LaVIN's and MixLoRA's.

A protocol words the prompts, says what each answer begins with, and reads what is written after it.
Prompts never depend on the gold answer: where MLAN's code looks at it to choose a wording (GQA,
RealWorldQA), the question decides here.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from varifocal.data.example import Message
from varifocal.data.formats.questions import LETTERS
from varifocal.errors import RecipeError
from varifocal.evaluation.benchmark import Answered, Benchmark, Item, Measure, PromptStyle
from varifocal.evaluation.benchmarks.vision import measure_pope_pooled
from varifocal.evaluation.metrics.text_match import NUMBER_WORDS, read_prefix

Words = Callable[[str, Item], str]


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is asked and read.

    Attributes:
        word: the user's turn, after its images.
        read: (written text, item) -> what is compared with `golds`.
        golds: the right answers, in the form that `read` gives.
        chat_template: what writes the turns.
        sentence: all of it in words, for score files.
        answer_start: what each answer begins with.
        max_new_tokens: written after it.
        system: the conversation's system message; None for the template's own.
        measure: other numbers than the benchmark's.
    """

    word: Callable[[Item], str]
    read: Words
    golds: Callable[[Item], tuple[str, ...]]
    chat_template: str
    sentence: str
    answer_start: str = ""
    max_new_tokens: int = 16
    system: str | None = None
    measure: Callable[[Sequence[Answered]], list[Measure]] | None = None


def choose_protocol(name: str, benchmarks: Sequence[Benchmark]) -> list[Benchmark]:
    """Return benchmarks as a paper's code asks and reads them.

    Raises:
        RecipeError: that code asks other benchmarks.
    """
    rows = PROTOCOLS[name]
    others = [benchmark.name for benchmark in benchmarks if benchmark.name not in rows]
    if others:
        raise RecipeError(
            f"--protocol {name} is known for {', '.join(rows)}, not for {', '.join(others)}; "
            "leave that out, or score it without --protocol"
        )
    return [_changed(benchmark, name, rows[benchmark.name]) for benchmark in benchmarks]


def _changed(benchmark: Benchmark, name: str, protocol: Protocol) -> Benchmark:
    def load(folder: Path, split: str | None) -> Iterator[Item]:
        return (_worded(item, protocol) for item in benchmark.load(folder, split))

    return replace(
        benchmark,
        load=load,
        measure=protocol.measure or benchmark.measure,
        protocol=protocol.sentence,
        method="generate",
        parse=lambda text, item: protocol.read(text, item) or None,
        max_new_tokens=protocol.max_new_tokens,
        prompts=PromptStyle(name, protocol.chat_template, protocol.answer_start),
    )


def _worded(item: Item, protocol: Protocol) -> Item:
    """Ask an item in a protocol's words."""
    system = () if protocol.system is None else (Message("system", (protocol.system,)),)
    asked = Message("user", (*item.example.images, protocol.word(item)))
    example = replace(item.example, messages=(*system, asked))
    return replace(item, example=example, references=protocol.golds(item))


def _question(item: Item) -> str:
    assert item.example.question is not None, "every benchmark with a protocol gives its question"
    return item.example.question.text


def _context(item: Item) -> str:
    return item.example.question.context if item.example.question else ""


def _listed(item: Item) -> str:
    pairs = zip(LETTERS, item.example.choices, strict=False)
    return "\n".join(f"{letter}: {choice}" for letter, choice in pairs)


def _bare(text: str) -> str:
    """Compare without case and punctuation.

    >>> _bare("Don't.")
    'dont'
    """
    return text.lower().translate(_NO_PUNCTUATION)


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _letter(item: Item) -> tuple[str, ...]:
    assert item.example.answer_index is not None
    return (LETTERS[item.example.answer_index],)


def _small_letter(item: Item) -> tuple[str, ...]:
    return (_letter(item)[0].lower(),)


# Texts: lm-eval, whose stop words end an answer, and MLAN's filters after it.

_STOPS = re.compile(r'[":.,]')


def _before_stop(text: str) -> str:
    return _STOPS.split(text, maxsplit=1)[0]


def read_letter(text: str, item: Item) -> str:
    """Return a letter, the letter of the first choice whose words are all there, or the text.

    Every word of the choice has to stand in the text, whatever else does.
    """
    answer = _before_stop(text)
    choices = item.example.choices
    if answer in tuple(LETTERS[: len(choices)]):
        return answer
    words = _words(answer)
    for letter, choice in zip(LETTERS, choices, strict=False):
        if _words(choice) and _words(choice) <= words:
            return letter
    return answer


def _words(text: str) -> set[str]:
    return set(re.sub(r"[^\w\s]", "", text).lower().split())


def _read_any_letter(text: str, item: Item) -> str:
    return read_letter(text, item).lower()


def _read_yes_no(text: str, item: Item) -> str:
    return _yes_no(_before_stop(text)).lower()


def _yes_no(text: str) -> str:
    """Say yes for true and no for false.

    >>> _yes_no("True"), _yes_no("maybe")
    ('yes', 'maybe')
    """
    return {"true": "yes", "false": "no"}.get(text.lower(), text)


def _ask_race(item: Item) -> str:
    return (
        f"Context: {_context(item)}\nQuestion: {_question(item)}\n"
        f"Choose the best option from the choices provided:\n{_listed(item)}"
    )


def _ask_openbookqa(item: Item) -> str:
    return f"{_question(item)} Choose the best option from the choices provided:\n{_listed(item)}"


def _ask_boolq(item: Item) -> str:
    asked = _question(item)
    return (
        f"Context: {_context(item)}\nQuestion: {asked[:1].lower()}{asked[1:]}\n"
        "Please answer the question with 'yes' or 'no'."
    )


def _ask_hellaswag(item: Item) -> str:
    return (
        f"{_question(item)} Choose the best option from the choices provided to complete the "
        f"sentence:\n{_listed(item)}"
    )


# Images: lmms-eval, whose regular expression takes the text up to a mark.

_UP_TO_LINE = re.compile(r'[.,:"\n\r]')
_UP_TO_MARK = re.compile(r'[.,:"]')
_DIGITS = {word: digit for word, digit in NUMBER_WORDS.items() if word != "ten"} | {"none": "0"}
_DIRECTION = re.compile(r"Please answer directly with [^.\n]*\.")
_ASKS_YES_NO = re.compile(
    r"\s*(?:is|are|was|were|am|do|does|did|can|could|has|have|had|will|would|should|may|might)\b",
    re.IGNORECASE,
)
_EITHER = re.compile(r"\bor\b", re.IGNORECASE)


def _start(text: str, ends: re.Pattern[str]) -> str:
    return ends.split(text, maxsplit=1)[0].strip()


def _mapped(text: str, choices: Sequence[str]) -> str:
    """Return the letter of the choice that a text is, or the text."""
    plain = [_bare(choice.strip()) for choice in choices]
    return LETTERS[plain.index(text)].lower() if text in plain else text


def _read_ai2d(text: str, item: Item) -> str:
    return _mapped(_bare(_start(text, _UP_TO_LINE)), item.example.choices)


def _read_scienceqa(text: str, item: Item) -> str:
    return _bare(_mapped(_start(text, _UP_TO_LINE).lower(), item.example.choices))


def _read_pope(text: str, item: Item) -> str:
    return _yes_no(_start(text, _UP_TO_LINE)).lower()


def _read_gqa(text: str, item: Item) -> str:
    answer = _yes_no(_start(text, _UP_TO_MARK)).lower()
    return _bare(_DIGITS.get(answer, answer))


def _read_realworldqa(text: str, item: Item) -> str:
    answer = _yes_no(_mapped(_start(text, _UP_TO_MARK).lower(), item.example.choices))
    return _bare(_DIGITS.get(answer, answer))


def _as_written(item: Item) -> tuple[str, ...]:
    return tuple(_bare(reference) for reference in item.references)


def _unchanged(item: Item) -> tuple[str, ...]:
    return item.references


def asks_yes_no(question: str) -> bool:
    """Tell whether a question is answered by yes or no, from its own words.

    >>> asks_yes_no("Is it red?"), asks_yes_no("Is it red or blue?"), asks_yes_no("What is it?")
    (True, False, False)
    """
    return bool(_ASKS_YES_NO.match(question)) and not _EITHER.search(question)


def _ask_ai2d(item: Item) -> str:
    return f"{_question(item)} Choose the best option from below:\n{_listed(item)}\n"


def _ask_scienceqa(item: Item) -> str:
    context = f"Context: {_context(item)}\n" if _context(item) else ""
    return f"{context}Question: {_ask_ai2d(item)}"


def _ask_pope(item: Item) -> str:
    return f'Please answer with "yes" or "no":\n{_question(item)}\n'


def _ask_shortly(question: str, is_yes_no: bool) -> str:
    if is_yes_no:
        return f'Please answer the question with "yes" or "no". {question}\n'
    return f"Please provide a short answer to the question: {question}\n"


def _ask_gqa(item: Item) -> str:
    structure, asked = item.tags.get("structure"), _question(item)
    known = structure in ("verify", "logical") if structure else asks_yes_no(asked)
    return _ask_shortly(asked, known)


def _ask_realworldqa(item: Item) -> str:
    asked = _DIRECTION.sub("", _question(item)).split("\n")[0]
    if asked.strip()[-1:] not in string.punctuation:
        asked += "..."
    if item.example.choices:
        return f"{asked} Choose the best option from below:\n{_listed(item)}\n"
    return _ask_shortly(asked, asks_yes_no(asked))


def _ask_lavin(item: Item) -> str:
    return _question(item).replace("  ", " ")


def _read_mme(text: str, item: Item) -> str:
    return read_prefix(text) or ""


_GREEDY = """MLAN's code (Tu et al. 2024): greedy answer after '%s', up to the first of " : . ,"""
_BY_WORDS = "a letter, or the first choice whose words are all in it; exact match"
_BY_CHOICE = "a letter or a choice's text; exact match but for case and punctuation"
_BY_QUESTION = (
    "true as yes, number words as digits; exact match but for case and punctuation; yes or no is "
    "asked for by the question, where the code looks at the right answer"
)


def _of_text(
    word: Callable[[Item], str],
    how: str,
    read: Words = _read_any_letter,
    golds: Callable[[Item], tuple[str, ...]] = _small_letter,
) -> Protocol:
    start = 'The best answer is"'
    return Protocol(word, read, golds, "user_assistant", f"{_GREEDY % start}; {how}", start, 20)


def _of_image(
    word: Callable[[Item], str],
    read: Words,
    golds: Callable[[Item], tuple[str, ...]],
    how: str,
    max_new_tokens: int,
    start: str = 'The best answer is "',
) -> Protocol:
    sentence, template = f"{_GREEDY % start}; {how}", "vicuna_v1_image_first"
    return Protocol(word, read, golds, template, sentence, start, max_new_tokens)


_MLAN = {
    "race": _of_text(
        _ask_race,
        f"{_BY_WORDS} but for case; every question, where the code asks the last of each passage "
        "of RACE-H",
    ),
    "openbookqa": _of_text(_ask_openbookqa, _BY_WORDS, read_letter, _letter),
    "boolq": _of_text(
        _ask_boolq, "true as yes; exact match but for case", _read_yes_no, _unchanged
    ),
    "hellaswag": _of_text(_ask_hellaswag, f"{_BY_WORDS} but for case"),
    "realworldqa": replace(
        _of_image(_ask_realworldqa, _read_realworldqa, _as_written, _BY_QUESTION, 16),
        chat_template="vicuna_v1_untrimmed",
    ),
    "ai2d": _of_image(_ask_ai2d, _read_ai2d, _small_letter, _BY_CHOICE, 8),
    "pope": replace(
        _of_image(
            _ask_pope,
            _read_pope,
            _unchanged,
            "true as yes; F1 of yes over all three splits as one set, where an answer that is "
            "neither yes nor no counts in no recall",
            4,
        ),
        measure=measure_pope_pooled,
    ),
    "gqa": _of_image(_ask_gqa, _read_gqa, _as_written, _BY_QUESTION, 8),
    "scienceqa": _of_image(
        _ask_scienceqa, _read_scienceqa, _small_letter, _BY_CHOICE, 8, 'The answer is "'
    ),
}
_OFFICIAL = "read and scored as MME's own script does, where that code draws its answers at random"
_MIXLORA_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)

PROTOCOLS: dict[str, dict[str, Protocol]] = {
    "mlan": _MLAN,
    "lavin": {
        "mme": Protocol(
            _ask_lavin,
            _read_mme,
            _unchanged,
            "lavin_chat",
            "LaVIN's code (Luo et al. 2023): 'Instruction: ' and the question after the image; "
            f"greedy answer, {_OFFICIAL}",
            max_new_tokens=20,
        )
    },
    "mixlora": {
        "mme": Protocol(
            _question,
            _read_mme,
            _unchanged,
            "vicuna_v1",
            "MixLoRA's code (Shen et al. 2024): the question after the image in LLaVA's prompt, "
            f"with a 'curious human'; greedy answer, {_OFFICIAL}",
            system=_MIXLORA_SYSTEM,
        )
    },
}
"""By the name that `--protocol` takes, and the benchmark's."""
