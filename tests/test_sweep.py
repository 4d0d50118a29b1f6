"""One recipe over a grid: refused whole or run whole, and a killed sweep goes on where it stopped.

The tiny models and data are those of the training tests.
"""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import yaml

from varifocal import cli
from varifocal.errors import RecipeError, RunError
from varifocal.run import RunDirectory
from varifocal.sweep import DONE, _same_scores, load_sweep, run_sweep
from varifocal.training.train import run_training
from varifocal.training.trainer import SupervisedTrainer
from varifocal.writing import write_text

SWEEPS = Path(__file__).parents[1] / "sweeps"

_file = Path(__file__).parent / "training" / "conftest.py"
_spec = importlib.util.spec_from_file_location("tests_training_conftest", _file)
_shared = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_shared)
parts, book, recipe_file = _shared.parts, _shared.book, _shared.recipe_file
_own_cache, _one_thread = _shared._own_cache, _shared._one_thread


@pytest.fixture
def write(tmp_path, recipe_file, book):
    """Write a sweep of the tiny recipe: `write(grid={...})`; returns its file."""

    def write(**page):
        few = {"training.max_steps": 2, "training.save_steps": 1, "tuner.adapt_vision_tower": False}
        given = {"recipe": recipe_file.name, "set": few, "evaluate": False, **page}
        given["set"] = {**few, **page.get("set", {})}
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump(given, sort_keys=False))
        return file

    return write


@pytest.fixture
def steps(monkeypatch):
    """Every training step that is taken, and after how many the power fails."""
    step = SupervisedTrainer.training_step
    taken = []

    def training_step(self, *args, **kwargs):
        if len(taken) == steps.until:
            raise MemoryError
        taken.append(self.state.global_step + 1)
        return step(self, *args, **kwargs)

    steps.until = None
    steps.taken = taken
    monkeypatch.setattr(SupervisedTrainer, "training_step", training_step)
    return steps


GRID = {"tuner.bottleneck_dim": [2, 4]}


# The page


def test_points_are_every_combination_with_every_seed(write):
    sweep = load_sweep(
        write(grid={"tuner.bottleneck_dim": [2, 4], "training.learning_rate": [1e-3]}, seeds=[0, 7])
    )
    assert [point.label for point in sweep.points] == [
        "bottleneck_dim=2,learning_rate=0.001,seed=0",
        "bottleneck_dim=4,learning_rate=0.001,seed=0",
        "bottleneck_dim=2,learning_rate=0.001,seed=7",
        "bottleneck_dim=4,learning_rate=0.001,seed=7",
    ]
    assert [point.recipe.seed for point in sweep.points] == [0, 0, 7, 7]
    assert [point.recipe.tuner.bottleneck_dim for point in sweep.points] == [2, 4, 2, 4]
    assert {point.recipe.training.max_steps for point in sweep.points} == {2}
    assert list(sweep.groups) == [
        "bottleneck_dim=2,learning_rate=0.001",
        "bottleneck_dim=4,learning_rate=0.001",
    ]


def test_points_may_be_named(write):
    few = [
        {"label": "small", "set": {"tuner.bottleneck_dim": 2}},
        {"label": "large one", "set": {"tuner.bottleneck_dim": 16}},
        {"label": "as it is"},
    ]
    sweep = load_sweep(write(points=few))
    assert [point.label for point in sweep.points] == ["small", "large-one", "as-it-is"]
    assert sweep.points[1].recipe.tuner.bottleneck_dim == 16
    assert sweep.points[1].recipe.seed == 5  # the recipe's own


def test_a_command_line_may_override_every_point(write):
    sweep = load_sweep(write(grid=GRID), ["training.max_steps=9", "tuner.bottleneck_dim=32"])
    assert [point.recipe.training.max_steps for point in sweep.points] == [9, 9]
    assert [point.recipe.tuner.bottleneck_dim for point in sweep.points] == [2, 4]


