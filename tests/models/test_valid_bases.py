"""Base checkpoints as the public ones are, odd and sound: each loads with the right outputs."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2ForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
)

from varifocal.models import load_model, names
from varifocal.recipe import ModelSection

WEIGHTS = "model.safetensors"
IDS = torch.tensor([[1, 5, 9, 13, 2, 30]])
SIDES = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4}
VISION = {**SIDES, "intermediate_size": 40, "image_size": 28, "patch_size": 7}
TEXT = {**SIDES, "intermediate_size": 40, "vocab_size": 50, "max_position_embeddings": 16}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(names, "hub_is_reachable", lambda: False)


def rewrite(folder, change):
    """Change the dictionary of a checkpoint's tensors."""
    held = load_file(folder / WEIGHTS)
    held = change(held) or held
    save_file({name: each.contiguous() for name, each in held.items()}, folder / WEIGHTS)
    return held


@pytest.fixture
def language(tmp_path, make_tokenizer):
    """Saves a language model with its tokenizer, checks what is loaded from the changed folder."""

    def check(model, change=lambda folder: None, **section):
        folder = tmp_path / "language"
        model.save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        with torch.no_grad():
            wanted = model.eval()(IDS).logits
        change(folder)
        page = {"language_model": str(folder), "dtype": "float32", **section}
        loaded = load_model(ModelSection(**page))
        with torch.no_grad():
            torch.testing.assert_close(loaded.model(IDS).logits, wanted, rtol=0, atol=1e-6)
        return loaded

    return check


def with_old_buffers(held):
    """What LLaMA checkpoints of 2023 hold next to their weights."""
    for layer in range(3):
        held[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)


def test_a_llama_with_rotary_buffers(language, make_llama):
    language(make_llama(), lambda folder: rewrite(folder, with_old_buffers))


def test_a_llama_in_shards_with_an_index(language, make_llama):
    def split(folder):
        held = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        places = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(sorted(held))}
        for shard in set(places.values()):
            save_file({n: held[n] for n, own in places.items() if own == shard}, folder / shard)
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))

    language(make_llama(), split)


def qwen2(tied):
    torch.manual_seed(3)
    sizes = {**TEXT, "vocab_size": 61, "hidden_size": 32, "num_key_value_heads": 2}
    config = Qwen2Config(**sizes, tie_word_embeddings=tied, initializer_range=0.3)
    config.bos_token_id = config.eos_token_id = None
    return Qwen2ForCausalLM(config)


def test_a_tied_qwen2_has_no_head_of_its_own(language):
    def check(folder):
        assert "lm_head.weight" not in load_file(folder / WEIGHTS)

    language(qwen2(tied=True), check)


def test_a_tied_qwen2_that_holds_its_table_twice_or_as_the_head(language):
    def as_head(held):
        held["lm_head.weight"] = held.pop("model.embed_tokens.weight")

    language(qwen2(tied=True), lambda folder: rewrite(folder, as_head))


def test_both_tables_where_they_are_tied(language):
    def twice(held):
        held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()

    language(qwen2(tied=True), lambda folder: rewrite(folder, twice))


def test_a_gpt2_with_its_causal_masks(language):
    def masks(held):
        for layer in range(2):
            held[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 16, 16)
            held[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)

    torch.manual_seed(4)
    config = GPT2Config(
        vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=16, initializer_range=0.3
    )
    config.bos_token_id = config.eos_token_id = None
    language(GPT2LMHeadModel(config), lambda folder: rewrite(folder, masks))


def test_a_vocabulary_padded_beyond_the_tokenizer(language, make_llama):
    language(make_llama(vocab_size=64))


def test_a_padding_token_past_the_vocabulary_is_replaced(language, make_llama):
    def pad(folder):
        file = folder / "tokenizer.json"
        page = json.loads(file.read_text())
        token = {"id": 61, "content": "<extra>", "special": True, "single_word": False}
        flags = {"lstrip": False, "rstrip": False, "normalized": False}
        page["added_tokens"].append({**token, **flags})
        file.write_text(json.dumps(page))
        config = folder / "tokenizer_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token": "<extra>"}))

    loaded = language(make_llama(vocab_size=55), pad)
    assert loaded.processor.convert_tokens_to_ids("<extra>") == 55
    assert loaded.processor.pad_token == "</s>"


