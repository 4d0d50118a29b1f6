"""What is MMA's own: settings, places, counts, marks, cached routing, odd ways of running it."""

import copy
import importlib
import json

import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType, load_peft_weights, set_peft_model_state_dict
from torch import nn

import varifocal.tuners.mma
from varifocal.tuners import MMAConfig, MMALayer, routing_table
from varifocal.tuners.plugin import register


@pytest.fixture
def awake(tiny):
    """Build a tiny model with an adapter that is off its start, in evaluation mode."""

    def build(name: str, **settings) -> PeftModel:
        torch.manual_seed(3)
        model = get_peft_model(tiny(name), MMAConfig(**settings)).eval()
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.5)
        return model

    return build


@pytest.fixture
def passes(monkeypatch):
    """Count how often the modality tokens run through a decoder."""
    counted = []
    run = varifocal.tuners.mma.routing.ModalityEmbedding._run

    def counting(self, decoder, adapter):
        counted.append(adapter)
        return run(self, decoder, adapter)

    monkeypatch.setattr(varifocal.tuners.mma.routing.ModalityEmbedding, "_run", counting)
    return counted


def adapted(model: nn.Module) -> list[str]:
    return [layer.name for layer in model.modules() if isinstance(layer, MMALayer)]


@torch.no_grad()
def logits(model: nn.Module, **inputs):
    return model(**inputs).logits


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_groups": 0}, r"num_groups must be at least 1; got 0"),
        ({"bottleneck_dim": 7}, r"positive multiple of num_groups=2; got 7"),
        ({"bottleneck_dim": 0}, r"positive multiple of num_groups=2; got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\); got 1.0"),
        ({"dropout": -0.1}, r"dropout must lie in \[0, 1\); got -0.1"),
        ({"router_temperature": 0.0}, r"router_temperature must be above 0; got 0.0"),
        ({"router_temperature": float("nan")}, r"router_temperature must be above 0; got nan"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        MMAConfig(**settings)


def test_groups_that_do_not_divide_the_width_are_refused(tiny):
    with pytest.raises(ValueError, match="num_groups=3 does not divide the layer's width 16"):
        get_peft_model(tiny("llama"), MMAConfig(bottleneck_dim=9, num_groups=3))


def test_settings_survive_the_disk(tmp_path):
    config = MMAConfig(router_temperature=5.0, scale=0.5, base_fingerprint="sha256:1f")
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert loaded == config
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "MMA"


def test_registration_is_idempotent_and_guards_the_name():
    config_cls = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType("MMA")]
    importlib.reload(varifocal.tuners.mma)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType("MMA")] is config_cls
    assert list(PeftType).count(PeftType("MMA")) == 1
    assert PeftType.MMA is PeftType("MMA") is PeftType["MMA"]
    with pytest.raises(ValueError, match="PEFT already has a method 'LORA': peft"):
        register("lora", MMAConfig, varifocal.tuners.mma.MMAModel)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.LORA] is LoraConfig


# Places


def test_towers_can_be_left_alone(awake, tiny):
    both = [f"model.vision_tower.encoder.layers.{i}.layer_norm1" for i in (0, 1)]
    decoder = [f"model.language_model.layers.{i}.input_layernorm" for i in (0, 1)]
    assert sorted(adapted(awake("llava"))) == sorted(both + decoder)
    assert adapted(awake("llava", vision_tower=False)) == decoder
    with pytest.raises(ValueError, match="found no norm before self-attention in CLIPVisionModel"):
        get_peft_model(tiny("clip"), MMAConfig(vision_tower=False))


def test_layers_without_attention_get_no_adapter():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = hf.JambaConfig(
        **sizes, num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1, num_experts=1
    )
    with torch.device("meta"):
        model = get_peft_model(hf.JambaForCausalLM(config), MMAConfig())
    assert adapted(model) == [f"model.layers.{i}.input_layernorm" for i in (1, 3)]


@pytest.mark.parametrize(
    ("name", "router"),
    [("clip", "cls"), ("dinov2", "cls"), ("siglip", "mean"), ("llama", "modality")],
)
def test_what_routes_is_read_from_the_structure(awake, name, router):
    layers = [layer for layer in awake(name).modules() if isinstance(layer, MMALayer)]
    assert [layer.router for layer in layers] == [router] * 2