def test_a_seed_may_stand_in_a_text(write, tmp_path):
    """A stage before has a run a seed, and each point starts from that of its own."""
    key = "model.connector.weights"
    sweep = load_sweep(write(grid=GRID, seeds=[0, 7], set={key: f"{tmp_path}/first/seed={{seed}}"}))
    assert [Path(point.recipe.model.connector.weights).name for point in sweep.points] == [
        *2 * ["seed=0"],
        *2 * ["seed=7"],
    ]


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        ({"gird": {}}, "gird: unknown key; did you mean 'grid'?"),
        ({}, "grid: there is no point: give grid, points or seeds"),
        ({"grid": {"seed": []}}, "grid.seed: has no value"),
        ({"grid": GRID, "points": [{"label": "a", "set": {}}]}, "points: grid says what"),
        ({"seeds": [1, 1]}, "seeds: a seed stands twice"),
        ({"seeds": [-1]}, "seeds[0]: -1 was given"),
        (
            {"grid": {"tuner.bottleneck_dims": [2]}},
            "point 'bottleneck_dims=2': tuner.bottleneck_dims: unknown key; "
            "did you mean 'bottleneck_dim'?",
        ),
        ({"grid": {"tuner.bottleneck_dim": [2, 0]}}, "point 'bottleneck_dim=0': tuner.bottleneck_"),
        ({"grid": {"tuner.bottleneck_dim": [2, 2]}}, "2 points are called 'bottleneck_dim=2'"),
        ({"recipe": "tyni.yaml", "grid": GRID}, "no recipe 'tyni.yaml'"),
        ({"grid": GRID, "checkpoints": True}, "checkpoints: evaluate: false scores nothing"),
        (
            {"grid": GRID, "evaluate": True, "checkpoints": True, "sources": [{"path": "a"}]},
            "training.save_total_limit keeps 2 checkpoints, and the sweep is to score all of them",
        ),
        (
            {
                "points": [{"label": "whole", "set": {"tuner": {"type": "full"}}}],
                "set": {"training.save_total_limit": None},
                "evaluate": True,
                "checkpoints": True,
                "sources": [{"path": "a"}],
            },
            "tuner.type: full leaves checkpoints without a model",
        ),
        (
            {
                "grid": GRID,
                "set": {"training.save_strategy": "epoch", "training.save_total_limit": None},
                "evaluate": True,
                "checkpoints": True,
                "sources": [{"path": "a"}],
            },
            "training.save_strategy: epoch writes no checkpoints by training.save_steps",
        ),
        ({"grid": GRID, "evaluate": True}, "data.evaluate names no source to score on"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:30],
)
def test_a_wrong_page_is_refused_in_a_sentence(write, page, sentence):
    with pytest.raises(RecipeError) as caught:
        load_sweep(write(**page))
    assert sentence in str(caught.value)


def test_a_sweep_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(RecipeError, match=r"no sweep '.*nothing\.yaml'; give a YAML file"):
        load_sweep(tmp_path / "nothing.yaml")


def test_one_wrong_point_keeps_the_others_from_training(
    write, tmp_path, steps, monkeypatch, capsys
):
    file = write(grid={"tuner.bottleneck_dim": [2, 4, -1]})
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["varifocal", "sweep", str(file), "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert (
        "point 'bottleneck_dim=-1': tuner.bottleneck_dim: -1 was given" in capsys.readouterr().err
    )
    assert steps.taken == []
    assert not out.exists()