def test_a_padding_id_of_minus_one(language, make_llama):
    def set_pad(folder):
        page = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**page, "pad_token_id": -1}))

    language(make_llama(), set_pad)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_base_that_bitsandbytes_has_packed_before(
    tmp_path, make_llama, make_tokenizer, quantization
):
    pytest.importorskip("bitsandbytes")
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    make_llama(hidden_size=64, intermediate_size=64).save_pretrained(plain)
    make_tokenizer().save_pretrained(plain)
    page = {"language_model": str(plain), "dtype": "float32", "quantization": quantization}
    one = load_model(ModelSection(**page)).model
    one.save_pretrained(packed)
    make_tokenizer().save_pretrained(packed)
    other = load_model(ModelSection(language_model=str(packed), dtype="float32")).model
    with torch.no_grad():
        torch.testing.assert_close(other(IDS).logits, one(IDS).logits, rtol=0, atol=1e-6)
    assert other.is_quantized


def tower_of(tmp_path, make_llama, make_tokenizer, model, images):
    """Load a folder's tower in a graft; return its states, and those of the model as given."""
    language, tower = tmp_path / "language", tmp_path / "tower"
    make_llama().save_pretrained(language)
    make_tokenizer().save_pretrained(language)
    page = {"language_model": str(language), "vision_tower": str(tower), "dtype": "float32"}
    loaded = load_model(ModelSection(**page)).model
    with torch.no_grad():
        return loaded.see(images), model(images, output_hidden_states=True).hidden_states


@pytest.fixture
def tower(tmp_path, make_llama, make_tokenizer, images):
    """Saves a model whose vision half is checked; `prefix` tokens stand before its patches."""

    def check(model, vision, prefix, change=lambda held: None):
        model.eval().save_pretrained(tmp_path / "tower")
        rewrite(tmp_path / "tower", change)
        states, wanted = tower_of(tmp_path, make_llama, make_tokenizer, vision, images)
        torch.testing.assert_close(states, wanted[-2][:, prefix:], rtol=0, atol=1e-6)

    return check


def clip():
    torch.manual_seed(5)
    return CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8))


def test_the_vision_half_of_a_clip(tower):
    model = clip()
    tower(model, model.vision_model, 1)


def test_the_vision_half_of_a_clip_with_position_ids(tower):
    def ids(held):
        held["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        held["text_model.embeddings.position_ids"] = torch.arange(16)[None]

    model = clip()
    tower(model, model.vision_model, 1, ids)


def test_a_clip_of_which_only_the_vision_half_was_kept(tower):
    def vision(held):
        return {name: each for name, each in held.items() if name.startswith("vision_model.")}

    model = clip()
    tower(model, model.vision_model, 1, vision)


def test_a_clip_tower_with_a_projection(tower):
    torch.manual_seed(6)
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION))
    tower(model, model.vision_model, 1)


def siglip():
    torch.manual_seed(7)
    return SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION))


def test_the_vision_half_of_a_siglip(tower):
    model = siglip()
    tower(model, model.vision_model, 0)


def test_a_siglip_without_its_pooling_head(tower):
    def no_head(held):
        return {name: each for name, each in held.items() if "vision_model.head." not in name}

    model = siglip()
    tower(model, model.vision_model, 0, no_head)


def dinov2():
    torch.manual_seed(8)
    return Dinov2ForImageClassification(
        Dinov2Config(**SIDES, mlp_ratio=2, image_size=28, patch_size=7, num_labels=3)
    )


def test_a_dinov2_with_a_classifier(tower):
    model = dinov2()
    tower(model, model.dinov2, 1)


def test_a_dinov2_without_its_mask_token(tower):
    model = dinov2()
    tower(model, model.dinov2, 1, lambda held: drop(held, "dinov2.embeddings.mask_token"))


def drop(held, name):
    return {other: each for other, each in held.items() if other != name}


def test_a_llava_with_the_names_and_buffers_of_2023(llava, tmp_path):
    """As llava-hf published it: the language model under its own prefix, rotary buffers inside."""
    folder = shutil.copytree(llava, tmp_path / "llava")

    def old(held):
        held["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        held["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(5)[None]

    held = rewrite(folder, old)
    assert {"language_model.lm_head.weight", "language_model.model.norm.weight"} <= held.keys()
    sections = [ModelSection(language_model=str(each), dtype="float32") for each in (llava, folder)]
    one, other = (load_model(section).model.state_dict() for section in sections)
    assert one.keys() == other.keys()
    assert all(torch.equal(each, other[name]) for name, each in one.items())
