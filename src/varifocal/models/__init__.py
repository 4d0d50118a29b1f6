"""Grafted models: a language model, a vision tower and the connector between them.

The names below are imported when they are first used, since `models.names` is needed without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varifocal.models.connector import ClsPyramid, Connector, PatchMLP, build_connector
    from varifocal.models.efficientnet import EfficientNetLite, EfficientNetLiteConfig
    from varifocal.models.families.base import connector_name
    from varifocal.models.grafted import GraftedConfig, GraftedForConditionalGeneration, graft
    from varifocal.models.load import LoadedModel, load_model
    from varifocal.models.processor import GraftedProcessor
    from varifocal.models.vision import VisionTower, build_tower

_MODULES = {
    "ClsPyramid": "connector",
    "Connector": "connector",
    "EfficientNetLite": "efficientnet",
    "EfficientNetLiteConfig": "efficientnet",
    "GraftedConfig": "grafted",
    "GraftedForConditionalGeneration": "grafted",
    "GraftedProcessor": "processor",
    "LoadedModel": "load",
    "PatchMLP": "connector",
    "VisionTower": "vision",
    "build_connector": "connector",
    "build_tower": "vision",
    "connector_name": "families.base",
    "graft": "grafted",
    "load_model": "load",
}

__all__ = [
    "ClsPyramid",
    "Connector",
    "EfficientNetLite",
    "EfficientNetLiteConfig",
    "GraftedConfig",
    "GraftedForConditionalGeneration",
    "GraftedProcessor",
    "LoadedModel",
    "PatchMLP",
    "VisionTower",
    "build_connector",
    "build_tower",
    "connector_name",
    "graft",
    "load_model",
]


def __getattr__(name: str) -> Any:
    """Import a name from its module when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'varifocal.models' has no attribute '{name}'")
    return getattr(importlib.import_module(f"varifocal.models.{_MODULES[name]}"), name)
