"""The contract every tuner keeps: one row of the table below for each method on each model.

A tuner is checked at the model's door, by what goes in and what comes out. Dimensions: B rows, T
tokens.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from varifocal.tuners import ImageLoraConfig, LoraExpertsConfig, MixLoraConfig, MMAConfig

LANGUAGE, MIXED, VISION = "language model", "vision-language model", "vision tower"


@dataclass(frozen=True)
class Row:
    """One method on one model.

    Attributes:
        method: a word for the test's name.
        model: a tiny model's name.
        kind: of the model.
        config: makes the method's settings, for a fresh adapter.
        declared: regular expression that matches exactly the trained parameters of adapter
            "default", inside the base model.
        mergeable: whether the method claims that merging equals not merging.
        saved_too: regular expression of what is saved with the adapter and never trained.
        routes: whether the prompt, or each token, decides how tokens are adapted. Then rounding may
            decide between factors of nearly equal score, and bfloat16 is not compared here.
        gives_up: guarantees that the method says it does not keep: "batch mates", "packing",
            "answers" (a later token's edit changes no earlier logit), "cache" (decoding equals the
            full forward).
        marks: of the row's tests.
    """

    method: str
    model: str
    kind: str
    config: Callable[[], PeftConfig]
    declared: str
    mergeable: bool = False
    saved_too: str = r"(?!)"
    routes: bool = False
    gives_up: frozenset[str] = frozenset()
    marks: tuple[pytest.MarkDecorator, ...] = ()

    def __str__(self) -> str:
        return f"{self.method}-{self.model}"


_MMA = r"\.(mma_(down|router)\.default\.(weight|bias)|mma_up\.default\.(weight|bias))"
_TOKENS = r"modality_embedding\.mma_embedding\.default\.weight"
_LLAMA_LIKE = rf"model\.(layers\.[01]\.input_layernorm{_MMA}|{_TOKENS})"

_LLAVA = (
    rf"model\.(language_model\.(layers\.[01]\.input_layernorm{_MMA}|{_TOKENS})"
    rf"|vision_tower\.encoder\.layers\.[01]\.layer_norm1{_MMA})"
)

_ONE = r"\.mma_(down|up)\.default\.(weight|bias)"

_SEVEN = r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_POOLS = r"\.mixlora_[ab]\.default\.weight"
_INDEPENDENT = r"\.mixlora_router\.default\.independent_[ab]"
_ROUTERS = r"\.mixlora_router\.default\.(independent_[ab]|conditional)"
_EXPERTS = r"\.mixlora_(a|b|router)\.default\.weight"


def unrouted() -> PeftConfig:
    return MMAConfig(router=False)


def mma_token() -> PeftConfig:
    return MMAConfig(router="token")


def without_bias() -> PeftConfig:
    return MMAConfig(projection_bias=False)


def mma_base() -> PeftConfig:
    return MMAConfig(text_route="base")


def lora_base() -> PeftConfig:
    return ImageLoraConfig(target_modules=["q_proj", "v_proj"])


def mixlora(**settings: Any) -> Callable[[], PeftConfig]:
    sizes = {"num_factors": 6, "rank": 2, "lora_alpha": 2.0}
    return lambda: MixLoraConfig(**sizes, **settings)


def mixlora_row(
    model: str,
    places: str = rf"model\.layers\.[01]\.{_SEVEN}",
    kind: str = LANGUAGE,
    trained: str = rf"({_POOLS}|{_ROUTERS})",
    method: str = "mixlora",
    row: dict[str, Any] | None = None,
    **settings: Any,
) -> Row:
    config = mixlora(**settings)
    return Row(method, model, kind, config, places + trained, routes=True, **(row or {}))


def experts_row(
    model: str,
    places: str = rf"model\.layers\.[01]\.{_SEVEN}",
    kind: str = LANGUAGE,
    method: str = "lora_experts",
    **settings: Any,
) -> Row:
    sizes = {"num_experts": 3, "rank": 2, "lora_alpha": 2.0}
    return Row(
        method,
        model,
        kind,
        lambda: LoraExpertsConfig(**sizes, **settings),
        places + _EXPERTS,
        routes=True,
    )


PEFT_METHODS: dict[str, tuple[type[PeftConfig], dict[str, Any], str]] = {
    "ia3": (peft.IA3Config, {"feedforward_modules": []}, r"ia3_l\.default"),
    "loha": (peft.LoHaConfig, {}, r"hada_w[12]_[ab]\.default"),
    "lokr": (peft.LoKrConfig, {}, r"lokr_w\d(_[ab])?\.default"),
    "hira": (peft.HiraConfig, {"r": 4}, r"hira_[AB]\.default"),
    "gralora": (peft.GraloraConfig, {"r": 4, "gralora_k": 2}, r"gralora_[AB]\.default"),
    "miss": (peft.MissConfig, {"r": 4}, r"miss_block\.default"),
    "oft": (peft.OFTConfig, {"oft_block_size": 4}, r"oft_R\.default\.weight"),
    "road": (peft.RoadConfig, {"group_size": 4}, r"road_(theta|alpha)\.default"),
    "waveft": (peft.WaveFTConfig, {"n_frequency": 10}, r"waveft_spectrum\.default"),
    "rslora": (peft.LoraConfig, {"use_rslora": True}, r"lora_[AB]\.default\.weight"),
}
"""Method -> its config, options and trained parameters; the recipe's `tuner.type: peft`."""


