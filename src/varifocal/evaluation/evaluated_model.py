"""How a model is asked: a question's prompt, its choices' likelihoods, a written answer.

The one seam between benchmarks and models: whatever follows `Asker` can be scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor

from varifocal.assemble import (
    Assembly,
    OpenedVlm,
    is_vlm,
    open_model,
    open_vlm,
    weights_fingerprint,
)
from varifocal.data.encoding.answer_span import PROBES, frame_of, written
from varifocal.data.encoding.encoded import Encoded
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.encoding.named_template import choose_template
from varifocal.data.encoding.written_answer import read_words
from varifocal.data.example import Example, Image, Message
from varifocal.errors import ChatTemplateError, DataError, ModelError
from varifocal.evaluation.benchmark import Answer, Prompt, PromptStyle
from varifocal.evaluation.generation import greedy_answers
from varifocal.models.decoding import stop_ids
from varifocal.models.families.base import family_of
from varifocal.models.likelihood import EncodedQuestion, Normalisation, score_options

ONE_BATCH = 1 << 62
"""Token budget of an asker, whose prompts are one batch already."""


class Asker(Protocol):
    """What a benchmark needs of a model."""

    model: Any

    def prepare(self, example: Example, *, with_options: bool) -> Prompt:
        """Write the prompt; `example` has no gold answer."""
        ...

    def score(self, prompts: Sequence[Prompt], normalisation: Normalisation) -> list[Answer]:
        """Return each option's log-probability in nats, for one batch."""
        ...

    def write(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Answer]:
        """Write the likeliest answer to each prompt, for one batch."""
        ...


class EncodedAsker:
    """Asks a language model, a graft or a LLaVA, with or without a tuner.

    Args:
        parts: the model with its encoder and its image loader.
        answer_start: what each written answer begins with, given to the model.
    """

    def __init__(self, parts: Assembly, answer_start: str = "") -> None:
        self.model = parts.model
        self._parts, self._answer_start = parts, answer_start
        self._encoder, self._load_images = parts.encoder, parts.load_images
        self._end_of_turn = parts.encoder.end_of_turn_id

    def with_prompts(self, style: PromptStyle) -> EncodedAsker:
        """Return an asker of the same model that writes its prompts in another style.

        Raises:
            ModelError: the model's images need tokens around them.
            ChatTemplateError: its tokenizer has no end of a sequence.
        """
        base, own = self._parts.base, self._encoder
        family = family_of(base.config)
        if family is not None and family.needs_image_side:
            raise _own_frame(base, style)
        encoder = Encoder(
            own.tokenizer, own.image_token, own.image_token_id, own.tokens_per_image,
            own.max_length, own.overflow, train_on=own.train_on,
            chat_template=choose_template(style.chat_template, own.tokenizer, own.image_token),
        )  # fmt: skip
        return EncodedAsker(replace(self._parts, encoder=encoder), style.answer_start)

    def prepare(self, example: Example, *, with_options: bool) -> Prompt:
        """Encode a question, its options after it when they are to be scored.

        Raises:
            DataError: it cannot be encoded, or an image cannot be read.
        """
        if example.images and self._load_images is None:
            raise DataError(
                f"{example.name} has an image, but the model has no vision tower; "
                "leave the images out with --blind"
            )
        if with_options:
            encoded, options = self._encoder.encode_options(example)
        else:
            encoded = self._prompt(example)
            options = [np.array([self._end_of_turn], np.int32)]
        question = EncodedQuestion(
            encoded.input_ids, tuple(options), encoded.modality, tuple(encoded.images)
        )
        key = key_of([encoded.input_ids, *options], encoded.images, example)
        lengths = tuple(map(len, options)) if with_options else ()
        return Prompt(key, question.length, encoded.was_cut, question, lengths)

    def _prompt(self, example: Example) -> Encoded:
        """Encode a question, and what its answer begins with."""
        if not self._answer_start:
            return self._encoder.encode(example, with_answer=False)
        encoded, (start,) = self._encoder.encode_options(_begun(example, self._answer_start))
        mask = np.ones(len(start), np.bool_)
        return replace(
            encoded,
            input_ids=np.concatenate([encoded.input_ids, start]),
            prompt_mask=np.concatenate([encoded.prompt_mask, mask]),
        )

    def score(self, prompts: Sequence[Prompt], normalisation: Normalisation) -> list[Answer]:
        """Return each option's log-probability in nats."""
        scored = score_options(
            self.model,
            [prompt.question for prompt in prompts],
            self._load_images,
            normalisation=normalisation,
            token_budget=ONE_BATCH,
        )
        return [Answer(scores=tuple(scores)) for scores in scored]

    def write(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Answer]:
        """Write the likeliest answer to each prompt."""
        written = greedy_answers(
            self.model,
            [prompt.question for prompt in prompts],
            self._load_images,
            stop_ids=stop_ids(self.model, self._end_of_turn),
            max_new_tokens=max_new_tokens,
            token_budget=ONE_BATCH,
        )
        return [Answer(self._read(ids)) for ids in written]

    def _read(self, ids: Sequence[int]) -> str:
        """Return the words that were written; an answer that was begun has no thought before it."""
        if not self._answer_start:
            return self._encoder.read_answer(ids)
        return str(self._encoder.tokenizer.decode(list(ids), skip_special_tokens=True))


