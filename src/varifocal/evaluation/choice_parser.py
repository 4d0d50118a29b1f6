"""Read which option of a multiple-choice question a written answer names, and never guess.

A text is read in three steps, and the first that finds anything decides:

1. the whole text is an option's text, or an option's letter;
2. sentences that state an answer ("the answer is B", "I think repel", "Option B", "B is correct");
   those marked as final (LaTeX's boxed, "final answer") count before all others;
3. lines: a line that is a letter or an option's text, a first line that begins with a letter and
   a mark ("B. because ..."), a first sentence that is an option's text.

Whatever step finds two options, or a letter without an option, names none. Statements that are
negated, conditional or asked ("it is not A", "if the answer is A", "A?") state nothing.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence

LETTERS = string.ascii_uppercase

_NONE = -1
"""What is named where no option has that letter, or where a letter and a text disagree."""

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_FULL_WIDTH |= {ord("。"): ".", ord("、"): ",", ord("【"): "(", ord("】"): ")", 0x3000: " "}
_TYPESET = {0x201C: '"', 0x201D: '"', 0x2018: "'", 0x2019: "'", 0x2013: "-", 0x2014: "-"}

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_STYLED = re.compile(r"\\(?:text|math)(?:bf|rm|it|sf|tt)?\s*\{([^{}]*)\}")
_MARKUP = re.compile(
    r"[*`$\"]|\\[()\[\]]|(?m:^[ \t]*(?:#+|>)[ \t]*)|(?<!\w)_+(?=\S)|(?<=\S)_+(?!\w)"
)
_THOUGHT = re.compile(r"^.*</think(?:ing)?>", re.DOTALL)

# A letter that opens a phrase ("A cat") names no option: a bare one has to end its statement.
_WHY = r"because|since|as|so|for|due|but|not"
_ENDS = rf"(?=\s*(?:[.,:;!)\]}}\n]|-(?:\s|$)|(?i:{_WHY})\b|$))"
_BRACKETED = r"[(\[{<]\s*([A-Za-z])\s*[)\]}>]"
# Lower-case "a" and "i" after words may be an article or a pronoun that was cut off.
_IN_SENTENCE = rf"(?:{_BRACKETED}|([A-Za-z])\)|([A-Zb-hj-z])(?![A-Za-z]){_ENDS})"
_ALONE = rf"(?:{_BRACKETED}|([A-Za-z])\)|([A-Za-z])(?![A-Za-z]){_ENDS})"
_TEXT_ENDS = (
    r"(?='?\s*(?:[.:](?!\d)|[;\]}\n]|(?<!\d)[)!]|,\s*(?i:because|since|as|so|which)\b|\s-\s"
    rf"|\(\s*[A-Za-z]\s*\)|(?i:{_WHY})\b|$))(?!\w)"
)
_LIST_MARK = r"(?m:^[ \t]*[-+•][ \t]+(?=[(A-Za-z]))"

_KIND = r"(?:option|choice|letter|answer)"
_THINK = r"(?:think|believe|guess|say|choose|pick|select|go\s+(?:with|for)|am\s+going\s+with)"
_BE = r"(?:'s|\s+(?:is|must\s+be|should\s+be|would\s+be|has\s+to\s+be))"
_ADVERB = r"(?:most\s+)?(?:clearly|definitely|probably|likely|therefore|thus|simply|indeed|surely)"
_STATES = re.compile(
    r"(?:(?P<final>final\s+answer\b)"
    rf"|\b{_KIND}(?=\s*(?:is\b|:|=))"
    r"|\bans(?:wer)?\s*[:.=]"
    rf"|(?m:^)[ \t]*(?:the\s+)?(?:(?:correct|right|best)\s+)?{_KIND}\b"
    r"|(?m:^)[ \t]*(?:choose|pick|select)\b"
    rf"|\bI(?:'d|'ll|'m|\s+would|\s+will)?\s+{_THINK}\b"
    rf"|\b(?:choose|pick|select)\s+{_KIND}\b"
    rf"|\b(?:it|that){_BE}"
    r"|答案|(?<![不没沒别別])[选選](?:择|擇|项|項)?)"
    rf"\s*(?:(?:[:=]|(?:(?:it|that){_BE}|is|that|the(?=\s+{_KIND})|{_ADVERB}|{_KIND})\b"
    r"|应该是|應該是|应为|是|为|為)\s*)*",
    re.IGNORECASE,
)
_IS_RIGHT = re.compile(
    r"(?:[(]([A-Za-z])[)]|(?<![A-Za-z'])([A-Z]))\s+(?:is|would\s+be|must\s+be)\s+(?:the\s+|my\s+)?"
    r"(?:(?:correct|right|best)(?:\s+(?:answer|option|choice|one))?|(?:final\s+)?answer)\b"
)
_VOID = re.compile(
    r"\b(?:not|never|neither|nor|no|cannot|if|unless|whether|wrong|incorrect)\b|n't\b",
    re.IGNORECASE,
)
_DENIED = re.compile(r"\s*[:(-]?\s*(?:is\s+)?(?:wrong|incorrect|false)\b", re.IGNORECASE)
_CLAUSE = re.compile(r"[,.;:!?\n]|\b(?:so|therefore|thus|hence|but|because|then)\b", re.IGNORECASE)
_LISTED = re.compile(
    r"[ \t.)\]:;]*(?:,|/|&|\b(?:and|or|nor)\b)?[ \t,]*(?:(?:and|or|nor)\s+)?(?:option\s+)?"
    rf"{_IN_SENTENCE}",
    re.IGNORECASE,
)
_LONGEST_CLAUSE = 300  # characters
_SENTENCE_END = re.compile(r"(?:\.|(?<!\d)!)(?:\s|$)|\n")
_WORD_MARKS = re.compile(r"(?<=[^\W\d_])[.,;:!?]+(?=\s|$)")


def parse_answer(text: str, choices: Sequence[str]) -> int | None:
    r"""Return the index of the option a written answer names, or None.

    Read are an option's text and its letter in the spellings that people and models use: either
    case, brackets, Markdown, LaTeX, full-width characters, an explanation after it. What names no
    option or more than one, a letter next to another option's text, and a letter that is also the
    text of another option give None.

    Args:
        text: what was written; thoughts up to "</think>" are left out.
        choices: the options' texts; the first has letter A.

    >>> parse_answer("The answer is B. BECAUSE: like poles face.", ["attract", "repel"])
    1
    >>> parse_answer("Repel.", ["attract", "repel"]), parse_answer(r"\boxed{b}", ["one", "two"])
    (1, 1)
    >>> parse_answer("They attract or repel.", ["attract", "repel"]) is None
    True
    """
    answer = _THOUGHT.sub("", text).strip()
    if not answer or answer.startswith(("<think>", "<thinking>")):
        return None
    options = _Options(choices)
    clean = _clean(answer)
    for indices in (
        {*options.whole(answer), *options.letter_alone(clean)},
        _statements(clean, options, final=True),
        _statements(clean, options, final=False),
        _lines(clean, options),
    ):
        if indices:
            index = indices.pop()
            return index if not indices and index != _NONE else None
    return None


class _Options:
    """The options of a question, as they are compared with a text."""

    def __init__(self, choices: Sequence[str]) -> None:
        self._plain = [_plain(choice) for choice in choices]
        self._clean = [_plain(_clean(choice)) for choice in choices]

    def whole(self, text: str) -> set[int]:
        """Return the only option that this text is; an empty set where there are several."""
        for options, written in (
            (self._plain, _plain(text)),
            (self._clean, _plain(_clean(text))),
        ):
            same = {
                i for i, option in enumerate(options) if option.casefold() == written.casefold()
            }
            if len(same) > 1:  # "Co" and "CO": only a sentence's first capital says nothing
                same = {i for i in same if options[i][1:] == written[1:]}
            if written and len(same) == 1:
                return same
        return set()

    def letter(self, match: re.Match[str] | None) -> int | None:
        """Return the option of a letter that was found; None where none was."""
        letter = next(filter(None, match.groups()), None) if match else None
        if letter is None:
            return None
        index = LETTERS.find(letter.upper())
        return index if index < len(self._plain) else _NONE

    def letter_alone(self, text: str) -> set[int]:
        """Return the option of a text that is nothing but a letter."""
        match = re.fullmatch(rf"\s*{_ALONE}[\s.,:;!)]*", text)
        index = self.letter(match)
        return set() if index is None else {index}

    def at_start(self, text: str) -> set[int]:
        """Return the option whose text a text begins with, as a whole phrase: the longest one."""
        longest: dict[int, set[int]] = {}
        for index, option in enumerate(self._clean):
            words = r"\s+".join(map(re.escape, option.split()))
            if words and re.match(rf"{words}{_TEXT_ENDS}", text, re.IGNORECASE):
                longest.setdefault(len(option), set()).add(index)
        same = longest[max(longest)] if longest else set()
        return same if len(same) <= 1 else {_NONE}

    def named(self, text: str, pattern: str) -> set[int]:
        """Return what the beginning of a text names, by its text, its letter, or both.

        `_NONE` stands for a letter next to other letters or next to another option's text.
        """
        text = text.lstrip("'")
        by_text = self.at_start(text)
        match = re.match(pattern, text)
        letter = self.letter(match)
        if match is None or letter is None:
            return by_text | self._letter_behind(text, by_text) or self._letter_before(text)
        rest = text[match.end() :]
        if _DENIED.match(rest):
            return set()
        others = self._option_after_letter(rest)
        listed = self.letter(_LISTED.match(rest))
        if others - {letter} or (not others and listed not in (None, _NONE, letter)):
            return {_NONE}
        return by_text | {letter}

    def _letter_before(self, text: str) -> set[int]:
        """Return the option of "B repel" and "B (repel)", where the text is that option's."""
        match = re.match(r"([A-Z])\s+(\([^()]+\))?", text)
        if match is None:
            return set()
        bracketed = match[2]
        others = self.whole(bracketed[1:-1]) if bracketed else self.at_start(text[match.end() :])
        return others if others == {self.letter(match)} else set()

    def _letter_behind(self, text: str, by_text: set[int]) -> set[int]:
        """Return the option of the letter in "repel (B)"."""
        length = max((len(self._clean[index]) for index in by_text if index != _NONE), default=0)
        index = self.letter(re.match(r"\s*\(\s*([A-Za-z])\s*\)", text[length:]))
        return set() if index is None or not length else {index}

    def _option_after_letter(self, rest: str) -> set[int]:
        """Return the option whose text stands next to a letter."""
        rest = rest.lstrip(" \t.(:;)-]>},")
        return self.at_start(rest) or self.whole(_SENTENCE_END.split(rest, maxsplit=1)[0])


