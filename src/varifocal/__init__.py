"""Varifocal: give a frozen language model eyes.

Importing it registers `MMAConfig`, `MixLoraConfig` and `LoraExpertsConfig` with PEFT and the
grafted model with transformers' Auto classes; torch is imported only when one of them, or a name
below, is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from varifocal.errors import DataError, ModelError, RecipeError, RunError, VarifocalError
from varifocal.registration import check_versions, hush, register_on_import

if TYPE_CHECKING:
    from varifocal.api.checkpoints import export_checkpoint, import_checkpoint
    from varifocal.api.datasets import Dataset, dataset, datasets
    from varifocal.api.jobs import benchmark, compare, evaluate, export, plan, retention, train
    from varifocal.api.model import Model, load
    from varifocal.api.run import Run
    from varifocal.models import (
        GraftedConfig,
        GraftedForConditionalGeneration,
        GraftedProcessor,
        graft,
        load_model,
    )
    from varifocal.recipe import Recipe, load_recipe
    from varifocal.training.tuner import count_parameters
    from varifocal.tuners import LoraExpertsConfig, MixLoraConfig, MMAConfig

_HOMES = {
    "Dataset": "varifocal.api.datasets",
    "Model": "varifocal.api.model",
    "Run": "varifocal.api.run",
    "benchmark": "varifocal.api.jobs",
    "compare": "varifocal.api.jobs",
    "dataset": "varifocal.api.datasets",
    "datasets": "varifocal.api.datasets",
    "evaluate": "varifocal.api.jobs",
    "export": "varifocal.api.jobs",
    "export_checkpoint": "varifocal.api.checkpoints",
    "import_checkpoint": "varifocal.api.checkpoints",
    "load": "varifocal.api.model",
    "plan": "varifocal.api.jobs",
    "retention": "varifocal.api.jobs",
    "train": "varifocal.api.jobs",
    "MMAConfig": "varifocal.tuners",
    "LoraExpertsConfig": "varifocal.tuners",
    "MixLoraConfig": "varifocal.tuners",
    "GraftedConfig": "varifocal.models",
    "GraftedForConditionalGeneration": "varifocal.models",
    "GraftedProcessor": "varifocal.models",
    "graft": "varifocal.models",
    "load_model": "varifocal.models",
    "Recipe": "varifocal.recipe",
    "load_recipe": "varifocal.recipe",
    "count_parameters": "varifocal.training.tuner",
}

__all__ = [
    "DataError",
    "Dataset",
    "GraftedConfig",
    "GraftedForConditionalGeneration",
    "GraftedProcessor",
    "LoraExpertsConfig",
    "MMAConfig",
    "MixLoraConfig",
    "Model",
    "ModelError",
    "Recipe",
    "RecipeError",
    "Run",
    "RunError",
    "VarifocalError",
    "benchmark",
    "compare",
    "count_parameters",
    "dataset",
    "datasets",
    "evaluate",
    "export",
    "export_checkpoint",
    "graft",
    "import_checkpoint",
    "load",
    "load_model",
    "load_recipe",
    "plan",
    "retention",
    "train",
]

__version__ = "0.1.0"

hush()  # before PEFT's import, which imports bitsandbytes
register_on_import()


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'varifocal' has no attribute '{name}'")
    check_versions()
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
