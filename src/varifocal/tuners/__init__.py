"""Parameter-efficient methods as PEFT plugins; imports nothing else of Varifocal.

Importing it registers `MMAConfig` and `MixLoraConfig` with PEFT.
"""

from .mixlora import (
    Load,
    MixLoraConfig,
    MixLoraLayer,
    MixLoraModel,
    RoutingRecord,
    balance_loss,
    factor_load,
    record_routing,
)
from .mma import MMAConfig, MMALayer, MMAModel, routing_table

__all__ = [
    "Load",
    "MMAConfig",
    "MMALayer",
    "MMAModel",
    "MixLoraConfig",
    "MixLoraLayer",
    "MixLoraModel",
    "RoutingRecord",
    "balance_loss",
    "factor_load",
    "record_routing",
    "routing_table",
]