def test_a_text_encoder_is_not_mistaken_for_a_tower(tiny):
    text = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = tiny("clip").config
    model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision.to_dict()))
    names = adapted(get_peft_model(model, MMAConfig()))
    assert names == [f"vision_model.encoder.layers.{i}.layer_norm1" for i in (0, 1)]


def test_targets_can_be_named_as_in_peft(awake, tiny):
    last = r".*layers\.1\.input_layernorm"
    assert adapted(awake("llama", target_modules=last)) == ["model.layers.1.input_layernorm"]
    names = ["input_layernorm", "post_attention_layernorm"]
    assert len(adapted(awake("llama", target_modules=names))) == 4
    rest = awake("llama", exclude_modules=["layers.0.input_layernorm"])
    assert adapted(rest) == ["model.layers.1.input_layernorm"]
    with pytest.raises(ValueError, match=r"model\.norm is neither in a language model's decoder"):
        get_peft_model(tiny("llama"), MMAConfig(target_modules=r"model\.norm"))
    with pytest.raises(ValueError, match=r"q_proj is no norm over one dimension; got Linear"):
        get_peft_model(tiny("llama"), MMAConfig(target_modules=["q_proj"]))


@pytest.mark.parametrize("targets", [r".*layers\.1\.input_layernorm", ["input_layernorm"]])
def test_adapters_with_different_targets_live_together(awake, targets, batch):
    inputs = batch("llama")
    model = awake("llama", target_modules=targets)
    first = logits(model, **inputs)
    model.add_adapter("all", MMAConfig(target_modules=r".*layers\.0\.input_layernorm"))
    assert torch.equal(logits(model, **inputs), first)
    model.set_adapter("all")
    assert list(routing_table(model)) == ["model.layers.0.input_layernorm"]
    with model.disable_adapter():
        base = logits(model, **inputs)
    assert torch.equal(logits(model, **inputs), base)


def test_packed_towers_are_refused_with_the_way_out():
    layer = MMALayer(nn.LayerNorm(16), "mean", "visual.blocks.0.norm1")
    layer.set_adapter("default")
    layer.update_layer("default", MMAConfig())
    with pytest.raises(
        ValueError, match=r"visual.blocks.0.norm1: .* got \[9, 16\].* vision_tower="
    ):
        layer(torch.randn(9, 16))


# Start and counts


def test_a_fresh_adapter_can_leave_its_start(tiny, batch):
    model = get_peft_model(tiny("llama"), MMAConfig())
    layer = model.get_base_model().model.layers[0].input_layernorm
    down, up = layer.mma_down["default"], layer.mma_up["default"]
    bound = (6 / (16 + 8)) ** 0.5  # Xavier's
    assert 0.8 * bound < down.weight.abs().max() <= bound
    assert not down.bias.any()
    assert not up.weight.any()
    assert not up.bias.any()
    model(**batch("llama")).logits.square().mean().backward()
    assert all(branch.abs().max() > 0 for branch in up.weight.grad)


@pytest.mark.parametrize(
    ("width", "layers", "in_decoder", "in_tokens"),
    [(4096, 32, 2_621_760, 8_192), (5120, 40, 4_096_400, 10_240)],
    ids=["7B", "13B"],
)
def test_counts_of_lavin_without_weights(width, layers, in_decoder, in_tokens):
    text = hf.LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 128
    )
    vision = hf.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
    )
    with torch.device("meta"):
        base = hf.LlavaForConditionalGeneration(
            hf.LlavaConfig(text_config=text, vision_config=vision)
        )
        model = get_peft_model(base, MMAConfig())
    counts = dict.fromkeys(("language_model.layers", "vision_tower", "modality_embedding"), 0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts[next(part for part in counts if part in name)] += parameter.numel()
    assert counts == {
        "language_model.layers": in_decoder,
        "vision_tower": 491_760,
        "modality_embedding": in_tokens,
    }
    assert in_decoder == layers * (81_930 if width == 4096 else 102_410)


# Without a router


def test_one_branch_adds_the_papers_single_adapter(awake, tiny, batch):
    model = awake("llama", router=False, bottleneck_dim=4, scale=0.5)
    layer = model.get_base_model().model.layers[0].input_layernorm
    down, up = layer.mma_down["default"], layer.mma_up["default"]
    assert up.weight.shape == (1, 16, 2)
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    z = layer.base_layer(x)
    h = z @ down.weight.T.double() + down.bias.double()
    first = h[..., :2] @ up.weight[0, :8].T.double()
    second = h[..., 2:] @ up.weight[0, 8:].T.double()
    expected = z + 0.5 * (torch.cat([first, second], dim=-1) + up.bias[0].double())
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)


