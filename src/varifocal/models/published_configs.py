"""Configs of published models, to count them where neither their files nor a hub is near.

Only meta builds (`plan`) use these, and only when the real config cannot be had. Values are those
of the models' papers and model cards: LLaMA (arXiv 2302.13971, table 2) and Vicuna v1.3 (the same
shapes), Llama 2 and Vicuna v1.5 (the same, 4,096 positions), CLIP (arXiv 2103.00020, table 20;
OpenAI's released ViT-L/14), LLaVA 1.5 (Vicuna's shapes, and 64 more words in its vocabulary); and
of the config.json files of Llama 3, Qwen 2.5, Qwen 3, SmolLM 2, SmolLM 3, Qwen2-VL and Qwen2.5-VL,
as public repositories quote them. A test holds each against the model's published number of
parameters, to the last one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Published:
    """The values of a config, from which it is built where it is needed.

    Attributes:
        kind: the config's class in transformers.
        values: what the class is called with.
    """

    kind: str
    values: Mapping[str, Any]

    def config(self) -> PreTrainedConfig:
        """Build the config; this imports transformers."""
        import transformers

        return getattr(transformers, self.kind)(**copy.deepcopy(dict(self.values)))


_LLAMA: dict[str, Any] = {
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_7B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
_LLAMA_7B = Published("LlamaConfig", {**_LLAMA, **_7B})
_LLAMA2: dict[str, Any] = {**_LLAMA, **_7B, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
_LLAMA2_7B = Published("LlamaConfig", _LLAMA2)
_13B: dict[str, Any] = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}
_LLAMA_13B = Published("LlamaConfig", {**_LLAMA, **_13B})
_LLAMA2_70B = Published(
    "LlamaConfig",
    {
        **_LLAMA2,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
)
_VIT_L14: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
_VIT_L14_336: dict[str, Any] = {**_VIT_L14, "image_size": 336}
_CLIP_L14 = Published("CLIPVisionConfig", {**_VIT_L14, "image_size": 224})
_CLIP_L14_336 = Published("CLIPVisionConfig", _VIT_L14_336)

_LLAVA_7B = Published(
    "LlavaConfig",
    {
        "text_config": {"model_type": "llama", **_LLAMA2, "vocab_size": 32064},
        "vision_config": {"model_type": "clip_vision_model", **_VIT_L14_336},
        "image_token_index": 32000,
        "projector_hidden_act": "gelu",
        "vision_feature_select_strategy": "default",
        "vision_feature_layer": -2,
    },
)


def _text(layers: int, width: int, inner: int, heads: int, shared: int, **own: Any) -> Any:
    """A decoder's shape: layers, width, its MLP's, heads, and those of keys and values."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        **own,
    }


_LLAMA3_8B = Published(
    "LlamaConfig",
    {
        **_text(32, 4096, 14336, 32, 8, vocab_size=128256, max_position_embeddings=8192),
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
)
_TURNS: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
_QWEN_SMALL: dict[str, Any] = {"vocab_size": 151936, "tie_word_embeddings": True, **_TURNS}
_QWEN_LARGE: dict[str, Any] = {"vocab_size": 152064, **_TURNS}
_QWEN25_15B: dict[str, Any] = _text(28, 1536, 8960, 12, 2, **_QWEN_SMALL)
_QWEN25_3B: dict[str, Any] = _text(36, 2048, 11008, 16, 2, **_QWEN_SMALL)
_QWEN25_7B: dict[str, Any] = _text(28, 3584, 18944, 28, 4, **_QWEN_LARGE)
_QWEN3: dict[str, Any] = {"vocab_size": 151936, "max_position_embeddings": 40960, **_TURNS}
_TIED: dict[str, Any] = {**_QWEN3, "tie_word_embeddings": True}
_SMOLLM2: dict[str, Any] = {
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
_SMOLLM3_3B = Published(
    "SmolLM3Config",
    {
        **_text(36, 2048, 11008, 16, 4, vocab_size=128256, max_position_embeddings=65536),
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
    },
)
_MROPE: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [16, 24, 24],
    },
    "rms_norm_eps": 1e-6,
}


