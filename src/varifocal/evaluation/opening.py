"""From the name of a run or a model to what can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from varifocal.assemble import is_whole, open_model, open_whole, weights_fingerprint
from varifocal.evaluation.asking import Asker, EncodedAsker
from varifocal.evaluation.whole import WholeAsker


@dataclass(frozen=True)
class Opened:
    """A model, ready to be asked.

    Attributes:
        asker: what asks it.
        fingerprint: SHA-256 over all its weights, an adapter's included.
        seed: of the run's recipe; 0 for a model.
    """

    asker: Asker
    fingerprint: str | None
    seed: int


def open_asker(name: str, adapter: Path | None = None, dtype: str = "float32") -> Opened:
    """Open a run, a language model or a vision-language model.

    Args:
        name: a run directory, a packaged model, a local directory, or a hub id.
        adapter: PEFT's files to put around a model.
        dtype: number format of the frozen weights.

    Raises:
        RunError, ModelError: as `open_model`.
    """
    if is_whole(name):
        whole = open_whole(name, adapter, dtype=dtype)
        return Opened(WholeAsker(whole), weights_fingerprint(name, whole, adapter), 0)
    recipe, parts = open_model(name, adapter, dtype=dtype)
    return Opened(EncodedAsker(parts), weights_fingerprint(name, parts, adapter), recipe.seed)
