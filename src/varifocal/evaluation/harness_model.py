"""A model as harnesses ask it: rendered texts or questions in, likelihoods and answers out.

Everything goes through this project's own scoring and decoding, so that a harness's numbers are
ours on the same prompts. No harness is imported here.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from tqdm import tqdm

from varifocal.assemble import Assembly, open_model
from varifocal.data.example import Example, Image, Message
from varifocal.errors import DataError, ModelError
from varifocal.evaluation.generation import greedy_answers
from varifocal.models.decoding import stop_ids
from varifocal.models.likelihood import EncodedQuestion, Rating, rate_options
from varifocal.progress import StepProgress

IMAGE = "<image>"
"""How tasks of the harnesses mark an image in a text."""

MAX_NEW_TOKENS = 256
"""Longest answer where a task names no length, as lm-eval has it."""

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class HarnessModel:
    """A model as a harness asks it: questions in, likelihoods and texts out.

    Args:
        model: a run directory, the name or directory of any model that `open_model` takes, or an
            assembly.
        adapter: an adapter's directory, around a model that is no run.
        batch_size: most rows of a batch; "auto" takes 8.
        device: where to, such as "cuda:0"; where the model is by default, and where there is no
            CUDA, which both command lines ask for unasked.
        dtype: number format of the frozen weights; in float32 scores depend neither on the batch
            size nor on which images are looked at together.
    """

    def __init__(
        self,
        model: str | Path | Assembly,
        adapter: str | Path | None = None,
        batch_size: int | str = 8,
        device: str | None = None,
        dtype: str = "float32",
    ) -> None:
        built = isinstance(model, Assembly)
        parts = model if built else open_model(model, adapter=adapter, dtype=dtype)[1]
        self.parts = parts
        self.encoder = parts.encoder
        self.rows = int(batch_size) if str(batch_size).isdecimal() else 8
        if device and (torch.cuda.is_available() or not device.startswith("cuda")):
            parts.model.to(device)
        parts.model.eval()

    def rate(self, questions: Sequence[EncodedQuestion]) -> list[list[Rating]]:
        """Rate every option of every question by its log-probability in nats."""
        budget = self.rows * max((question.length for question in questions), default=1)
        with tqdm(total=len(questions), desc="likelihoods") as bar:
            return rate_options(
                self.parts.model,
                questions,
                self.parts.load_images,
                token_budget=budget,
                progress=_progress_of(bar),
            )

    def rate_each(self, questions: Sequence[EncodedQuestion]) -> list[Rating]:
        """Rate questions of one option each; neighbours with one prompt are read in one row."""
        groups: list[list[EncodedQuestion]] = []
        for question in questions:
            if groups and _same_prompt(groups[-1][0], question):
                groups[-1].append(question)
            else:
                groups.append([question])
        joined = [
            EncodedQuestion(
                group[0].prompt_ids,
                tuple(question.option_ids[0] for question in group),
                group[0].modality,
                group[0].images,
            )
            for group in groups
        ]
        return [reading for of_group in self.rate(joined) for reading in of_group]

    def write(self, questions: Sequence[EncodedQuestion], max_new_tokens: int) -> list[str]:
        """Write the likeliest answer to every prompt, up to its end of turn."""
        longest = max((len(question.prompt_ids) for question in questions), default=1)
        ends = stop_ids(self.parts.model, self.encoder.end_of_turn_id)
        with tqdm(total=len(questions), desc="answers") as bar:
            written = greedy_answers(
                self.parts.model,
                questions,
                self.parts.load_images,
                stop_ids=ends,
                max_new_tokens=max_new_tokens,
                token_budget=self.rows * (longest + max_new_tokens),
                progress=_progress_of(bar),
            )
        return [self.encoder.read_answer(ids) for ids in written]

    def answer(self, asked: Sequence[tuple[EncodedQuestion, dict[str, Any]]]) -> list[str]:
        """Write answers under each question's own generation arguments.

        Args:
            asked: a prompt, and a task's generation arguments; `until` and the length count.

        Raises:
            ModelError: a task asks for sampling, which no seed would repeat over batch sizes.
        """
        texts = [""] * len(asked)
        limits = [_length(wishes) for _, wishes in asked]
        for limit in dict.fromkeys(limits):
            places = [place for place, own in enumerate(limits) if own == limit]
            written = self.write([asked[place][0] for place in places], limit)
            for place, text in zip(places, written, strict=True):
                texts[place] = _until(text, asked[place][1].get("until"))
        return texts

    def of_text(self, text: str, end: int, images: Sequence[Image]) -> EncodedQuestion:
        """Tokenise a rendered prompt and what may follow it.

        Args:
            text: both, one after the other; the model's own placeholder stands for an image.
            end: the character at which the prompt ends.
            images: as many as there are placeholders.

        The tokenizer's begin-of-sequence token comes in front where the tokenizer sets it itself.

        Raises:
            DataError: the images are more or fewer than the placeholders.
        """
        encoder = self.encoder
        prompt, option = (np.array(ids, np.int32) for ids in encoder.pieces.split(text, [end]))
        first = _begins_with(encoder.tokenizer)
        if first is not None and prompt[:1].tolist() != [first]:
            prompt = np.concatenate([np.array([first], np.int32), prompt])
        image_id = -1 if encoder.image_token_id is None else encoder.image_token_id
        marked = prompt == image_id
        if int(marked.sum()) != len(images):
            raise DataError(
                f"a prompt has {int(marked.sum())} places for images ('{IMAGE}') and "
                f"{len(images)} images: {text[:80]!r}"
            )
        prompt = np.repeat(prompt, np.where(marked, encoder.tokens_per_image, 1))
        options = (option,) if len(option) else (prompt[-1:],)  # a prompt to write after has none
        return EncodedQuestion(prompt, options, int(bool(images)), tuple(images))

    def of_turn(
        self, text: str, images: Sequence[Image], options: Sequence[str]
    ) -> EncodedQuestion:
        """Ask a question as `varifocal eval` does: as a user's turn, images first.

        Args:
            text: what is asked; where it marks its images, they stand there.
            images: in the order of their marks.
            options: answers to rate, each with its end of turn; none for a prompt to write after.

        Raises:
            DataError: the marks are neither none nor as many as the images.
        """
        example = Example(
            (Message("user", _content(text, images)),), source="harness", choices=tuple(options)
        )
        if options:
            prompt, ids = self.encoder.encode_options(example)
        else:
            prompt = self.encoder.encode(example, with_answer=False)
            ids = [prompt.input_ids[-1:]]
        return EncodedQuestion(prompt.input_ids, tuple(ids), prompt.modality, prompt.images)


def _progress_of(bar: Any) -> StepProgress:
    """Let a bar show how many are done."""

    def count_up(done: int, _: int) -> None:
        bar.update(done - bar.n)

    return count_up


def images_of(visual: Any) -> list[Image]:
    """Take a task's images: Pillow's, paths, or `datasets`' undecoded ones, any nesting."""
    if visual is None:
        return []
    if isinstance(visual, list | tuple):
        return [image for part in visual for image in images_of(part)]
    if isinstance(visual, PIL.Image.Image):
        file = io.BytesIO()
        visual.save(file, format="PNG")
        return [Image(data=file.getvalue())]
    if isinstance(visual, dict) and (visual.get("bytes") or visual.get("path")):
        data = visual.get("bytes")
        return [Image(data=data) if data else Image(Path(str(visual["path"])))]
    if isinstance(visual, str | Path):
        return [Image(Path(visual))]
    raise DataError(f"a task gives a {type(visual).__name__} to look at; only images can be seen")


