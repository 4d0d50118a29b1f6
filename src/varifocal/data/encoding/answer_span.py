"""What a model has to write after a prompt, read off a chat template's renderings.

Templates differ in three ways that matter here. Most write the answer after their generation
prompt. Some (Qwen3, GLM-4.5, gpt-oss) put a thought or a channel of their own in front of it: that
is part of what has to be written. And some (DeepSeek-R1, Nemotron 3, Gemma 4) end their generation
prompt with text that an answered conversation does not have, such as an opened thought: the answer
is then written after that prompt all the same, since that is how a model is asked, and an opened
thought is closed with the answer's own thought in it, or empty.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from varifocal.errors import ChatTemplateError

Turn = dict[str, str]
"""A message as templates take it: {"role": ..., "content": ...}, perhaps with `THOUGHT_KEYS`."""

THOUGHT_KEYS = ("reasoning_content", "thinking")
"""Where templates look for an answer's thought: Qwen, GLM and Nemotron; gpt-oss and LFM."""

_OPENED = re.compile(r"<(\w+)>\s*$")
_CLOSED = re.compile(r"</(think|thinking|thought|reasoning)>")


@dataclass(frozen=True)
class Frame:
    """What a template writes around an answer's words.

    Attributes:
        lost: characters at the end of the generation prompt that an answered conversation lacks.
        before: what stands between the shared part of the prompt and the words.
        after: what stands after the words.
        opening: characters of the generation prompt, which other turns may end without.
    """

    lost: int
    before: str
    after: str
    opening: int


PROBES = ("X", "Y")
"""Answers that differ in everything, by which the frame around one is found."""


def frame_of(prompt: str, unasked: str, first: str, second: str) -> Frame:
    """Read the frame of an answer off renderings.

    Args:
        prompt: of the turns before it, with the generation prompt.
        unasked: of the same turns, without it.
        first: of the same turns, answered with the first of `PROBES`.
        second: of the same turns, answered with the second.

    Raises:
        ChatTemplateError: the template leaves answers out.
    """
    if first == second:
        raise ChatTemplateError("the tokenizer's chat template leaves the assistant's words out")
    place = common_length(first, second)
    start = common_length(prompt, first[:place])
    return Frame(
        lost=len(prompt) - start,
        before=first[start:place],
        after=first[place + 1 :],
        opening=len(prompt) - common_length(prompt, unasked),
    )


@dataclass(frozen=True)
class Written:
    """A prompt and what has to be written after it.

    Attributes:
        prompt: the template's rendering with its generation prompt.
        text: what follows it, up to the end of the rendering.
        words_start: characters of `text` that the template writes itself, whatever the answer.
        words_end: where in `text` the answer's words end.
    """

    prompt: str
    text: str
    words_start: int
    words_end: int


def written(prompt: str, whole: str, answer: Turn, frame: Frame) -> Written:
    """Say what a model has to write so that an answer comes out.

    Args:
        prompt: the rendering of everything before the answer, with the generation prompt.
        whole: the rendering with the answer.
        answer: the assistant's turn.
        frame: what the template writes around an answer there.

    Raises:
        ChatTemplateError: the two renderings do not belong together, or the answer's thought is
            left out.
    """
    if not whole.endswith(frame.after):
        raise _parts_ways()
    own = ""
    if whole.startswith(prompt):
        text, own = whole[len(prompt) :], frame.before
    elif frame.lost and whole.startswith(prompt[: -frame.lost]):
        rest = whole[len(prompt) - frame.lost :]
        text, own = _continue(prompt[-frame.lost :], rest, answer, frame.before)
    else:  # a thought of the answer's own stands where the prompt closes an empty one
        shared = common_length(prompt, whole)
        if shared < len(prompt) - frame.opening:
            raise _parts_ways()
        prompt, text = prompt[:shared], whole[shared:]
    if thought_of(answer) not in text:
        raise ChatTemplateError(
            "the tokenizer's chat template leaves the thought of the last answer out; take the "
            "thoughts out of the answers, or use a template that writes them"
        )
    start = len(own.rstrip()) if text.startswith(own) else 0
    return Written(prompt, text, start, len(text) - len(frame.after))


def _continue(opened: str, rest: str, answer: Turn, before: str) -> tuple[str, str]:
    """Go on after the end of a prompt that the rendering lacks.

    Returns:
        What has to be written, and what of it stands in front of the words of every answer.
    """
    tag = _OPENED.search(opened)
    if tag is None:
        return rest, before
    empty = f"\n</{tag[1]}>\n\n"
    return thought_of(answer) + empty + rest.lstrip("\n"), empty


def thought_of(answer: Turn) -> str:
    r"""Return an answer's own thought, without the blanks around it; "" where it has none.

    >>> thought_of({"role": "assistant", "content": "<think>\nNo.\n</think>\n\nYes."})
    'No.'
    """
    for key in THOUGHT_KEYS:
        if answer.get(key):
            return answer[key].strip()
    closing = _CLOSED.search(answer["content"])
    if closing is None:
        return ""
    return answer["content"][: closing.start()].split(f"<{closing[1]}>")[-1].strip()


def common_length(first: str, second: str) -> int:
    """Count the characters that two texts begin with alike.

    >>> common_length("abc", "abd")
    2
    """
    pairs = zip(first, second, strict=False)
    shorter = min(len(first), len(second))
    return next((place for place, (a, b) in enumerate(pairs) if a != b), shorter)


def _parts_ways() -> ChatTemplateError:
    return ChatTemplateError(
        "the tokenizer's chat template writes the question in another way once it is answered, so "
        "that where the answer begins cannot be told"
    )
