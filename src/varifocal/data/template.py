"""The chat template: conversations to text, and where in that text an answer stands.

Nothing is searched for in a conversation's text. The prompt of an answer is the template's own
rendering of everything before it; where the answer's words stand is read off two renderings that
differ in them alone; the end of turn is the first special token the template writes behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from varifocal.errors import ModelError

Turn = dict[str, str]
"""A message as templates take it: {"role": ..., "content": ...}."""

_PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + eos_token + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    r"""Return a chat template for a base model, whose tokenizer has none.

    A conversation reads "SYSTEM\n\nUser: QUESTION\nAssistant: ANSWER</s>\n", with the tokenizer's
    end-of-sequence token behind each answer, and its begin-of-sequence token in front of
    everything if the tokenizer sets one on its own.

    Raises:
        ModelError: the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token is None:
        raise ModelError("the tokenizer has neither a chat template nor an end-of-sequence token")
    starts = tokenizer.bos_token_id is not None and (
        list(tokenizer("a").input_ids[:1]) == [tokenizer.bos_token_id]
    )
    return ("{{ bos_token }}" if starts else "") + _PLAIN


@dataclass(frozen=True)
class AnswerSpan:
    """Where an answer stands in the rendered text.

    Attributes:
        start: first character behind its prompt, the template's generation prompt included.
        words_end: first character behind its words.
        end: first character behind its end-of-turn token.
        closed: False where the template writes no special token behind an answer; then `end` is
            the end of its words, and an end-of-sequence token is owed.
    """

    start: int
    words_end: int
    end: int
    closed: bool


class ChatTemplate:
    """A tokenizer's chat template, or `plain_template` where it has none.

    Attributes:
        tokenizer: any tokenizer of transformers.
        plain: the Jinja template that stands in for a missing one, or None.
        control_tokens: special tokens that text must not hold: what the template writes, and the
            tokenizer's begin and end of sequence.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.plain = None if tokenizer.chat_template else plain_template(tokenizer)
        self._special_ids = frozenset(tokenizer.all_special_ids) | {
            number for number, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self._special_tokens = [
            token for number in self._special_ids if (token := self._spell(number))
        ]
        self.control_tokens = self._find_control_tokens()

    def render(self, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
        """Write a conversation as text.

        Raises:
            ModelError: the template refuses it, for example its system message.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                list(turns),
                chat_template=self.plain,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except (TemplateError, TypeError) as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise ModelError(
                f"the tokenizer's chat template refuses the turns {roles}: {error}"
            ) from error
        assert isinstance(text, str)
        return text

    def system_turn(self, system_prompt: str | None) -> str | None:
        """Decide what a conversation without a system message starts with.

        Args:
            system_prompt: a text; None for the template's own default; "" for no system prompt.

        Returns:
            The content of a system turn, or None for no such turn. "" gives an empty turn only
            where the template would otherwise write its default.
        """
        if system_prompt != "":
            return system_prompt
        user: Turn = {"role": "user", "content": "a"}
        try:
            empty = self.render([{"role": "system", "content": ""}, user])
        except ModelError:
            return None
        return "" if len(empty) < len(self.render([user])) else None

    def span(self, turns: Sequence[Turn], index: int, text: str) -> AnswerSpan:
        """Find an assistant turn in the rendered conversation.

        Args:
            turns: the whole conversation.
            index: which of them, an assistant's.
            text: the rendering of all turns.

        Raises:
            ModelError: the template writes earlier turns otherwise once later ones follow.
        """
        prompt = self.render(turns[:index], add_generation_prompt=True)
        until = self.render(turns[: index + 1])
        before, after = self._frame(turns[:index], len(prompt))
        inside = until[len(prompt) :]
        words_end = len(prompt) + max(len(inside) - len(after), 0)
        stop, closed = self._end_of_turn(after)
        span = AnswerSpan(len(prompt), words_end, words_end + stop, closed)
        agrees = until.startswith(prompt) and inside.startswith(before) and inside.endswith(after)
        if not agrees or text[: span.end] != until[: span.end]:
            raise ModelError(
                f"the tokenizer's chat template writes turn {index + 1} in another way once the "
                "conversation goes on; train on the last answer alone (train_on: last_answer)"
            )
        return span

    def _frame(self, turns: Sequence[Turn], start: int) -> tuple[str, str]:
        """Return what the template writes between the prompt and the answer, and behind it."""
        one, other = (
            self.render([*turns, {"role": "assistant", "content": probe}])[start:]
            for probe in ("X", "Y")
        )
        if one == other:
            raise ModelError("the tokenizer's chat template leaves the assistant's words out")
        pairs = zip(one, other, strict=False)
        place = next(place for place, (a, b) in enumerate(pairs) if a != b)
        return one[:place], one[place + 1 :]

    def _end_of_turn(self, after: str) -> tuple[int, bool]:
        """Return how many characters of the frame belong to the answer, and if a token ends it."""
        ends = [
            (place, place + len(token))
            for token in self._special_tokens
            if (place := after.find(token)) >= 0
        ]
        return (min(ends)[1], True) if ends else (0, False)

    def _spell(self, number: int) -> str:
        token = self.tokenizer.convert_ids_to_tokens(number)
        return token if isinstance(token, str) else ""

    def _find_control_tokens(self) -> tuple[str, ...]:
        turns: list[Turn] = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]
        written = self.render(turns, add_generation_prompt=True)
        own = (self.tokenizer.bos_token, self.tokenizer.eos_token)
        return tuple(
            sorted(token for token in self._special_tokens if token in written or token in own)
        )

    def tokenize(self, text: str, cuts: Sequence[int]) -> list[list[int]]:
        """Split a rendered text into token ids with borders at certain characters.

        Text is tokenised as a whole. Where a token would lie across a border, both sides are
        tokenised apart, because that is how they meet when the model is asked: a prompt first,
        then what it writes.

        Args:
            text: the rendering.
            cuts: characters at which a piece ends, ascending.

        Returns:
            The ids of `len(cuts) + 1` pieces.
        """
        pieces: list[list[int]] = []
        base, used, last = 0, 0, 0
        joint = self._ids(text)
        for cut in cuts:
            left = self._ids(text[base:cut]) if base == 0 else self._continue(text[base:cut])
            if joint[: len(left)] == left and left[:used] == joint[:used]:
                pieces.append(left[used:])
                used = len(left)
            else:
                apart = left[used:] if left[:used] == joint[:used] else None
                pieces.append(self._continue(text[last:cut]) if apart is None else apart)
                base, used, joint = cut, 0, self._continue(text[cut:])
            last = cut
        return [*pieces, joint[used:]]

    def _ids(self, text: str) -> list[int]:
        encoding = self.tokenizer(text, add_special_tokens=False, verbose=False)
        return list(encoding.input_ids)

    def _continue(self, text: str) -> list[int]:
        """Tokenise text that stands behind other text.

        Some tokenizers (Llama-2's) set a blank in front of whatever they are given. So the text is
        tokenised behind a stand-in, whose ids are taken off again where the two do not merge.
        """
        for stand_in in ("\n", ":", "x"):
            begin = self._ids(stand_in)
            joint = self._ids(stand_in + text)
            if joint[: len(begin)] == begin:
                return joint[len(begin) :]
        return self._ids(text)