def test_one_branch_is_alike_for_both_modalities(awake, batch, passes):
    model, ids = awake("llama", router=False), batch("llama")["input_ids"]
    text = logits(model, input_ids=ids, modality_ids=torch.zeros_like(ids))
    image = logits(model, input_ids=ids, modality_ids=torch.ones_like(ids))
    assert torch.equal(text, image)
    assert passes == []
    with pytest.raises(ValueError, match="'default' has one branch and no routing"):
        routing_table(model)


def test_routed_and_plain_adapters_live_together(awake, batch):
    inputs = batch("llama")
    model = awake("llama")
    routed = logits(model, **inputs)
    model.add_adapter("plain", MMAConfig(router=False, bottleneck_dim=4))
    model.set_adapter("plain")
    for name, parameter in model.named_parameters():
        if ".plain." in name:
            nn.init.normal_(parameter, std=0.5)
    plain = logits(model, **inputs)
    assert (plain - routed).abs().max() > 1e-3
    model.set_adapter("default")
    assert torch.equal(logits(model, **inputs), routed)


def test_three_halves_of_the_bottleneck_cost_one_branch_what_two_cost_with_their_router():
    def count(width: int, layers: int, **settings) -> int:
        text = hf.LlamaConfig(hidden_size=width, num_hidden_layers=layers)
        with torch.device("meta"):
            model = get_peft_model(hf.LlamaForCausalLM(text), MMAConfig(**settings))
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    two, one = count(576, 30, bottleneck_dim=12), count(576, 30, bottleneck_dim=18, router=False)
    assert abs(one / two - 1) < 0.01


# Marks


def test_without_marks_every_token_is_text(awake, batch):
    model, ids = awake("llama"), batch("llama")["input_ids"]
    text = logits(model, input_ids=ids, modality_ids=torch.zeros_like(ids))
    image = logits(model, input_ids=ids, modality_ids=torch.ones_like(ids))
    torch.testing.assert_close(logits(model, input_ids=ids), text, rtol=0, atol=1e-12)
    assert (image - text).abs().max() > 1e-3


def test_wrong_marks_are_refused(awake, batch):
    model, ids = awake("llama"), batch("llama")["input_ids"]
    with pytest.raises(ValueError, match=r"must be 0 \(text\) or 1 \(image\); got \[2\]"):
        logits(model, input_ids=ids, modality_ids=torch.full_like(ids, 2))
    with pytest.raises(ValueError, match=r"modality_ids must be \[2, 7\] like the tokens; got"):
        logits(model, input_ids=ids, modality_ids=torch.zeros_like(ids[:, :3]))
    # and the refusal leaves nothing after
    assert logits(model, input_ids=ids).isfinite().all()
    with pytest.raises(RuntimeError, match="ran outside its decoder's forward pass"):
        model.get_base_model().model.layers[0].input_layernorm(torch.randn(1, 2, 16).double())


def test_marks_of_the_prompt_serve_while_decoding(awake, batch):
    model, inputs = awake("llama"), batch("llama")
    expected = logits(model, **inputs)
    ids, marks = inputs["input_ids"], inputs["modality_ids"]
    for decoding in (marks[:, :5], marks, marks[:, 5:], None):
        with torch.no_grad():
            start = model(input_ids=ids[:, :5], modality_ids=marks[:, :5], use_cache=True)
            end = model(
                input_ids=ids[:, 5:],
                past_key_values=start.past_key_values,
                **({} if decoding is None else {"modality_ids": decoding}),
            )
        torch.testing.assert_close(end.logits, expected[:, 5:], rtol=0, atol=1e-6)