def _same_prompt(first: EncodedQuestion, second: EncodedQuestion) -> bool:
    return first.images == second.images and np.array_equal(first.prompt_ids, second.prompt_ids)


def _content(text: str, images: Sequence[Image]) -> tuple[str | Image, ...]:
    """Put images where the text marks them, or in front of it."""
    pieces = text.split(IMAGE)
    if len(pieces) == 1:
        return (*images, text)
    if len(pieces) - 1 != len(images):
        raise DataError(
            f"a prompt has {len(pieces) - 1} places for images ('{IMAGE}') and "
            f"{len(images)} images: {text[:80]!r}"
        )
    parts: list[str | Image] = [pieces[0]]
    for image, piece in zip(images, pieces[1:], strict=True):
        parts += [image, piece]
    return tuple(part for part in parts if part)


def _length(wishes: dict[str, Any]) -> int:
    """Return the longest answer a task wants, in tokens."""
    if wishes.get("do_sample") or float(wishes.get("temperature") or 0.0) > 0:
        raise ModelError(
            "a task asks for sampled answers (do_sample, temperature); ours are greedy: "
            "override it with the harness's --gen_kwargs do_sample=False,temperature=0"
        )
    return int(next((wishes[name] for name in _LENGTHS if wishes.get(name)), MAX_NEW_TOKENS))


def _until(text: str, until: str | Sequence[str] | None) -> str:
    """Cut a text at the first of some strings.

    >>> _until("42. Next question", ["Next", "."])
    '42'
    """
    for end in [until] if isinstance(until, str) else until or ():
        text = text.split(end)[0] if end else text
    return text


def _begins_with(tokenizer: Any) -> int | None:
    """Return the id a tokenizer sets in front of every text by itself."""
    first = tokenizer.bos_token_id
    return first if first is not None and tokenizer("a").input_ids[:1] == [first] else None