def peft_row(method: str) -> Row:
    config, options, declared = PEFT_METHODS[method]
    return Row(
        method,
        "llama",
        LANGUAGE,
        lambda: config(target_modules=["q_proj", "v_proj"], **options),
        rf"model\.layers\.[01]\.self_attn\.[qv]_proj\.{declared}",
        mergeable=True,
        marks=(pytest.mark.slow,),
    )


ROWS = [
    *map(peft_row, PEFT_METHODS),
    *(
        Row("mma", name, LANGUAGE, MMAConfig, _LLAMA_LIKE)
        for name in ("llama", "qwen2", "qwen3", "gemma3")
    ),
    Row("mma", "gpt2", LANGUAGE, MMAConfig, rf"transformer\.(h\.[01]\.ln_1{_MMA}|{_TOKENS})"),
    Row("mma", "llava", MIXED, MMAConfig, _LLAVA),
    Row("mma", "clip", VISION, MMAConfig, rf"encoder\.layers\.[01]\.layer_norm1{_MMA}"),
    Row("mma", "siglip", VISION, MMAConfig, rf"encoder\.layers\.[01]\.layer_norm1{_MMA}"),
    Row("mma", "dinov2", VISION, MMAConfig, rf"encoder\.layer\.[01]\.norm1{_MMA}"),
    Row(
        "mma_unrouted", "llama", LANGUAGE, unrouted, rf"model\.layers\.[01]\.input_layernorm{_ONE}"
    ),
    Row(
        "mma_unrouted",
        "llava",
        MIXED,
        unrouted,
        rf"model\.(language_model\.layers\.[01]\.input_layernorm{_ONE}"
        rf"|vision_tower\.encoder\.layers\.[01]\.layer_norm1{_ONE})",
    ),
    Row(
        "mma_without_bias",
        "llama",
        LANGUAGE,
        without_bias,
        r"model\.(layers\.[01]\.input_layernorm\.(mma_(down|up)\.default\.weight"
        rf"|mma_router\.default\.(weight|bias))|{_TOKENS})",
    ),
    Row("mma_unrouted", "dinov2", VISION, unrouted, rf"encoder\.layer\.[01]\.norm1{_ONE}"),
    Row(
        "lora",
        "llama",
        LANGUAGE,
        lambda: LoraConfig(target_modules=["q_proj", "v_proj"]),
        r"model\.layers\.[01]\.self_attn\.[qv]_proj\.lora_[AB]\.default\.weight",
        mergeable=True,
    ),
    Row("mma_base", "llava", MIXED, mma_base, _LLAVA),
    Row("mma_token", "llava", MIXED, mma_token, _LLAVA),
    Row("mma_token", "siglip", VISION, mma_token, rf"encoder\.layers\.[01]\.layer_norm1{_MMA}"),
    Row(
        "lora_base",
        "llama",
        LANGUAGE,
        lora_base,
        r"model\.layers\.[01]\.self_attn\.[qv]_proj\.lora_[AB]\.default\.weight",
    ),
    Row(
        "lora_base",
        "llava",
        MIXED,
        lora_base,
        r"model\.(language_model|vision_tower\.encoder)\.layers\.[01]\.self_attn\.[qv]_proj"
        r"\.lora_[AB]\.default\.weight",
    ),
    mixlora_row(
        "llava",
        rf"model\.language_model\.layers\.[01]\.{_SEVEN}",
        MIXED,
        method="mixlora_base",
        text_route="base",
    ),
    *(mixlora_row(name) for name in ("llama", "qwen2", "qwen3", "gemma3")),
    mixlora_row("gpt2", r"transformer\.h\.[01]\.(attn\.(c_attn|c_proj)|mlp\.(c_fc|c_proj))"),
    mixlora_row("llava", rf"model\.language_model\.layers\.[01]\.{_SEVEN}", MIXED),
    mixlora_row(
        "clip",
        r"encoder\.layers\.[01]\.(self_attn\.q_proj|mlp\.fc1)",
        VISION,
        target_modules=["q_proj", "fc1"],
    ),
    mixlora_row("llama", method="mixlora_straight_through", selection="straight_through"),
    mixlora_row(
        "llama",
        method="mixlora_independent",
        conditional=False,
        trained=rf"({_POOLS}|{_INDEPENDENT})",
    ),
    mixlora_row("llama", method="mixlora_reference", conditional="reference"),
    mixlora_row(
        "llama",
        method="mixlora_hard",
        selection="hard",
        trained=_POOLS,
        row={"saved_too": rf".*{_ROUTERS}"},
    ),
    mixlora_row(
        "llama",
        method="mixlora_random",
        selection="random",
        trained=_POOLS,
        row={"gives_up": frozenset({"batch mates", "packing"})},
    ),
    mixlora_row(
        "llama",
        method="mixlora_sequence",
        routing_scope="sequence",
        row={"gives_up": frozenset({"answers", "cache"})},
    ),
    *(experts_row(name) for name in ("llama", "gemma3")),
    experts_row("gpt2", r"transformer\.h\.[01]\.(attn\.(c_attn|c_proj)|mlp\.(c_fc|c_proj))"),
    experts_row("llama", method="lora_experts_top", top_k=2),
    experts_row("llama", method="lora_experts_instance", router="instance"),
    experts_row(
        "llava",
        rf"model\.language_model\.layers\.[01]\.{_SEVEN}",
        MIXED,
        method="lora_experts_base",
        text_route="base",
        router="instance",
        top_k=2,
    ),
    experts_row(
        "llava",
        rf"model\.language_model\.layers\.[01]\.{_SEVEN}",
        MIXED,
        method="lora_experts_token_base",
        text_route="base",
    ),
    experts_row(
        "clip",
        r"encoder\.layers\.[01]\.(self_attn\.q_proj|mlp\.fc1)",
        VISION,
        target_modules=["q_proj", "fc1"],
    ),
]
LANGUAGE_ROWS = [row for row in ROWS if row.kind == LANGUAGE]
TOKEN_ROWS = [row for row in ROWS if row.kind != VISION]