def test_a_copied_cache_remembers_and_an_emptied_one_forgets(awake, batch):
    model, inputs = awake("llama"), batch("llama")
    ids, marks = inputs["input_ids"], inputs["modality_ids"]
    expected = logits(model, **inputs)
    cache = hf.StaticCache(model.config, max_cache_len=16)
    with torch.no_grad():
        model(input_ids=ids[:, :5], modality_ids=marks[:, :5], past_key_values=cache)
        twin = copy.deepcopy(cache)
        for one in (twin, cache):
            end = model(input_ids=ids[:, 5:], past_key_values=one).logits
            torch.testing.assert_close(end, expected[:, 5:], rtol=0, atol=1e-6)
        cache.reset()
        again = model(input_ids=ids, past_key_values=cache).logits
    torch.testing.assert_close(again, logits(model, input_ids=ids), rtol=0, atol=1e-6)


def test_image_rows_are_read_from_their_placeholders(awake, batch):
    model, inputs = awake("llava"), batch("llava")
    expected = logits(model, **inputs)
    marks = torch.tensor([0, 1])[:, None].expand(2, 7)
    assert torch.equal(logits(model, **inputs, modality_ids=marks), expected)
    swapped = logits(model, **inputs, modality_ids=1 - marks)
    assert all((swapped - expected)[row].abs().max() > 1e-3 for row in (0, 1))
    text = {"input_ids": inputs["input_ids"][:1]}
    torch.testing.assert_close(logits(model, **text)[0], expected[0], rtol=0, atol=1e-6)


def test_a_batchs_images_are_forgotten_with_it(awake, batch):
    model, inputs = awake("llava"), batch("llava")
    expected = logits(model, **inputs)
    marks = torch.tensor([0, 1])[:, None].expand(2, 7)
    decoder = model.get_base_model().model.language_model
    text = decoder(input_ids=inputs["input_ids"] % 60).last_hidden_state
    zeros = decoder(input_ids=inputs["input_ids"] % 60, modality_ids=0 * marks).last_hidden_state
    torch.testing.assert_close(text, zeros, rtol=0, atol=1e-12)
    assert torch.equal(logits(model, **inputs), expected)


def test_marks_stop_at_the_decoder(awake, batch):
    model, inputs = awake("llama"), batch("llama")
    seen = []
    model.get_base_model().model.layers[0].register_forward_pre_hook(
        lambda layer, args, kwargs: seen.extend(kwargs), with_kwargs=True
    )
    marks = {"segment_ids": inputs["modality_ids"], "prompt_mask": inputs["modality_ids"] == 0}
    logits(model, **inputs, **marks)
    with model.disable_adapter():
        logits(model, **inputs, **marks)
    assert "position_ids" in seen
    assert not {"modality_ids", "segment_ids", "prompt_mask"} & set(seen)


def test_embeddings_alone_cannot_tell_which_rows_hold_an_image(awake, batch):
    model, inputs = awake("llava"), batch("llava")
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    with pytest.raises(ValueError, match="pass input_ids or modality_ids with pixel_values"):
        logits(model, inputs_embeds=embeds, **inputs)


# Routing


def test_routing_table_lists_both_modalities_of_every_layer(awake, batch):
    model = awake("llava").train()
    modes = [module.training for module in model.modules()]
    tables = routing_table(model)
    assert list(tables) == [f"model.language_model.layers.{i}.input_layernorm" for i in (0, 1)]
    for table in tables.values():
        assert table.shape == (2, 2)
        torch.testing.assert_close(table.sum(dim=1), torch.ones(2))
        assert (table[0] - table[1]).abs().max() > 1e-4
    assert [module.training for module in model.modules()] == modes
    assert routing_table(model.get_base_model(), "default").keys() == tables.keys()
    with pytest.raises(ValueError, match="no language model here holds an MMA adapter 'other'"):
        routing_table(model, "other")
    model.delete_adapter("default")
    with pytest.raises(ValueError, match="no language model here holds an MMA adapter 'default'"):
        routing_table(model, "default")


def test_routing_table_of_an_adapter_that_is_not_active(awake):
    model = awake("llama", target_modules=r".*layers\.1\.input_layernorm")
    first = routing_table(model)
    model.add_adapter("second", MMAConfig())
    model.set_adapter("second")
    second = routing_table(model)
    assert list(second) == [f"model.layers.{i}.input_layernorm" for i in (0, 1)]

    def unchanged() -> None:
        for name, tables in (("default", first), ("second", second)):
            found = routing_table(model, name)
            assert list(found) == list(tables)
            assert all(torch.equal(found[layer], tables[layer]) for layer in tables)

    unchanged()
    with model.disable_adapter():
        unchanged()


