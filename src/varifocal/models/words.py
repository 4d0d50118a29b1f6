"""The words that visual tokens say: a distribution over a vocabulary for each token.

Each visual token v says word w with probability `softmax_w(scale cos(v, embedding_w))`, with the
language model's frozen input embeddings. An image's probability of a word is the mean over its
visual tokens.

Legend: N images, V visual tokens, D language width, W words.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from varifocal.errors import DataError

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


def check_descriptions(descriptions: Sequence[str], minimum_count: int = 2) -> None:
    """Refuse descriptions of which `build_vocabulary` can take no word.

    Raises:
        DataError: no word is left.
    """
    _telling_words([words_of(description) for description in descriptions], minimum_count)


def _telling_words(bags: Sequence[Sequence[str]], minimum_count: int) -> list[str]:
    """Return the words that several descriptions have and others have not."""
    counts = Counter(word for bag in bags for word in bag)
    words = [word for word, count in counts.items() if minimum_count <= count < len(bags)]
    if not words:
        raise DataError(
            "alignment: no word is shared by some descriptions and absent from others; describe "
            "more images, or set alignment to null"
        )
    return words


def build_vocabulary(
    descriptions: Sequence[str],
    token_ids: Callable[[str], list[int]],
    embedding: torch.Tensor,
    minimum_count: int = 2,
) -> Vocabulary:
    """Collect the descriptions' words with their frozen embeddings.

    A word that stands in every description tells no images apart, and is left out.

    Args:
        descriptions: one per image.
        token_ids: the tokenizer's ids of a text, without special tokens.
        embedding: the language model's input embedding [vocabulary, D].
        minimum_count: words rarer than this are left out.

    Raises:
        DataError: no word is left.
    """
    bags = [words_of(description) for description in descriptions]
    words = _telling_words(bags, minimum_count)
    index = {word: i for i, word in enumerate(words)}
    targets = torch.zeros(len(bags), len(words))
    for row, bag in enumerate(bags):
        targets[row, [index[word] for word in bag if word in index]] = 1.0
    targets /= targets.sum(1, keepdim=True).clamp_min(1.0)
    return Vocabulary(words, embed_words(words, token_ids, embedding), targets)


def embed_words(
    words: Sequence[str], token_ids: Callable[[str], list[int]], embedding: torch.Tensor
) -> torch.Tensor:
    """Return each word's input embedding after a blank, [W, D] of unit length.

    Args:
        words: a word of several tokens takes their mean.
        token_ids: the tokenizer's ids of a text, without special tokens.
        embedding: the language model's input embedding [vocabulary, D].
    """
    vectors = [embedding[torch.tensor(token_ids(f" {word}"))].float().mean(0) for word in words]
    return F.normalize(torch.stack(vectors), dim=1)


def token_log_probabilities(
    visual_tokens: torch.Tensor, word_embeddings: torch.Tensor, scale: float
) -> torch.Tensor:
    """Say how likely each visual token is to speak each word.

    Args:
        visual_tokens: [N, V, D].
        word_embeddings: [W, D], unit length.
        scale: the factor on the cosine (20 in our experiments).

    Returns:
        softmax_w(scale cos(v, w)) as logarithms, [N, V, W].
    """
    visual_tokens = visual_tokens.to(torch.promote_types(visual_tokens.dtype, torch.float32))
    cosine = F.normalize(visual_tokens, dim=-1) @ word_embeddings.T
    return F.log_softmax(scale * cosine, dim=-1)


def word_log_probabilities(
    visual_tokens: torch.Tensor, word_embeddings: torch.Tensor, scale: float
) -> torch.Tensor:
    """Say how likely an image is to speak each word; see `token_log_probabilities`.

    Returns:
        log of the mean over visual tokens of their probabilities, [N, W].
    """
    by_token = token_log_probabilities(visual_tokens, word_embeddings, scale)
    return torch.logsumexp(by_token, dim=1) - math.log(visual_tokens.shape[1])
