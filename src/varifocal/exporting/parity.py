"""The gate: the same prompts through the trained model and through what was written.

Letters: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from torch import Tensor, nn

from varifocal.assemble import Assembly
from varifocal.data.example import Example, Image, Message
from varifocal.errors import ModelError
from varifocal.models.decoding import pad_left, reads_marks
from varifocal.sciencebook import SKILLS, compose, draw_image
from varifocal.tuners.plugin import evaluating

SEED = 20_231_224  # of the prompts; no training data of ours has it
_LM_INPUTS = ("input_ids", "inputs_embeds", "pixel_values")

# A gap may be so many units in the last place of the largest logit, since rounding adds up over a
# deep model; in the mean over all logits it is far smaller. transformers' norms compute in float32.
# The 16-bit rows are for a model that does not fit into memory in float32 (`in_float32`).
_UNITS = {torch.float64: 2e8, torch.float32: 256.0, torch.bfloat16: 16.0, torch.float16: 32.0}
_RELATIVE = {torch.float64: 1e-6, torch.float32: 2e-5, torch.bfloat16: 0.08, torch.float16: 0.02}
_AGREEMENT = {torch.float64: 1.0, torch.float32: 0.99, torch.bfloat16: 0.9, torch.float16: 0.95}


@dataclass(frozen=True)
class Case:
    """One prompt and what the trained model says to it.

    Attributes:
        inputs: what its language model was given: ids, or embeddings with the visual tokens in.
        logits: [T, V], float32 (float64 for a float64 model), on the CPU.
    """

    inputs: dict[str, Tensor]
    logits: Tensor


@dataclass(frozen=True)
class Gaps:
    """How far two models' logits are apart.

    Attributes:
        prompts: how many were put to both.
        tokens: positions that were compared.
        largest_gap: largest absolute difference of two logits.
        largest_logit: largest absolute logit, the gap's yardstick.
        relative_gap: root mean square of the gaps over that of the logits.
        agreement: share of positions where both would write the same token, 0 to 1.
    """

    prompts: int
    tokens: int
    largest_gap: float
    largest_logit: float
    relative_gap: float
    agreement: float


@dataclass(frozen=True)
class Parity(Gaps):
    """How far an export, before its numbers are rounded, is from the model it was made of.

    Attributes:
        bound: the largest gap that passes.
        relative_bound: the largest relative gap that passes.
        least_agreement: the smallest agreement that passes.
        dtype: number format of both.
    """

    bound: float
    relative_bound: float
    least_agreement: float
    dtype: str

    @property
    def passed(self) -> bool:
        """Whether the export may leave."""
        near = self.largest_gap <= self.bound and self.relative_gap <= self.relative_bound
        return near and self.agreement >= self.least_agreement

    def check(self, what: str) -> None:
        """Refuse an export that says something else.

        Raises:
            ModelError: it does.
        """
        if not self.passed:
            raise ModelError(
                f"{what} is not the trained model: over {self.prompts} prompts its logits differ "
                f"by up to {self.largest_gap:.3g} (allowed: {self.bound:.3g}), in the mean by "
                f"{self.relative_gap:.2g} of the logits (allowed: {self.relative_bound:.2g}), and "
                f"{self.agreement:.1%} of the tokens agree (needed: {self.least_agreement:.0%}); "
                "nothing was written. Report this with the run's recipe"
            )


@dataclass(frozen=True)
class Rounding(Gaps):
    """What writing the weights in fewer bits costs: both models compute in float32.

    Attributes:
        dtype: number format of the written weights.
    """

    dtype: str


def prompts(num: int, *, images: bool) -> Iterator[Example]:
    """Compose questions with their answers; every second one shows an image where they may."""
    with_image = [name for name, skill in SKILLS.items() if compose(skill, "test", 0, SEED)[1].draw]
    read = [name for name in SKILLS if name not in with_image]
    for index in range(num):
        names = with_image if images else read
        yield _question(names[index % len(names)], index)


def references(parts: Assembly, examples: Sequence[Example], modality: int | None) -> list[Case]:
    """Put prompts to the trained model.

    Args:
        parts: the trained model and its encoder.
        examples: conversations; their images are shown where the model has a vision tower.
        modality: the route that the rows take, 0 text or 1 image; None takes each row's own.
    """
    with evaluating(parts.model):
        return [_reference(parts, example, modality) for example in examples]


def compare_logits(
    cases: Sequence[Case], model: nn.Module, dtype: torch.dtype, bound: float | None = None
) -> Parity:
    """Put the same prompts to an export.

    Args:
        cases: what the trained model said.
        model: the export, as transformers or PEFT has loaded it, with weights that were not
            rounded.
        dtype: number format of both; it sets how far rounding may carry them apart.
        bound: largest gap that passes, instead.
    """
    gap = gaps(cases, model)
    allowed = _UNITS[dtype] * torch.finfo(dtype).eps * gap.largest_logit
    return Parity(
        **vars(gap),
        bound=bound if bound is not None else allowed,
        relative_bound=_RELATIVE[dtype],
        least_agreement=_AGREEMENT[dtype],
        dtype=named(dtype),
    )


def rounding(cases: Sequence[Case], model: nn.Module, dtype: str) -> Rounding:
    """Measure what the written weights lose to the model they were made of.

    Args:
        cases: what the trained model said.
        model: the export as it was read, its rounded weights held in float32.
        dtype: name of the weights' number format on disk.
    """
    return Rounding(**vars(gaps(cases, model)), dtype=dtype)


def named(dtype: torch.dtype) -> str:
    """Return a number format's name as recipes write it."""
    return str(dtype).removeprefix("torch.")