def test_routing_is_computed_in_float32_at_least(awake):
    exact, rough = awake("llama"), awake("llama").bfloat16()
    for one, other in zip(
        routing_table(exact).values(), routing_table(rough).values(), strict=True
    ):
        assert (one - other).abs().max() < 0.01
        assert not torch.equal(other, other.bfloat16().float())


def test_sharper_temperature_sharpens_the_routing(awake):
    soft, sharp = (routing_table(awake("llama", router_temperature=t)) for t in (10.0, 0.1))
    name = "model.layers.0.input_layernorm"
    odds = [(table[name][:, 0] / table[name][:, 1]).log() for table in (soft, sharp)]
    torch.testing.assert_close(odds[1], odds[0] * 100, rtol=1e-3, atol=1e-3)


def test_inference_routes_once_until_something_changes(awake, batch, passes):
    model, inputs = awake("llama"), batch("llama")
    weight = model.get_base_model().model.layers[0].input_layernorm.mma_router["default"].weight
    before = logits(model, **inputs)
    for _ in range(3):
        assert torch.equal(logits(model, **inputs), before)
    model.generate(input_ids=inputs["input_ids"], max_new_tokens=4, do_sample=False)
    assert len(passes) == 1
    changes = [
        lambda: weight.detach().mul_(2.0),  # in place
        lambda: weight.data.neg_(),  # after the version counter's back
        lambda: setattr(weight, "data", weight.data + 1.0),  # new memory
        lambda: model.get_base_model().model.norm.weight.detach().mul_(1.0),  # the base
        lambda: model.train().eval(),
        lambda: model.load_state_dict(model.state_dict()),
    ]
    for number, change in enumerate(changes, start=2):
        change()
        after = logits(model, **inputs)
        assert len(passes) == number
        assert torch.equal(after, logits(model, **inputs))
    assert (after - before).abs().max() > 1e-6


def test_training_routes_in_every_forward(awake, batch, passes):
    model, inputs = awake("llama"), batch("llama")
    for expected in (1, 2):
        model(**inputs)  # evaluation mode, but gradients are wanted
        assert len(passes) == expected
    model.train()
    logits(model, **inputs)
    assert len(passes) == 3


def test_decoding_does_not_fall_back_on_older_tables(awake, batch, passes):
    model, inputs = awake("llama"), batch("llama")
    ids, marks = inputs["input_ids"], inputs["modality_ids"]
    logits(model, **inputs)
    weight = model.get_base_model().model.layers[0].input_layernorm.mma_router["default"].weight
    weight.detach().mul_(-3.0)
    start = model(input_ids=ids[:, :5], modality_ids=marks[:, :5], use_cache=True)  # with gradients
    end = logits(model, input_ids=ids[:, 5:], past_key_values=start.past_key_values)
    torch.testing.assert_close(end, logits(model, **inputs)[:, 5:], rtol=0, atol=1e-6)


def test_dropout_acts_in_training_alone(awake, batch):
    inputs = batch("llama")
    model = awake("llama", dropout=0.5)
    exact = logits(model, **inputs)
    model.train()
    torch.manual_seed(0)
    first, second = logits(model, **inputs), logits(model, **inputs)
    torch.manual_seed(0)
    assert torch.equal(logits(model, **inputs), first)
    assert (first - second).abs().max() > 1e-3
    assert (first - exact).abs().max() > 1e-3
    model.add_adapter("second", MMAConfig(dropout=0.0))
    model.set_adapter("second")
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    assert torch.equal(logits(model.train(), **inputs), logits(model.eval(), **inputs))


def test_disabled_adapters_route_nothing(awake, batch, passes):
    model, inputs = awake("llama"), batch("llama")
    with model.disable_adapter():
        logits(model, **inputs)
    assert passes == []


def test_hidden_states_do_not_list_the_modality_tokens(awake, batch):
    for name in ("llama", "llava"):
        model, inputs = awake(name), batch(name)
        states = model(**inputs, output_hidden_states=True).hidden_states
        assert [state.shape for state in states] == [(2, 7, 16)] * 3


# Odd ways of running


def test_two_active_adapters_are_refused(awake, batch):
    for name in ("llama", "clip"):
        model = awake(name)
        model.add_adapter("second", MMAConfig())
        model.base_model.set_adapter(["default", "second"])
        with pytest.raises(ValueError, match=r"one adapter at a time; got \['default', 'sec"):
            model(**batch(name))


