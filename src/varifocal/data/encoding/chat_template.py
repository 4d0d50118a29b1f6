"""The chat template: conversations to text, and where in that text an answer stands.

Nothing is searched for in a conversation's text. The prompt of an answer is the template's own
rendering of everything before it with its generation prompt; what the model has to write is what
the rendering of the answered conversation has from there on (see `encoding.answer_span`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from varifocal.data.encoding.answer_span import PROBES, Frame, Turn, Written, frame_of, written
from varifocal.errors import ChatTemplateError, ModelError
from varifocal.recipe.chat_templates import SETS_IMAGE_TOKEN

_PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + eos_token + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

_SYSTEM_FIRST = (
    "{%- if messages and messages[0].role != 'system' -%}"
    "{%- set messages = [{'role': 'system', 'content': SYSTEM}] + messages -%}"
    "{%- endif -%}{{- '' }}"
)
_PROBE = "Which one?"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    r"""Return a chat template for a base model, whose tokenizer has none.

    A conversation reads "SYSTEM\n\nUser: QUESTION\nAssistant: ANSWER</s>\n", with the tokenizer's
    end-of-sequence token after each answer, and its begin-of-sequence token in front of
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


def with_system(jinja: str, system: str | None) -> str:
    """Return a chat template that sets a system turn in front of conversations without one.

    Args:
        jinja: the template.
        system: the turn's text; None leaves the template as it is.
    """
    return jinja if system is None else _SYSTEM_FIRST.replace("SYSTEM", _literal(system)) + jinja


def _literal(text: str) -> str:
    r"""Write a text as a string of Jinja that transformers and llama.cpp read alike.

    llama.cpp's engine fails on `\u00e9`, and transformers reads the pair `\ud83e\uddf2` as two
    halves. So characters stand as they are; what is escaped (line breaks, quotes, backslashes)
    both read alike.

    >>> print(_literal('Größe "in" \\ 🧲'))
    "Größe \"in\" \\ 🧲"
    """
    return json.dumps(text, ensure_ascii=False)


@dataclass(frozen=True)
class AnswerSpan:
    """Where an answer stands in the rendered text.

    Attributes:
        start: first character after its prompt, the template's generation prompt included.
        words_start: first character after what the template itself writes there (an empty
            thought, a channel), the blanks in front of the words not counted to it.
        words_end: first character after its words.
        end: first character after its end-of-turn token.
        closed: False where the template writes no special token after an answer and marks no end
            (`{% generation %}`); then `end` is the end of its words, and an end-of-sequence token
            is owed.
    """

    start: int
    words_start: int
    words_end: int
    end: int
    closed: bool