def _begun(example: Example, start: str) -> Example:
    """Answer a question with a start that is not all of the answer, so that no turn ends there."""
    answer = Message("assistant", (f"{start}...",))
    messages = (*example.messages, answer)
    return replace(example, messages=messages, choices=(start,), options=(start,), answer_index=0)


def _own_frame(model: Any, style: PromptStyle) -> ModelError:
    return ModelError(
        f"--protocol {style.name} does not write the tokens around an image of a "
        f"{model.config.model_type}; leave --protocol out for this model"
    )


def without_images(example: Example) -> Example:
    """Take the images out of a question."""
    return replace(example, messages=tuple(_without(message) for message in example.messages))


def _without(message: Message) -> Message:
    texts = tuple(part for part in message.content if isinstance(part, str))
    return replace(message, content=texts)


def key_of(arrays: Sequence[Any], images: Sequence[Image], example: Example) -> bytes:
    """Join arrays of ids, each after its length, and the digests of images."""
    parts = [part for ids in arrays for part in (len(ids).to_bytes(4, "little"), ids.tobytes())]
    try:
        return b"".join([*parts, *(bytes.fromhex(image.fingerprint()) for image in images)])
    except DataError as error:
        raise DataError(f"{example.name}: {error}") from error


@dataclass(frozen=True)
class Opened:
    """A model, ready to be asked.

    Attributes:
        asker: what asks it.
        fingerprint: SHA-256 over all its weights, an adapter's included.
        seed: of the run's recipe; 0 for a model.
    """

    asker: EncodedAsker | VlmAsker
    fingerprint: str | None
    seed: int


def open_asker(
    name: str, adapter: Path | None = None, dtype: str = "float32", strength: float = 1.0
) -> Opened:
    """Open a run, a language model or a vision-language model.

    Args:
        name: a run directory, a packaged model, a local directory, or a hub id.
        adapter: PEFT's files to put around a model.
        dtype: number format of the frozen weights.
        strength: factor on what the adapter changes.

    Raises:
        RunError, ModelError: as `open_model`.
    """
    if is_vlm(name):
        whole = open_vlm(name, adapter, dtype=dtype, strength=strength)
        return Opened(VlmAsker(whole), weights_fingerprint(name, whole, adapter), 0)
    recipe, parts = open_model(name, adapter, dtype=dtype, strength=strength)
    return Opened(EncodedAsker(parts), weights_fingerprint(name, parts, adapter), recipe.seed)


@dataclass(frozen=True)
class _Question:
    """A rendered prompt, its images, and the options' ids."""

    text: str
    images: tuple[Image, ...]
    options: tuple[list[int], ...]


