"""What a run has spent: the formula against torch's own counter, the sums against hand counts."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from varifocal.assemble import assemble
from varifocal.data.encoding.encoder import Encoded
from varifocal.data.rows.packing import Collator
from varifocal.models.loss import supervised_loss
from varifocal.recipe import (
    LoraExpertsSection,
    LoraSection,
    MixLoraSection,
    MMASection,
    NoTunerSection,
)
from varifocal.run import RunDirectory
from varifocal.training import clock as clock_module
from varifocal.training.clock import Clock
from varifocal.training.cost import Meter, Spent
from varifocal.training.train import run_training
from varifocal.training.trainer import SupervisedTrainer
from varifocal.training.tuner import attach_tuner

EVERYWHERE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TUNERS = {
    "mma": MMASection(),
    "mma without a router": MMASection(router=False, bottleneck_dim=64),
    "lora": LoraSection(),
    "lora-everywhere": LoraSection(target_modules=EVERYWHERE),
    "mixlora": MixLoraSection(num_factors=8, rank=2),
    "lora_experts": LoraExpertsSection(num_experts=8),
}


def llama(**changes):
    sizes = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    shape = {"vocab_size": 512, **sizes, **heads, **changes}
    config = LlamaConfig(attn_implementation="eager", **shape)
    return LlamaForCausalLM(config)


def text(length, num_prompt):
    return Encoded(np.arange(3, 3 + length, dtype=np.int32), np.arange(length) < num_prompt)


def packed_batch():
    """Two rows of 96 tokens: three texts of 50, 30 and 60, so 52 tokens of padding."""
    rows = [[text(50, 40), text(30, 26)], [text(60, 55)]]
    return Collator(pad_id=0, row_length=96)(rows)


def counted(model, batch, chunk=None):
    with FlopCounterMode(display=False) as counter:
        supervised_loss(model, batch, chunk=chunk).backward()
    return counter.get_total_flops()


def assert_near(name, spent, counter, tolerance):
    deviation = (spent.flops + spent.flops_masked) / counter - 1
    print(f"{name:<36}{counter:>16,}{100 * deviation:>+9.2f} %")  # noqa: T201 - for docs/cost.md
    assert abs(deviation) < tolerance


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("tuner", TUNERS)
def test_the_formula_agrees_with_the_counter_on_text(tuner, checkpointing):
    """LoRA's surplus is the first layer's: nothing trains before its products q, k and v."""
    tuned = attach_tuner(llama(), TUNERS[tuner]).train()
    if checkpointing:
        tuned.get_base_model().activation_checkpointing_enable()
    batch = packed_batch()
    meter = Meter(tuned.get_base_model(), checkpointing=checkpointing)
    meter.step(batch)
    marks = {"modality_ids", "segment_ids", "prompt_mask"}
    marked = tuner in ("mma", "mixlora", "lora_experts")
    known = batch if marked else {k: v for k, v in batch.items() if k not in marks}
    name = f"text, {tuner}{', checkpointing' * checkpointing}"
    assert_near(name, meter.spent, counted(tuned, known), 0.02)
    assert meter.spent.flops_masked > 0.2 * meter.spent.flops  # 52 of 192 tokens are padding


def test_the_formula_agrees_with_the_counter_where_everything_trains():
    model, batch = llama(), packed_batch()
    meter = Meter(model)
    meter.step(batch)
    marks = {"modality_ids", "segment_ids", "prompt_mask"}
    known = {name: tensor for name, tensor in batch.items() if name not in marks}
    assert_near("text, full", meter.spent, counted(model, known), 0.005)


@pytest.mark.parametrize("chunk", [20, 8], ids=["the supervised alone", "chunk by chunk"])
def test_the_formula_agrees_with_the_counter_on_a_loss_in_chunks(chunk):
    """19 tokens of 38 in the columns that have one, and a head as heavy as the layer."""
    model, batch = llama(num_hidden_layers=1, vocab_size=2048), packed_batch()
    meter = Meter(model, loss_chunk=chunk)
    meter.step(batch)
    marks = {"modality_ids", "segment_ids", "prompt_mask"}
    known = {name: tensor for name, tensor in batch.items() if name not in marks}
    assert_near(f"text, chunks of {chunk}", meter.spent, counted(model, known, chunk), 0.005)


@pytest.mark.parametrize(
    ("tower", "tuner"),
    [
        ("clip", MMASection(bottleneck_dim=4, adapt_vision_tower=False)),
        ("clip", LoraSection(rank=2)),
        ("dinov2", NoTunerSection()),
        ("efficientnet", NoTunerSection()),
    ],
    ids=lambda value: getattr(value, "type", value),
)
def test_the_formula_agrees_with_the_counter_on_images(recipe, parts, tower, tuner):
    model = {"model.vision_tower": str(parts / tower), "model.attn_implementation": "eager"}
    assembly = assemble(recipe(model))
    tuned = assembly.with_model(attach_tuner(assembly.base, tuner).train())
    deviation_of(f"{tower}, {tuner.type}", tuned, from_table=True)


def test_the_formula_agrees_with_the_counter_where_the_tower_learns(recipe):
    assembly = assemble(recipe({"model.attn_implementation": "eager"}))
    tuned = assembly.with_model(attach_tuner(assembly.base, MMASection(bottleneck_dim=4)).train())
    deviation_of("clip, mma in the tower", tuned, from_table=False)


def deviation_of(name, tuned, from_table):
    base = tuned.base
    ids = np.full(40, 5, np.int32)
    ids[3 : 3 + base.tokens_per_image] = base.config.image_token_id
    image = torch.rand(1, 3, base.vision_tower.image_size, base.vision_tower.image_size)
    sample = Encoded(ids, np.arange(40) < 30, modality=1, images=("an image",))
    with torch.no_grad():
        shown = {"image_features": base.see(image)} if from_table else {"pixel_values": image}
    batch = Collator(0, 64, lambda _: shown)([[sample, text(20, 15)]])
    base.vision_passes = 0
    meter = Meter(base)
    meter.step(batch)
    counter = counted(tuned.model, batch)
    assert_near(name, meter.spent, counter, 0.04)
    assert meter.spent.vision_passes == int(not from_table)
    assert meter.spent.vision_lookups == int(from_table)
    assert meter.spent.tokens_image == base.tokens_per_image
    assert 0 < meter.spent.flops_vision < meter.spent.flops


def test_tokens_are_counted_by_modality_without_padding():
    spent = Spent()
    pictured = Encoded(
        np.array([9, 9, 5], np.int32), np.array([True, True, False]), modality=1, images=("one",)
    )
    batch = Collator(0, 8, lambda _: {"image_features": torch.zeros(1, 2, 4)})(
        [[pictured, text(4, 2)], [text(3, 2)]]
    )
    for _ in range(2):
        spent.add(batch, image_token_id=9)
    assert spent == Spent(
        tokens=20,
        tokens_text=14,
        tokens_with_picture=6,
        tokens_image=4,
        tokens_trained=8,
        tokens_padding=12,
        vision_lookups=2,
    )


def test_attention_is_counted_by_segments():
    """One text of 60 tokens has more pairs than two of 30, and no more of anything else."""
    model = attach_tuner(llama(), LoraSection()).get_base_model()
    whole, halves = Meter(model), Meter(model)
    whole.step(Collator(0, 64)([[text(60, 56)]]))
    halves.step(Collator(0, 64)([[text(30, 28), text(30, 28)]]))
    pairs = 60**2 - 2 * 30**2
    expected = 2 * 2 * pairs * 128 * 6 * (1 + 2)  # two products, forward and twice backward
    assert whole.spent.flops - halves.spent.flops == expected
    together = [each.spent.flops + each.spent.flops_masked for each in (whole, halves)]
    assert together[0] == together[1]


def test_a_clock_goes_on_where_another_stopped():
    clock = Clock(before={"training": 5.0, "total": 7.0})
    with clock.stage("training"):
        running = clock.seconds()
    assert 5.0 <= running["training"] <= clock.seconds()["training"] < 6.0
    assert clock.seconds()["total"] >= 7.0
    assert clock.seconds()["alignment"] == 0.0


def test_a_clock_counts_the_processor_apart_from_the_wall(monkeypatch):
    wall, cpu = iter(range(0, 1000, 10)), iter(range(100))
    monkeypatch.setattr(clock_module.time, "monotonic", lambda: float(next(wall)))
    monkeypatch.setattr(clock_module.time, "process_time", lambda: float(next(cpu)))
    clock = Clock(before={"training": 5.0, "cpu_training": 2.0}, _started=0.0, _cpu_started=0.0)
    for _ in range(2):
        with clock.stage("training"):
            pass
    found = clock.seconds()
    assert (found["training"], found["cpu_training"]) == (5.0 + 20.0, 2.0 + 2.0)
    assert found["total"] == 10 * found["cpu_total"] > 0
    assert found["cpu_alignment"] == 0.0


# Runs


def sums(root):
    """A run's counts, without the clock and the memory."""
    page = json.loads(RunDirectory(root).cost.read_text())
    return {name: value for name, value in page.items() if isinstance(value, int)} | {
        "flops_per_second": None
    }


