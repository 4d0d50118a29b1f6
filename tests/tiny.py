"""The small parts that tests are made of: a tokenizer of bytes and random models over it."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from varifocal.models.vision import TransformersTower

TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def byte_tokenizer(*, image_token=None, ids_are_bytes=False):
    """One token a character of GPT-2's byte alphabet, and the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if ids_are_bytes:
        letters = bytes_to_unicode()
        alphabet = [letters[byte] for byte in range(256)]
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    if image_token is not None:
        tokenizer.add_special_tokens({"additional_special_tokens": [image_token]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def llama_config(tokenizer, **changes):
    """Two layers of width 32, unless `changes` says otherwise."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    }
    ends = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id")}
    return LlamaConfig(vocab_size=len(tokenizer), **{**sizes, **ends, **changes})


def clip_tower():
    """Two blocks over four patches of 4 x 4 pixels."""
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    return TransformersTower(CLIPVisionModel(config))
