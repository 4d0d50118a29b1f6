"""Plans held against hand-worked cases, and against what a run then measured."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from varifocal.errors import DataError, ModelError, RecipeError, RunError
from varifocal.models.loss import supervised_loss
from varifocal.planning.calibration import Calibration, find_calibration, write_calibration
from varifocal.planning.devices import GPUS, find_device, judge_memory, slow_format, this_cpu
from varifocal.planning.estimate import estimate
from varifocal.planning.lengths import Workload, num_steps
from varifocal.planning.measuring import calibrate
from varifocal.planning.memory import count_weights, int8_bytes, nf4_bytes, parts_of_peak
from varifocal.planning.paper import compare_with_paper
from varifocal.planning.plan import foresee, plan_recipe
from varifocal.planning.repeated_layers import alike
from varifocal.planning.shapes import build_shapes
from varifocal.planning.tracing import BACKWARD, HEAD, Step, switch_checkpointing, trace_step
from varifocal.recipe import load_recipe
from varifocal.training.train import run_training
from varifocal.training.tuner import attach_tuner

HIDDEN, INNER, LAYERS, VOCABULARY = 16, 24, 2, 32


def tiny(**more):
    config = LlamaConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            **more,
        }
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def test_nf4_holds_half_a_byte_a_number_and_its_scales():
    # 65,536 numbers: 32,768 bytes, 1,024 scales, 4 outer scales of 4 bytes, offset, two tables
    assert nf4_bytes(65_536) == 32_768 + 1_024 + 4 * 4 + 4 + 16 * 4 + 256 * 4


def test_int8_holds_a_byte_a_number_and_a_scale_a_row():
    assert int8_bytes(outputs=8, inputs=16) == 8 * 16 + 8 * 4


def test_nf4_is_as_large_as_bitsandbytes_makes_it():
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(
        torch.randn(128, 192), quant_type="nf4", compress_statistics=True
    )
    inner = state.state2
    held = (packed, state.absmax, state.code, state.offset, inner.absmax, inner.code)
    assert nf4_bytes(128 * 192) == sum(each.numel() * each.element_size() for each in held)


def test_weights_are_counted_as_they_are_held():
    model = tiny().to(torch.bfloat16).requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    recipe = load_recipe("demo", check_paths=False)
    embedding = VOCABULARY * HIDDEN
    layer = 4 * HIDDEN**2 + 3 * HIDDEN * INNER + 2 * HIDDEN
    rotary = HIDDEN // 2 // 2
    weights = count_weights(model, model, recipe)
    buffers = sum(each.numel() * each.element_size() for each in model.buffers())
    assert buffers >= rotary * 2
    assert weights.frozen == 2 * (embedding + LAYERS * layer + HIDDEN) + buffers
    assert weights.trained == weights.gradients == 2 * embedding
    assert weights.optimizer == 2 * weights.trained
    assert weights.dequantised == 0


@pytest.mark.parametrize(
    ("optim", "bytes_each"), [("adamw_torch", 8), ("adamw_8bit", 8), ("sgd", 0), ("lion_32bit", 4)]
)
def test_an_optimiser_holds_what_it_needs(optim, bytes_each):
    model = tiny().requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    recipe = load_recipe("demo", [f"training.optim={optim}"], check_paths=False)
    assert count_weights(model, model, recipe).optimizer == VOCABULARY * HIDDEN * bytes_each


def test_quantised_layers_are_all_linears_but_the_head():
    model = tiny().to(torch.bfloat16).requires_grad_(False)
    plain = load_recipe("demo", check_paths=False)
    linears = LAYERS * (4 * [HIDDEN * HIDDEN] + 3 * [HIDDEN * INNER])
    whole = count_weights(model, model, plain).frozen
    settings = ["model.quantization=nf4", "model.dtype=bfloat16"]
    small = load_recipe("demo", settings, check_paths=False)
    shrunk = count_weights(model, model, small)
    assert shrunk.frozen == whole - 2 * sum(linears) + sum(map(nf4_bytes, linears))
    assert shrunk.dequantised == 2 * HIDDEN * INNER


class _Head(nn.Module):
    """An embedding and a head; the loss reads only some positions."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, HIDDEN, device="meta").requires_grad_(False)
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False, device="meta")

    def get_output_embeddings(self):
        return self.head

    def get_decoder(self):
        return self.embed

    def forward(self, input_ids, logits_to_keep, use_cache):
        # A class made here would hold the logits until the garbage collector comes by.
        return SimpleNamespace(logits=self.head(self.embed(input_ids)[:, logits_to_keep]))