@pytest.mark.parametrize("file", sorted(SWEEPS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_sweeps_of_the_tree_are_strict_pages(file):
    from varifocal.recipe.strict_yaml import read_page, validate
    from varifocal.sweep import SweepSection

    assert validate(SweepSection, read_page(file)).grid["data.mixture.language_fraction"]


# The runs


def curve(root):
    return [
        (line["step"], line["loss"], line["tokens"]) for line in RunDirectory(root).read_metrics()
    ]


def test_a_killed_sweep_goes_on_at_the_point_and_the_step(write, tmp_path, steps):
    sweep = load_sweep(write(grid=GRID))
    whole = run_sweep(sweep, tmp_path / "whole")
    assert steps.taken == [1, 2, 1, 2]
    labels = ["bottleneck_dim=2", "bottleneck_dim=4"]
    assert [run.name for run in whole.runs] == labels

    steps.until = 4 + 3  # in the second point, after its first step
    with pytest.raises(MemoryError):
        run_sweep(sweep, tmp_path / "out")
    assert [(tmp_path / "out" / label / DONE).exists() for label in labels] == [True, False]
    first = (tmp_path / "out" / labels[0] / "adapter" / "adapter_model.safetensors").stat()

    steps.until = None
    steps.taken.clear()
    report = run_sweep(sweep, tmp_path / "out")
    assert steps.taken == [2]
    again = (tmp_path / "out" / labels[0] / "adapter" / "adapter_model.safetensors").stat()
    assert (again.st_mtime_ns, again.st_ino) == (first.st_mtime_ns, first.st_ino)
    for label in labels:
        assert curve(tmp_path / "out" / label) == curve(tmp_path / "whole" / label)
    assert [run.finished for run in report.runs] == [True, True]

    steps.taken.clear()
    run_sweep(sweep, tmp_path / "out")  # all is done: only the report is written again
    assert steps.taken == []
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["differences"] == {"tuner.bottleneck_dim": [2, 4]}
    assert list(record["groups"]) == labels


def test_a_sweep_scores_its_points_and_averages_seeds(
    write, tmp_path, book, steps, monkeypatch, capsys
):
    scored = [{"path": str(book), "split": "train", "max_examples": 4}]
    file = write(seeds=[0, 1], evaluate=True, sources=scored, set={"training.max_steps": 1})
    arguments = ["varifocal", "sweep", str(file), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "Over seeds" in capsys.readouterr().out
    group = json.loads((tmp_path / "out" / "report.json").read_text())["groups"]["all"]
    assert (group["runs"], group["finished"]) == (["seed=0", "seed=1"], 2)
    average = group["scores"]["book-train average"]
    assert average["count"] == 2
    assert average["low"] <= average["mean"] <= average["high"]
    assert group["cost"]["tokens"] > 0


def test_a_sweep_scores_along_each_run(write, tmp_path, book, steps, monkeypatch, capsys):
    scored = [{"path": str(book), "split": "train", "max_examples": 4}]
    few = {"training.save_total_limit": None, "training.learning_rate": 0.1}
    page = {"seeds": [0], "evaluate": True, "checkpoints": True, "sources": scored, "set": few}
    run_sweep(load_sweep(write(**page)), tmp_path / "out")
    run = RunDirectory(tmp_path / "out" / "seed=0")
    assert run.steps() == [1, 2]
    asked = [predictions(run.evaluations_at(step)) for step in (1, 2, None)]
    assert [one["id"] for one in asked[0]] == [one["id"] for one in asked[1]]
    assert asked[0] != asked[1] == asked[2]

    (run.evaluations_at(1) / "book-train.json").unlink()
    data = ["--data", str(book), "--split", "train"]
    monkeypatch.setattr(
        sys, "argv", ["varifocal", "eval", str(run.root), "--checkpoint", "1", *data]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert str(run.evaluations_at(1) / "book-train.json") in capsys.readouterr().out.replace(
        "\n", ""
    )
    again = {one["id"]: one for one in predictions(run.evaluations_at(1))}
    assert all(again[one["id"]] == one for one in asked[0])


def test_a_checkpoint_of_an_interruption_is_not_scored(write, tmp_path, book):
    scored = [{"path": str(book), "split": "train", "max_examples": 2}]
    few = {"training.save_total_limit": None, "training.save_steps": 2, "training.max_steps": 4}
    page = {"seeds": [0], "evaluate": True, "checkpoints": True, "sources": scored, "set": few}
    sweep = load_sweep(write(**page))
    run = RunDirectory(tmp_path / "out" / "seed=0")
    run_training(sweep.points[0].recipe, run.root)
    (run.checkpoints / "checkpoint-2").rename(run.checkpoints / "checkpoint-3")  # as by Ctrl-C
    run_sweep(sweep, tmp_path / "out")
    assert [one.name for one in run.evaluations.iterdir() if one.is_dir()] == ["checkpoint-4"]


def test_scores_of_the_last_checkpoint_are_copied_whole_or_not_at_all(tmp_path, monkeypatch):
    run = RunDirectory.create(tmp_path / "run")
    write_text(run.evaluations / "book.json", "{}")
    (run.evaluations / ".book.json.varifocal-tmp-left-by-a-kill").touch()

    def stop_halfway(source, target):
        Path(target).write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", stop_halfway)
        with pytest.raises(KeyboardInterrupt):
            _same_scores(run, 4)
    place = run.evaluations_at(4)
    assert list(place.iterdir()) == []
    _same_scores(run, 4)
    assert [(file.name, file.read_text()) for file in place.iterdir()] == [("book.json", "{}")]


def test_checkpoints_at_shares_of_a_run_are_scored(write, tmp_path, book):
    scored = [{"path": str(book), "split": "train", "max_examples": 2}]
    few = {"training.save_total_limit": None, "training.save_steps": 0.5, "training.max_steps": 4}
    page = {"evaluate": True, "sources": scored, "set": few}
    for seed, checkpoints in ((0, False), (1, True)):
        file = write(**page, seeds=[seed], checkpoints=checkpoints)
        run_sweep(load_sweep(file), tmp_path / "out")
    evaluations = (RunDirectory(tmp_path / "out" / f"seed={seed}").evaluations for seed in (0, 1))
    scored = [sorted(one.name for one in place.iterdir() if one.is_dir()) for place in evaluations]
    assert scored == [[], ["checkpoint-2", "checkpoint-4"]]


def test_a_point_without_eyes_is_asked_without_the_images(write, tmp_path, book, run):
    blind = {"model.vision_tower": None, "model.connector": None}
    blind |= {"data.mixture.language_fraction": 1.0}
    points = [{"label": "text-only", "set": blind}, {"label": "images"}]
    scored = [{"path": str(book), "split": "train", "max_examples": 4}]
    file = write(points=points, evaluate=True, sources=scored, set={"training.max_steps": 1})
    run_sweep(load_sweep(file), tmp_path / "out")
    names = {
        label: [path.name for path in (tmp_path / "out" / label / "eval").glob("*.json")]
        for label in ("text-only", "images")
    }
    assert names == {"text-only": ["book-train-blind.json"], "images": ["book-train.json"]}
    asked = ["eval", tmp_path / "out" / "text-only", "--data", book, "--split", "train"]
    code, _, err = run(*asked)
    assert code != 0
    assert "has images, but the model has no vision tower; leave the images out with" in (
        err.replace("\n", " ")
    )
    assert run(*asked, "--blind")[0] == 0


def predictions(directory):
    lines = (directory / "book-train.predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_checkpoint_that_is_not_there_is_one_sentence(tmp_path):
    run = RunDirectory(tmp_path)
    with pytest.raises(RunError, match="has no checkpoint of step 3 but none; "):
        run.checkpoint(3)
    for step in (20, 100):
        (run.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
    assert run.checkpoint(100).name == "checkpoint-100"
    with pytest.raises(RunError, match="of step 3 but those of steps 20, 100;"):
        run.checkpoint(3)


def test_a_changed_sweep_does_not_go_on_with_the_former_runs(write, tmp_path, steps):
    run_sweep(load_sweep(write(grid={"tuner.bottleneck_dim": [2]})), tmp_path / "out")
    steps.taken.clear()
    changed = write(grid={"tuner.bottleneck_dim": [2]}, set={"training.max_steps": 3})
    with pytest.raises(RunError) as caught:
        run_sweep(load_sweep(changed), tmp_path / "out")
    assert "holds a run with training.max_steps: 2, and the sweep now says 3" in str(caught.value)
    assert steps.taken == []
