"""Answer a conversation of text and pictures, one piece of text at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from varifocal.data.encode import Encoder
from varifocal.data.example import Example, Image, Message
from varifocal.models.decoding import Choose, decode, greedy, pad_left, sampler, stop_ids

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and how many there may be.

    Attributes:
        max_new_tokens: most tokens of an answer.
        temperature: 0 takes the likeliest token; above 0, chance grows with it.
        top_p: with a temperature: sample from the likeliest tokens that hold this probability.
        seed: with a temperature: the same seed gives the same answer; None is different every time.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")

    def chooser(self) -> Choose:
        """Return the function from logits to ids, with a chance of its own."""
        if self.temperature == 0:
            return greedy
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return sampler(self.temperature, self.top_p, generator)


class Engine:
    """Answers conversations with a model.

    The whole conversation is read again at each turn; within a turn keys and values are cached.

    Args:
        model: a causal language model of transformers, bare, grafted or wrapped by PEFT; it is put
            into evaluation mode.
        encoder: for its tokenizer.
        load_images: pictures -> the model's image tensors; None for a model without eyes.
    """

    def __init__(
        self,
        model: nn.Module,
        encoder: Encoder,
        load_images: Callable[[Sequence[Image]], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.model = model.eval()
        self.encoder = encoder
        self.load_images = load_images
        self.stop_ids = stop_ids(model, encoder.end_of_turn_id)

    def answer(self, messages: Sequence[Message], sampling: Sampling | None = None) -> str:
        """Return the whole answer; arguments and errors as in `stream`."""
        return "".join(self.stream(messages, sampling))

    def stream(
        self, messages: Sequence[Message], sampling: Sampling | None = None
    ) -> Generator[str, None, None]:
        """Read a conversation at once, then yield the answer as it is written.

        Args:
            messages: turns of text and pictures, the user's last.
            sampling: greedy and 256 tokens by default.

        Returns:
            Pieces of text, none empty. Closing the generator stops the model.

        Raises:
            DataError: a picture cannot be read, or the conversation cannot be encoded.
        """
        sampling = sampling or Sampling()
        encoded = self.encoder.encode(Example(messages=tuple(messages)), with_answer=False)
        prompts = pad_left([encoded.input_ids.tolist()], [encoded.modality])
        images: Mapping[str, Tensor] = {}
        if encoded.images and self.load_images is not None:
            images = self.load_images(encoded.images)
        return self._write(prompts, images, sampling)

    def _write(
        self, prompts: Mapping[str, Tensor], images: Mapping[str, Tensor], sampling: Sampling
    ) -> Generator[str, None, None]:
        """Yield text as soon as its characters are whole."""
        text = TextStream(self.encoder.tokenizer)
        tokens = decode(
            self.model,
            prompts,
            images,
            max_new_tokens=sampling.max_new_tokens,
            choose=sampling.chooser(),
        )
        with closing(tokens):
            for ids in tokens:
                if int(ids[0]) in self.stop_ids:
                    break
                if piece := text.push(int(ids[0])):
                    yield piece
        if rest := text.flush():
            yield rest


class TextStream:
    """Turns token ids into text as they come, without ever splitting a character.

    A tokenizer may spread one character over several tokens, and may write a token differently
    at the start of a text. So each token is decoded together with those of the last piece that
    was given out, and held back while its text ends in half a character.

    Args:
        tokenizer: any tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._ids: list[int] = []
        self._before = 0  # where the last piece that was given out begins
        self._given = 0  # how many tokens have been given out

    def push(self, token: int) -> str:
        """Take a token and return the text that is now whole, perhaps none."""
        self._ids.append(token)
        piece = self._pending()
        return "" if piece.endswith(REPLACEMENT) else self._give(piece)

    def flush(self) -> str:
        """Return what was held back: half characters, as replacement characters."""
        return self._give(self._pending())

    def _pending(self) -> str:
        """Return the text beyond what was given."""
        context = self._text(self._ids[self._before : self._given])
        return self._text(self._ids[self._before :])[len(context) :]

    def _give(self, piece: str) -> str:
        """Note that all tokens are given out, if they have text."""
        if piece:
            self._before, self._given = self._given, len(self._ids)
        return piece

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
