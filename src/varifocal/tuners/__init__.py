"""Parameter-efficient methods as PEFT plugins; imports nothing else of Varifocal.

Importing it registers `MMAConfig`, `MixLoraConfig`, `LoraExpertsConfig` and `ImageLoraConfig` with
PEFT.
"""

from .image_lora import ImageLoraConfig, ImageLoraModel
from .lora_experts import LoraExpertsConfig, LoraExpertsLayer
from .mixlora import (
    Load,
    MixLoraConfig,
    MixLoraLayer,
    MixLoraModel,
    RoutedLora,
    RoutingRecord,
    balance_loss,
    factor_load,
    record_routing,
    route,
    save_routed,
)
from .mma import MMAConfig, MMALayer, MMAModel, routing_table
from .modality import text_is_base

__all__ = [
    "ImageLoraConfig",
    "ImageLoraModel",
    "Load",
    "LoraExpertsConfig",
    "LoraExpertsLayer",
    "MMAConfig",
    "MMALayer",
    "MMAModel",
    "MixLoraConfig",
    "MixLoraLayer",
    "MixLoraModel",
    "RoutedLora",
    "RoutingRecord",
    "balance_loss",
    "factor_load",
    "record_routing",
    "route",
    "routing_table",
    "save_routed",
    "text_is_base",
]