def held_by_the_head(step):
    return step.by_part[HEAD] + step.by_part.get(BACKWARD, 0)


def test_a_step_holds_logits_at_supervised_positions_only():
    ids = torch.ones(3, 20, dtype=torch.int64)
    labels = ids.clone()
    labels[:, :16] = -100  # 4 positions of 20
    model = _Head()
    step = trace_step(model, model, {"input_ids": ids, "labels": labels})
    positions = 3 * 4
    states = 3 * 20 * HIDDEN * 4 + positions * HIDDEN * 4
    logits = positions * VOCABULARY * 4
    # logits, their log-probabilities; then, in the backward pass, the gradient of both
    assert step.by_part["activations"] <= states + labels.numel() * 8 * 4
    assert step.by_part[HEAD] < 3 * logits
    assert 2 * logits <= held_by_the_head(step) <= 5 * logits
    labels = ids.clone()
    whole = trace_step(model, model, {"input_ids": ids, "labels": labels})
    # 57 positions for 12; the fullest moment may lie in the forward pass or in the backward pass
    assert held_by_the_head(whole) > 3 * held_by_the_head(step)


def test_tracing_frees_what_dies_and_counts_gradients():
    model = _Head()
    ids = torch.ones(1, 4, dtype=torch.int64)
    batch = {"input_ids": ids, "labels": ids}
    fresh = trace_step(model, model, batch)
    standing = trace_step(model, model, batch, keep_gradients=True)
    gradient = VOCABULARY * HIDDEN * 4
    assert standing.by_part["gradients"] == gradient
    assert standing.peak > fresh.peak
    assert trace_step(model, model, batch).peak == fresh.peak


def test_checkpointing_holds_less_and_more_rows_hold_more():
    batch = {"input_ids": torch.ones(2, 64, dtype=torch.int64)}
    batch["labels"] = batch["input_ids"]
    model = tiny(attn_implementation="sdpa")
    once = trace_step(model, model, batch).peak
    twice = {name: torch.cat([each, each]) for name, each in batch.items()}
    more = trace_step(model, model, twice).peak
    assert 1.7 < more / once < 2
    deep = tiny(attn_implementation="sdpa")
    switch_checkpointing(deep, True, None)
    assert trace_step(deep, deep, batch).peak < once


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tuner", ["mma", "mixlora", "lora"])
def test_a_few_layers_stand_for_all(recipe_file, tuner, checkpointing):
    page = load_recipe(recipe_file, [f"tuner={{type: {tuner}}}"])
    base = tiny(num_hidden_layers=5, attn_implementation="sdpa")
    model = attach_tuner(base, page.tuner)
    switch_checkpointing(base, checkpointing, None)
    batch = {"input_ids": torch.ones(2, 64, dtype=torch.int64)}
    batch["labels"] = batch["input_ids"]
    few = trace_step(model, base, batch)
    assert few == trace_step(model, base, batch, repeat=False)
    assert all("forward" not in vars(layer) for layer in base.model.layers)


def test_layers_that_differ_do_not_stand_for_one_another():
    layers = tiny(num_hidden_layers=7).model.layers
    assert alike(layers)
    assert not alike(layers, ["full_attention"] * 6 + ["sliding_attention"])
    layers[6].mlp.requires_grad_(False)
    assert not alike(layers)
    assert not alike(tiny(num_hidden_layers=4).model.layers)


def test_full_tuning_is_traced_whole_where_gradients_outweigh_a_layers_states():
    model = tiny(num_hidden_layers=7, hidden_size=64, intermediate_size=256)
    batch = {"input_ids": torch.ones(1, 2, dtype=torch.int64)}
    batch["labels"] = batch["input_ids"]
    assert trace_step(model, model, batch) == trace_step(model, model, batch, repeat=False)


