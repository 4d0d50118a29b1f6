"""The MLAN study: what it holds out, how its claims are counted, its five-minute version."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from studies.mlan_claims import ASKED, at_cost, budgets_of, claims, cost_to_reach
from studies.mlan_figures import draw, paired, print_table
from studies.mlan_results import MEASURES, SUITES

from studies import mlan
from varifocal.sciencebook import SKILLS

ROOT = Path(__file__).parents[2]
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def moment(tokens, vision, language, step=1):
    costs = {"tokens": tokens, "tokens_with_picture": 0, "pictures": 0, "tflop": 0.1, "minutes": 1}
    right = {one: vision if one.endswith("vision") else language for one in ASKED}
    evidence = {suite: one / 100 - 1 for suite, one in right.items()}
    return {"step": step, **costs, "right": right, "evidence": evidence, "skills": {}}


def point(share, seed, end, vision, language):
    """A run from 40 % right to its end, straight through half of its tokens."""
    half = [(40 + one) / 2 for one in (vision, language)]
    moments = [moment(0, 40, 40, 0), moment(end / 2, *half), moment(end, vision, language, 2)]
    return {"share": share, "seed": seed, "rows": 100, "moments": moments}


@pytest.fixture
def points():
    """Vision: 60, a middle from 58 to 62, and 45 at all language; a point more in seed 1."""
    vision = dict(zip(SHARES, (60, 58, 60, 62, 45), strict=True))
    return [
        point(share, seed, 1000 - 400 * share, vision[share] + seed, 50 + 10 * share)
        for seed in (0, 1)
        for share in SHARES
    ]


def test_no_unseen_skill_is_trained_and_its_images_are_told():
    parts = mlan.skills()
    named = [name for names in parts.values() for name in names]
    assert len(set(named)) == len(named)
    assert all(len(names) >= 8 for names in parts.values())
    for part, names in parts.items():
        assert {SKILLS[name].needs == "image" for name in names} == {part.endswith("vision")}
    assert mlan.is_counted("shapes")
    assert not mlan.is_counted("magnets")  # its description leaves the answer to be found
    assert not mlan.is_counted("colors")  # its description names the other choices too


def test_the_sweep_trains_what_the_scores_leave_out(tmp_path):
    study = mlan.Study(tmp_path, mlan.with_rows(32), [1], None)
    mlan.make_books(study.data, mlan.QUICK)
    sweep = study.sweep("stage2", [1])
    assert [mlan.share_of(one) for one in sweep.points] == [number / 8 for number in range(9)]
    assert {one.recipe.seed for one in sweep.points} == {1}
    assert {one.recipe.data.mixture.total for one in sweep.points} == {32}
    data = sweep.points[0].recipe.data
    assert {Path(one.path).name for one in data.train} == {"trained-language", "trained-vision"}
    assert {Path(one.path).name for one in data.evaluate} == set(mlan.PARTS)
    weights = sweep.points[0].recipe.model.connector.weights
    assert weights == str(tmp_path / "stage1" / "seed=1")
    first = study.sweep("stage1", [1]).points[0].recipe
    assert {one.prompt_format for one in first.data.train} == {"caption"}
    assert [Path(one.path).name for one in first.data.evaluate] == [
        Path(one.path).name for one in data.evaluate
    ]


def test_all_may_spend_what_the_cheapest_share_did(points):
    assert budgets_of(points) == {0: 600.0, 1: 600.0}
    assert at_cost(points[0]["moments"], 600, "right")["unseen vision"] == pytest.approx(
        40 + 0.6 * 20
    )
    assert at_cost(points[4]["moments"], 600, "right")["unseen vision"] == 45


def test_the_claims_are_differences_paired_by_seed(points):
    found = claims(points, "right")
    vision, language = found["unseen vision"], found["unseen language"]
    assert found["seeds"] == [0, 1]
    assert vision["gain_of_vision_alone"]["values"] == [20, 21]
    assert vision["gain_of_language_alone"]["values"] == [5, 6]
    assert vision["gain_of_middle"]["values"] == pytest.approx([20, 21])
    assert vision["slope_of_middle"]["values"] == pytest.approx([4, 4])
    assert vision["cliff_at_all_language"]["values"] == pytest.approx([15, 15])
    assert vision["cliff_at_no_language"]["mean"] == pytest.approx(0)
    assert language["cliff_at_all_language"]["mean"] == pytest.approx(-5)
    assert found["tokens_a_row"] == {"vision": 10, "language": 6}


def test_the_saving_is_in_tokens_to_what_vision_alone_reached(points):
    saved = claims(points, "right")["unseen vision"]["tokens_to_what_vision_alone_reached"]
    assert saved["0"] == pytest.approx([1, 1])
    assert saved["0.75"] == pytest.approx([1000 / (700 * 20 / 22), 1000 / (700 * 21 / 23)])
    assert saved["1"] == [None, None]  # it never was as good
    assert cost_to_reach([0, 5], [40, 60], 40) == 0
    again = claims(points, "evidence")["trained vision"]
    assert again["tokens_to_what_vision_alone_reached"]["0.75"] == pytest.approx(saved["0.75"])
    assert again["cliff_at_all_language"]["values"] == pytest.approx([0.15, 0.15])


def test_a_seed_that_is_not_whole_makes_no_claim(points):
    assert claims(points[:-1], "right")["seeds"] == [0]
    assert claims(points[:3], "right") == {}


def test_the_figure_and_the_table_take_what_is_there(points, tmp_path, capsys):
    figure = {"mean": 50.0, "low": 45.0, "high": 55.0, "values": [49.0, 51.0]}
    asked = dict.fromkeys(ASKED, figure) | dict.fromkeys(("ScienceQA", "NLVR"))
    given = dict.fromkeys(MEASURES, asked)
    row = {"cost": points[0]["moments"][-1], "equal_rows": given, "equal_cost": given}
    shares = [{**row, "share": 0.0}, {**row, "share": 1.0}]
    guessed = dict.fromkeys(MEASURES, -1.0) | {"questions": 50}
    chance = dict.fromkeys(ASKED, guessed)
    results = {"base": given, "chance": chance, "shares": shares, "points": points}
    draw(results, tmp_path / "mlan.png")
    assert (tmp_path / "mlan.png").read_bytes()[:4] == b"\x89PNG"
    print_table(results)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split()[:2] == ["100", "1000"]
    assert lines[-1].endswith("50.0 (45.0 to 55.0)")


def test_an_end_is_drawn_beside_an_end():
    seeds = [["start", "half", "end"], ["start", "half", "late", "end"], ["start", "half", "end"]]
    assert paired(seeds) == [(name,) * 3 for name in ("start", "half", "end")]
    assert paired([["start", "end"], ["start", "half", "end"]])[1:] == [("end", "end")]
    assert paired([["start", "half", "end"]]) == [("start",), ("half",), ("end",)]


@pytest.mark.slow
def test_the_five_minute_version(tmp_path):
    command = [sys.executable, "-m", "studies.mlan", str(tmp_path), "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = json.loads((tmp_path / "mlan.json").read_text())
    assert [row["share"] for row in page["shares"]] == [0.0, 0.5, 1.0]
    assert page["seeds"] == [0]
    assert page["commit"]
    assert page["versions"]["varifocal"]
    for row in page["shares"]:
        for comparison in ("equal_rows", "equal_cost"):
            for measure in MEASURES:
                asked = {name for name in SUITES if row[comparison][measure][name]}
                assert asked == set(ASKED)
    assert page["shares"][2]["cost"]["pictures"] == 0 < page["shares"][0]["cost"]["pictures"]
    assert set(page["claims"]["right"]) == {"seeds", *ASKED, "tokens_a_row"}
    assert (tmp_path / "mlan.png").stat().st_size > 10_000
    assert "language %" in done.stdout