def _clean(text: str) -> str:
    """Take out markup and write full-width characters as plain ones; a boxed text is stated."""
    text = text.translate(_FULL_WIDTH).translate(_TYPESET)
    text = _STYLED.sub(r"\1", text)
    text = _BOXED.sub(r"\nfinal answer: \1\n", text)
    return re.sub(_LIST_MARK, "", _MARKUP.sub("", text)).strip()


def _plain(text: str) -> str:
    """Drop what does not tell options apart: runs of blanks, marks at words' ends, a full stop."""
    text = " ".join(text.split()).strip("\"'").rstrip(".").strip()
    return _WORD_MARKS.sub("", text)


def _statements(text: str, options: _Options, *, final: bool) -> set[int]:
    """Return every option that a sentence states as the answer."""
    named: set[int] = set()
    for match in _STATES.finditer(text):
        if bool(match["final"]) != final or _is_void(text, match.start()):
            continue
        rest, marked = text[match.end() :], match.group().rstrip().endswith((":", "="))
        if not _is_asked(rest):
            named |= options.named(rest, _ALONE if marked else _IN_SENTENCE)
    for match in () if final else _IS_RIGHT.finditer(text):
        if not _is_void(text, match.start()) and not _is_asked(text[match.end() :]):
            index = options.letter(match)
            named |= set() if index is None else {index}
    return named