def each_of(rows: list[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "row", [pytest.param(row, marks=row.marks) for row in rows], ids=str
    )


every_row = each_of(ROWS)
every_language_model = each_of(LANGUAGE_ROWS)
every_token_model = each_of(TOKEN_ROWS)


def run(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Run a model: logits of a language model, last states of a vision tower.

    Seeded, for methods that draw.
    """
    torch.manual_seed(17)
    result = model(**inputs)
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


def output(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Run a model as in use: without gradients, for which torch picks other kernels."""
    with torch.no_grad():
        return run(model, inputs)


def prompted(row: Row, inputs: dict[str, Tensor], length: int = 5) -> dict[str, Tensor]:
    """Mark the first tokens as the prompt, for methods that route by it."""
    if not row.routes:
        return inputs
    ids = inputs["input_ids"]
    return inputs | {"prompt_mask": (torch.arange(ids.shape[1]) < length).expand(ids.shape)}


def agree(row: Row, guarantee: str, found: Tensor, expected: Tensor, atol: float = 1e-6) -> None:
    """Compare, or see that a guarantee which a method gives up is worth naming."""
    if guarantee in row.gives_up:
        assert (found - expected).abs().max() > 1e-4
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name the trained parameters as the base model sees them."""
    return {
        name.removeprefix("base_model.model."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def awaken(model: nn.Module, seed: int = 1) -> None:
    """Move every trained parameter off its start, as training would."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained(model).values():
            noise = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
            parameter.copy_(noise.mul(0.5).to(parameter.dtype))


def loss(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return run(model, inputs).float().square().mean()


def gradients(model: nn.Module, step: Callable[[], None]) -> dict[str, Tensor]:
    model.zero_grad()
    step()
    return {name: p.grad.clone() for name, p in trained(model).items() if p.grad is not None}


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=tolerance, msg=name)


@pytest.fixture
def tuned(tiny: Any) -> Callable[..., PeftModel]:
    """Build a row's model with an awake adapter, in evaluation mode."""

    def build(row: Row, awake: bool = True) -> PeftModel:
        torch.manual_seed(3)
        model = get_peft_model(tiny(row.model), row.config())
        if awake:
            awaken(model)
        return model.eval()

    return build


@every_row
def test_a_fresh_adapter_changes_no_bit(row, tiny, batch, tuned):
    inputs = batch(row.model)
    before = output(tiny(row.model), inputs)
    for mode in (True, False):
        assert torch.equal(output(tuned(row, awake=False).train(mode), inputs), before)


@every_row
def test_trains_exactly_what_it_declares(row, tuned):
    model = tuned(row, awake=False)
    matching = {
        name
        for name, _ in model.get_base_model().named_parameters()
        if re.fullmatch(row.declared, name)
    }
    assert set(trained(model)) == matching
    assert matching


@every_row
def test_a_gradient_reaches_every_declared_parameter_and_nothing_else(row, batch, tuned):
    model = tuned(row)
    loss(model, batch(row.model)).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, name


@every_row
def test_disabling_gives_the_base_model_back(row, tiny, batch, tuned):
    inputs = batch(row.model)
    before = output(tiny(row.model), inputs)
    model = tuned(row)
    after = output(model, inputs)
    assert (after - before).abs().max() > 1e-3
    with model.disable_adapter():
        assert torch.equal(output(model, inputs), before)
    assert torch.equal(output(model, inputs), after)


@every_row
def test_unloading_leaves_no_trace(row, tiny, batch, tuned):
    base, inputs = tiny(row.model), batch(row.model)
    unloaded = tuned(row).unload()
    assert torch.equal(output(unloaded, inputs), output(base, inputs))
    assert list(unloaded.state_dict()) == list(base.state_dict())
    for (name, module), bare in zip(unloaded.named_modules(), base.modules(), strict=True):
        assert type(module) is type(bare), name
        assert len(module._forward_pre_hooks) == len(bare._forward_pre_hooks), name
        assert len(module._forward_hooks) == len(bare._forward_hooks), name


@every_row
def test_saving_and_loading_is_bit_exact(row, tiny, batch, tuned, tmp_path):
    model, inputs = tuned(row), batch(row.model)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    untrained = {
        name for name in model.get_base_model().state_dict() if re.fullmatch(row.saved_too, name)
    }
    assert set(saved) == {
        "base_model.model." + re.sub(r"\.default", "", name)
        for name in set(trained(model)) | untrained
    }
    for name in ("default", "another"):
        loaded = PeftModel.from_pretrained(tiny(row.model), tmp_path, adapter_name=name)
        assert torch.equal(output(loaded, inputs), output(model, inputs))


@every_row
def test_transformers_loads_the_adapter_without_peft_model(row, tiny, batch, tuned, tmp_path):
    model, inputs = tuned(row), batch(row.model)
    model.save_pretrained(tmp_path)
    plain = tiny(row.model)
    before = output(plain, inputs)
    report = plain.load_adapter(str(tmp_path))
    assert not report.missing_keys
    assert not report.unexpected_keys
    assert torch.equal(output(plain, inputs), output(model, inputs))
    plain.disable_adapters()
    assert torch.equal(output(plain, inputs), before)


@every_row
def test_batch_mates_change_nothing(row, batch, tuned):
    model, inputs = tuned(row), batch(row.model)
    together = output(model, inputs)
    singles = []
    for i in range(len(together)):
        alone = {name: value[i : i + 1] for name, value in inputs.items()}
        if row.kind == MIXED:
            alone["pixel_values"] = inputs["pixel_values"]
            if i == 0:  # the text row
                del alone["pixel_values"]
        singles.append(output(model, alone)[0])
    agree(row, "batch mates", torch.stack(singles), together)


@every_row
def test_gradient_checkpointing_changes_nothing(row, batch, tuned):
    model, inputs = tuned(row).train(), batch(row.model)

    def step() -> None:
        torch.manual_seed(11)  # adapter dropout
        loss(model, inputs).backward()

    plain = gradients(model, step)
    _checkpoint(model)
    same(gradients(model, step), plain)


@every_row
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_two_forwards_before_one_backward(row, checkpointing, batch, tuned):
    model, first = tuned(row).train(), batch(row.model)
    second = {name: value.flip(0) for name, value in first.items()}
    if row.kind == LANGUAGE:
        second["modality_ids"] = torch.ones_like(second["modality_ids"])

    def steps(*inputs: dict[str, Tensor]) -> Callable[[], None]:
        def step() -> None:
            torch.manual_seed(11)
            sum(loss(model, one) * (k + 1) for k, one in enumerate(inputs)).backward()

        return step

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    one_by_one = gradients(model, steps(first))
    other = gradients(model, steps(second))
    expected = {name: one_by_one[name] + 2 * other[name] for name in one_by_one}
    if checkpointing:
        _checkpoint(model)
    same(gradients(model, steps(first, second)), expected, tolerance=1e-6)


def _checkpoint(model: PeftModel) -> None:
    base = model.get_base_model()
    base.activation_checkpointing_enable({"use_reentrant": False})
    assert base.is_activation_checkpointing


@every_row
def test_runs_in_bfloat16_with_adapters_in_float32(row, tiny, batch):
    inputs = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in batch(row.model).items()
    }
    torch.manual_seed(3)
    base = tiny(row.model).bfloat16()
    before = output(base, inputs)
    model = get_peft_model(base, row.config())
    assert torch.equal(output(model, inputs), before)
    awaken(model)
    assert {parameter.dtype for parameter in trained(model).values()} == {torch.float32}
    after = output(model, inputs)
    assert after.dtype == torch.bfloat16
    loss(model, inputs).backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in trained(model).values())


