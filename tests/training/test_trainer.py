"""The loss against transformers' own, the optimiser's groups, and what a checkpoint holds."""

import errno
import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from varifocal.assemble import assemble
from varifocal.errors import RunError
from varifocal.recipe import LoraSection, MMASection, NoTunerSection
from varifocal.run import RunDirectory
from varifocal.training.train import run_training
from varifocal.training.trainer import SupervisedTrainer, supervised_loss
from varifocal.training.tuner import attach_tuner

VOCABULARY = 41

# The loss


@pytest.fixture
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).double()


def labelled(ids, positions):
    """Labels at some (row, token) positions."""
    labels = torch.full_like(ids, -100)
    for row, token in positions:
        labels[row, token] = ids[row, token]
    return labels


def random_ids(rows, tokens):
    return torch.randint(VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(rows))


def one_row():
    ids = random_ids(1, 12)
    return {"input_ids": ids, "labels": labelled(ids, [(0, 7), (0, 8), (0, 11)])}


def several_rows():
    """Other positions in each row, so that a position of one row is no target of another."""
    ids = random_ids(3, 10)
    places = [(0, 1), (0, 9), (1, 4), (1, 5), (1, 6), (2, 9)]
    return {"input_ids": ids, "labels": labelled(ids, places)}


def packed_rows():
    ids = random_ids(2, 14)
    positions = torch.tensor([[*range(5), *range(9)], [*range(8), *range(4), *range(2)]])
    places = [(0, 3), (0, 4), (0, 12), (1, 7), (1, 10)]
    return {"input_ids": ids, "position_ids": positions, "labels": labelled(ids, places)}


def a_row_without_labels():
    ids = random_ids(3, 8)
    return {"input_ids": ids, "labels": labelled(ids, [(0, 5), (2, 2)])}


def every_token():
    ids = random_ids(2, 6)
    return {"input_ids": ids, "labels": ids.clone()}


BATCHES = [one_row, several_rows, packed_rows, a_row_without_labels, every_token]


def full_loss(model, batch, num_items=None):
    """Cross-entropy over all logits, in the model's precision."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits
    targets = batch["labels"][:, 1:]
    each = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none"
    )
    return each.sum() / (num_items or (targets != -100).sum())


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("batch", BATCHES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("num_items", [None, 7])
def test_the_loss_and_its_gradients_are_those_of_the_full_logits(llama, batch, num_items):
    batch = batch()
    loss, full = supervised_loss(llama, batch, num_items), full_loss(llama, batch, num_items)
    assert abs(loss.item() - full.item()) < 1e-10
    expected = gradients(llama, full)
    for name, gradient in gradients(llama, supervised_loss(llama, batch, num_items)).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-10, msg=name)


@pytest.mark.parametrize("batch", BATCHES, ids=lambda make: make.__name__)
def test_the_loss_is_transformers_own(llama, batch):
    """They compute it in float32 whatever the model's dtype, so no closer than that."""
    batch = batch()
    theirs = llama(**batch, use_cache=False).loss.item()
    assert supervised_loss(llama, batch).item() == pytest.approx(theirs, rel=1e-6)


def test_logits_are_computed_at_supervised_positions_alone(llama):
    computed = []
    llama.lm_head.register_forward_hook(
        lambda _, args, out: computed.append(out.numel() // VOCABULARY)
    )
    supervised_loss(llama, several_rows())
    supervised_loss(llama, one_row())
    assert computed == [6, 3]  # not three rows of the five positions that any row has a target at


def test_a_batch_without_labels_has_no_loss_and_a_gradient_of_zero(llama):
    ids = random_ids(2, 5)
    loss = supervised_loss(llama, {"input_ids": ids, "labels": labelled(ids, [])})
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in llama.parameters())


def test_a_half_precision_model_has_a_float32_loss(llama):
    assert supervised_loss(llama.bfloat16(), one_row()).dtype == torch.float32


# The optimiser


def trainer_of(model, tmp_path, **options):
    args = TrainingArguments(
        output_dir=str(tmp_path), learning_rate=1e-2, weight_decay=0.1, report_to="none"
    )
    return SupervisedTrainer(model=model, args=args, **options)


