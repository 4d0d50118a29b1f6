"""Score the options of a multiple-choice question by their likelihood.

A question's prompt is read once: its options hang after it as branches of one row (a tree row).
Each option sees the prompt and itself, never a sibling, and its positions continue from the
prompt's end, so that its log-probability is the one it has on a row of its own.

Letters: B rows, T tokens of the longest row, L logits kept, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from varifocal.errors import ModelError
from varifocal.models.decoding import reads_marks
from varifocal.progress import StepProgress

Normalisation = Literal["sum", "mean"]
NORMALISATIONS: tuple[Normalisation, ...] = ("sum", "mean")
ImageLoader = Callable[[Sequence[Any]], Mapping[str, Tensor]]
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class EncodedQuestion:
    """A prompt and the options that may follow it, as token ids.

    Attributes:
        prompt_ids: [P], everything before the answer, image placeholders expanded.
        option_ids: one array an option, its text and the end-of-turn token.
        modality: 0 text only, 1 with an image.
        images: what `ImageLoader` turns into tensors, in the order of their placeholders.
    """

    prompt_ids: Ids
    option_ids: tuple[Ids, ...]
    modality: int = 0
    images: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what has no likelihood."""
        if len(self.prompt_ids) == 0:
            raise ValueError(
                "prompt_ids is empty: the first token of an option needs a predecessor"
            )
        if not self.option_ids or any(len(ids) == 0 for ids in self.option_ids):
            raise ValueError("option_ids must hold at least one option, and none may be empty")

    @property
    def length(self) -> int:
        """Tokens of the tree row: the prompt once and every option."""
        return len(self.prompt_ids) + sum(len(ids) for ids in self.option_ids)

    def branches(self) -> list[EncodedQuestion]:
        """One question per option, for models that cannot read tree rows."""
        return [
            EncodedQuestion(self.prompt_ids, (ids,), self.modality, self.images)
            for ids in self.option_ids
        ]


@dataclass(frozen=True)
class Rating:
    """How likely an option is.

    Attributes:
        score: its log-probability given the prompt, in nats, or the mean over its tokens.
        tokens: how many it has.
        hits: of them, those that are the likeliest at their place.
    """

    score: float
    tokens: int
    hits: int

    @property
    def greedy(self) -> bool:
        """Whether greedy decoding would write it."""
        return self.hits == self.tokens


@dataclass(frozen=True)
class TreeRows:
    """A batch of tree rows, padded on the right.

    Attributes:
        input_ids, position_ids, segment_ids, modality_ids: [B, T], long.
        prompt_mask: [B, T], bool, True at prompt tokens.
        visible: [B, T, T], bool, whether the token of axis 1 sees the one of axis 2. Padding sees
            itself alone, so that no softmax is empty.
        rows, columns, targets: [M], one entry a token to score, option by option: its row, the
            column whose logits predict it, and its id.
        num_tokens: [number of options], tokens of each option.
    """

    input_ids: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    modality_ids: Tensor
    prompt_mask: Tensor
    visible: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor
    num_tokens: Tensor


def plant(questions: Sequence[EncodedQuestion]) -> TreeRows:
    """Lay questions out as tree rows, `[prompt][option 0][option 1]...[padding]`."""
    shape = (len(questions), max(question.length for question in questions))
    input_ids, position_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    modality_ids, segment_ids = np.zeros(shape, np.int64), np.ones(shape, np.int64)
    branch = np.full(shape, -1, np.int64)  # -1 padding, 0 prompt, 1.. options
    rows, columns, targets, num_tokens = [], [], [], []
    for row, question in enumerate(questions):
        prompt = len(question.prompt_ids)
        input_ids[row, :prompt], position_ids[row, :prompt] = question.prompt_ids, range(prompt)
        branch[row, :prompt], start = 0, prompt
        for number, ids in enumerate(question.option_ids, start=1):
            end = start + len(ids)
            input_ids[row, start:end] = ids
            position_ids[row, start:end] = range(prompt, prompt + len(ids))
            branch[row, start:end] = number
            rows += [row] * len(ids)
            columns += [prompt - 1, *range(start, end - 1)]
            targets += ids.tolist()
            num_tokens.append(len(ids))
            start = end
        modality_ids[row, :start], segment_ids[row, :start] = question.modality, 0
    marks = (input_ids, position_ids, segment_ids, modality_ids, branch == 0, _visible(branch))
    lists = (rows, columns, targets, num_tokens)
    return TreeRows(*map(torch.from_numpy, marks), *map(torch.tensor, lists))


