"""`text_route: base`: tokens of samples without an image have the base model's logits, bit for bit.

Dimensions: B rows, T tokens.
"""

import copy
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor, nn

from varifocal.tuners import (
    ImageLoraConfig,
    LoraExpertsConfig,
    MixLoraConfig,
    MMAConfig,
    balance_loss,
    route,
    routing_table,
)

IMAGE_TOKEN = 60
LINEARS = ["q_proj", "v_proj", "down_proj"]
TUNERS: dict[str, Callable[..., PeftConfig]] = {
    "mma": lambda **kw: MMAConfig(text_route="base", **kw),
    "mixlora": lambda **kw: MixLoraConfig(
        **{"num_factors": 6, "rank": 2, "text_route": "base"} | kw
    ),
    "lora_experts": lambda **kw: LoraExpertsConfig(**{"text_route": "base"} | kw),
    "lora": lambda **kw: ImageLoraConfig(**{"target_modules": LINEARS} | kw),
}
every_tuner = pytest.mark.parametrize("tuner", TUNERS)

PACKED = {
    "input_ids": torch.arange(3, 20)[None],
    "position_ids": torch.tensor([[*range(5), *range(7), *range(5)]]),
    "segment_ids": torch.tensor([[0] * 5 + [1] * 7 + [2] * 5]),
    "modality_ids": torch.tensor([[0] * 5 + [1] * 7 + [0] * 5]),
}


@pytest.fixture
def tuned(tiny: Any) -> Callable[..., PeftModel]:
    """Build a tiny model with an adapter off its start, in evaluation mode."""

    def build(tuner: str, model: str = "llama", dtype: torch.dtype = torch.float64) -> PeftModel:
        tuned = get_peft_model(tiny(model).to(dtype), TUNERS[tuner]())
        awaken(tuned)
        return tuned.eval()

    return build


def awaken(model: nn.Module) -> None:
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.5)


def logits(model: nn.Module, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def both(model: PeftModel, **inputs: Any) -> tuple[Tensor, Tensor]:
    """Run with the adapter on and off."""
    with model.disable_adapter():
        off = logits(model, **inputs)
    return logits(model, **inputs), off


@every_tuner
@pytest.mark.parametrize("model", ["llama", "llava"])
def test_text_alone_is_the_base_and_an_image_row_is_not(tuner, model, tuned, batch):
    tuned_model, inputs = tuned(tuner, model), batch(model)
    on, off = both(tuned_model, input_ids=inputs["input_ids"][:1])
    assert torch.equal(on, off)
    on, off = both(tuned_model, **inputs)
    assert torch.equal(on[0], off[0])
    assert (on[1] - off[1]).abs().max() > 1e-2


@every_tuner
@pytest.mark.parametrize("side", ["left", "right"])
def test_text_in_a_padded_batch_with_an_image_row_is_the_base(tuner, side, tuned, batch):
    model, inputs = tuned(tuner, "llava"), batch("llava")
    where = slice(2, None) if side == "left" else slice(0, -2)
    ids, mask = torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 9, dtype=torch.long)
    ids[:, where], mask[:, where] = inputs["input_ids"], 1
    on, off = both(model, **inputs | {"input_ids": ids, "attention_mask": mask})
    assert torch.equal(on[0], off[0])
    assert (on[1] - off[1]).abs().max() > 1e-2


@every_tuner
def test_text_segments_of_a_packed_row_are_the_base(tuner, tuned):
    on, off = both(tuned(tuner), **PACKED, use_cache=False)
    text = PACKED["modality_ids"] == 0
    assert torch.equal(on[text], off[text])
    assert (on - off)[~text].abs().amax(dim=-1).min() > 1e-3


@every_tuner
@pytest.mark.parametrize("marks", [("segment_ids",), ()], ids=["segments", "positions"])
def test_a_packed_rows_placeholders_tell_its_segments_apart(tuner, marks, tuned, batch):
    model = tuned(tuner, "llava")
    ids = PACKED["input_ids"].clone()
    ids[0, 6:10] = IMAGE_TOKEN
    inputs = {
        "input_ids": ids,
        "pixel_values": batch("llava")["pixel_values"],
        "position_ids": PACKED["position_ids"],
        "use_cache": False,
    }
    on, off = both(model, **inputs, **{name: PACKED[name] for name in marks})
    text = PACKED["modality_ids"] == 0
    assert torch.equal(on[text], off[text])
    assert (on - off)[~text].abs().amax(dim=-1).min() > 1e-3


