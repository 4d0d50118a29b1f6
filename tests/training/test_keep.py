"""`training.keep`: the base's answers, their rows, and what they do in a training."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from varifocal.assemble import assemble
from varifocal.cache import cache_root
from varifocal.data.example import Example, Message
from varifocal.errors import RecipeError, RunError
from varifocal.evaluation.retention_texts import PROMPTS
from varifocal.models.divergence import top_k_log_probs
from varifocal.models.loss import supervised_loss
from varifocal.planning.plan import foresee
from varifocal.recipe.keep import PLAIN_INSTRUCTIONS
from varifocal.run import RunDirectory
from varifocal.training.examples import load_training_data
from varifocal.training.keep import _drawn, prepare_references
from varifocal.training.train import build_trainer, run_training
from varifocal.training.tuner import attach_tuner

KEEP = {"num_examples": 6, "max_new_tokens": 8, "share": 0.3, "top_k": 4}
TUNERS = {
    "mma": {"type": "mma", "router_temperature": 1.0, "dropout": 0.0},
    "mixlora": {"type": "mixlora", "num_factors": 4, "rank": 2, "dropout": 0.0},
    "lora": {"type": "lora", "dropout": 0.0},
    "full": {"type": "full"},
}


def quiet(*_):
    """Report to nobody."""


@pytest.fixture
def kept(recipe):
    """The recipe with `training.keep`: `kept({"training.max_steps": 1}, weight=2.0)`."""

    def read(overrides=(), **keep):
        section = {**KEEP, **keep}
        if section.get("type") == "replay":
            del section["top_k"]
        page = {"training.keep": section, "data.max_length": 200, "data.row_length": 400}
        return recipe({**page, **dict(overrides)})

    return read


def prepared(page, parts=None):
    return prepare_references(page, parts or assemble(page), quiet)


def opened(page, tmp_path):
    """A trainer of a recipe, as `train` builds it."""
    parts = assemble(page)
    replay = prepare_references(page, parts, quiet).replay
    data = load_training_data(page.data, parts.encoder, seed=page.seed, replay=replay)
    model = attach_tuner(parts.base, page.tuner)
    run = RunDirectory(tmp_path / "no-run")
    return build_trainer(page, run, parts.with_model(model), data, quiet), data


def test_the_base_answers_as_it_would_after_each_prompt(kept):
    """Greedy, every token is the likeliest in the table, which another pass has read in rows."""
    page = kept(temperature=0.0)
    parts = assemble(page)
    replay = prepared(page, parts).replay
    assert len(replay.samples) == 6
    for sample, text in zip(replay.samples, PLAIN_INSTRUCTIONS[:6], strict=True):
        example = Example((Message("user", (text,)),))
        prompt = parts.encoder.encode(example, with_answer=False).input_ids
        assert sample.input_ids[: len(prompt)].tolist() == prompt.tolist()
        answer = sample.trained_ids
        assert len(sample) == len(prompt) + len(answer)
        ended = answer[-1] == parts.encoder.end_of_turn_id
        assert ended or len(answer) == KEEP["max_new_tokens"]
        likeliest = replay.table.ids[sample.reference :, 0][: len(answer)]
        assert (
            likeliest[: len(answer) - int(ended)].tolist()
            == answer[: -1 if ended else None].tolist()
        )
    assert len(replay.table) == sum(len(sample.trained_ids) for sample in replay.samples)


def test_answers_are_drawn_by_the_seed_of_the_recipe(kept):
    first, again, other = (
        [sample.input_ids.tolist() for sample in prepared(page).replay.samples]
        for page in (kept(), kept({"training.max_steps": 7}), kept({"seed": 6}))
    )
    assert first == again != other


def test_the_table_holds_what_the_base_says_of_each_sample_alone(kept):
    page = kept()
    parts = assemble(page)
    replay = prepared(page, parts).replay
    covered = np.exp(replay.table.log_probs[:, :-1]).sum(1).mean()
    assert replay.facts["probability_covered"] == pytest.approx(covered, abs=1e-5)
    assert replay.facts["answer_tokens"] == len(replay.table)
    for sample in replay.samples:
        ids = torch.from_numpy(sample.input_ids)[None].long()
        with torch.no_grad():
            logits = parts.base(input_ids=ids).logits[0]
        count = len(sample.trained_ids)
        known, log_probs = top_k_log_probs(logits[len(sample) - count - 1 : -1], KEEP["top_k"])
        place = slice(sample.reference, sample.reference + count)
        assert replay.table.ids[place].tolist() == known.tolist()
        np.testing.assert_allclose(replay.table.log_probs[place], log_probs, rtol=0, atol=1e-5)


def test_answers_of_the_data_are_read_and_examples_with_an_image_passed_over(kept, book):
    source = {"path": str(book), "format": "scienceqa", "split": "train"}
    page = kept(instructions=[source], answers="data", max_new_tokens=64, num_examples=99)
    parts = assemble(page)
    replay = prepared(page, parts).replay
    answers = [parts.encoder.tokenizer.decode(one.trained_ids[:-1]) for one in replay.samples]
    assert answers == ["B", "C", "D"] * 2
    assert all(sample.modality == 0 for sample in replay.samples)


def test_the_rows_are_the_share_that_was_asked_for(kept, tmp_path):
    page = kept()
    _, data = opened(page, tmp_path)
    rows = [sample for row in range(len(data.rows)) for sample in data.rows[row]]
    own = sum(len(one) for one in rows if one.reference < 0)
    added = sum(len(one) for one in rows if one.reference >= 0)
    assert own == sum(data.samples.lengths)
    longest = max(len(one) for one in rows)
    assert 0 <= added - 0.3 * (own + added) < longest


def test_an_epoch_that_is_encoded_while_training_has_the_same_share(kept, tmp_path):
    page = kept({"data.lazy": True})
    _, data = opened(page, tmp_path)
    rows = [sample for row in range(3 * len(data.rows)) for sample in data.rows[row]]
    tokens = sum(map(len, rows))
    added = sum(len(one) for one in rows if one.reference >= 0)
    assert abs(added / tokens - 0.3) < 0.05


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_tuner_begins_without_divergence_and_is_held_by_it_later(kept, tmp_path, tuner):
    page = kept({"tuner": TUNERS[tuner], "training.loss_chunk": None}, share=0.6, weight=3.0)
    trainer, data = opened(page, tmp_path)
    row = next(n for n in range(len(data.rows)) if any(s.reference >= 0 for s in data.rows[n]))
    batch = trainer.data_collator([data.rows[row]])
    references = {name for name in batch if name.startswith("reference")}
    assert len(references) == 3
    without = {name: each for name, each in batch.items() if name not in references}
    without["labels"] = batch["labels"].masked_fill(batch["reference_mask"], -100)
    model = trainer.model.eval()

    def divergence():
        with torch.no_grad():
            return (supervised_loss(model, batch, 1) - supervised_loss(model, without, 1)).item()

    assert abs(divergence()) < 1e-3
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape)
    moved = divergence()
    assert moved > 0.01
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    alone = batch | {"labels": batch["labels"].masked_fill(~batch["reference_mask"], -100)}
    for _ in range(20):
        optimizer.zero_grad()
        supervised_loss(model, alone).backward()
        optimizer.step()
    assert divergence() < 0.5 * moved


def test_two_micro_batches_of_a_row_learn_as_one_of_two_rows(kept, tmp_path):
    shapes = {"1x2": (2, 1), "2x1": (1, 2)}
    found = {}
    for name, (rows, accumulated) in shapes.items():
        page = kept(
            {
                "tuner": TUNERS["mma"],
                "training.max_steps": 2,
                "training.per_device_train_batch_size": rows,
                "training.gradient_accumulation_steps": accumulated,
            }
        )
        run_training(page, tmp_path / name)
        found[name] = load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        cost = json.loads((tmp_path / name / "cost.json").read_text())
        assert cost["tokens_distilled"] > 0
    for key, tensor in found["1x2"].items():
        torch.testing.assert_close(found["2x1"][key], tensor, rtol=0, atol=1e-5, msg=key)


def test_a_resumed_run_ends_as_one_that_was_not_stopped(kept, tmp_path):
    """The answers are made anew in between: the cache is gone."""
    steps = {"training.save_steps": 2, "training.max_steps": 4}
    run_training(kept(steps), tmp_path / "whole")
    run_training(kept({**steps, "training.max_steps": 2}), tmp_path / "broken")
    shutil.rmtree(cache_root() / "keep")
    run_training(kept(steps), tmp_path / "broken", resume=True)
    paths = [
        tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "broken")
    ]
    whole, broken = map(load_file, paths)
    assert all(torch.equal(broken[key], tensor) for key, tensor in whole.items())
    costs = [
        json.loads((tmp_path / name / "cost.json").read_text()) for name in ("whole", "broken")
    ]
    assert costs[0]["tokens_distilled"] == costs[1]["tokens_distilled"] > 0


def test_a_run_is_not_resumed_with_another_keep_or_other_answers(kept, tmp_path):
    page = {"training.save_steps": 1, "training.max_steps": 1}
    run_training(kept(page), tmp_path / "run")
    more = {**page, "training.max_steps": 2}
    with pytest.raises(RunError, match=r"another training\.keep"):
        run_training(kept(more, weight=2.0), tmp_path / "run", resume=True)
    file = tmp_path / "run" / "keep.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "digest": "another"}))
    with pytest.raises(RunError, match="other answers of the base"):
        run_training(kept(more), tmp_path / "run", resume=True)


def test_what_it_costs_is_foreseen_and_counted_once(kept, tmp_path):
    page = kept({"training.max_steps": 2})
    first, second = (run_training(page, tmp_path / name, predict=foresee) for name in ("a", "b"))
    plan = json.loads((tmp_path / "a" / "plan.json").read_text())
    assert 0 < first.cost["flops_keep"] < first.cost["flops"]
    assert plan["predicted"]["flops_keep"] == first.cost["flops_keep"]
    for key in ("flops", "tokens", "tokens_trained"):
        assert plan["predicted"][key] == plan["measured"][key], key
    assert second.cost["flops_keep"] == 0  # another run has written the answers
    assert second.cost["flops"] == first.cost["flops"] - first.cost["flops_keep"]
    assert first.cost["seconds_keep"] > 0
    facts = json.loads((tmp_path / "a" / "keep.json").read_text())
    assert (facts["examples"], facts["type"]) == (6, "distill")
    assert 0 < facts["probability_covered"] <= 1


def test_a_plan_without_weights_counts_answers_as_long_as_they_may_be(kept, tmp_path, run):
    from varifocal.planning.plan import plan_recipe

    without, with_rows = (
        plan_recipe(page, "cpu") for page in (kept({"training.keep": None}), kept())
    )
    assert with_rows.tokens > without.tokens / 0.75
    assert without.flops_keep == 0 < with_rows.flops_keep
    assert any("answers of the base" in told for told in with_rows.assumptions)


def test_replay_learns_the_answers_themselves(kept, tmp_path):
    page = kept({"training.max_steps": 1}, type="replay")
    trainer, data = opened(page, tmp_path)
    assert data.replay.table is None
    assert trainer.data_collator.references is None
    assert any(one.example_id.startswith("plain-") for row in data.rows for one in row)
    run_training(page, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "cost.json").read_text())["tokens_distilled"] == 0


@pytest.mark.parametrize(
    ("keep", "told"),
    [
        ({"answers": "data"}, "answers: data needs training.keep.instructions"),
        ({"type": "replay", "weight": 2.0}, "weight: belongs to type distill, and this is replay"),
        ({"share": 1.0}, "share"),
        ({"top": 3}, "did you mean 'top_k'"),
        ({"instructions": [{"path": "none.jsonl"}]}, "no file 'none.jsonl'"),
    ],
)
def test_what_would_do_nothing_is_refused(kept, keep, told):
    with pytest.raises(RecipeError, match=told):
        kept(**keep)


@pytest.mark.parametrize("tuner", [{"type": "none"}, {"type": "mma", "text_route": "base"}])
def test_where_text_is_not_tuned_there_is_nothing_to_preserve(kept, tuner):
    with pytest.raises(RecipeError, match=r"training\.keep: text goes through nothing"):
        kept({"tuner": tuner})


def test_more_instructions_than_there_are_is_an_error(kept):
    with pytest.raises(RecipeError, match=r"keep\.num_examples: 720 instructions come with Varif"):
        kept(num_examples=len(PLAIN_INSTRUCTIONS) + 1)


def test_no_instruction_is_one_that_retention_measures_with():
    assert len(set(PLAIN_INSTRUCTIONS)) == 720
    assert not set(PLAIN_INSTRUCTIONS) & set(PROMPTS)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_as_often_as_the_base_says(temperature):
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0, -torch.inf]]).expand(20_000, -1)
    ids = _drawn(temperature, seed=0)(logits)
    found = torch.bincount(ids, minlength=5) / len(ids)
    expected = (logits[0] / temperature).softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)
    assert found[2] == found[4] == 0