def _visible(branch: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """[B, T] branch numbers -> [B, T, T]: causal, within the own branch and to the prompt."""
    length = branch.shape[1]
    query, key = branch[:, :, None], branch[:, None, :]
    related = (query == key) | ((key == 0) & (query > 0))
    causal = np.tri(length, dtype=np.bool_)
    return (related & causal & (query >= 0)) | np.eye(length, dtype=np.bool_)


def score_options(
    model: nn.Module,
    questions: Sequence[EncodedQuestion],
    load_images: ImageLoader | None = None,
    *,
    normalisation: Normalisation = "sum",
    token_budget: int = 4096,
    tree: bool | None = None,
) -> list[list[float]]:
    """Return each option's log-probability given its prompt, in nats.

    Args and errors are those of `rate_options`, which also says what greedy decoding would write.
    """
    rated = rate_options(
        model,
        questions,
        load_images,
        normalisation=normalisation,
        token_budget=token_budget,
        tree=tree,
    )
    return [[reading.score for reading in of_question] for of_question in rated]


def rate_options(
    model: nn.Module,
    questions: Sequence[EncodedQuestion],
    load_images: ImageLoader | None = None,
    *,
    normalisation: Normalisation = "sum",
    token_budget: int = 4096,
    tree: bool | None = None,
    ends: Collection[int] = (),
    exact: bool = False,
    progress: StepProgress | None = None,
) -> list[list[Rating]]:
    """Rate each option given its prompt.

    Args:
        model: a causal language model of transformers, bare, grafted or wrapped by PEFT, in
            evaluation mode.
        questions: in any order; they are batched by length.
        load_images: images of a batch -> the model's image tensors; needed when there are images.
        normalisation: "sum" over the option's tokens (its probability), or their "mean".
        token_budget: most tokens of a batch, padding included; a longer question runs alone.
        tree: score all options in one row. None decides by the model: attention with a window, a
            recurrent state or a fused kernel cannot, and gets one row an option.
        ends: ids that end an answer: where an option has one of them, any of them is a hit.
        exact: take the log-probabilities of the logits in double precision.
        progress: called with (questions done, questions in all) after every batch.

    Raises:
        ValueError: a question has images and no loader was given.
    """
    if load_images is None and any(question.images for question in questions):
        raise ValueError("questions have images, but load_images is None")
    tree = reads_tree_rows(model) if tree is None else tree
    ratings: list[list[Rating]] = [[] for _ in questions]
    done = 0
    for batch in batch_by_length([question.length for question in questions], token_budget):
        chosen = [questions[index] for index in batch]
        planted = chosen if tree else [part for question in chosen for part in question.branches()]
        flat = iter(_rate(model, planted, load_images, normalisation, tree, ends, exact))
        for index, question in zip(batch, chosen, strict=True):
            ratings[index] = [next(flat) for _ in question.option_ids]
        done += len(batch)
        if progress is not None:
            progress(done, len(questions))
    return ratings


def best_option(scores: Sequence[float]) -> int:
    """Return the index of the highest score, the first of equals.

    Raises:
        ModelError: a score is no number, so that none is the highest.
    """
    if any(math.isnan(score) for score in scores):
        raise ModelError(
            f"the model gives log-probabilities that are no numbers ({list(scores)}): its weights "
            "are damaged, or its number format overflows; try float32"
        )
    return max(range(len(scores)), key=lambda index: scores[index])


def by_mean(scores: Sequence[float], lengths: Sequence[int]) -> list[float]:
    """Return the mean log-probability of a token of each option, of sums over its tokens.

    >>> by_mean([-4.0, -6.0], [2, 6])
    [-2.0, -1.0]
    """
    return [score / length for score, length in zip(scores, lengths, strict=True)]


def batch_by_length(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Yield indices, longest first, so that rows x longest row stays within the budget."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    start = 0
    while start < len(order):
        rows = max(1, token_budget // max(1, lengths[order[start]]))
        yield order[start : start + rows]
        start += rows


def reads_tree_rows(model: nn.Module) -> bool:
    """Say whether all layers of the model obey a prepared [B, 1, T, T] mask and `position_ids`."""
    base: Any = model
    if hasattr(model, "peft_config"):
        base = base.get_base_model()
    config = base.config
    config = config.get_text_config(decoder=True)
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "layer_types", None) is None and getattr(
        config, "sliding_window", None
    )
    return (
        config._attn_implementation in ("sdpa", "eager", "segments")
        and layer_types == {"full_attention"}
        and not windowed
        and not getattr(base, "_is_stateful", False)
        and "position_ids" in inspect.signature(base.forward).parameters
    )


@torch.inference_mode()
def _rate(
    model: nn.Module,
    questions: Sequence[EncodedQuestion],
    load_images: ImageLoader | None,
    normalisation: Normalisation,
    tree: bool,
    ends: Collection[int],
    exact: bool,
) -> list[Rating]:
    """Run one batch: one rating an option, in the order of `questions`."""
    device = next(model.parameters()).device
    planted = plant(questions)
    keep, columns = torch.unique(planted.columns, return_inverse=True)
    inputs = _inputs(model, planted, tree)
    images = [image for question in questions for image in question.images]
    if images and load_images is not None:
        inputs |= load_images(images)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    logits = model(**inputs, logits_to_keep=keep.to(device), use_cache=False).logits  # [B, L, V]
    logits = logits[planted.rows.to(device), columns.to(device)]  # [M, V]
    least = torch.float64 if exact else torch.float32
    logits = logits.to(torch.promote_types(logits.dtype, least))
    picked = logits.gather(1, planted.targets.to(device)[:, None])[:, 0]
    log_probs = (picked - logits.logsumexp(dim=1)).to("cpu", torch.float64)
    likeliest, ending = logits.argmax(dim=1).cpu(), torch.tensor(sorted(ends), dtype=torch.long)
    both_end = torch.isin(likeliest, ending) & torch.isin(planted.targets, ending)
    hits, lengths = (likeliest == planted.targets) | both_end, planted.num_tokens.tolist()
    total = torch.mean if normalisation == "mean" else torch.sum
    return [
        Rating(float(total(own)), len(own), int(hit.sum()))
        for own, hit in zip(log_probs.split(lengths), hits.split(lengths), strict=True)
    ]


def _inputs(model: nn.Module, planted: TreeRows, tree: bool) -> dict[str, Tensor]:
    """Name the tensors of tree rows as the model's forward does."""
    inputs = {"input_ids": planted.input_ids, "position_ids": planted.position_ids}
    if tree:
        # Additive, because eager attention adds a mask where sdpa would also take a boolean.
        dtype = _embedding_dtype(model)
        mask = torch.zeros(planted.visible.shape, dtype=dtype)
        mask.masked_fill_(~planted.visible, torch.finfo(dtype).min)
        inputs["attention_mask"] = mask[:, None]
    else:
        inputs["attention_mask"] = (planted.segment_ids == 0).long()
    if reads_marks(model):
        inputs["modality_ids"] = planted.modality_ids
        inputs["segment_ids"] = planted.segment_ids
        inputs["prompt_mask"] = planted.prompt_mask
    return inputs


def _embedding_dtype(model: Any) -> torch.dtype:
    """Return the dtype of the hidden states (a quantised model's parameters do not tell)."""
    return model.get_input_embeddings().weight.dtype