@pytest.mark.parametrize("row", [row for row in ROWS if not row.routes], ids=str)
def test_bfloat16_stays_near_float64(row, tiny, batch, tuned):
    model, inputs = tuned(row), batch(row.model)
    exact = output(model, inputs)
    rough = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    found = output(copy.deepcopy(model).bfloat16(), rough).double()
    assert (found - exact).norm() < 0.05 * exact.norm()


@every_row
def test_merging_keeps_its_word(row, batch, tuned):
    model, inputs = tuned(row), batch(row.model)
    expected = output(model, inputs)
    if row.mergeable:
        merged = output(model.merge_and_unload(), inputs)
        torch.testing.assert_close(merged, expected, rtol=0, atol=1e-6)
        return
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match="cannot be merged into the base weights: "):
            merge()
    assert torch.equal(output(model, inputs), expected)


@every_row
def test_a_second_adapter_stands_beside_the_first(row, tiny, batch, tuned, tmp_path):
    inputs = batch(row.model)
    before = output(tiny(row.model), inputs)
    model = tuned(row)
    first = output(model, inputs)
    names = set(trained(model))
    model.add_adapter("second", row.config())
    assert torch.equal(output(model, inputs), first)
    assert set(trained(model)) == names
    model.set_adapter("second")
    model.eval()  # PEFT's own methods start in training mode
    assert set(trained(model)) == {re.sub("default", "second", name) for name in names}
    assert torch.equal(output(model, inputs), before)
    awaken(model, seed=2)
    second = output(model, inputs)
    assert (second - first).abs().max() > 1e-3
    model.set_adapter("default")
    assert torch.equal(output(model, inputs), first)
    model.save_pretrained(tmp_path, selected_adapters=["second"])
    loaded = PeftModel.from_pretrained(tiny(row.model), tmp_path / "second")
    assert torch.equal(output(loaded, inputs), second)
    model.delete_adapter("second")
    assert torch.equal(output(model, inputs), first)
    assert not any("second" in name for name in model.state_dict())


