"""Runs side by side: what differs, what it took, what it scored; nothing missing is an error."""

import json
import sys

import pytest
import yaml

from varifocal import cli
from varifocal.api.run import Run
from varifocal.reports.card_scores import former_scores
from varifocal.reports.runs import flat, read_run
from varifocal.reports.runs_table import differences, group_rows, mean_of, tabulate_runs

PAGE = {
    "model": {"language_model": "smollm2-135m-instruct"},
    "tuner": {"type": "lora", "rank": 4},
    "data": {"train": [{"path": "/data/a.json"}]},
    "training": {"max_steps": 2},
}
COST = {
    "tokens": 3000,
    "tokens_text": 1000,
    "tokens_with_picture": 2000,
    "tokens_image": 160,
    "tokens_trained": 500,
    "vision_passes": 8,
    "vision_lookups": 12,
    "flops": 2_500_000_000_000,
    "seconds_total": 90.0,
    "seconds_training": 60.0,
    "tokens_per_second": 50.0,
    "peak_memory_gib": 1.25,
}


def score(accuracy):
    return {
        "count": 100, "unparsed": 0, "value": accuracy,
        "low": accuracy - 9, "high": accuracy + 8, "chance": 25.0,
    }  # fmt: skip


@pytest.fixture
def make(tmp_path):
    """Write a run directory: `make("a", rank=8, accuracy=50.0)`; `finished=False` is killed."""

    def make(name, accuracy=50.0, finished=True, seed=0, **tuner):
        root = tmp_path / name
        (root / "eval").mkdir(parents=True)
        page = {**PAGE, "seed": seed, "tuner": {**PAGE["tuner"], **tuner}}
        (root / "recipe.yaml").write_text(yaml.safe_dump(page))
        lines = [{"step": step, "loss": 3.0 / step} for step in (1, 2)]
        (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if finished:
            (root / "adapter").mkdir()
            (root / "adapter" / "adapter_config.json").write_text("{}")
            result = {"trained_parameters": {"language_model": 1000, "connector": 234}}
            (root / "training.json").write_text(json.dumps(result))
            (root / "cost.json").write_text(json.dumps(COST))
            columns = {"TXT": score(accuracy + 1), "average": score(accuracy)}
            measures = [{"name": name, **one} for name, one in columns.items()]
            report = {"benchmark": "book", "main": "average", "measures": measures}
            (root / "eval" / "book.json").write_text(json.dumps(report))
        else:
            saved = root / "checkpoints" / "checkpoint-1"
            saved.mkdir(parents=True)
            state = {"spent": [{"tokens": 5}, {"tokens": 6}], "seconds": {"total": 30.0}}
            (saved / "unlogged.json").write_text(json.dumps(state))
        return root

    return make


def cells(report, label):
    (row,) = [row for row in report.rows if row.label == label]
    return row.cells


def test_two_runs_show_what_differs_what_they_took_and_what_they_scored(make):
    report = tabulate_runs([make("a", rank=4, accuracy=50.0), make("b", rank=16, accuracy=62.5)])
    assert differences(report.runs) == {"tuner.rank": [4, 16]}
    assert cells(report, "state") == ("finished", "finished")
    assert cells(report, "trained parameters") == ("1,234", "1,234")
    assert cells(report, "tokens of rows with images") == ("2,000", "2,000")
    assert cells(report, "TFLOP") == ("2.5", "2.5")
    assert cells(report, "minutes") == ("1.5", "1.5")
    assert cells(report, "loss") == ("1.500", "1.500")
    assert cells(report, "book average %") == ("50.0 (41.0 to 58.0)", "62.5 (53.5 to 70.5)")


def test_a_default_that_is_written_out_is_no_difference(make):
    first, second = make("a", rank=8), make("b", rank=8)
    page = yaml.safe_load((second / "recipe.yaml").read_text())
    del page["tuner"]["rank"]  # eight by default
    (second / "recipe.yaml").write_text(yaml.safe_dump(page))
    assert differences(tabulate_runs([first, second]).runs) == {}


def test_an_unfinished_run_tells_how_far_it_came_and_what_that_took(make):
    report = tabulate_runs([make("a"), make("b", finished=False)])
    assert cells(report, "state") == ("finished", "unfinished, saved at step 1")
    assert cells(report, "tokens") == ("3,000", "11")  # of two processes
    assert cells(report, "minutes") == ("1.5", "0.5")
    assert cells(report, "book average %")[1] == "-"


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"measures": [3]}', "\x00"])
def test_nothing_missing_or_torn_stops_a_report(make, tmp_path, damage):
    torn = make("torn")
    for name in ("recipe.yaml", "metrics.jsonl", "training.json", "cost.json", "eval/book.json"):
        (torn / name).write_text(damage)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no run")
    roots = [make("whole"), torn, tmp_path / "empty", tmp_path / "nowhere", tmp_path / "file"]
    report = tabulate_runs(roots)
    assert [run.finished for run in report.runs if run.name != "torn"] == [True, *3 * [False]]
    assert {path.name for path in report.write(tmp_path / "out")} >= {"report.md", "report.json"}