@pytest.fixture
def own_table(monkeypatch, tmp_path):
    """Give each run a feature table of its own: `own_table("first")`."""
    return lambda name: monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "tables" / name))


FROZEN_TOWER = {"tuner.adapt_vision_tower": False, "training.save_steps": 2}


@pytest.mark.parametrize("overrides", [FROZEN_TOWER, {"training.save_steps": 2}], ids=str)
def test_a_resumed_run_has_spent_what_an_unbroken_one_has(
    recipe, tmp_path, own_table, monkeypatch, overrides
):
    own_table("first")
    whole = run_training(recipe(overrides), tmp_path / "whole")
    step = SupervisedTrainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise MemoryError
        return step(self, *args, **kwargs)

    own_table("second")
    with monkeypatch.context() as patch:
        patch.setattr(SupervisedTrainer, "training_step", killed)
        with pytest.raises(MemoryError):
            run_training(recipe(overrides), tmp_path / "run")
    assert not RunDirectory(tmp_path / "run").cost.exists()
    run_training(recipe(overrides), tmp_path / "run", resume=True)
    assert sums(tmp_path / "run") == sums(tmp_path / "whole")
    found = sums(tmp_path / "whole")
    tower_runs = 2 * 9 if overrides.get("tuner.adapt_vision_tower", True) else 9
    assert found["vision_passes"] == tower_runs
    assert found["vision_lookups"] == (0 if tower_runs == 18 else 2 * 9)
    assert found["tokens"] == found["tokens_text"] + found["tokens_with_picture"]
    assert 0 < found["tokens_trained"] < found["tokens"]
    assert found["tokens_image"] == 2 * 9 * 5  # two epochs, nine images, five tokens each
    assert whole.tokens == found["tokens"]
    page = json.loads(RunDirectory(tmp_path / "run").cost.read_text())
    assert 0 < page["seconds_training"] < page["seconds_total"]
    assert 0 < page["seconds_cpu_training"] < page["seconds_cpu_total"]


