"""`--strength`: a factor on what an adapter changes, in whatever opens or exports a run."""

import json

import pytest
import torch
from peft import PeftConfig

from varifocal.assemble import open_model, open_run
from varifocal.errors import ModelError
from varifocal.exporting.export import export_run
from varifocal.exporting.request import Order

TUNERS = {
    "mma": {"type": "mma", "router_temperature": 1.0},
    "mixlora": {"type": "mixlora", "num_factors": 4, "rank": 2, "train_connector": False},
    "lora_experts": {"type": "lora_experts", "train_connector": False},
    "lora": {"type": "lora", "adapt_vision_tower": True},
    "lora that text does not take": {"type": "lora", "text_route": "base"},
}


@pytest.fixture(scope="module", params=TUNERS)
def any_run(request, make_run):
    """A run of each tuner whose adapter and connector do something."""
    return make_run(TUNERS[request.param])


def logits(model, ids, **inputs):
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False, **inputs).logits


def marked(parts):
    """Ids of a text as the model reads one after an image, so that every adapter works on it."""
    ids = torch.tensor([parts.encoder.tokenizer("Will they attract?").input_ids])
    return ids, {"modality_ids": torch.ones_like(ids)}


def test_at_none_text_is_the_bases_and_at_all_the_runs_bit_for_bit(any_run):
    _, plain = open_run(any_run.root)
    ids, marks = marked(plain)
    trained = logits(plain.model, ids, **marks)
    with plain.model.disable_adapter():
        base = logits(plain.model, ids, **marks)
    assert not torch.equal(trained, base)
    _, none = open_run(any_run.root, strength=0.0)
    assert torch.equal(logits(none.model, ids, **marks), base)
    _, whole = open_run(any_run.root, strength=1.0)
    assert torch.equal(logits(whole.model, ids, **marks), trained)


def test_half_of_an_adapter_is_half_of_what_each_layer_adds(any_run):
    """In one layer alone, since later ones read what it has changed."""
    _, plain = open_run(any_run.root, dtype="float32")
    _, half = open_run(any_run.root, dtype="float32", strength=0.5)
    name, layer = next(
        (name, module)
        for name, module in plain.model.named_modules()
        if hasattr(module, "base_layer") and "language_model" in name
    )
    seen = []
    handles = [
        each.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
        for each in (layer, half.model.get_submodule(name))
    ]
    ids, marks = marked(plain)
    for parts in (plain, half):
        logits(parts.model, ids, **marks)
    for handle in handles:
        handle.remove()
    (given, with_all), (same, with_half) = seen[-2:] if len(seen) == 2 else (seen[1], seen[3])
    assert torch.equal(given, same)
    base = layer.base_layer(given)
    added = with_all - base
    assert added.abs().max() > 1e-3
    torch.testing.assert_close(with_half - base, added / 2, rtol=0, atol=1e-6)


def test_a_connector_is_not_scaled(make_run):
    run = make_run(TUNERS["mma"])
    _, plain = open_run(run.root)
    _, none = open_run(run.root, strength=0.0)
    trained = dict(plain.model.named_parameters())
    names = [name for name in trained if ".connector." in name]
    assert names
    for name, parameter in none.model.named_parameters():
        assert torch.equal(parameter, trained[name])


@pytest.mark.parametrize(("kind", "to"), [("mma", "merged"), ("lora", "lora"), ("mma", "lora")])
def test_an_export_is_the_run_at_that_strength(make_run, tmp_path, kind, to):
    run = make_run({**TUNERS[kind], "adapt_vision_tower": False})
    order = Order(run, to, num_prompts=2, strength=0.25)
    for done in export_run(order, tmp_path / "out"):
        assert done.parity.passed  # held against the run opened at this strength
        assert "scaled by 0.25" in (done.directory / "README.md").read_text()
    if kind == "lora":
        written = PeftConfig.from_pretrained(str(tmp_path / "out"))
        assert written.lora_alpha == 0.25 * 16


@pytest.mark.parametrize("tuner", [{"type": "full"}, {"type": "none"}])
def test_where_there_is_nothing_to_scale_it_is_refused(make_run, tuner):
    run = make_run(tuner)
    open_run(run.root, strength=1.0)
    with pytest.raises(ModelError, match="has none that could be scaled"):
        open_run(run.root, strength=0.5)


def test_a_model_alone_has_no_strength_and_a_negative_one_is_none(make_run, parts_directory):
    with pytest.raises(ModelError, match="has none that could be scaled"):
        open_model(parts_directory / "language", strength=0.5)
    with pytest.raises(ModelError, match="strength is -1"):
        open_run(make_run(TUNERS["lora"]).root, strength=-1)


def test_eval_and_benchmark_take_it_and_keep_their_own_files(make_run, run, tmp_path):
    trained = make_run({"type": "lora"}, tower=None)
    book = tmp_path / "scienceqa"
    book.mkdir()
    problem = {"question": "Which?", "choices": ["red", "a box"], "answer": 1, "hint": ""}
    extra = {"image": None, "subject": "natural science", "grade": "grade3", "lecture": ""}
    (book / "problems.json").write_text(json.dumps({"1": problem | extra}))
    (book / "pid_splits.json").write_text(json.dumps({"test": ["1"]}))
    adapter, language = trained.adapter, open_run(trained.root)[0].model.language_model
    calls = {
        "run": ("eval", trained.root, "--data", book, "--split", "test"),
        "suite": ("benchmark", trained.root, "scienceqa", "--data", tmp_path),
        "model": ("benchmark", language, "scienceqa", "--data", tmp_path, "--adapter", adapter),
    }
    for name, words in calls.items():
        out = trained.evaluations if name == "run" else tmp_path / name
        words += () if name == "run" else ("--out", out)
        assert run(*words)[0] == 0
        assert run(*words, "--strength", "0")[0] == 0
        whole, none = (
            json.loads(file.read_text())["scores"]
            for file in sorted(out.glob("*.predictions.jsonl"), key=lambda file: len(file.name))
        )
        assert whole != none
        if name == "run":
            trained_scores, base_scores = whole, none
        assert whole == pytest.approx(trained_scores, abs=1e-4)
        assert none == pytest.approx(base_scores, abs=1e-4)


def test_ask_and_retention_take_it_and_keep_their_own_file(make_run, run, tmp_path):
    trained = make_run({"type": "lora"}, tower=None)
    words = ("ask", trained.root, "Why?", "--max-new-tokens", "6")
    _, plain, _ = run(*words)
    code, none, _ = run(*words, "--strength", "0")
    assert code == 0
    assert none != plain
    text = tmp_path / "text.txt"
    text.write_text("Some plain words to read.")
    options = ("--limit", "2", "--text", text)
    for strength in ("1", "0"):
        assert run("retention", trained.root, *options, "--strength", strength)[0] == 0
    tables = [
        json.loads((trained.evaluations / name).read_text())
        for name in ("retention.json", "retention-strength-0.json")
    ]
    changes = [table["rows"][0]["change"]["value"] for table in tables]
    assert changes[0] != 1
    assert changes[1] == pytest.approx(1, abs=1e-6)
    assert any("scaled by 0" in note for note in tables[1]["notes"])