def test_mixed_precision_holds_half_of_the_products():
    batch = {"input_ids": torch.ones(2, 64, dtype=torch.int64)}
    batch["labels"] = batch["input_ids"]
    model = tiny()
    whole = trace_step(model, model, batch).peak
    assert trace_step(model, model, batch, autocast=torch.bfloat16).peak < 0.95 * whole


def test_the_trace_is_what_autograd_saves():
    """The bytes that a real forward pass saves are those that the trace counts as living."""
    config = {"num_hidden_layers": 4}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_attention_heads=2,
            attn_implementation="eager", **config,
        )
    ).train()  # fmt: skip
    batch = {"input_ids": torch.ones(2, 32, dtype=torch.int64)}
    batch["labels"] = batch["input_ids"]
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        supervised_loss(model, batch)
    real = sum(size for size, _ in saved.values())
    step = trace_step(model.to("meta"), model, batch)
    assert step.peak == pytest.approx(real, rel=0.25)
    assert step.peak >= real


def test_the_parts_of_the_peak_add_up():
    model = tiny().requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    weights = count_weights(model, model, load_recipe("demo", check_paths=False))
    step = Step(1000, {"activations": 600, "logits": 300, "gradients": 100})
    parts = parts_of_peak(weights, step, overhead=50, num_devices=1)
    full = max(1000, weights.gradients)
    standing = weights.frozen + weights.trained + weights.optimizer
    assert sum(parts.values()) == standing + full + 50
    waste = parts_of_peak(weights, Step(10**6, {}), overhead=0, num_devices=1, waste=0.4)
    assert waste["allocator"] == 0.4 * 10**6
    several = parts_of_peak(weights, step, overhead=50, num_devices=2)
    assert several["gradients_in_transit"] == weights.gradients


@pytest.mark.parametrize(
    ("rows", "devices", "steps"), [(12_726, 1, 20 * 398), (12_726, 8, 20 * 50), (3, 1, 20)]
)
def test_steps_are_counted_as_the_trainer_does(rows, devices, steps):
    lavin = load_recipe("lavin-7b-scienceqa", check_paths=False)
    assert num_steps(lavin, rows, devices) == steps


def test_devices_have_their_sources():
    for device in GPUS.values():
        assert device.source.startswith("https://")
        assert device.teraflops["float32"] < max(device.teraflops.values())
    assert find_device("t4").flops_per_second("bfloat16") == find_device("t4").flops_per_second(
        "float32"
    )
    with pytest.raises(RecipeError, match="did you mean 'rtx4090'"):
        find_device("rtx4080")


@pytest.mark.parametrize(
    ("products", "gpu", "changes", "fixes"),
    [
        (True, False, ["model.dtype=bfloat16"], ""),
        (False, True, ["model.dtype=bfloat16"], ""),
        (False, False, ["model.dtype=float32"], ""),
        (False, False, ["model.dtype=bfloat16"], "; --set model.dtype=float32"),
        (
            *(False, False, ["model.dtype=float32", "training.bf16=true"]),
            "; --set training.bf16=false",
        ),
        (
            *(False, False, ["model.dtype=bfloat16", "training.bf16=true"]),
            "; --set training.bf16=false --set model.dtype=float32",
        ),
    ],
)
def test_a_number_format_without_products_is_named(monkeypatch, products, gpu, changes, fixes):
    monkeypatch.setattr("varifocal.planning.devices.processor_has_bfloat16", lambda: products)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    sentence = slow_format(load_recipe("demo", changes, check_paths=False)) or ""
    assert sentence.endswith(fixes)
    assert bool(sentence) == bool(fixes)


@pytest.mark.parametrize(("products", "share"), [(True, 1), (False, 0.01)])
def test_a_processor_without_bfloat16_is_planned_as_slow(monkeypatch, products, share):
    monkeypatch.setattr("varifocal.planning.devices.processor_has_bfloat16", lambda: products)
    rates = this_cpu().teraflops
    assert rates["bfloat16"] == pytest.approx(share * rates["float32"])