def _is_void(text: str, start: int) -> bool:
    """Tell whether the clause in front of a statement denies it or makes it a condition."""
    before = _CLAUSE.split(text[max(0, start - _LONGEST_CLAUSE) : start])[-1]
    return _VOID.search(before) is not None


def _is_asked(rest: str) -> bool:
    """Tell whether a statement ends as a question."""
    end = re.search(r"[?\n]|[.!](?!\d)", rest)
    return end is not None and end.group() == "?"


def _lines(text: str, options: _Options) -> set[int]:
    """Return every option that a line of its own, or the beginning of the text, names."""
    named: set[int] = set()
    for number, line in enumerate(filter(None, map(str.strip, text.splitlines()))):
        named |= options.whole(line) or options.letter_alone(line)
        named |= options.named(line, _ALONE) if number == 0 else _marked(line, options)
    return named | set(_sentences(text, options))


def _marked(line: str, options: _Options) -> set[int]:
    """Return the option of a later line that begins as a list of the options does."""
    index = options.letter(re.match(_ALONE, line))
    return set() if index in (None, _NONE) else {index}


def _sentences(text: str, options: _Options) -> Iterator[int]:
    """Yield the options that a sentence of its own is, where the first sentence is one."""
    sentences = [options.whole(part) for part in _SENTENCE_END.split(text) if part.strip()]
    if sentences and sentences[0]:
        for matches in sentences:
            yield from matches