def test_a_report_is_a_page_a_record_and_a_image(make, tmp_path):
    roots = [make(f"run{number}", rank=number + 1, accuracy=40.0 + number) for number in range(20)]
    files = tabulate_runs(roots).write(tmp_path / "out")
    assert [path.name for path in files] == ["report.md", "report.json", "report.png"]
    page = files[0].read_text()
    heads = [line for line in page.splitlines() if line.startswith("|  |")]
    assert heads == ["|  | " + " | ".join(f"run{number}" for number in range(20)) + " |"]
    assert "| tuner.rank | 1 | 2 |" in page
    assert "![accuracy against cost, and losses](report.png)" in page
    record = json.loads(files[1].read_text())
    assert record["differences"] == {"tuner.rank": list(range(1, 21))}
    assert record["runs"][3]["scores"]["book"]["average"]["value"] == 43.0
    assert record["runs"][3]["cost"]["flops"] == COST["flops"]
    assert files[2].read_bytes().startswith(b"\x89PNG")
    assert files[2].stat().st_size > 20_000


def test_one_run_without_scores_has_a_report(make, tmp_path):
    files = tabulate_runs([make("only", finished=False)]).write(tmp_path / "out")
    assert len(files) == 3  # its losses are drawn
    assert "| state | unfinished, saved at step 1 |" in files[0].read_text()


def test_seeds_are_averaged_over_the_runs_that_are_done(make, tmp_path):
    roots = [make(f"s{seed}", accuracy=50.0 + 2 * seed, seed=seed) for seed in range(3)]
    roots.append(make("s3", finished=False, seed=3))
    report = tabulate_runs(roots, {"lora": ["s0", "s1", "s2", "s3"]})
    files = report.write(tmp_path / "out")
    group = json.loads(files[1].read_text())["groups"]["lora"]
    assert (group["finished"], group["runs"]) == (3, ["s0", "s1", "s2", "s3"])
    average = group["scores"]["book average"]
    assert average["mean"] == pytest.approx(52.0)
    # Student's t with two degrees of freedom, 4.303, times 2 / sqrt(3)
    assert average["high"] - average["mean"] == pytest.approx(4.303 * 2 / 3**0.5)
    assert (average["least"], average["most"]) == (50.0, 54.0)
    assert "| lora | 3 of 4 | 3,000 | 2.5 | 1.5 | 52.0 (47.0 to 57.0) |" in files[0].read_text()


def test_a_mean_of_one_claims_no_interval():
    assert str(mean_of([61.25])) == "61.2"
    with pytest.raises(ValueError, match="nothing to average"):
        mean_of([])


