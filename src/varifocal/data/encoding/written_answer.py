"""The words of an answer that a model has written, without what stands in front of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_OPENS = re.compile(r"\s*<(think|thinking|thought|reasoning)>")
_CLOSES = re.compile(r"</(think|thinking|thought|reasoning)>")


def read_words(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], opening_ids: Sequence[int]
) -> str:
    """Return the words of a written answer.

    Args:
        tokenizer: any tokenizer of transformers.
        ids: what was written, without the end of turn.
        opening_ids: what the chat template puts in front of every answer: an empty thought, the end
            of a thought that the prompt opens, a channel, or nothing.

    Returns:
        What follows the opening, or else the last thought; all of it where there is neither; ""
        where a thought has begun and not ended.
    """
    opening = str(tokenizer.decode(list(opening_ids)))
    raw = str(tokenizer.decode(list(ids), skip_special_tokens=False))
    ends = [match.end() for match in _CLOSES.finditer(raw)]
    if opening and (place := raw.rfind(opening)) >= 0:
        ends.append(place + len(opening))
    if ends:
        return _without(tokenizer, raw[max(ends) :]).lstrip("\n")
    if _OPENS.match(raw) or _CLOSES.match(opening.lstrip()):
        return ""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def _without(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Take special tokens out of a text."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    for token in sorted({*special, *tokenizer.all_special_tokens}, key=len, reverse=True):
        text = text.replace(token, "")
    return text