class VlmAsker:
    """Asks a vision-language model as it is.

    Args:
        whole: the model, with or without an adapter, and its processor.

    Raises:
        ModelError: its processor has no chat template.
    """

    def __init__(self, whole: OpenedVlm) -> None:
        self.model, self._processor = whole.model, whole.processor
        self._tokenizer = whole.processor.tokenizer
        # PaliGemma's type 0 is read in both directions: an answer of that type would see itself.
        kind = getattr(getattr(whole.model, "config", None), "model_type", "")
        self._answer_type = int(kind == "paligemma")
        if not (getattr(whole.processor, "chat_template", None) or self._tokenizer.chat_template):
            raise ModelError("this model's processor has no chat template; it cannot be asked")

    def with_prompts(self, style: PromptStyle) -> VlmAsker:
        """Refuse another style of prompts: these models' images stand in frames of their own.

        Raises:
            ModelError: always.
        """
        raise _own_frame(self.model, style)

    def prepare(self, example: Example, *, with_options: bool) -> Prompt:
        """Render a question, and its options when they are to be scored.

        Raises:
            DataError: an image cannot be read, or the processor refuses the question.
        """
        turns = [_turn(message.role, message.content) for message in example.messages]
        try:
            text = self._render(turns, prompt=True)
            options: tuple[list[int], ...] = ()
            if with_options:
                text, options = self._options(turns, text, example.options)
        except (TemplateError, ChatTemplateError, TypeError) as error:
            raise DataError(f"{example.name}: {error}") from error
        question = _Question(text, example.images, options)
        try:
            ids = self._inputs(question)["input_ids"][0]
        except (DataError, ValueError) as error:
            raise DataError(f"{example.name}: {error}") from error
        arrays = [ids.int().numpy(), *(torch.tensor(option).int().numpy() for option in options)]
        length = len(ids) + sum(map(len, options))
        key = key_of(arrays, example.images, example)
        return Prompt(key, length, False, question, tuple(map(len, options)))

    @torch.inference_mode()
    def score(self, prompts: Sequence[Prompt], normalisation: Normalisation) -> list[Answer]:
        """Return each option's log-probability in nats."""
        scored = (self._score(prompt.question, normalisation) for prompt in prompts)
        return [Answer(scores=tuple(scores)) for scores in scored]

    @torch.inference_mode()
    def write(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Answer]:
        """Write the likeliest answer to each prompt."""
        return [Answer(self._write(prompt.question, max_new_tokens)) for prompt in prompts]

    def _render(self, turns: Sequence[dict[str, Any]], *, prompt: bool) -> str:
        options = {"add_generation_prompt": prompt, "tokenize": False}
        return str(self._processor.apply_chat_template(list(turns), **options))

    def _options(
        self, turns: Sequence[dict[str, Any]], prompt: str, options: Sequence[str]
    ) -> tuple[str, tuple[list[int], ...]]:
        """Write each option with its end of turn, as the template does.

        Returns:
            The prompt, what every answer begins with after it, and each option's ids.
        """

        def answered(text: str) -> str:
            return self._render([*turns, _turn("assistant", (text,))], prompt=False)

        frame = frame_of(prompt, self._render(turns, prompt=False), *map(answered, PROBES))
        answers = [
            written(prompt, answered(option), {"role": "assistant", "content": option}, frame)
            for option in options
        ]
        ids = tuple(self._ids(answer.text[answer.words_start :].rstrip()) for answer in answers)
        return answers[0].prompt + answers[0].text[: answers[0].words_start], ids

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _inputs(self, question: _Question) -> dict[str, Tensor]:
        pil_images = [image.open() for image in question.images]
        images = {"images": pil_images} if pil_images else {}
        special = {"add_special_tokens": False} if self._has_start(question.text) else {}
        return dict(self._processor(text=[question.text], **images, return_tensors="pt", **special))

    def _has_start(self, text: str) -> bool:
        """Whether the template wrote the begin-of-sequence token already."""
        start = self._tokenizer.bos_token
        return bool(start) and text.startswith(start)

    def _score(self, question: _Question, normalisation: Normalisation) -> list[float]:
        inputs = self._inputs(question)
        prompt = inputs["input_ids"].shape[1]
        rows = len(question.options)
        answers = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(option) for option in question.options], batch_first=True
        )  # [K, A], padded with 0
        real = torch.nn.utils.rnn.pad_sequence(
            [torch.ones(len(option)) for option in question.options], batch_first=True
        )
        logits = self._logits(inputs, answers, real, rows)[:, prompt - 1 : -1].float()  # [K, A, V]
        picked = logits.log_softmax(dim=-1).gather(2, answers.to(logits.device)[..., None])[..., 0]
        sums = (picked.cpu().double() * real).sum(dim=1)
        return (sums / real.sum(dim=1) if normalisation == "mean" else sums).tolist()

    def _logits(
        self, inputs: dict[str, Tensor], answers: Tensor, real: Tensor, rows: int
    ) -> Tensor:
        """Run one row an option; images come once a row: [K, P + A, V]."""
        shape, longer = inputs["input_ids"].shape, {}
        types = torch.full_like(answers, self._answer_type)
        known = {"input_ids": answers, "attention_mask": real, "token_type_ids": types}
        for name, value in inputs.items():
            longer[name] = value.repeat(rows, *[1] * (value.dim() - 1))
            if value.shape == shape:
                behind = known.get(name, answers * 0)
                longer[name] = torch.cat([longer[name], behind.to(value.dtype)], dim=1)
        return self.model(**self._placed(longer), use_cache=False).logits

    def _write(self, question: _Question, max_new_tokens: int) -> str:
        inputs = self._placed(self._inputs(question))
        greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None}
        pad = self._tokenizer.pad_token_id
        pad = self._tokenizer.eos_token_id if pad is None else pad
        ids = cast(Any, self.model).generate(
            **inputs, **greedy, top_k=None, max_new_tokens=max_new_tokens, pad_token_id=pad
        )
        return read_words(self._tokenizer, ids[0, inputs["input_ids"].shape[1] :].tolist(), ())

    def _placed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        parameter = next(self.model.parameters())
        return {
            name: value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }


def _turn(role: str, content: Sequence[str | Image]) -> dict[str, Any]:
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
        for part in content
    ]
    return {"role": role, "content": parts}