class ChatTemplate:
    """A tokenizer's chat template, or `plain_template` where it has none.

    Templates that take content parts instead of a text (LLaVA's) are given parts.

    Args:
        tokenizer: any tokenizer of transformers.
        image_token: the placeholder that stands for an image in a turn's text.
        jinja: a template to take instead of the tokenizer's own, as processors bring one.

    Attributes:
        tokenizer: as given.
        jinja: the template in use.
        takes_parts: whether contents are lists, `{"type": "image"}` and `{"type": "text", ...}`.
        control_tokens: special tokens that text must not hold: what the template writes, and the
            tokenizer's begin and end of sequence.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_token: str | None = None,
        jinja: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.image_token = image_token
        own = tokenizer.get_chat_template() if tokenizer.chat_template else None
        self.jinja = jinja or own or plain_template(tokenizer)
        self._special_ids = frozenset(tokenizer.all_special_ids) | {
            number for number, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self._special_tokens = [
            token for number in self._special_ids if (token := self._spell(number))
        ]
        self.takes_parts = False
        self.takes_parts = self._wants_parts()
        self._frames: dict[tuple[str, ...], Frame] = {}
        self.control_tokens = self._find_control_tokens()

    def render(self, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
        """Write a conversation as text.

        Raises:
            ChatTemplateError: the template refuses it, for example its system message.
        """
        contents = [self._parts(turn) for turn in turns] if self.takes_parts else list(turns)
        try:
            text = self.tokenizer.apply_chat_template(
                cast(Any, contents),
                chat_template=self.jinja,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        # A template is a program: besides its own refusals it can fail as Python does.
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise ChatTemplateError(
                f"the tokenizer's chat template refuses the turns {roles}: {error}"
            ) from error
        assert isinstance(text, str)
        return text

    def _wants_parts(self) -> bool:
        """Whether contents have to be parts: a text does not come out, or an image has a frame."""
        if not self._writes_text():
            return self._writes_text(as_parts=True)
        if self.image_token is None or not self._writes_text(as_parts=True):
            return False
        image: Turn = {"role": "user", "content": self.image_token + _PROBE}
        framed = self.render([image])  # given as parts: a Qwen-VL's stands between two tokens
        self.takes_parts = False
        return framed.count(self.image_token) == 1 and framed != self.render([image])

    def _writes_text(self, as_parts: bool = False) -> bool:
        """Whether what a user says comes out when it is given as a text, or as parts."""
        turn: Turn = {"role": "user", "content": _PROBE}
        try:
            self.takes_parts = as_parts
            return _PROBE in self.render([turn])
        except ModelError:
            return False

    def _parts(self, turn: Turn) -> dict[str, Any]:
        """Split a turn's text at its placeholders into content parts."""
        text, token = turn["content"], self.image_token
        parts: list[dict[str, str]] = []
        for number, piece in enumerate(text.split(token) if token else [text]):
            if number:
                parts.append({"type": "image"})
            if piece:
                parts.append({"type": "text", "text": piece})
        return {**turn, "content": parts}

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

    def written(self, turns: Sequence[Turn]) -> Written:
        """Return the prompt of a conversation's closing answer, and what is to be written.

        Args:
            turns: a conversation that ends with an assistant's turn.

        Raises:
            ChatTemplateError: the template refuses it, or leaves the answer or its thought out.
        """
        *before, answer = turns
        prompt = self.render(before, add_generation_prompt=True)
        whole = self.render(turns)
        frame = self._usual_frame(before)
        if not whole.endswith(frame.after):
            frame = self._frame(before)
        return written(prompt, whole, answer, frame)

    def span(self, turns: Sequence[Turn], index: int, text: str) -> AnswerSpan | None:
        """Find an assistant turn in a conversation's text.

        Args:
            turns: the whole conversation.
            index: which of them, an assistant's.
            text: of all turns, as the model reads them.

        Returns:
            Where it stands, or None where the text does not hold it as it has to be written after
            its own prompt: the template writes earlier turns in another way.
        """
        try:
            answer = self.written(turns[: index + 1])
        except ChatTemplateError:
            return None
        span = self.place(answer)
        return span if text.startswith((answer.prompt + answer.text)[: span.end]) else None

    def place(self, answer: Written) -> AnswerSpan:
        """Say where an answer stands in its own text, prompt and all."""
        start = len(answer.prompt)
        words_end = start + answer.words_end
        stop, closed = self._end_of_turn(answer.text[answer.words_end :])
        return AnswerSpan(start, start + answer.words_start, words_end, words_end + stop, closed)

    def _usual_frame(self, turns: Sequence[Turn]) -> Frame:
        """Return the frame of an answer after turns of these roles, whatever they say."""
        roles = tuple(turn["role"] for turn in turns)
        if roles not in self._frames:
            self._frames[roles] = self._frame([{"role": role, "content": "a"} for role in roles])
        return self._frames[roles]

    def _frame(self, turns: Sequence[Turn]) -> Frame:
        """Return what the template writes around the words of an answer after these turns."""
        return frame_of(
            self.render(turns, add_generation_prompt=True),
            self.render(turns),
            *(self.render([*turns, {"role": "assistant", "content": probe}]) for probe in PROBES),
        )

    def _end_of_turn(self, after: str) -> tuple[int, bool]:
        """Return how many characters after the words are the answer's, and if they end it.

        The first special token ends it; where the end of sequence follows at once, that does: a
        model that writes both has to be trained on both. Without one, the end of a chosen
        template's `{% generation %}` block does.
        """
        ends = [
            (place, place + len(token))
            for token in self._special_tokens
            if (place := after.find(token)) >= 0
        ]
        if not ends:
            closing = self._closing if after.startswith(self._closing) else ""
            return len(closing), bool(closing)
        end = min(ends, key=lambda span: (span[0], -span[1]))[1]
        final = self.tokenizer.eos_token
        if isinstance(final, str) and final and after.startswith(final, end):
            end += len(final)
        return end, True

    @cached_property
    def _closing(self) -> str:
        """What the `{% generation %}` block of a chosen template writes after an answer's words.

        "" without a block, and for a tokenizer's own template: runs of earlier versions owe an
        end-of-sequence token there.
        """
        if SETS_IMAGE_TOKEN not in self.jinja or _GENERATION.search(self.jinja) is None:
            return ""
        turns: list[Turn] = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": PROBES[0]},
        ]
        contents = [self._parts(turn) for turn in turns] if self.takes_parts else turns
        special = cast(dict[str, Any], self.tokenizer.special_tokens_map)
        texts, spans = render_jinja_template(
            cast(Any, [contents]),
            chat_template=self.jinja,
            return_assistant_tokens_mask=True,
            **special,
        )
        start, end = cast(tuple[int, int], spans[0][-1])
        block = texts[0][start:end]
        return block[block.index(PROBES[0]) + 1 :]

    def _spell(self, number: int) -> str:
        token = self.tokenizer.convert_ids_to_tokens(number)
        return token if isinstance(token, str) else ""

    def _find_control_tokens(self) -> tuple[str, ...]:
        turns: list[Turn] = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]
        texts = self.render(turns, add_generation_prompt=True) + self.render(turns[:2])
        own = (self.tokenizer.bos_token, self.tokenizer.eos_token)
        return tuple(
            sorted(token for token in self._special_tokens if token in texts or token in own)
        )
