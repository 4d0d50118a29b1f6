"""Configs of a few published models, to count them where neither their files nor a hub is near.

Only meta builds (`plan`) use these, and only when the real config cannot be had. Values are those
of the models' papers and model cards: LLaMA (arXiv 2302.13971, table 2), CLIP (arXiv 2103.00020,
table 20; OpenAI's released ViT-L/14).
"""

from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedConfig

_LLAMA: dict[str, Any] = {
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_LLAMA_7B = LlamaConfig(
    **_LLAMA,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
)
_LLAMA_13B = LlamaConfig(
    **_LLAMA,
    hidden_size=5120,
    intermediate_size=13824,
    num_hidden_layers=40,
    num_attention_heads=40,
)
_CLIP_L14 = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    patch_size=14,
    image_size=224,
    projection_dim=768,
)

PUBLISHED: dict[str, PreTrainedConfig] = {
    "huggyllama/llama-7b": _LLAMA_7B,
    "huggyllama/llama-13b": _LLAMA_13B,
    "openai/clip-vit-large-patch14": _CLIP_L14,
}
"""Hub id -> config."""
