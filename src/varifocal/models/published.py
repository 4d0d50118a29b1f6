"""Configs of a few published models, to count them where neither their files nor a hub is near.

Only meta builds (`plan`) use these, and only when the real config cannot be had. Values are those
of the models' papers and model cards: LLaMA (arXiv 2302.13971, table 2) and Vicuna v1.3 (the same
shapes), Llama 2 and Vicuna v1.5 (the same, 4,096 positions), CLIP (arXiv 2103.00020, table 20;
OpenAI's released ViT-L/14), LLaVA 1.5 (Vicuna's shapes, and 64 more words in its vocabulary).
"""

from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, PreTrainedConfig

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
_LLAMA_7B = LlamaConfig(**_LLAMA, **_7B)
_LLAMA2: dict[str, Any] = {**_LLAMA, **_7B, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
_LLAMA2_7B = LlamaConfig(**_LLAMA2)
_LLAMA_13B = LlamaConfig(
    **_LLAMA,
    hidden_size=5120,
    intermediate_size=13824,
    num_hidden_layers=40,
    num_attention_heads=40,
)
_LLAMA2_70B = LlamaConfig(
    **{**_LLAMA, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
)
_VIT_L14: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
_CLIP_L14 = CLIPVisionConfig(**_VIT_L14, image_size=224)
_CLIP_L14_336 = CLIPVisionConfig(**_VIT_L14, image_size=336)
_LLAVA_7B = LlavaConfig(
    text_config=LlamaConfig(**{**_LLAMA2, "vocab_size": 32064}),
    vision_config=_CLIP_L14_336,
    image_token_index=32000,
    projector_hidden_act="gelu",
    vision_feature_select_strategy="default",
    vision_feature_layer=-2,
)

PUBLISHED: dict[str, PreTrainedConfig] = {
    "huggyllama/llama-7b": _LLAMA_7B,
    "huggyllama/llama-13b": _LLAMA_13B,
    "meta-llama/Llama-2-7b-hf": _LLAMA2_7B,
    "meta-llama/Llama-2-70b-hf": _LLAMA2_70B,
    "lmsys/vicuna-7b-v1.3": _LLAMA_7B,
    "lmsys/vicuna-7b-v1.5": _LLAMA2_7B,
    "llava-hf/llava-1.5-7b-hf": _LLAVA_7B,
    "openai/clip-vit-large-patch14": _CLIP_L14,
    "openai/clip-vit-large-patch14-336": _CLIP_L14_336,
}
"""Hub id -> config."""
