"""Grafted models: a language model, a vision tower and the connector between them."""

from varifocal.models.connector import ClsPyramid, Connector, PatchMLP, build_connector
from varifocal.models.efficientnet import EfficientNetLite, EfficientNetLiteConfig
from varifocal.models.grafted import GraftedConfig, GraftedForConditionalGeneration, graft
from varifocal.models.llava import connector_name
from varifocal.models.load import LoadedModel, load_model
from varifocal.models.processor import GraftedProcessor
from varifocal.models.vision import VisionTower, build_tower

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
