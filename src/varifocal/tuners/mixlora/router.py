"""How an instance chooses its factors: the routers, and what a choice is worth in the product.

Dimensions: B rows, G routing groups, D width of a linear's input, E factors, R chosen ones (r).
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import MixLoraConfig


@dataclass(frozen=True)
class FactorChoice:
    """The factors that routing groups use at one linear.

    Attributes:
        factors_a: [B, G, R] indices into A's pool, best first.
        factors_b: [B, G, R] indices into B's pool, best first; the i-th is paired with the i-th
            of `factors_a`.
        weights: [B, G, R], factor on each pair; None: all 1.
        scores_a: [B, G, E], p_A; None where factors are drawn.
        scores_b: [B, G, E], p_B, which adds up to 1 + R with the conditional router, and to 2 with
            the reference's.
    """

    factors_a: Tensor
    factors_b: Tensor
    weights: Tensor | None = None
    scores_a: Tensor | None = None
    scores_b: Tensor | None = None

    def detached(self) -> "FactorChoice":
        """Return the same without a graph."""
        return replace(
            self, **{n: None if t is None else t.detach() for n, t in vars(self).items()}
        )

    def rows(self, index: Tensor) -> "FactorChoice":
        """Take rows of the batch, as a cache that is reordered."""
        tensors = {n: None if t is None else t[index.to(t.device)] for n, t in vars(self).items()}
        return replace(self, **tensors)


class Router(nn.Module):
    """The routers of one linear.

    Implements MixLoRA's independent and conditional factor selection (arXiv 2402.15896). With h
    the mean input of an instance's deciding tokens, A[i] its i-th chosen factor of A:

        p_A = softmax(W_A h)                                        IFS
        p_B = softmax(W_B h) + sum_i softmax(A[i] W_AB[i])          IFS + CFS, late fusion

    and the top r of each are chosen, best first. Computed in float32 at least, whatever the model
    runs in.

    With `conditional="reference"` the second line is that of the authors' public code, in which
    A[i] and W_AB[i] are summed over their inputs each on its own, and a second softmax follows:

        p_B = softmax(W_B h) + softmax(sum_i softmax(sum(A[i]) * (column sums of W_AB[i])))

    `independent_a`, `independent_b`: W_A, W_B [E, D]; `conditional`: W_AB [R, D, E] or None. They
    are parameters where gradients reach them, buffers where none can ("hard").

    Args:
        width: D.
        config: sizes, `conditional` and `selection` are read.
    """

    independent_a: Tensor
    independent_b: Tensor
    conditional: Tensor | None

    def __init__(self, width: int, config: MixLoraConfig) -> None:
        super().__init__()
        self._as_reference = config.conditional == "reference"
        shape = (config.num_factors, width)
        self._hold("independent_a", torch.empty(shape), config)
        self._hold("independent_b", torch.empty(shape), config)
        conditional = torch.empty(config.rank, width, config.num_factors)
        self._hold("conditional", conditional if config.conditional else None, config)
        bound = width**-0.5  # what nn.Linear starts from
        for tensor in (self.independent_a, self.independent_b, self.conditional):
            if tensor is not None:
                nn.init.uniform_(tensor, -bound, bound)

    def forward(self, h: Tensor, pool: Tensor, rank: int) -> FactorChoice:
        """Choose for routing means h [B, G, D], with A's pool [E, D]."""
        dtype = torch.promote_types(h.dtype, torch.float32)
        with torch.autocast(h.device.type, enabled=False):
            flat = h.flatten(0, 1).to(dtype)
            scores_a = torch.softmax(F.linear(flat, self.independent_a.to(dtype)), dim=-1)
            factors_a = scores_a.topk(rank, dim=-1).indices
            scores_b = torch.softmax(F.linear(flat, self.independent_b.to(dtype)), dim=-1)
            if self.conditional is not None:
                scores_b = scores_b + self._conditioned(factors_a, pool.to(dtype))
            factors_b = scores_b.topk(rank, dim=-1).indices
        by_token = (factors_a, factors_b, scores_a, scores_b)
        factors_a, factors_b, scores_a, scores_b = (t.unflatten(0, h.shape[:2]) for t in by_token)
        return FactorChoice(factors_a, factors_b, None, scores_a, scores_b)

    def _conditioned(self, factors_a: Tensor, pool: Tensor) -> Tensor:
        """Sum the conditional scores [N, E] of chosen factors [N, R].

        A factor's scores in a place i do not depend on the instance: they are a table [R, E, E],
        computed once, in which each instance looks its R rows up.
        """
        assert self.conditional is not None
        weight = self.conditional.to(pool.dtype)
        if self._as_reference:
            logits = pool.sum(dim=-1)[None, :, None] * weight.sum(dim=1)[:, None, :]
        else:
            logits = torch.bmm(pool.expand(len(weight), -1, -1), weight)
        table = torch.softmax(logits, dim=-1)
        picked = F.one_hot(factors_a, len(pool)).to(pool.dtype)  # [N, R, E]
        scores = picked.flatten(-2) @ table.flatten(0, 1)
        return torch.softmax(scores, dim=-1) if self._as_reference else scores

    def _hold(self, name: str, tensor: Tensor | None, config: MixLoraConfig) -> None:
        if config.routed_by_learning and tensor is not None:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)