@pytest.mark.parametrize(
    "tuner", [MMASection(), MMASection(adapt_vision_tower=False), LoraSection(), NoTunerSection()]
)
def test_the_connector_has_its_own_rate_and_nothing_is_lost_or_doubled(recipe, tmp_path, tuner):
    model = attach_tuner(assemble(recipe()).base, tuner)
    groups = (
        trainer_of(model, tmp_path, connector_learning_rate=3e-4).create_optimizer().param_groups
    )
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    placed = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(placed) == sorted(names.values())
    plain = trainer_of(model, tmp_path).create_optimizer().param_groups
    decays = {id(p): group["weight_decay"] for group in plain for p in group["params"]}
    for group in groups:
        for parameter in group["params"]:
            mine = ".connector." in names[id(parameter)]
            assert group["lr"] == (3e-4 if mine else 1e-2), names[id(parameter)]
            assert group["weight_decay"] == decays[id(parameter)], names[id(parameter)]
    assert any(".connector." in name for name in placed)


def test_texts_leave_a_lone_connector_where_it_is(recipe, tmp_path):
    """Of a zero gradient Adam would move it, by what it remembers of the images."""
    alone = {"tuner": {"type": "none"}, "data.packing": False, "training.warmup_steps": 0}
    saved = {"training.save_steps": 1, "training.save_total_limit": None}
    run_training(recipe({**alone, **saved, "training.num_train_epochs": 1}), tmp_path / "run")
    checkpoints = (tmp_path / "run" / "checkpoints" / f"checkpoint-{n + 1}" for n in range(15))
    states = [load_file(next(one.glob("*.safetensors"))) for one in checkpoints]
    moved = [
        any(not torch.equal(after[name], tensor) for name, tensor in before.items())
        for before, after in pairwise(states)
    ]
    assert sorted([*moved, True]) == [False] * 6 + [True] * 9  # the first row has an image


def test_without_a_rate_the_connector_shares_the_common_one(recipe, tmp_path):
    model = attach_tuner(assemble(recipe()).base, MMASection())
    groups = trainer_of(model, tmp_path).create_optimizer().param_groups
    assert {group["lr"] for group in groups} == {1e-2}


def test_both_rates_follow_the_schedule(recipe, tmp_path):
    page = recipe({"training.max_steps": 3, "training.lr_scheduler_type": "linear"})
    run_training(page.model_copy(update={"seed": 1}), tmp_path / "run")
    state = torch.load(
        tmp_path / "run" / "checkpoints" / "checkpoint-3" / "scheduler.pt", weights_only=True
    )
    assert sorted(set(state["base_lrs"])) == [5e-3, 1e-2]
    assert set(state["_last_lr"]) == {0.0}


# Checkpoints

SAVING = {"training.max_steps": 4, "training.save_steps": 2, "training.logging_steps": 3}


