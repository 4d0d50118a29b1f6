"""`varifocal watch` names how a training goes, by the files of its run alone."""

import json
import os

import pytest
from typer.testing import CliRunner

from varifocal.cli.commands import app
from varifocal.locking import alone
from varifocal.reports.watch import watch_run
from varifocal.run import RunDirectory

LINE = {"loss": 2.0, "learning_rate": 1e-3, "tokens_per_second": 100.0}


@pytest.fixture
def run(tmp_path):
    """Four lines, 100 tokens a step: a step is a second."""
    run = RunDirectory.create(tmp_path / "mine")
    run.recipe.write_text("name: mine\n")
    for step in range(1, 5):
        run.append_metrics({**LINE, "step": step, "loss": 3.0 - step / 4, "tokens": 100 * step})
    run.append_metrics({"step": 4, "eval_loss": 2.5, "eval_score": 50.0, "eval_runtime": 1.0})
    run.plan.write_text(json.dumps({"predicted": {"steps": 10, "peak_memory_gib": 1.5}}))
    return run


def test_a_live_training_runs_until_it_is_quiet_for_long(run):
    written = run.metrics.stat().st_mtime
    with alone(run.root):
        now = watch_run(run, written + 30)
        assert (now.status, now.step, now.max_steps) == ("running", 4, 10)
        assert now.seconds_left == pytest.approx(6.0)
        assert watch_run(run, written + 61).status == "stuck"
        run.metrics.write_text("")
        assert watch_run(run).status == "starting"


def test_an_ended_training_has_finished_was_stopped_or_is_dead(run):
    assert watch_run(run).status == "stopped"
    (run.root / "training.json").write_text(json.dumps({"steps": 3}))  # of before a resumption
    assert watch_run(run).status == "stopped"
    (run.root / "training.json").write_text(json.dumps({"steps": 4}))
    assert watch_run(run).status == "finished"
    with alone(run.root):
        holder = (run.root / ".varifocal.holder").read_text()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    page = {**json.loads(holder), "pid": child}
    (run.root / ".varifocal.holder").write_text(json.dumps(page))
    assert watch_run(run).status == "dead"


def test_the_verb_prints_what_a_terminal_can_show(run):
    shown = run.validation_at(4) / "samples.json"
    shown.parent.mkdir(parents=True)
    answers = [("A star", 1.0), ("A very long answer that goes on and on", 0.0), ("ten", None)]
    samples = [{"question": "Which?\nA or B " * 9, "answer": a, "credit": c} for a, c in answers]
    shown.write_text(json.dumps(samples))
    done = CliRunner().invoke(app, ["watch", str(run.root), "--once"])
    assert done.exit_code == 0, done.output
    for text in (
        "stopped, step 4 of 10",
        "held-out loss",
        "2.5",
        "1.50 GiB, planned",
        "| A star | right",
    ):
        assert text in done.output
    assert max(map(len, done.output.splitlines())) <= 80