def weigh_pairs(choice: FactorChoice, selection: str) -> FactorChoice:
    """Give a choice the weights of its pairs.

    A chosen factor's weight is r times its share of the chosen factors' scores, so that equal
    scores weigh 1, and a pair's weight is the product of its two factors'. "straight_through" has
    the value 1 and this gradient.
    """
    if choice.scores_a is None or choice.scores_b is None or selection == "hard":
        return choice
    of_a = _shares(choice.scores_a, choice.factors_a)
    weights = of_a * _shares(choice.scores_b, choice.factors_b)
    if selection == "straight_through":
        weights = (weights - weights.detach()) + 1
    return replace(choice, weights=weights)


def draw_factors(
    shape: tuple[int, int], num_factors: int, rank: int, device: torch.device
) -> FactorChoice:
    """Draw factors for B x G groups, each set of r as likely as any other."""
    noise = torch.rand(2, *shape, num_factors, device=device)
    factors_a, factors_b = noise.topk(rank, dim=-1).indices
    return FactorChoice(factors_a, factors_b)


def balance_term(choice: FactorChoice, valid: Tensor) -> Tensor:
    """Measure how unevenly a batch loads the factors: 1 if evenly, up to E / r if by one set.

    The loss of Switch Transformers (arXiv 2101.03961, equation 4) for A and for B, averaged:
    `E * sum_e f_e P_e`, f_e the share of the choices that fell on factor e (no gradient), P_e its
    mean score, normalised.

    Args:
        choice: of all groups of a batch, with scores.
        valid: [B, G], 0 for groups that nobody decides for.
    """
    assert choice.scores_a is not None
    assert choice.scores_b is not None
    terms = []
    for scores, factors in (
        (choice.scores_a, choice.factors_a),
        (choice.scores_b, choice.factors_b),
    ):
        num_factors = scores.shape[-1]
        weight = valid.to(scores.dtype)[..., None] / valid.sum().clamp(min=1)  # [B, G, 1]
        chosen = F.one_hot(factors, num_factors).to(scores.dtype).mean(dim=-2)
        load = (chosen * weight).sum(dim=(0, 1))
        mean = (scores / scores.sum(dim=-1, keepdim=True) * weight).sum(dim=(0, 1))
        terms.append(num_factors * (load * mean).sum())
    return torch.stack(terms).mean()


def _shares(scores: Tensor, factors: Tensor) -> Tensor:
    chosen = scores.gather(-1, factors)
    return factors.shape[-1] * chosen / chosen.sum(dim=-1, keepdim=True)
