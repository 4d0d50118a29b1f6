"""Word alignment: teach a connector to speak the language model's words, without running it.

For a picture with a true description, each visual token v gives a distribution over the
descriptions' vocabulary, `softmax_w(scale cos(v, embedding_w))`, with the language model's frozen
input embeddings. The picture's probability of a word is the mean over its visual tokens; the loss
is the mean of `-log p(word)` over the words of its description. Only the connector learns, on
features that are computed once, so thousands of steps cost a minute or two on a CPU.

Relatives: VLAP (visual features assigned to word embeddings), LangBridge (arXiv 2503.19404).

Legend: N pictures, K cells a picture, C tower width, V visual tokens, D language width, W words.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from varifocal.errors import DataError, RunError
from varifocal.training.finite import is_finite, not_finite

WORD = re.compile(r"[^\W\d_]+|\d+")


@dataclass(frozen=True)
class Vocabulary:
    """The words of a set of descriptions.

    Args:
        words: in order of first appearance.
        embeddings: [W, D], unit length: each word's frozen input embedding (the mean over its
            tokens where it has several).
        targets: [N, W], each description's words with equal shares that sum to 1.
    """

    words: list[str]
    embeddings: torch.Tensor
    targets: torch.Tensor


def words_of(description: str) -> list[str]:
    """The distinct words of a description, in order.

    >>> words_of("A red ball and a red cube.")
    ['a', 'red', 'ball', 'and', 'cube']
    """
    return list(dict.fromkeys(WORD.findall(description.lower())))


def build_vocabulary(
    descriptions: Sequence[str],
    token_ids: Callable[[str], list[int]],
    embedding: torch.Tensor,
    minimum_count: int = 2,
) -> Vocabulary:
    """Collect the descriptions' words with their frozen embeddings.

    A word that stands in every description tells no pictures apart, and is left out.

    Args:
        descriptions: one per picture.
        token_ids: the tokenizer's ids of a text, without special tokens.
        embedding: the language model's input embedding [vocabulary, D].
        minimum_count: words rarer than this are left out.

    Raises:
        DataError: no word is left.
    """
    bags = [words_of(description) for description in descriptions]
    counts = Counter(word for bag in bags for word in bag)
    words = [word for word, count in counts.items() if minimum_count <= count < len(bags)]
    if not words:
        raise DataError(
            "connector.alignment: words finds no word that some descriptions share and others "
            "lack; describe more pictures, or set model.connector.alignment to null"
        )
    index = {word: i for i, word in enumerate(words)}
    vectors = torch.stack(
        [embedding[torch.tensor(token_ids(f" {word}"))].float().mean(0) for word in words]
    )
    targets = torch.zeros(len(bags), len(words))
    for row, bag in enumerate(bags):
        targets[row, [index[word] for word in bag if word in index]] = 1.0
    targets /= targets.sum(1, keepdim=True).clamp_min(1.0)
    return Vocabulary(words, F.normalize(vectors, dim=1), targets)


def word_log_probabilities(
    visual_tokens: torch.Tensor, word_embeddings: torch.Tensor, scale: float
) -> torch.Tensor:
    """Say how likely a picture is to speak each word.

    Args:
        visual_tokens: [N, V, D].
        word_embeddings: [W, D], unit length.
        scale: the factor on the cosine (20 in our experiments).

    Returns:
        log of the mean over visual tokens of softmax_w(scale cos(v, w)), [N, W].
    """
    visual_tokens = visual_tokens.to(torch.promote_types(visual_tokens.dtype, torch.float32))
    cosine = F.normalize(visual_tokens, dim=-1) @ word_embeddings.T  # [N, V, W]
    by_token = F.log_softmax(scale * cosine, dim=-1)
    return torch.logsumexp(by_token, dim=1) - math.log(visual_tokens.shape[1])


def alignment_loss(
    visual_tokens: torch.Tensor,
    word_embeddings: torch.Tensor,
    targets: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """The mean over pictures and their words of `-log p(word)`, a scalar."""
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
    progress: Callable[[int, int, float], None] | None = None,
) -> list[float]:
    """Train a connector to speak the words of its pictures. The language model never runs.

    Args:
        connector: features [N, K, C] -> visual tokens [N, V, D]; trained in place, in float32.
        vocabulary: of the pictures' descriptions.
        features: picture indices -> features [N, K, C].
        steps: optimiser steps (AdamW, one-cycle cosine from `learning_rate` to 0).
        batch_size: pictures a step.
        learning_rate: its peak.
        scale: the factor on the cosine.
        seed: of the order of pictures.
        progress: called with (done, total, loss).

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
        loss = alignment_loss(tokens, vocabulary.embeddings, vocabulary.targets[chosen], scale)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(connector.parameters(), math.inf)
        if not is_finite(loss.detach(), norm):
            where = f"alignment step {step + 1} of {steps}"
            raise _not_finite(where, loss, norm, chosen, learning_rate)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if progress is not None:
            progress(step + 1, steps, losses[-1])
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
    pictures: torch.Tensor,
    learning_rate: float,
) -> RunError:
    return not_finite(
        f"{where}: the loss is {loss.item()} and the norm of its gradient {norm.item()}",
        f"pictures {pictures.tolist()[:8]}",
        mends=[
            f"lower model.connector.alignment_learning_rate (it is {learning_rate:g})",
            "look for infinite numbers in the vision tower's weights",
        ],
    )