def _qwen2_vl(text: dict[str, Any]) -> Published:
    """Qwen2-VL: a tower of width 1280 whose merger gives the decoder's width."""
    tower = {"depth": 32, "embed_dim": 1280, "hidden_size": text["hidden_size"], "num_heads": 16}
    return Published(
        "Qwen2VLConfig",
        {
            "text_config": {**text, **_MROPE},
            "vision_config": tower,
            "tie_word_embeddings": text.get("tie_word_embeddings", False),
        },
    )


def _qwen25_vl(text: dict[str, Any]) -> Published:
    """Qwen2.5-VL: the same width, windows, and a gated MLP in the tower."""
    tower = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
    return Published(
        "Qwen2_5_VLConfig",
        {
            "text_config": {**text, **_MROPE},
            "vision_config": {**tower, "out_hidden_size": text["hidden_size"]},
            "tie_word_embeddings": text.get("tie_word_embeddings", False),
        },
    )


def _smolvlm(text: dict[str, Any]) -> Published:
    """SmolVLM of its smaller sizes: SigLIP base on tiles of 512 pixels, 16 cells to a token."""
    tower = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    }
    own: dict[str, Any] = {
        "vocab_size": 49280,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
    }
    own["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e5}
    return Published(
        "Idefics3Config",
        {
            "text_config": {"model_type": "llama", **text, **own},
            "vision_config": tower,
            "scale_factor": 4,
            "image_token_id": 49190,
        },
    )


PUBLISHED: dict[str, Published] = {
    "huggyllama/llama-7b": _LLAMA_7B,
    "huggyllama/llama-13b": _LLAMA_13B,
    "meta-llama/Llama-2-7b-hf": _LLAMA2_7B,
    "meta-llama/Llama-2-70b-hf": _LLAMA2_70B,
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA3_8B,
    "lmsys/vicuna-7b-v1.3": _LLAMA_7B,
    "lmsys/vicuna-7b-v1.5": _LLAMA2_7B,
    "lmsys/vicuna-13b-v1.3": _LLAMA_13B,
    "lmsys/vicuna-13b-v1.5": Published("LlamaConfig", {**_LLAMA2, **_13B}),
    "Qwen/Qwen2.5-1.5B-Instruct": Published("Qwen2Config", _QWEN25_15B),
    "Qwen/Qwen2.5-3B-Instruct": Published("Qwen2Config", _QWEN25_3B),
    "Qwen/Qwen2.5-7B-Instruct": Published("Qwen2Config", _QWEN25_7B),
    "Qwen/Qwen3-1.7B": Published("Qwen3Config", _text(28, 2048, 6144, 16, 8, **_TIED)),
    "Qwen/Qwen3-4B": Published("Qwen3Config", _text(36, 2560, 9728, 32, 8, **_TIED)),
    "Qwen/Qwen3-8B": Published("Qwen3Config", _text(36, 4096, 12288, 32, 8, **_QWEN3)),
    "HuggingFaceTB/SmolLM2-360M-Instruct": Published(
        "LlamaConfig", _text(32, 960, 2560, 15, 5, **_SMOLLM2)
    ),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": Published(
        "LlamaConfig", _text(24, 2048, 8192, 32, 32, **_SMOLLM2)
    ),
    "HuggingFaceTB/SmolLM3-3B": _SMOLLM3_3B,
    "llava-hf/llava-1.5-7b-hf": _LLAVA_7B,
    "Qwen/Qwen2-VL-2B-Instruct": _qwen2_vl(_QWEN25_15B),
    "Qwen/Qwen2-VL-7B-Instruct": _qwen2_vl(_QWEN25_7B),
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen25_vl(_QWEN25_3B),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen25_vl(_QWEN25_7B),
    "HuggingFaceTB/SmolVLM-256M-Instruct": _smolvlm(_text(30, 576, 1536, 9, 3)),
    "HuggingFaceTB/SmolVLM-500M-Instruct": _smolvlm(_text(32, 960, 2560, 15, 5)),
    "openai/clip-vit-large-patch14": _CLIP_L14,
    "openai/clip-vit-large-patch14-336": _CLIP_L14_336,
}
"""Hub id -> the values of its config."""