def test_runs_of_one_name_are_told_apart(make, tmp_path):
    roots = [make("x/demo"), make("y/demo")]
    assert [run.name for run in tabulate_runs(roots).runs] == [str(root) for root in roots]


def test_a_page_is_laid_out_by_dotted_keys(make):
    assert flat({"a": [], "b": {"c": [1, {"d": None}]}}) == {"a": [], "b.c[0]": 1, "b.c[1].d": None}
    run = read_run(make("a"))
    assert run.knobs["data.train[0].path"] == "/data/a.json"
    assert run.knobs["training.max_steps"] == 2


@pytest.mark.parametrize("number", [1, 2, 9])
def test_the_verb_prints_a_table_and_writes_the_files(make, tmp_path, monkeypatch, capsys, number):
    monkeypatch.setenv("COLUMNS", "200")
    roots = [str(make(f"r{n}", rank=n + 1)) for n in range(number)]
    monkeypatch.setattr(sys, "argv", ["varifocal", "report", *roots, "--out", str(tmp_path / "o")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(f"r{n}" in out for n in range(number))
    assert "50.0 (41.0 to 58.0)" in out
    assert ("tuner.rank" in out) == (number > 1)
    assert str(tmp_path / "o" / "report.md") in out.replace("\n", "")


def test_scores_of_benchmarks_stand_beside_those_of_scienceqa(make, tmp_path, capsys, monkeypatch):
    roots = [make("a"), make("b", rank=8)]
    cider = {"name": "CIDEr (x100)", "value": 61.25, "low": 50.5, "high": 70.0, "count": 9}
    f1 = {"name": "f1", "value": 40.0, "low": None, "high": None, "count": 9}
    for root, main in zip(roots, ("f1", "f1"), strict=True):
        page = {"benchmark": "pope", "main": main, "measures": [cider, f1, {"name": "torn"}, 3]}
        (root / "eval" / "pope.json").write_text(json.dumps(page))
    report = tabulate_runs(roots, {"both": ["a", "b"]})
    assert cells(report, "pope f1 %") == ("40.0", "40.0")
    assert cells(report, "pope CIDEr (x100)") == ("61.2 (50.5 to 70.0)",) * 2
    assert [row.label for row in report.rows if row.main] == ["book average %", "pope f1 %"]
    assert group_rows(report)[0][-2:] == ["book average %", "pope f1 %"]
    assert [*report.runs[0].scores["pope"]] == ["f1", "CIDEr (x100)"]
    assert tmp_path / "o" / "report.png" in report.write(tmp_path / "o")
    monkeypatch.setattr(sys, "argv", ["varifocal", "report", *map(str, roots)])
    with pytest.raises(SystemExit):
        cli.main()
    shown = capsys.readouterr().out
    assert "pope f1 %" in shown
    assert "CIDEr" not in shown


def test_a_score_file_of_a_former_kind_is_named(make, monkeypatch, capsys):
    root = make("my run")
    (root / "eval" / "old.json").write_text('{"columns": {"average": {"value": 50.0}}}')
    (root / "eval" / "retention.json").write_text('{"rows": []}')
    monkeypatch.setattr(sys, "argv", ["varifocal", "report", str(root)])
    with pytest.raises(SystemExit):
        cli.main()
    told = (
        f"{root}/eval/old.json is of a former kind and is not read; delete it, and score anew "
        f"with: varifocal eval '{root}'"
    )
    assert capsys.readouterr().err == f"{told}\n"
    assert "is of a former kind and is not read" in (root / "README.md").read_text()


def test_the_api_and_the_notebook_name_a_score_file_of_a_former_kind(make, caplog):
    root = make("run")
    (root / "eval" / "old.json").write_text('{"columns": {"average": {"value": 50.0}}}')
    (sentence,) = former_scores(root / "eval")
    run = Run(root)
    assert all(line.suite != "old" for line in run.scores)
    assert [record.getMessage() for record in caplog.records] == [sentence]
    assert f"<li>{sentence}</li>" in run._repr_html_()
