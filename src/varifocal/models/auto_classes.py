"""Register Varifocal's models and attention with transformers when this is imported."""

from varifocal.models import efficientnet, grafted, processor, segment_attention

__all__ = ["efficientnet", "grafted", "processor"]

segment_attention.register()
