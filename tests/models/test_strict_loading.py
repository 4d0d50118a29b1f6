"""What a checkpoint may lack or hold beside its model, tensor by tensor, without loading one."""

import logging
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from varifocal.errors import ModelError
from varifocal.models.names import PACKAGED
from varifocal.models.strict_loading import (
    keep_weights,
    load_every_tensor,
    quantisation,
    refuse_not_finite,
    refuse_other_tensors,
)
from varifocal.recipe import ModelSection

SIDES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**SIDES, "intermediate_size": 8, "image_size": 8, "patch_size": 4}
KINDS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIDES, intermediate_size=8, vocab_size=9)),
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**VISION)),
}


def told(kind, **found):
    """The sentence on what `output_loading_info` says; None where it is passed over."""
    nothing = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
    with torch.device("meta"):
        model = KINDS[kind]()
    try:
        refuse_other_tensors("base", model, nothing | found)
    except ModelError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "key",
    [
        "embeddings.position_ids",
        "position_ids",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "rotary_emb.cos_cached",
        "h.0.attn.bias",
        "layers.0.attention.masked_bias",
        "layers.0.attention.causal_mask",
        "norm.num_batches_tracked",
        "pooler.dense.weight",
        "bert.pooler.dense.bias",
        "cls.seq_relationship.weight",
        "mtp.layers.0.proj.weight",
        "model.mtp.norm.weight",
    ],
)
@pytest.mark.parametrize("kind", ["llama", "clip"])
def test_what_every_version_computes_and_other_heads_may_be_there(key, kind):
    assert told(kind, unexpected_keys=[key]) is None


@pytest.mark.parametrize(
    "key",
    [
        "text_model.embeddings.weight",
        "text_projection.weight",
        "visual_projection.weight",
        "logit_scale",
        "logit_bias",
        "classifier.weight",
    ],
)
def test_the_other_half_may_be_there_for_a_tower_alone(key):
    assert told("clip", unexpected_keys=[key]) is None
    assert f"1 left over ({key})" in told("llama", unexpected_keys=[key])


@pytest.mark.parametrize("key", ["model.layers.0.mlp.bias", "x.cross_attn_bias", "my_mtp_weight"])
def test_any_other_tensor_is_left_over(key):
    assert f"1 left over ({key})" in told("llama", unexpected_keys=[key])


@pytest.mark.parametrize(
    ("kind", "key", "is_spare"),
    [
        ("clip", "embeddings.mask_token", True),
        ("clip", "norm.num_batches_tracked", True),
        ("llama", "model.vision_tower.vision_model.head.probe", True),
        ("llama", "model.vision_model.head.mlp.fc1.weight", True),
        ("siglip", "vision_model.head.probe", True),
        ("siglip", "head.layernorm.weight", True),
        ("siglip", "vision_model.encoder.layers.0.mlp.fc1.weight", False),
        ("clip", "head.weight", False),
        ("llama", "lm_head.weight", False),
    ],
)
def test_only_what_no_patch_depends_on_may_be_missing(kind, key, is_spare):
    sentence = told(kind, missing_keys=[key])
    assert sentence is None if is_spare else f"1 missing ({key})" in sentence


def test_shapes_are_told_with_those_of_the_model():
    sentence = told("llama", mismatched_keys=[("scale", (), (3, 2))])
    assert "1 of another shape (scale is a single number there and 3 x 2 in the model)" in sentence


def test_a_packaged_base_is_made_anew():
    name = next(iter(PACKAGED))
    with torch.device("meta"):
        model = KINDS["llama"]()
    found = {"missing_keys": ["x"], "unexpected_keys": [], "mismatched_keys": []}
    with pytest.raises(ModelError, match=r"delete .*, which is made anew from the package"):
        refuse_other_tensors(name, model, found)


@pytest.mark.parametrize(
    ("values", "is_odd"),
    [
        (torch.tensor([0.0, float("nan")]), True),
        (torch.tensor([0.0, float("inf")]), True),
        (torch.tensor([0.0, -float("inf")]), True),
        (torch.tensor([0.0, 1.0]).to(torch.float8_e4m3fn), False),
        (torch.tensor([float("nan")]).to(torch.float8_e4m3fn), True),
        (torch.tensor([3, 4]), False),
        (torch.empty(0), False),
        (torch.empty(2, device="meta"), False),
    ],
)
def test_a_number_that_is_none_is_found_in_every_format(values, is_odd):
    model = torch.nn.Module()
    model.odd = torch.nn.Parameter(values, requires_grad=False)
    if not is_odd:
        refuse_not_finite("base", model)
        return
    with pytest.raises(ModelError, match=r"a NaN or an infinity in 1 of its tensors \(odd\)"):
        refuse_not_finite("base", model)


def test_the_table_of_tensors_is_kept_from_the_log_and_nothing_else(caplog):
    logger = logging.getLogger("transformers.modeling_utils")
    with torch.device("meta"):
        model = KINDS["llama"]()

    class Loader:
        def from_pretrained(self, *args, **options):
            logger.warning("LlamaForCausalLM LOAD REPORT from: here")
            logger.warning("something else")
            return model, {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}

    with caplog.at_level(logging.WARNING, logger="transformers.modeling_utils"):
        logger.addHandler(caplog.handler)
        try:
            assert load_every_tensor(Loader(), "here", "base") is model
            logger.warning("LOAD REPORT of somebody else")
        finally:
            logger.removeHandler(caplog.handler)
    said = {record.getMessage() for record in caplog.records}
    assert said == {"something else", "LOAD REPORT of somebody else"}


@pytest.mark.parametrize("is_vision_language", [True, False])
def test_what_bitsandbytes_is_asked_for(is_vision_language, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", SimpleNamespace())
    page = {"language_model": "any", "dtype": "bfloat16"}
    nf4 = quantisation(
        ModelSection(**page, quantization="nf4"), is_vision_language=is_vision_language
    )
    int8 = quantisation(
        ModelSection(**page, quantization="int8"), is_vision_language=is_vision_language
    )
    assert (nf4.load_in_4bit, nf4.bnb_4bit_quant_type) == (True, "nf4")
    assert (nf4.bnb_4bit_use_double_quant, nf4.bnb_4bit_compute_dtype) == (True, torch.bfloat16)
    assert (int8.load_in_8bit, int8.load_in_4bit) == (True, False)
    for settings in (nf4, int8):
        kept = settings.llm_int8_skip_modules
        assert (kept or [None])[0] == ("lm_head" if is_vision_language else None)


def test_packed_weights_are_never_packed_anew():
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    model[1].support_avx512bf16_for_cpu = True  # as bitsandbytes marks a layer
    keep_weights(model)
    assert model[1].support_avx512bf16_for_cpu is False
    assert not hasattr(model[0], "support_avx512bf16_for_cpu")