def test_json_has_what_was_promised(recipe_file, monkeypatch, run):
    opened = []
    monkeypatch.setattr("safetensors.safe_open", lambda *a, **k: opened.append(a))
    monkeypatch.setattr("safetensors.torch.load_file", lambda *a, **k: opened.append(a))
    arguments = [str(recipe_file), "--json", "--device", "cpu", "--price", "3"]
    code, out, _ = run("plan", *arguments)
    page = json.loads(out)
    assert code == 0
    assert page["fits"] is True
    assert {"trained_parameters", "peak_memory_gib", "tokens", "hours", "usd"} <= page.keys()
    assert page["tokens_exact"]
    assert page["tokens"] > 0
    assert page["usd"] == pytest.approx(3 * page["hours"])
    assert sum(page["memory_gib"].values()) == pytest.approx(page["peak_memory_gib"], abs=0.01)
    assert page["largest_micro_batch"] > page["micro_batch"]
    assert not opened


def test_devices_share_the_rows_of_a_step_as_a_launch_does(recipe_file, run):
    rows = ("--set", "training.per_device_train_batch_size=2")
    of = {}
    for devices in (1, 2):
        printed = run("plan", recipe_file, *rows, "--num-devices", devices, "--json")[1]
        of[devices] = json.loads(printed)
    assert of[1]["steps"] == of[2]["steps"]
    assert (of[1]["micro_batch"], of[2]["micro_batch"]) == (2, 1)
    code, _, told = run("plan", recipe_file, *rows, "--num-devices", 3)
    assert code == 2
    assert "3 processes cannot share the 2 rows of a step equally" in told


def test_a_run_that_does_not_fit_ends_with_one(monkeypatch, run):
    arguments = ["lavin-13b-scienceqa", "--device", "t4", "--json"]
    monkeypatch.setattr("varifocal.planning.estimate.trace_step", lambda *a, **k: Step(1, {}))
    code, out, _ = run("plan", *arguments)
    page = json.loads(out)
    assert code == 1
    assert page["verdict"].startswith("does not fit: ")
    assert page["tokens"] is page["hours"] is page["usd"] is None


def test_a_mistake_ends_with_two(run):
    code, _, err = run("plan", "demo", "--device", "a10080g")
    assert code == 2
    assert "did you mean 'a100-" in err


def test_the_page_can_be_read(recipe_file, run):
    code, out, _ = run("plan", recipe_file, "--device", "cpu")
    assert code == 0
    assert all(len(line) <= 80 or line.startswith("  http") for line in out.splitlines())
    assert "\nfits: " in out


@pytest.mark.parametrize(
    ("overflow", "holds", "dropped", "fits", "told"),
    [
        ("drop", True, 3, True, "fits: 7.0 of 9 GiB on cpu; micro-batches of up to 2 rows would"),
        ("error", True, 0, True, "fits: "),
        ("error", True, 3, False, "does not fit: 3 examples take more than data.max_length 256"),
        ("drop", False, 0, False, "does not fit: 7.0 GiB, and cpu has 9; set training.per_device"),
    ],
)
def test_the_verdict(overflow, holds, dropped, fits, told):
    recipe = load_recipe("demo", [f"data.overflow={overflow}"], check_paths=False)
    device = replace(find_device("cpu"), memory_gib=9)
    said = judge_memory(recipe, device, 1, 7.0, holds, Workload({}, num_dropped=dropped), 2)
    assert said[0] is fits
    assert said[1].startswith(told)


def test_a_run_lays_its_plan_beside_what_it_measured(recipe_file, tmp_path):
    run_training(load_recipe(recipe_file), tmp_path / "run", predict=foresee)
    page = json.loads((tmp_path / "run" / "plan.json").read_text())
    predicted, measured = page["predicted"], page["measured"]
    for name in ("steps", "tokens", "tokens_trained", "tokens_padding", "vision_passes"):
        assert predicted[name] == measured[name], name
    assert predicted["flops"] == pytest.approx(measured["flops"], rel=1e-6)
    assert measured["hours"] > 0


