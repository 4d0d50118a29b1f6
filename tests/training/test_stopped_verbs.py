"""Verbs on a run that was stopped: each uses the newest checkpoint and says so."""

import json
import shutil
import signal

import pytest
import torch
from transformers import AutoModelForCausalLM

from varifocal.assemble import open_run
from varifocal.cli import serve
from varifocal.data.example import Example, Message
from varifocal.errors import Stopped
from varifocal.run import RunDirectory
from varifocal.serving.engine import Engine, Sampling
from varifocal.training.train import run_training
from varifocal.training.trainer import SupervisedTrainer

QUESTION = "Which colour?"
TURN = (Message("user", (QUESTION,)),)
LENGTH = 12
CHANGES = {
    "training.max_steps": 6,
    "training.save_steps": 1,
    "training.save_total_limit": None,
    "training.learning_rate": 0.1,
}


@pytest.fixture(scope="module")
def runs():
    """Holds the run once the first test has trained it."""
    return {}


@pytest.fixture
def stopped(runs, recipe, tmp_path, monkeypatch):
    """A run of six steps that a signal stopped in its third."""
    if "stopped" not in runs:
        step = SupervisedTrainer.training_step

        def stop_in_third(self, *args, **kwargs):
            if self.state.global_step == 2:
                signal.raise_signal(signal.SIGINT)
            return step(self, *args, **kwargs)

        with monkeypatch.context() as broken:
            broken.setattr(SupervisedTrainer, "training_step", stop_in_third)
            with pytest.raises(Stopped):
                run_training(recipe(CHANGES), tmp_path / "run")
        runs["stopped"] = RunDirectory(tmp_path / "run")
    return runs["stopped"]


@pytest.fixture
def earlier(stopped, tmp_path):
    """The same run without its newest checkpoint: the second is the newest."""
    shutil.copytree(stopped.root, tmp_path / "earlier")
    run = RunDirectory(tmp_path / "earlier")
    shutil.rmtree(run.checkpoint(3))
    return run


@pytest.fixture
def says(caplog):
    """Check that a step was named: `says(3)`; what was said before is forgotten."""

    def says(step):
        found = f"has not reached its end: this is the run as of step {step}" in caplog.text
        caplog.clear()
        return found

    return says


def answer_at(run, step):
    _, parts = open_run(run.root, checkpoint=step)
    engine = Engine(parts.model, parts.encoder, parts.load_images)
    try:
        return engine.answer(TURN, Sampling(max_new_tokens=LENGTH))
    finally:
        engine.close()


def test_ask_answers_as_of_the_newest_checkpoint(run, stopped, says):
    code, out, _ = run("ask", stopped.root, QUESTION, "--max-new-tokens", LENGTH)
    assert code == 0
    assert says(3)
    assert out.rstrip("\n") == answer_at(stopped, 3).rstrip("\n")
    assert answer_at(stopped, 2) != answer_at(stopped, 3)


def test_serve_answers_as_of_the_newest_checkpoint(run, stopped, says, monkeypatch):
    from fastapi.testclient import TestClient

    told = {}

    def post(app, settings, name):
        body = {"model": name, "messages": [{"role": "user", "content": QUESTION}]}
        with TestClient(app, base_url="http://localhost") as client:
            answer = client.post("/v1/chat/completions", json={**body, "max_tokens": LENGTH})
        told["answer"] = answer.json()["choices"][0]["message"]["content"]

    monkeypatch.setattr(serve, "_run", post)
    assert run("serve", stopped.root)[0] == 0
    assert says(3)
    assert told["answer"] == answer_at(stopped, 3)


def test_an_export_is_of_the_newest_checkpoint(run, stopped, says, tmp_path):
    out = tmp_path / "exported"
    code, shown, errors = run(
        "export", stopped.root, "--to", "merged", "--out", out, "--prompts", 2, "--dtype", "float32"
    )
    assert code == 0, errors
    assert says(3)
    assert "this is the run as of step 3" in " ".join(shown.split())
    exported = AutoModelForCausalLM.from_pretrained(out / "text")
    gaps = []
    for step in (2, 3):
        _, parts = open_run(stopped.root, checkpoint=step)
        example = Example(TURN, is_prompt=True)
        encoded = parts.encoder.encode(example, with_answer=False)
        ids = torch.tensor(encoded.input_ids[None], dtype=torch.long)
        with torch.no_grad():
            gaps.append((exported(ids).logits - parts.model(input_ids=ids).logits).abs().max())
    assert gaps[1] < 1e-4 < 1e-2 < gaps[0]


def test_an_analysis_is_of_the_newest_checkpoint(run, stopped, earlier, says, tmp_path):
    overlaps = []
    for step, root in ((3, stopped.root), (2, earlier.root)):
        out = tmp_path / f"routing-{step}"
        assert run("analyze", "routing", root, "--examples", 2, "--out", out)[0] == 0
        assert says(step)
        overlaps.append(json.loads((out / "routing.json").read_text())["overlap"])
    assert overlaps[0] != overlaps[1]


@pytest.mark.parametrize("verb", ["ask", "chat"])
def test_a_prompt_past_the_window_is_told_with_both_numbers(run, stopped, monkeypatch, verb):
    """Asked alone it ends the command; a chat goes on with the next turn."""
    _, parts = open_run(stopped.root)
    window = parts.model.get_base_model().config.get_text_config().max_position_embeddings
    encoder = parts.encoder.for_prompts(None)
    asked = "a" * window
    example = Example((Message("user", (asked,)),), is_prompt=True)
    length = len(encoder.encode(example, with_answer=False).input_ids)
    assert length > window
    typed = iter([asked, "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    code, out, err = run(verb, stopped.root, *([asked] if verb == "ask" else []))
    assert code == (2 if verb == "ask" else 0)
    assert (
        f"error: the conversation takes {length} tokens, the model reads at most {window}; "
        "make it shorter or begin a new one" in err
    )
    assert "a" * 20 not in out