@every_row
def test_deleting_the_last_adapter_gives_the_base_model_back(row, tiny, batch, tuned):
    inputs = batch(row.model)
    model = tuned(row)
    output(model, inputs)
    model.delete_adapter("default")  # PeftModel itself cannot run without one
    assert torch.equal(output(model.base_model.model, inputs), output(tiny(row.model), inputs))


@every_row
def test_a_deep_copy_is_independent(row, batch, tuned):
    model, inputs = tuned(row), batch(row.model)
    expected = output(model, inputs)
    twin = copy.deepcopy(model)
    assert torch.equal(output(twin, inputs), expected)
    awaken(twin, seed=5)
    assert (output(twin, inputs) - expected).abs().max() > 1e-3
    assert torch.equal(output(model, inputs), expected)
    twin.unload()
    assert torch.equal(output(model, inputs), expected)


@every_token_model
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(row, side, batch, tuned):
    model, inputs = tuned(row), batch(row.model)
    expected = output(model, inputs)
    rows, length = inputs["input_ids"].shape
    pad = 3
    where = slice(pad, None) if side == "left" else slice(0, length)

    def padded(values: Tensor, filling: int) -> Tensor:
        wide = torch.full((rows, length + pad), filling, dtype=torch.long)
        wide[:, where] = values
        return wide

    inputs = inputs | {
        "input_ids": padded(inputs["input_ids"], 0),
        "attention_mask": padded(torch.ones(rows, length), 0),
        "position_ids": padded(torch.arange(length), 0),
    }
    if "modality_ids" in inputs:
        inputs["modality_ids"] = padded(inputs["modality_ids"], 0)
    found = output(model, inputs)[:, where]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@every_language_model