def gaps(cases: Sequence[Case], model: nn.Module) -> Gaps:
    """Put the prompts to a model, and measure how far it is from what was said."""
    gap = largest = missed = power = 0.0
    same = total = 0
    for case in cases:
        answered = _logits(model, case.inputs)
        logits = answered[:, : case.logits.shape[-1]]  # LLaVA has a row for its placeholder, too
        gap = max(gap, float((logits - case.logits).abs().max()))
        missed += float((logits - case.logits).double().square().sum())
        power += float(case.logits.double().square().sum())
        largest = max(largest, float(case.logits.abs().max()))
        same += int((answered.argmax(-1) == case.logits.argmax(-1)).sum())
        total += len(logits)
    relative = (missed / max(power, 1e-30)) ** 0.5
    return Gaps(len(cases), total, gap, largest, relative, same / max(total, 1))


def _question(skill: str, index: int) -> Example:
    record, question = compose(skill, "test", index, SEED)
    text = f"{record['question']}\n{record['hint']}".strip()
    content: tuple[Any, ...] = (text,)
    if question.draw:
        file = BytesIO()
        draw_image(skill, "test", index, SEED, question).save(file, format="PNG")
        content = (Image(data=file.getvalue()), text)
    answer = Message("assistant", (question.answer,))
    return Example(messages=(Message("user", content), answer))


def row_of(
    parts: Assembly, example: Example, modality: int | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Encode a conversation, with its answer where it has one, as a row of one.

    Returns:
        `pad_left`'s tensors, the model's image tensors, and the prompt's mark of each token [1, T].
    """
    answered = example.messages[-1].role == "assistant"
    encoded = parts.encoder.encode(example, with_answer=answered)
    route = encoded.modality if modality is None else modality
    row = pad_left([encoded.input_ids.tolist()], [route])
    shown = {}
    if encoded.images and parts.load_images is not None:
        shown = dict(parts.load_images(encoded.images))
    return row, shown, torch.as_tensor(encoded.prompt_mask)[None]


@torch.no_grad()
def _reference(parts: Assembly, example: Example, modality: int | None) -> Case:
    row, shown, prompt_mask = row_of(parts, example, modality)
    given = {"input_ids": row["input_ids"], **shown}
    if reads_marks(parts.model):
        given |= {"modality_ids": row["modality_ids"], "prompt_mask": prompt_mask}
    base: Any = parts.base
    device = next(parts.model.parameters()).device
    placed = {name: value.to(device) for name, value in given.items()}
    with _overheard(getattr(base, "language_model", base)) as inputs:
        logits = parts.model(**placed, use_cache=False).logits[0]
    return Case(inputs, _wide(logits))


@contextmanager
def _overheard(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Note what a language model is given."""
    inputs: dict[str, Tensor] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for name in _LM_INPUTS:
            if kwargs.get(name) is not None:
                inputs[name] = kwargs[name].detach()

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield inputs
    finally:
        handle.remove()


def placed(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring inputs to a model's device, and numbers among them to its format."""
    first = next(model.parameters())
    return {
        name: value.to(first.device, first.dtype)
        if value.is_floating_point()
        else value.to(first.device)
        for name, value in inputs.items()
    }


@torch.no_grad()
def _logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with evaluating(model):
        return _wide(model(**placed(model, inputs), use_cache=False).logits[0])


def _wide(logits: Tensor) -> Tensor:
    return logits.to("cpu", torch.promote_types(logits.dtype, torch.float32))
