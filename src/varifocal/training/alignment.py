"""Word alignment: teach a connector to speak the language model's words, without running it.

For an image with a true description, the loss is the mean of `-log p(word)` over the words of its
description, with `p` of `varifocal.models.words`. Only the connector learns, on features that are
computed once, so thousands of steps cost a minute or two on a CPU.

`align` is the stage of a run, on the recipe's captions before the first step, or on the words of
its answers and questions.

Relatives: VLAP (visual features assigned to word embeddings), LangBridge (arXiv 2503.19404).

Legend: N images, K cells an image, C tower width, V visual tokens, D language width, W words.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from varifocal.assemble import Assembly
from varifocal.data.loading import describes_by_answers, load_captions
from varifocal.errors import RecipeError, RunError
from varifocal.models.connector import PlainMLP, embedding_scale
from varifocal.models.words import Vocabulary, build_vocabulary, word_log_probabilities
from varifocal.progress import Progress, silent
from varifocal.recipe import Recipe
from varifocal.training.callbacks import is_finite, not_finite
from varifocal.training.clock import Clock


def aligns(recipe: Recipe) -> bool:
    """Whether the recipe fits the connector to words first."""
    return recipe.alignment is not None


@dataclass(frozen=True)
class Aligned:
    """What a word alignment came to.

    Attributes:
        loss: the mean of its last hundred steps.
        seconds: of its steps.
        num_images: that went through the connector, repeats included.
        num_words: of its vocabulary.
    """

    loss: float
    seconds: float
    num_images: int
    num_words: int


def align(recipe: Recipe, parts: Assembly, progress: Progress, clock: Clock) -> Aligned:
    """Fit the connector to the words of its images; the language model is not run.

    Raises:
        RecipeError: the tower is not frozen.
        DataError: there are no described images.
    """
    section = recipe.alignment
    model: Any = parts.base
    if section is None or parts.features is None:
        raise RecipeError("alignment needs a vision tower that is frozen before training")
    if describes_by_answers(recipe.data, section.text):
        progress("data", 1, 1, "alignment: by the words of answers and questions, not of captions")
    pairs = load_captions(recipe.data, section.text)
    with clock.stage("vision_features"):
        keys = parts.features.fill(
            [image for image, _ in pairs],
            lambda done, total: progress("features", done, total, "images"),
        )
    store, device = parts.features, next(model.connector.parameters()).device
    tokenizer = parts.encoder.tokenizer
    vocabulary = build_vocabulary(
        [caption for _, caption in pairs],
        lambda word: tokenizer(word, add_special_tokens=False)["input_ids"],
        model.get_input_embeddings().weight.detach(),
    )
    with clock.stage("alignment"):
        losses = align_connector(
            model.connector,
            vocabulary,
            lambda chosen: store.lookup([keys[index] for index in chosen]).to(device),
            steps=section.steps,
            batch_size=section.batch_size,
            learning_rate=section.learning_rate,
            scale=section.scale,
            seed=recipe.seed,
            progress=progress,
        )
    if isinstance(model.connector, PlainMLP):  # a cosine leaves the tokens' size to chance
        shown = store.lookup(keys[: section.batch_size]).to(device)
        model.connector.enter_at(embedding_scale(model.get_input_embeddings()), shown)
    return Aligned(
        loss=sum(losses[-100:]) / len(losses[-100:]),
        seconds=clock.seconds()["alignment"],
        num_images=section.steps * section.batch_size,
        num_words=len(vocabulary.embeddings),
    )


def alignment_loss(
    visual_tokens: torch.Tensor,
    word_embeddings: torch.Tensor,
    targets: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """The mean over images and their words of `-log p(word)`, a scalar."""
    return -(targets * word_log_probabilities(visual_tokens, word_embeddings, scale)).sum(1).mean()


def align_connector(
    connector: nn.Module,
    vocabulary: Vocabulary,
    features: Callable[[list[int]], torch.Tensor],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    scale: float,
    seed: int,
    progress: Progress = silent,
) -> list[float]:
    """Train a connector to speak the words of its images. The language model never runs.

    Args:
        connector: features [N, K, C] -> visual tokens [N, V, D]; trained in place, in float32.
        vocabulary: of the images' descriptions.
        features: image indices -> features [N, K, C], on the connector's device.
        steps: optimiser steps (AdamW, one-cycle cosine from `learning_rate` to 0).
        batch_size: images a step.
        learning_rate: its peak.
        scale: the factor on the cosine.
        seed: of the order of images.
        progress: called with the stage "align", and the loss as its note.

    Returns:
        the loss at every step.

    Raises:
        RunError: the loss or its gradient is no number; the connector is as before that step.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(connector.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = _one_cycle(optimizer, steps)
    losses = []
    for step in range(steps):
        chosen = torch.randint(len(vocabulary.targets), (batch_size,), generator=generator)
        tokens = connector(features(chosen.tolist()).float())
        targets = vocabulary.targets[chosen].to(tokens.device)
        loss = alignment_loss(tokens, vocabulary.embeddings, targets, scale)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(connector.parameters(), math.inf)
        if not is_finite(loss.detach(), norm):
            where = f"alignment step {step + 1} of {steps}"
            raise _not_finite(where, loss, norm, chosen, learning_rate)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress("align", step + 1, steps, f"loss {losses[-1]:.3f}")
    return losses


def _one_cycle(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Rise for a twentieth of the steps, and fall as a cosine does to 0."""
    warmup = max(1, steps // 20)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))),
    )


def _not_finite(
    where: str,
    loss: torch.Tensor,
    norm: torch.Tensor,
    images: torch.Tensor,
    learning_rate: float,
) -> RunError:
    return not_finite(
        f"{where}: the loss is {loss.item()} and the norm of its gradient {norm.item()}",
        f"images {images.tolist()[:8]}",
        fixes=[
            f"lower alignment.learning_rate (it is {learning_rate:g})",
            "look for infinite numbers in the vision tower's weights",
        ],
    )