def test_packing_both_modalities_into_a_row_changes_nothing(row, batch, tuned):
    model, inputs = tuned(row), batch(row.model)
    lengths = [5, 7]
    expected = [
        output(model, {name: value[i : i + 1, :n] for name, value in inputs.items()})[0]
        for i, n in enumerate(lengths)
    ]
    pieces = {
        name: torch.cat([inputs[name][i, :n] for i, n in enumerate(lengths)])[None]
        for name in ("input_ids", "modality_ids")
    }
    marks = {
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "segment_ids": torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None],
        "prompt_mask": torch.ones(1, sum(lengths), dtype=torch.bool),
    }
    found = output(model, pieces | marks | {"use_cache": False})[0]
    agree(row, "packing", found, torch.cat(expected))


@every_token_model
def test_editing_a_later_token_changes_no_earlier_logit(row, batch, tuned):
    model, inputs = tuned(row), prompted(row, batch(row.model))
    expected = output(model, inputs)
    edited = inputs["input_ids"].clone()
    edited[:, 5] = (edited[:, 5] + 1) % 50 + 3
    found = output(model, inputs | {"input_ids": edited})
    agree(row, "answers", found[:, :5], expected[:, :5], atol=1e-12)
    assert (found[:, 5:] - expected[:, 5:]).abs().max() > 1e-3


