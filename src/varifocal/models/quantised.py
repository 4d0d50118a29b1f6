"""A frozen language model whose linear layers are held in 4 or 8 bits, by bitsandbytes.

NF4 with double quantisation is QLoRA's (arXiv 2305.14314) and LaVIN-lite's; int8 is LLM.int8's
(arXiv 2208.07339), which rounds what goes into a layer too.
"""

from typing import Any, cast

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from varifocal.errors import ModelError
from varifocal.recipe import ModelSection

_NO_LANGUAGE = r".*\b(vision_tower|vision_model|visual|multi_modal_projector|connector)"


def quantisation(section: ModelSection, *, is_vision_language: bool) -> BitsAndBytesConfig:
    """Return bitsandbytes' settings for `model.quantization`.

    Args:
        section: with a `quantization`.
        is_vision_language: the model has a tower and a projector, which stay as they are: images
            are few, and a projector is trained. The head always stays.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ModelError(
            f"model.quantization: {section.quantization} needs bitsandbytes;"
            " run: pip install 'varifocal[quant]'"
        ) from error
    kept = (
        ["lm_head", _NO_LANGUAGE] if is_vision_language else None
    )  # None: transformers finds the head
    if section.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, section.dtype),
        llm_int8_skip_modules=kept,
    )


def keep_weights(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew when they are first used without gradients.

    On a CPU with AVX512-BF16 it packs them, and rounds their scales, at the first look in
    evaluation mode, and does not undo it for the next training step, whose gradient would end
    there without a word. Kept as they are, the weights that are asked are those that were trained.
    """
    for module in cast(Any, model).modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
