"""The loss of supervised tokens, for training and for looking into a trained model.

Legend: B rows, T tokens, S supervised positions, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

IGNORED = -100
"""The label of a token without a loss."""


def supervised_loss(
    model: nn.Module, batch: Mapping[str, Any], num_items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross-entropy of the next token at supervised positions; no other logits are computed.

    Args:
        model: any causal language model of transformers; its `logits_to_keep` takes an index.
        batch: what the model's forward takes, and `labels` [B, T], -100 where there is no loss.
        num_items: what the sum is divided by; the batch's own supervised tokens when None.

    Returns:
        the loss, a scalar in float32 (float64 of a float64 model).
    """
    inputs = dict(batch)
    targets = inputs.pop("labels")[:, 1:]
    positions = (targets != IGNORED).any(0).nonzero().squeeze(1)  # [S], of any row
    logits = model(**inputs, logits_to_keep=positions, use_cache=False).logits  # [B, S, V]
    kept = targets[:, positions]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(
        logits.flatten(0, 1), kept.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / (num_items if num_items is not None else (kept != IGNORED).sum().clamp_min(1))