@every_tuner
def test_cached_decoding_of_a_text_row_next_to_an_image_row_is_the_base(tuner, tuned, batch):
    model, inputs = tuned(tuner, "llava"), batch("llava")

    def decode() -> Tensor:
        with torch.no_grad():
            step = model(**inputs, use_cache=True)
            found = [step.logits]
            for token in (7, 8, 9):
                ids = torch.full((2, 1), token)
                step = model(input_ids=ids, past_key_values=step.past_key_values)
                found.append(step.logits)
        return torch.cat(found, dim=1)

    on = decode()
    with model.disable_adapter():
        off = decode()
    assert torch.equal(on[0], off[0])
    assert (on[1] - off[1]).abs().amax(dim=-1)[7:].min() > 1e-3


@every_tuner
def test_after_a_text_turn_in_a_cache_the_first_image_starts_the_image_route(tuner, tuned, batch):
    """What is in the cache stays as it was computed; what follows is an image sample's."""
    model, inputs = tuned(tuner, "llava"), batch("llava")
    first, second = inputs["input_ids"][:1], inputs["input_ids"][1:]

    def turns(*, adapted: bool) -> list[Tensor]:
        with torch.no_grad():
            with model.disable_adapter():
                text = model(input_ids=first, use_cache=True)
            if adapted:
                text = model(input_ids=first, use_cache=True)
            image = model(
                input_ids=second,
                pixel_values=inputs["pixel_values"],
                past_key_values=text.past_key_values,
                prompt_mask=torch.ones_like(second, dtype=torch.bool),
            )
            last = model(input_ids=first[:, :1], past_key_values=image.past_key_values)
        return [text.logits, image.logits, last.logits]

    on = turns(adapted=True)
    with model.disable_adapter():
        off = turns(adapted=False)
    assert torch.equal(on[0], off[0])
    for one, other in zip(on[1:], off[1:], strict=True):
        assert (one - other).abs().amax(dim=-1).min() > 1e-3


@every_tuner
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_text_in_training_is_the_base_and_teaches_exactly_nothing(tuner, checkpointing, tuned):
    model = tuned(tuner).train()  # with the adapters' dropout
    with model.disable_adapter():
        off = logits(model, **PACKED, use_cache=False)
    if checkpointing:
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    on = model(**PACKED, use_cache=False).logits
    text = PACKED["modality_ids"] == 0
    assert torch.equal(on[text], off[text])
    on[text].square().mean().backward()
    assert all(not grads.any() for grads in gradients(model).values())
    model(**PACKED, use_cache=False).logits.square().mean().backward()
    assert all(grads.any() for grads in gradients(model).values())


@every_tuner
@pytest.mark.parametrize("marks", [{}, {"modality_ids": torch.zeros(1, 17, dtype=torch.long)}])
def test_a_batch_of_text_gives_every_parameter_a_gradient_of_zero(tuner, marks, tuned):
    """Processes that hold no image take part in every reduction."""
    model = tuned(tuner).train()
    model(input_ids=PACKED["input_ids"], **marks).logits.square().mean().backward()
    assert all(not grads.any() for grads in gradients(model).values())


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return every trained parameter's gradient; none may be missing."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            found[name] = parameter.grad.clone()
    model.zero_grad()
    return found


def test_the_load_balancing_loss_counts_no_text(tuned, tiny):
    config = TUNERS["mixlora"](balance=0.5)
    model = get_peft_model(tiny("llama"), config).train()
    model(**PACKED | {"modality_ids": torch.zeros_like(PACKED["modality_ids"])}, use_cache=False)
    assert balance_loss(model) == 0
    model(**PACKED, use_cache=False)
    packed = balance_loss(model)
    alone = {name: value[:, 5:12] for name, value in PACKED.items()}
    model(**alone, use_cache=False)
    torch.testing.assert_close(balance_loss(model), packed)


@every_tuner
def test_text_is_the_base_in_bfloat16(tuner, tiny):
    model = get_peft_model(tiny("llama").bfloat16(), TUNERS[tuner]())
    awaken(model)  # adapters in float32
    on, off = both(model.eval(), **PACKED, use_cache=False)
    assert on.dtype == torch.bfloat16
    text = PACKED["modality_ids"] == 0
    assert torch.equal(on[text], off[text])
    assert (on - off)[~text].abs().max() > 1e-2


@every_tuner
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.filterwarnings("ignore::UserWarning")  # bitsandbytes casts its inputs
def test_text_is_the_base_on_quantised_weights(tuner, tiny):
    quantised = import_module("bitsandbytes")
    base = tiny("llama").float()
    for layer in base.model.layers:
        for name in ("q_proj", "v_proj"):
            linear = getattr(layer.self_attn, name)
            replaced = quantised.nn.Linear4bit(linear.in_features, linear.out_features, bias=False)
            replaced.weight = quantised.nn.Params4bit(linear.weight.data, requires_grad=False)
            setattr(layer.self_attn, name, replaced.to("cpu"))
    assert base.model.layers[0].self_attn.q_proj.weight.dtype == torch.uint8
    base.is_loaded_in_4bit = True
    model = get_peft_model(base, TUNERS[tuner]())
    awaken(model)
    on, off = both(model.eval(), **PACKED, use_cache=False)
    text = PACKED["modality_ids"] == 0
    assert torch.equal(on[text], off[text])
    assert (on - off)[~text].abs().max() > 1e-2


