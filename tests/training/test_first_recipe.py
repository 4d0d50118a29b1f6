"""`varifocal init`: the recipe that it writes is read, planned and trained."""

import PIL.Image
import pytest

from varifocal.data.holdout import holdout_keys
from varifocal.data.source import open_source
from varifocal.planning import first_recipe
from varifocal.recipe import load_recipe


@pytest.fixture
def photos(tmp_path, parts, monkeypatch):
    """Ten images, two questions to each, and tiny models under the names of those that ship.

    A column's name has a line break, as spreadsheets write them.
    """
    monkeypatch.setattr(first_recipe, "SMALL", str(parts / "language"))
    monkeypatch.setattr(first_recipe, "_TOWERS", ("nosuch", str(parts / "clip")))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = ['Datei;Frage;"Antwort\n(kurz)"']
    for number in range(10):
        PIL.Image.new("RGB", (28, 28), (25 * number, 0, 0)).save(folder / f"{number}.png")
        shape = "square" if number % 2 else "circle"
        lines += [f"{number}.png;Which number?;{number}", f"{number}.png;Which shape?;{shape}"]
    (folder / "fragen.csv").write_text("\n".join(lines))
    return folder


@pytest.mark.slow
def test_init_writes_a_recipe_that_plans_trains_and_scores(photos, run, tmp_path):
    code, printed, error = run("init", "photos", "--out", "mine.yaml")
    assert code == 0, error
    assert "  column 'Frage' is read as the question\n" in printed
    assert printed.endswith(
        "next:\n  varifocal data check mine.yaml\n  varifocal train mine.yaml --out runs/mine\n"
    )
    recipe = load_recipe("mine.yaml")
    sides = [
        {key for example in open_source(side[0]) for key in holdout_keys(example)}
        for side in (recipe.data.train, recipe.data.evaluate)
    ]
    assert len(sides[0] & sides[1]) == 0
    assert (len(sides[0]), len(sides[1])) == (8, 2)
    assert recipe.model.vision_tower.endswith("clip")
    text = (tmp_path / "mine.yaml").read_text()
    assert "root: photos\n" in text
    assert "# column 'Datei' is read as the image\n" in text
    code, _, error = run("init", "photos", "--out", "mine.yaml")
    assert (code, error) == (
        2,
        "error: mine.yaml is there already; name another with --out, or add --force\n",
    )
    (tmp_path / "mine.yaml").write_text("")
    assert run("init", "photos", "--out", "mine.yaml", "--force")[0] == 0
    assert (tmp_path / "mine.yaml").read_text() == text
    few = ("--set", "training.max_steps=1", "--set", "alignment.steps=2")
    code, printed, error = run("data", "check", "mine.yaml")
    assert code == 0, printed + error
    assert run("plan", "mine.yaml")[0] == 0
    code, _, error = run("train", "mine.yaml", "--out", "runs/mine", *few)
    assert code == 0, error
    code, _, error = run("eval", "runs/mine")
    assert code == 0, error


@pytest.mark.slow
def test_answers_that_say_nothing_leave_the_alignment_out(photos, run, tmp_path):
    lines = [f"{number}.png;Which number?;{number}" for number in range(10)]
    (photos / "fragen.csv").write_text("\n".join(["Datei;Frage;Antwort", *lines]))
    assert run("init", "photos")[0] == 0
    assert load_recipe("photos.yaml").alignment is None
    said = "# No word of descriptions or answers tells images apart, so there is no alignment.\n"
    assert said in (tmp_path / "photos.yaml").read_text()


@pytest.mark.slow
def test_the_batch_is_what_fits_and_leaves_steps(photos, run, monkeypatch):
    monkeypatch.setattr(first_recipe, "_FEW_ROWS", 4000)
    monkeypatch.setattr(first_recipe, "_MOST_ROWS", 4000)
    real = first_recipe.plan_recipe

    def plan(recipe, device):
        planned = real(recipe, device)
        object.__setattr__(planned, "largest_micro_batch", 3)
        return planned

    monkeypatch.setattr(first_recipe, "plan_recipe", plan)
    assert run("init", "photos")[0] == 0
    assert load_recipe("photos.yaml").training.per_device_train_batch_size == 3