def test_an_alignment_costs_operations_and_seconds(recipe, tmp_path):
    base = {**FROZEN_TOWER, "training.max_steps": 1}
    aligned = {"alignment.type": "words", "alignment.steps": 2}
    run_training(recipe(base), tmp_path / "without")
    run_training(recipe({**base, **aligned}), tmp_path / "with")
    pages = [
        json.loads(RunDirectory(tmp_path / name).cost.read_text()) for name in ("without", "with")
    ]
    assert pages[0]["flops_vision"] < pages[1]["flops_vision"]
    assert pages[0]["seconds_alignment"] == 0 < pages[1]["seconds_alignment"]


@pytest.mark.slow
def test_two_processes_add_up(recipe, recipe_file, tmp_path):
    """Two processes with a row each take the same four rows as one process with two."""
    few = {"training.max_steps": 2}
    run_training(recipe({**few, "training.per_device_train_batch_size": 2}), tmp_path / "one")
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\nfrom varifocal.recipe import load_recipe\n"
        "from varifocal.training.train import run_training\n"
        "run_training(load_recipe(sys.argv[1], {'training.max_steps': 2}), sys.argv[2])\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(script), str(recipe_file), str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = sums(tmp_path / "one"), sums(tmp_path / "two")
    assert two.pop("num_processes") == 2 > one.pop("num_processes")
    counts = [name for name in one if name.startswith(("tokens_t", "tokens_w", "tokens_i"))]
    assert {name: two[name] for name in counts} == {name: one[name] for name in counts}
    assert two["vision_passes"] == one["vision_passes"]


def test_a_run_shorter_than_its_logging_has_the_mean_of_its_losses(recipe, tmp_path):
    shape = {"training.max_steps": 2, "training.save_steps": 9}
    every = run_training(recipe({**shape, "training.logging_steps": 1}), tmp_path / "every")
    none = run_training(recipe({**shape, "training.logging_steps": 5}), tmp_path / "none")
    lines = map(json.loads, RunDirectory(tmp_path / "every").metrics.read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert every.loss == losses[-1]
    assert none.loss == pytest.approx(sum(losses) / 2, abs=1e-6)