def test_lora_equals_its_formula(tiny):
    base = tiny("llama")
    config = ImageLoraConfig(r=3, lora_alpha=5, target_modules=LINEARS)
    model = get_peft_model(copy.deepcopy(base), config)
    awaken(model)
    weights = dict(model.named_parameters())
    leaves: dict[str, Tensor] = {}
    gate = PACKED["modality_ids"][..., None].double()
    for name, linear in base.named_modules():
        if name.rpartition(".")[2] in LINEARS:
            a, b = (
                weights[f"base_model.model.{name}.lora_{x}.default.weight"].detach().clone()
                for x in "AB"
            )
            leaves |= {f"{name}.lora_A": a.requires_grad_(), f"{name}.lora_B": b.requires_grad_()}

            def update(_: nn.Module, args: Any, y: Tensor, a: Tensor = a, b: Tensor = b) -> Tensor:
                return y + gate * 5 / 3 * (args[0] @ a.T) @ b.T

            linear.register_forward_hook(update)
    inputs = {name: PACKED[name] for name in ("input_ids", "position_ids")} | {"use_cache": False}
    expected = base(**inputs).logits
    found = model(**inputs, modality_ids=PACKED["modality_ids"]).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    direction = torch.randn_like(expected)
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    for name, leaf in leaves.items():
        grad = weights[f"base_model.model.{name}.default.weight"].grad
        torch.testing.assert_close(grad, leaf.grad, rtol=1e-9, atol=1e-9, msg=name)


def test_mma_reports_no_text_route(tuned):
    table = routing_table(tuned("mma"))
    assert all(not weights[0].any() for weights in table.values())
    assert all(weights[1].sum() == pytest.approx(1.0) for weights in table.values())


def test_peft_alone_knows_no_such_adapter(tuned, tmp_path, monkeypatch):
    tuned("lora").save_pretrained(tmp_path)
    monkeypatch.delitem(PEFT_TYPE_TO_CONFIG_MAPPING, ImageLoraConfig().peft_type)
    with pytest.raises(KeyError, match="IMAGE_LORA"):
        PeftConfig.from_pretrained(tmp_path)


@every_tuner
def test_a_module_that_text_passes_through_is_not_trained_whole(tuner, tiny):
    for name in ("lm_head", "embed_tokens", "language_model", "norm"):
        with pytest.raises(ValueError, match=rf"trains .*{name}, which text passes"):
            get_peft_model(tiny("llava"), TUNERS[tuner](modules_to_save=[name]))
    connector = "multi_modal_projector"
    model = get_peft_model(tiny("llava"), TUNERS[tuner](modules_to_save=[connector]))
    assert any(p.requires_grad for n, p in model.named_parameters() if connector in n)


@pytest.mark.parametrize("tuner", ["mixlora", "lora"])
@pytest.mark.parametrize("model", ["llama", "llava"])
def test_a_linear_outside_of_decoder_layers_and_towers_is_not_adapted(tuner, model, tiny):
    outside = {"llama": "lm_head", "llava": "linear_1"}[model]
    with pytest.raises(ValueError, match=f"{outside} is neither in a language model's decoder"):
        get_peft_model(tiny(model), TUNERS[tuner](target_modules=[outside]))


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
        {"trainable_token_indices": [3]},
        {"alora_invocation_tokens": [3], "task_type": "CAUSAL_LM"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_lora_that_changes_text_is_refused(settings):
    name = next(iter(settings))
    with pytest.raises(ValueError, match=f"text_route='base' cannot be kept with {name}"):
        ImageLoraConfig(**settings)


def test_other_settings_are_refused():
    with pytest.raises(ValueError, match="needs router=True"):
        MMAConfig(text_route="base", router=False)
    for config in (MMAConfig, MixLoraConfig):
        with pytest.raises(ValueError, match="text_route must be one of trained, base; got 'off'"):
            config(text_route="off")


def test_a_text_prompt_has_no_ordinary_lora(tuned, batch):
    model, inputs = tuned("mixlora", "llava"), batch("llava")
    with pytest.raises(ValueError, match="the prompt has no image"):
        route(model, inputs["input_ids"][0])
    taken = route(
        model, {"input_ids": inputs["input_ids"][1:], "pixel_values": inputs["pixel_values"]}
    )
    assert taken.weights
