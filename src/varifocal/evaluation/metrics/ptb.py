"""Words of a caption, much as the Penn Treebank tokeniser of COCO's caption script parts them.

The script runs Stanford's PTBTokenizer (Java) in lower case and then leaves out punctuation. This
is a small stand-in for captions' English. What it does not know: abbreviations other than the few
below (a full stop behind them stays there), sentence ends inside a line, and Stanford's spelling
changes (British to American, fractions, currency signs).
"""

from __future__ import annotations

import re

# Left out by the script. Brackets stay as "-lrb-": its list has them in capitals, behind the
# change to lower case.
_LEFT_OUT = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

_ABBREVIATIONS = "mr|mrs|ms|dr|st|vs|jr|sr|co|inc|etc|no|ave"
_TOKEN = re.compile(
    rf"(?:{_ABBREVIATIONS})\.(?=\s+\S)"  # "mr. smith"
    r"|(?:[a-z]\.){2,}"  # "u.s."
    r"|\d+(?:[.,:/]\d+)*(?:st|nd|rd|th|s)?(?![^\W_]|-[^\W_])"  # "1,000", "3:30", "2nd"
    r"|[^\W_]+(?:[-_/&'][^\W_]+)*(?:'(?=\s|$))?"  # "t-shirt", "don't"
    r"|\.{2,}|-{2,}|[^\w\s]|_"
)
_CLITIC = re.compile(r"^(.+?)(n't|'(?:s|m|d|ll|re|ve))$")
_JOINED = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
}


def tokenise(text: str) -> list[str]:
    """Part a caption into lower-case words without punctuation.

    >>> tokenise("A man's t-shirt (red), and he can't surf.")
    ['a', 'man', "'s", 't-shirt', '-lrb-', 'red', '-rrb-', 'and', 'he', 'ca', "n't", 'surf']
    """
    found: list[str] = []
    for token in _TOKEN.findall(text.lower().replace("\u2019", "'")):
        found += _parts(token)
    return [token for token in found if token not in _LEFT_OUT]


def _parts(token: str) -> tuple[str, ...]:
    """Part a word from its clitic, and bare quotes from words."""
    if token in _BRACKETS:
        return (_BRACKETS[token],)
    if token == '"':
        return ("''",)
    if len(token) > 1 and token.endswith("'"):
        return (*_parts(token[:-1]), "'")
    if match := _CLITIC.match(token):
        return (*_parts(match.group(1)), match.group(2))
    return _JOINED.get(token, (token,))
