"""Reading a GGUF file: against the model that was written into it by llama.cpp's rules."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from varifocal.errors import ModelError
from varifocal.models.packaged_weights import convert_gguf

gguf = pytest.importorskip("gguf")

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "h", "i", "hi", "Ġ", "1", "2", "ĠĠ"]
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
}


def as_llama_cpp_stores_it(weight, heads):
    """llama.cpp's rotary embedding turns neighbouring rows; transformers', rows half apart."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_file(path, model, pre="smollm"):
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_context_length(128)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * 7])
    writer.add_token_merges(["h i", "Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name.startswith("lm_head"):
            continue
        module, _, kind = name.rpartition(".")
        prefix = ""
        if module.startswith("model.layers."):
            _, _, block, module = module.split(".", 3)
            prefix = f"blk.{block}."
        array = tensor.numpy()
        if NAMES[module] in heads:
            array = as_llama_cpp_stores_it(array, heads[NAMES[module]])
        writer.add_tensor(f"{prefix}{NAMES[module]}.{kind}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def llama(make_llama):
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    return make_llama(
        vocab_size=len(TOKENS), tie_word_embeddings=True, rope_parameters=rope, rms_norm_eps=1e-5
    )


def test_the_model_comes_out_as_it_went_in(llama, tmp_path):
    write_file(tmp_path / "model.gguf", llama)
    target = tmp_path / "converted"
    target.mkdir()
    convert_gguf(tmp_path / "model.gguf", target, torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(target)
    for name, weight in llama.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    ids = torch.tensor([[1, 3, 4, 5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, llama(ids).logits)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert (loaded.generation_config.eos_token_id, loaded.generation_config.pad_token_id) == (2, 2)


def test_the_tokenizer_is_the_one_the_file_names(llama, tmp_path):
    write_file(tmp_path / "model.gguf", llama)
    target = tmp_path / "converted"
    target.mkdir()
    convert_gguf(tmp_path / "model.gguf", target, torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer.convert_ids_to_tokens(tokenizer("hi  12").input_ids) == [
        "hi",
        "ĠĠ",
        "1",
        "2",
    ]  # GPT-2's own pre-tokenizer would split the spaces: "Ġ", "Ġ12"
    assert tokenizer("<|im_start|>hi<|im_end|>").input_ids == [1, 5, 2]
    assert tokenizer.decode([5, 9, 7, 8]) == "hi  12"
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.model_max_length == 128
    turns = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "hi"


def test_other_files_are_refused(llama, tmp_path):
    write_file(tmp_path / "model.gguf", llama, pre="llama-bpe")
    with pytest.raises(ModelError, match=r"model\.gguf: .*'llama-bpe'\), not llama and smollm"):
        convert_gguf(tmp_path / "model.gguf", tmp_path, torch.float32)