@every_token_model
def test_cached_decoding_equals_the_full_forward(row, batch, tuned):
    model, inputs = tuned(row), batch(row.model)
    expected = output(model, prompted(row, inputs))
    ids = inputs["input_ids"]
    prefill = inputs | {"input_ids": ids[:, :5], "use_cache": True}
    if "modality_ids" in inputs:
        prefill["modality_ids"] = inputs["modality_ids"][:, :5]
    torch.manual_seed(17)
    with torch.no_grad():
        step = model(**prefill)
        found = [step.logits]
        for t in range(5, ids.shape[1]):  # the cache alone tells each row's modality and choice
            step = model(input_ids=ids[:, t : t + 1], past_key_values=step.past_key_values)
            found.append(step.logits)
    agree(row, "cache", torch.cat(found, dim=1), expected)


@every_token_model
def test_generation_with_and_without_a_cache_agree(row, batch, tuned):
    model, inputs = tuned(row), batch(row.model)
    inputs.pop("modality_ids", None)  # plain language models generate text
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    torch.manual_seed(17)
    cached = model.generate(**inputs, **settings)
    assert cached.shape == (2, 13)
    if row.routes:  # generate cannot say without a cache which tokens are its own
        uncached = greedy(row, model, inputs, 6)
    else:
        uncached = model.generate(**inputs, **settings, use_cache=False)
    assert torch.equal(cached, uncached) == ("cache" not in row.gives_up)


def greedy(row: Row, model: PeftModel, inputs: dict[str, Tensor], steps: int) -> Tensor:
    """Generate with full forward passes, the given tokens marked as the prompt."""
    ids = inputs["input_ids"]
    others = {name: inputs[name] for name in inputs if name not in ("input_ids", "attention_mask")}
    length = ids.shape[1]
    for _ in range(steps):
        logits = output(model, prompted(row, others | {"input_ids": ids}, length))
        ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
    return ids


@every_token_model
def test_trainer_trains_saves_and_resumes(row, tiny, batch, tmp_path):
    inputs = batch(row.model)
    if row.kind == MIXED:
        inputs["pixel_values"] = inputs["pixel_values"].expand(2, -1, -1, -1)
        inputs["input_ids"] = inputs["input_ids"][1:].expand(2, -1)
    examples = [
        {name: value[i] for name, value in inputs.items()} | {"labels": inputs["input_ids"][i]}
        for i in range(2)
    ]
    torch.manual_seed(3)
    model = get_peft_model(tiny(row.model), row.config())
    before = {name: p.detach().clone() for name, p in trained(model).items()}

    def trainer(steps: int) -> Trainer:
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=steps,
            learning_rate=0.1,
            per_device_train_batch_size=2,
            save_steps=2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        return Trainer(model=model, args=arguments, train_dataset=examples)

    trainer(2).train()
    assert all(not torch.equal(p, before[name]) for name, p in trained(model).items())
    checkpoint = Path(tmp_path) / "checkpoint-2"
    assert (checkpoint / "adapter_model.safetensors").exists()
    trainer(3).train(resume_from_checkpoint=str(checkpoint))