def test_a_plan_that_fails_does_not_fail_the_run(recipe_file, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no shapes today")

    monkeypatch.setattr("varifocal.planning.plan.estimate", fail)
    run_training(load_recipe(recipe_file), tmp_path / "run", predict=foresee)
    page = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert page["predicted"] == {"error": "RuntimeError: no shapes today"}
    assert page["measured"]["tokens"] > 0


def test_what_is_predicted_stands_there_before_the_first_step(recipe_file, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise RunError("stopped at the first step")

    monkeypatch.setattr("varifocal.training.train._run", stop)
    with pytest.raises(RunError, match="stopped"):
        run_training(load_recipe(recipe_file), tmp_path / "run", predict=foresee)
    page = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert page["predicted"]["tokens"] > 0
    assert "measured" not in page


def test_a_calibration_is_found_again_for_its_shape_alone(recipe_file):
    recipe = load_recipe(recipe_file, ["tuner={type: lora}"])
    shapes = build_shapes(recipe)
    assert find_calibration(recipe, shapes) is None
    measured = Calibration(1e9, 5, 2.0, 0.1, 7, 0.5)
    write_calibration(recipe, shapes, measured)
    assert find_calibration(recipe, shapes) == measured
    other = load_recipe(recipe_file, ["tuner={type: lora, rank: 4}"])
    assert find_calibration(other, build_shapes(other)) is None


def test_a_machine_that_holds_no_more_than_the_weights_gives_the_whole_plan_of_an_a100(
    recipe_file, monkeypatch
):
    page = load_recipe(recipe_file)
    peak = estimate(page, this_cpu()).peak_memory_gib
    small = replace(this_cpu(), memory_gib=peak - 0.001)
    monkeypatch.setattr("varifocal.planning.plan.this_device", lambda: small)
    named, unnamed = plan_recipe(page, "a100-80g"), plan_recipe(page)
    assert unnamed.assumptions[0].startswith("this machine has ")
    assert replace(unnamed, assumptions=named.assumptions) == named


def test_a_machine_is_measured_on_real_steps_and_the_plan_uses_it(recipe_file, run):
    recipe = load_recipe(recipe_file, ["data.packing=false"])
    found = calibrate(recipe)
    assert found.steps == 14  # fifteen rows, of which the first warms up
    assert 0 < found.flops_per_second < math.inf
    assert find_calibration(recipe, build_shapes(recipe)) == found
    code, told, _ = run("plan", recipe_file, "--set", "data.packing=false", "--json")
    assert code == 0
    assert json.loads(told)["hours"] > 0


def test_a_machine_is_not_measured_on_one_batch_alone(recipe_file):
    recipe = load_recipe(recipe_file, ["training.per_device_train_batch_size=50"])
    with pytest.raises(DataError, match="these data fill one alone"):
        calibrate(recipe)
    assert find_calibration(recipe, build_shapes(recipe)) is None


def test_the_paper_stands_beside_its_own_recipe_alone():
    recipe = load_recipe("lavin-7b-scienceqa", check_paths=False)
    beside = compare_with_paper(recipe, build_shapes(recipe))
    assert (beside["measured_memory_gb"], beside["measured_hours"], beside["num_gpus"]) == (
        33.9,
        1.4,
        8,
    )
    # 2 forward and 2 backward for 6.5e9 weights, 12,726 x 20 x 512 tokens; attention comes on top
    least = 4 * 6.476e9 * 12_726 * 20 * 512
    assert least < beside["flops_of_their_loop"] < 1.2 * least
    hours = beside["flops_of_their_loop"] / (8 * 312e12 * 0.4) / 3600
    assert beside["hours_of_their_loop"] == pytest.approx(hours, abs=0.01)
    other = load_recipe("lavin-7b-scienceqa", ["tuner={type: lora}"], check_paths=False)
    assert compare_with_paper(other, build_shapes(other)) is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"data.chat_template": "{{ messages"}, "chat template refuses the turns"),
        ({"model.attn_implementation": "spda"}, "'spda' is no attention code .* mean 'sdpa'"),
    ],
)
def test_a_plan_refuses_what_training_would(recipe, change, sentence):
    with pytest.raises(ModelError, match=sentence):
        estimate(recipe(change), this_cpu())