def test_a_checkpoint_holds_tensors_and_no_pickled_arguments(recipe, tmp_path):
    run_training(recipe(SAVING), tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    checkpoint = run.newest_checkpoint()
    names = {path.name for path in checkpoint.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "trainer_state.json"} <= names
    pickled = {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert {name for name in names if not name.endswith((".json", ".safetensors", ".md"))} == (
        pickled
    )
    with torch.serialization.safe_globals(_numpy_parts()):
        for name in pickled:  # tensors, numbers and numpy's random state
            torch.load(checkpoint / name, weights_only=True)
    for step, logged_at in ((2, 0), (4, 4)):  # the last step has a line of its own
        unlogged = json.loads((run.checkpoint(step) / "unlogged.json").read_text())
        assert unlogged["logged_at"] == logged_at
        assert [loss > 0 for loss in unlogged["losses"]] == [logged_at < step]


def test_the_other_processes_of_a_run_leave_no_half_checkpoint(recipe, tmp_path, monkeypatch):
    """One that is not the first writes aside, and the first takes along what it finds there."""
    run = RunDirectory(tmp_path / "run")
    page = recipe({"training.max_steps": 1})
    with monkeypatch.context() as patch:
        patch.setattr(TrainingArguments, "should_save", False)
        run_training(page, run.root)
    aside = run.checkpoints / ".checkpoint-1.varifocal-tmp-process0" / "checkpoint-1"
    assert [path.name for path in aside.iterdir()] == ["rng_state.pth"]
    assert run.newest_checkpoint() is None
    written = (aside / "rng_state.pth").read_bytes()
    save = SupervisedTrainer._save_rng_state

    def another_saves_too(self, output_dir):
        save(self, output_dir)
        aside.mkdir(parents=True)
        (aside / "rng_state_1.pth").write_bytes(written)

    monkeypatch.setattr(SupervisedTrainer, "_save_rng_state", another_saves_too)
    run_training(page, run.root, resume=True)  # deletes what the former call left
    assert {path.name for path in run.checkpoints.iterdir()} == {"checkpoint-1"}
    names = {path.name for path in run.newest_checkpoint().iterdir()}
    assert {"rng_state.pth", "rng_state_1.pth", "adapter_model.safetensors"} <= names


def _numpy_parts():
    import numpy as np

    return [np._core.multiarray._reconstruct, np.ndarray, np.dtype, np.dtypes.UInt32DType]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), RunError),
        (RuntimeError("something else"), RuntimeError),
    ],
)
def test_a_checkpoint_that_fails_halfway_leaves_the_last_whole_one(
    recipe, tmp_path, monkeypatch, error, raised
):
    saved = []
    whole = SupervisedTrainer._save_rng_state

    def fail_the_second_time(self, output_dir):
        saved.append(output_dir)
        if len(saved) == 2:
            raise error
        whole(self, output_dir)

    monkeypatch.setattr(SupervisedTrainer, "_save_rng_state", fail_the_second_time)
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(raised) as caught:
        run_training(recipe(SAVING), run.root)
    if raised is RunError:
        assert str(caught.value) == (
            f"the disk is full: {run.checkpoints / 'checkpoint-4'} was not written, and what was "
            "saved before is untouched; free some space and repeat the command with --resume"
        )
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-2"]
    result = run_training(recipe(SAVING), run.root, resume=True)
    assert result.steps == 4
    assert [record["step"] for record in run.read_metrics()] == [3, 4]


def test_a_full_disk_under_the_adapter_keeps_the_checkpoints(recipe, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = RunDirectory(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
        with pytest.raises(RunError, match=rf"^the disk is full: {run.processor} was not written"):
            run_training(recipe(SAVING), run.root)
    assert run.newest_checkpoint().name == "checkpoint-4"
    assert not list(run.processor.parent.glob(".processor*"))
    run_training(recipe(SAVING), run.root, resume=True)
    assert (run.processor / "tokenizer.json").is_file()


def test_a_connector_alone_passes_over_rows_without_images(tmp_path, recipe):
    text = {"data.train": [{**recipe().data.train[0].model_dump(), "skills": ["letters"]}]}
    page = recipe({**text, "tuner": {"type": "none"}, "training.max_steps": 2})
    result = run_training(page, tmp_path / "run")
    assert result.steps == 2


@pytest.mark.parametrize("tuner", ["mma", "lora", "mixlora", "full"])
def test_weight_decay_shrinks_matrices_and_nothing_else(recipe, tmp_path, tuner):
    """As timm's rule, which LaVIN's code takes: by dimension, and no bias."""
    page = recipe({"tuner": {"type": tuner}, "training.max_steps": 0})
    parts = assemble(page)
    model = attach_tuner(parts.base, page.tuner)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    args = TrainingArguments(output_dir=str(tmp_path), weight_decay=0.02, use_cpu=True)
    decayed, whole = SupervisedTrainer(model=model, args=args).create_optimizer().param_groups
    assert (decayed["weight_decay"], whole["weight_decay"]) == (0.02, 0.0)
    vectors = {id(p) for name, p in trained.items() if p.ndim < 2 or name.endswith("bias")}
    assert {id(p) for p in whole["params"]} == vectors
    assert {id(p) for p in decayed["params"]} == {id(p) for p in trained.values()} - vectors
    if tuner == "mma":
        down = [p for name, p in trained.items() if "layernorm.mma_down" in name and p.ndim == 2]
        assert down
        assert {id(p) for p in down} <= {id(p) for p in decayed["params"]}
