"""Mixture-of-Modality Adaptation (LaVIN, arXiv 2305.15023) as a PEFT method.

Importing it registers `MMAConfig` with PEFT.
"""

from ..plugin import register
from .config import MMAConfig
from .layer import MMALayer
from .model import MMAModel, routing_table

register("mma", MMAConfig, MMAModel)

__all__ = ["MMAConfig", "MMALayer", "MMAModel", "routing_table"]