def test_a_whole_module_trains_and_is_saved_with_the_adapter(tiny, batch, tmp_path):
    config = MMAConfig(modules_to_save=["multi_modal_projector"])
    model = get_peft_model(tiny("llava"), config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.5)
    inputs = batch("llava")
    expected = logits(model, **inputs)
    model(**inputs).logits.sum().backward()
    projector = [n for n, p in model.named_parameters() if p.grad is not None and "projector" in n]
    assert len(projector) == 4
    model.save_pretrained(tmp_path)
    assert torch.equal(
        logits(PeftModel.from_pretrained(tiny("llava"), tmp_path), **inputs), expected
    )
    plain = tiny("llava")
    plain.load_adapter(str(tmp_path))
    assert torch.equal(logits(plain, **inputs), expected)


@pytest.mark.filterwarnings("ignore:Already found a .peft_config. attribute")  # transformers' way
def test_transformers_own_adapter_methods_work(tiny, batch):
    model, inputs = tiny("llama"), batch("llama")
    base = logits(model, **inputs)
    model.add_adapter(MMAConfig(), "one")
    for layer in adapted(model):
        nn.init.normal_(model.get_submodule(layer).mma_up["one"].weight)
    one = logits(model, **inputs)
    assert (one - base).abs().max() > 1e-3
    model.add_adapter(MMAConfig(), "two")
    assert torch.equal(logits(model, **inputs), base)
    model.set_adapter("one")
    assert torch.equal(logits(model, **inputs), one)
    model.set_adapter("two")
    model.delete_adapter("one")
    model.delete_adapter("two")
    assert torch.equal(logits(model, **inputs), base)


def test_injected_without_peft_model_by_the_keys_of_a_state_dict(tiny, batch, awake, tmp_path):
    trained = awake("llama")
    trained.save_pretrained(tmp_path)
    weights = load_peft_weights(str(tmp_path), device="cpu")
    keys = {name.removeprefix("base_model.model."): value for name, value in weights.items()}
    layers = {name: value for name, value in keys.items() if "layers" in name}
    model = inject_adapter_in_model(MMAConfig(), tiny("llama"), state_dict=layers)
    assert not set_peft_model_state_dict(model, weights).unexpected_keys
    inputs = batch("llama")
    assert torch.equal(logits(model, **inputs), logits(trained, **inputs))


def test_adapters_can_be_made_without_memory_first(tiny, batch, awake, tmp_path):
    trained, inputs = awake("llava"), batch("llava")
    trained.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(tiny("llava"), tmp_path, low_cpu_mem_usage=True)
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(logits(model, **inputs), logits(trained, **inputs))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it
def test_every_layer_can_be_compiled_alone(awake, batch):
    model = awake("llama", dropout=0.0).float().train()
    inputs = batch("llama")

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(**inputs, use_cache=False).logits.square().mean().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    expected = gradients()
    graphs = []

    def counting(graph, example_inputs):
        graphs.append(len(example_inputs))
        return graph.forward

    for layer in model.get_base_model().model.layers:
        layer.compile(backend=counting, dynamic=False, fullgraph=True)
    for _ in range(2):
        found = gradients()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)
    assert len(graphs) == 2  # one a layer: the modality tokens run uncompiled


def test_reentrant_checkpointing_is_refused_with_the_way_out(awake, batch):
    model = awake("llama").train()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match=r"gradient_checkpointing_kwargs=\{'use_reentrant': False"):
        model(**batch("llama"))


def test_autocast_keeps_the_base_models_bits_at_the_start(tiny, batch):
    inputs = batch("llama")
    base = tiny("llama").float()
    with torch.autocast("cpu", torch.bfloat16):
        before = logits(base, **inputs)
        model = get_peft_model(base, MMAConfig())
        assert torch.equal(logits(model, **inputs), before)
        model(**inputs).logits.float().square().mean().backward()


def test_inference_mode_and_gradients_take_turns(awake, batch):
    model, inputs = awake("llama"), batch("llama")
    with torch.inference_mode():
        expected = model(**inputs).logits
        assert torch.equal(model(**inputs).logits, expected)
    assert torch.equal(logits(model, **inputs), expected)
    model(**inputs).logits.sum().backward()
