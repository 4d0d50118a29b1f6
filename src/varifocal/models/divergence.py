"""How far a model's next-token distribution is from one of which the likeliest tokens are known.

Legend: P positions, V vocabulary, K likeliest tokens of the reference.
"""

import torch
from torch import Tensor


def top_k_log_probs(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Reduce distributions to their likeliest tokens and a bucket for all others.

    Args:
        logits: [P, V].
        top_k: K; V - 1 at most are taken, so that the bucket is never empty.

    Returns:
        ids [P, K], and log probabilities [P, K + 1] in float32, the bucket's last.
    """
    logits = logits.float()
    ids = logits.topk(min(top_k, logits.shape[-1] - 1), dim=-1).indices
    return ids, bucketed_log_probs(logits, ids)


def bucketed_log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """Return log probabilities of some tokens, and of all others together: [P, K + 1].

    The bucket is summed over the other logits themselves: one minus the tokens' sum would be lost
    to rounding where a model is sure.

    Args:
        logits: [P, V].
        ids: [P, K], each once a row, K below V.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    others = logits.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, ids), others], -1) - logits.logsumexp(-1, keepdim=True)


def reference_divergence(logits: Tensor, ids: Tensor, log_probs: Tensor) -> Tensor:
    """Sum the divergence of a model from a reference, KL(reference || model), over positions.

    With p the reference, q the model, S the K known tokens and p_rest = 1 - sum over S of p:

        KL = sum over S of p log(p / q) + p_rest log(p_rest / q_rest)

    It is the divergence of the two distributions after all tokens outside S are joined into one,
    so at most that over the whole vocabulary, equal to it for K = V - 1, and 0 where p and q agree
    on S.

    Args:
        logits: the model's, [P, V].
        ids: S, [P, K].
        log_probs: the reference's, [P, K + 1], as `bucketed_log_probs` has them.
    """
    predicted = bucketed_log_probs(logits, ids)
    log_probs = log_probs.to(predicted.dtype)
    return (log_probs.exp() * (log_probs - predicted)).sum()
