"""A run's model card: every number with its interval and protocol, and what the hub reads."""

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import yaml
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from varifocal.cli.commands import app
from varifocal.errors import RunError
from varifocal.evaluation.retention import Retention, RetentionLine
from varifocal.evaluation.statistics import Interval
from varifocal.reports.card import make_card, renew_card, write_card

INTERVAL = {"low": 40.0, "high": 61.0}


def give_results(root):
    """Let a run have ended and been scored in both protocols, with images."""
    (root / "training.json").write_text(
        json.dumps({"trained_parameters": {"language_model": 1234}})
    )
    (root / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, "loss": 2.0 - step / 10}) + "\n" for step in range(1, 6))
    )
    (root / "cost.json").write_text(json.dumps({"tokens": 3000, "flops": 2.5e12}))
    predicted = {"tokens": 2900, "flops": 2.0e12, "dollars": 0.125, "parts": {"a": 1}}
    predicted |= {"flops_masked": 5.0e11, "pad_share": 0.25}
    plan = {"predicted": predicted, "measured": {"tokens": 1, "dollars": 0.25, "seconds_total": 60}}
    (root / "plan.json").write_text(json.dumps(plan))
    realised = {"source": "book", "modality": "text", "samples": 14, "tokens": 700}
    (root / "data.json").write_text(json.dumps({"realised": [{**realised, "trained_tokens": 70}]}))
    scores = root / "eval"
    scores.mkdir(exist_ok=True)
    column = {"count": 80, "unparsed": 8, "value": 50.0, "chance": 25.0, **INTERVAL}
    columns = [{"name": name, **column} for name in ("TXT", "average")]
    page = {"main": "average", "measures": columns, "protocol": "a greedy answer"}
    (scores / "book.json").write_text(json.dumps(page))
    measures = [{"name": "F1", "value": 70.0, **INTERVAL, "count": 9000, "unparsed": 0}]
    page = {"benchmark": "pope", "main": "F1", "measures": measures, "protocol": "yes or no | POPE"}
    (scores / "pope.json").write_text(json.dumps(page))
    image = root / "seen.png"
    PIL.Image.fromarray(np.full((640, 400, 3), 200, np.uint8)).save(image)
    asked = {"question": "Is it <b>grey</b>?", "gold": ["yes"], "images": [str(image)]}
    lines = [
        {"id": "7", **asked, "parsed": "yes", "correct": 1.0},
        {"id": "8", **asked, "parsed": None, "correct": 0.0},
    ]
    (scores / "book.predictions.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    kept = {"name": "right answers %", "count": 20, "base": {"value": 55.0, **INTERVAL}}
    kept |= {"off": {"value": 55.0, **INTERVAL}, "on": {"value": 52.5, **INTERVAL}}
    kept |= {"change": {"value": -2.5, "low": -9.0, "high": 4.0}, "p": 0.375}
    change = {"value": 1.25, "low": 1.1, "high": 1.4}
    of_text = {**kept, "name": "perplexity", "change": change, "p": None}
    of_image = {**of_text, "name": "perplexity after an image", "change": {**change, "value": 2}}
    page = {
        "rows": [kept, of_text, of_image],
        "notes": ["read so"],
        "sources": {"questions": "a folder"},
    }
    (scores / "retention.json").write_text(json.dumps(page))
    recipe = yaml.safe_load((root / "recipe.yaml").read_text())
    whence = {"versions": {}, "base_fingerprint": None}
    recipe["provenance"] = {"data": {"book": "abc123"}, **whence}
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return root


def test_every_number_stands_with_its_interval_and_protocol(make_run):
    page = make_card(give_results(make_run("lora"))).markdown()
    assert "| book | average | 50.0 | 40.0 to 61.0 | 80 | 8 |" in page
    assert "| book | a greedy answer |" in page
    assert "| pope | F1 | 70.0 | 40.0 to 61.0 | 9,000 | 0 |" in page
    assert "| pope | yes or no \\| POPE |" in page
    assert "| right answers % | 55.0 (40.0 to 61.0) | = base |" in page
    assert "| = base | 52.5 (40.0 to 61.0) | -2.5 (-9.0 to 4.0) | 0.375 | 20 |" in page
    assert "- questions: a folder\n- read so" in page
    assert "| tokens | 3,000 | 2,900 |" in page  # cost.json's own count, not the plan's copy
    assert "| minutes | 1.0 | - |" in page
    assert "| dollars | 0.25 | 0.125 |" in page
    assert "| TFLOP | 2.5 | 2 |" in page
    assert "| TFLOP on padding | - | 0.5 |" in page
    assert "| padding % | - | 25 |" in page
    assert (
        page.index("## Sample answers") < page.index("## How to use it") < page.index("## Scores")
    )
    assert "| book | text | 14 | 700 | 70 |" in page
    assert "| book | abc123 |" in page
    assert "| data.max\\_length | 160 |" in page
    assert "model.attn" not in page  # it is as by default


def test_the_first_lines_say_what_it_scores_and_what_that_cost(make_run):
    root = make_run("lora")
    first = make_card(root).markdown().partition("## ")[0]
    assert "- Scored: nothing yet." in first
    assert "- Cost in language: not measured; varifocal retention RUN does." in first
    first = make_card(give_results(root)).markdown().partition("## ")[0]
    assert "- Scored: book, average 50.0 (40.0 to 61.0); pope, F1 70.0 (40.0 to 61.0)." in first
    assert "- Cost in language: plain text, perplexity x 1.250 of the base model's; " in first
    assert "after an image, perplexity x 2.000 of the base model's." in first


def test_the_front_matter_is_what_the_hub_reads(make_run):
    card = ModelCard(make_card(give_results(make_run("mma"))).markdown())
    data = card.data
    assert (data.library_name, data.license) == ("peft", "other")
    assert data.to_dict()["license_name"] == "as-its-base-models"  # the hub asks for it by `other`
    assert data.tags == ["varifocal", "mma"]
    assert data.base_model is None  # a directory is no name of the hub's
    assert [(one.dataset_name, one.metric_type, one.metric_value) for one in data.eval_results] == [
        ("book", "accuracy", 50.0),
        ("pope", "F1", 70.0),
    ]


def test_names_of_the_hub_are_named_as_the_hub_does(make_run):
    root = make_run("lora")
    page = yaml.safe_load((root / "recipe.yaml").read_text())
    page["model"] |= {
        "language_model": "smollm2-135m-instruct",
        "vision_tower": "openai/clip-vit-base-patch32",
    }
    page["data"]["train"].append({"hub": "owner/rows", "format": "auto"})
    (root / "recipe.yaml").write_text(yaml.safe_dump(page))
    data = ModelCard(make_card(root).markdown()).data
    assert data.base_model == [
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "openai/clip-vit-base-patch32",
    ]
    assert data.datasets == ["owner/rows"]
    assert data.pipeline_tag == "image-text-to-text"


def test_limits_are_said(make_run):
    root = make_run("lora")
    page = make_card(root).markdown()
    assert "No score has been measured." in page
    assert "language skills was not measured" in page
    page = make_card(give_results(root)).markdown()
    assert "trained on 14 samples; that is little" in page
    assert "book: 8 of 80 answers (10%) could not be read." in page
    assert "language skills was not measured" not in page


class Sources(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for key, value in attrs if key in ("src", "href")]


def test_the_page_is_one_file(make_run, tmp_path):
    readme, page = write_card(give_results(make_run("lora")), tmp_path / "card.html")
    reader = Sources()
    reader.feed(page.read_text())
    assert len(reader.found) == 3  # the loss, and the image of two answers
    assert all(one.startswith("data:image/png;base64,") for one in reader.found)
    assert "b" not in reader.tags  # what a question says is no markup
    assert "@media (prefers-color-scheme:dark)" in page.read_text()
    assert "Is it \\<b\\>grey" in readme.read_text()
    places = re.findall(r"!\[.*?\]\((.*?)\)", readme.read_text())
    assert len(places) == 3
    for place in places:
        with PIL.Image.open(readme.parent / place) as image:
            assert max(image.size) >= 320


def test_the_code_that_loads_it_works(make_run, capsys):
    (code,) = re.findall(
        r"```python\n(.*?)```", make_card(give_results(make_run("lora"))).markdown(), re.DOTALL
    )
    exec(code.replace("))", ", max_new_tokens=3))"))
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"rows": [1], "measures": [3]}'])
def test_nothing_torn_stops_a_card(make_run, damage):
    root = give_results(make_run("lora"))
    names = ["training.json", "cost.json", "data.json", "metrics.jsonl", "plan.json"]
    for name in [*names, *(f"eval/{path.name}" for path in (root / "eval").iterdir())]:
        (root / name).write_text(damage)
    assert "## Limits" in make_card(root).markdown()


def test_the_verb_writes_one_runs_card_and_several_runs_have_none(make_run, tmp_path):
    root = give_results(make_run("lora"))
    page = tmp_path / "page.html"
    said = CliRunner().invoke(app, ["report", str(root), "--html", str(page)])
    assert said.exit_code == 0
    assert {str(root / "README.md"), str(page)} <= set(said.output.splitlines())
    other = make_run("mma")
    assert CliRunner().invoke(app, ["report", str(root), str(other)]).exit_code == 0
    assert not (other / "README.md").exists()
    said = CliRunner().invoke(app, ["report", str(root), str(other), "--html", str(page)])
    assert "--html is the card of one run; 2 are named" in str(said.exception)
    with pytest.raises(RunError, match="is no run directory"):
        write_card(tmp_path)


def test_every_verb_that_changes_a_run_renews_its_card(make_run, tmp_path, monkeypatch):
    """What makes the run is stood in for; the verb around it, and the card, are the real ones."""
    roots = {name: make_run(kind) for name, kind in zip(VERBS, ADAPTERS, strict=True)}

    def changed(name):
        give_results(roots[name])
        return SimpleNamespace(
            steps=1, trained_parameters={"a": 1}, loss=1.0, minutes=1.0, peak_memory_gib=1.0,
            skipped=(), dropped=(), runs=[SimpleNamespace(root=roots["sweep"])],
            alignment_loss=None, passed_over=(), data_notes=(),
        )  # fmt: skip

    monkeypatch.setattr("varifocal.training.train.run_training", lambda *_, **__: changed("train"))
    monkeypatch.setattr("varifocal.demo.run_demo", lambda *_, **__: changed("demo"))
    monkeypatch.setattr("varifocal.sweep.run_sweep", lambda *_, **__: changed("sweep"))
    monkeypatch.setattr(
        "varifocal.sweep.load_sweep", lambda *_: SimpleNamespace(name="s", points=())
    )
    monkeypatch.setattr("varifocal.cli.tables.print_demo", lambda *_: None)
    monkeypatch.setattr("varifocal.cli.report.print_report", lambda *_: None)
    recipe = str(roots["train"] / "recipe.yaml")
    for name, arguments in VERBS.items():
        told = [recipe if one == "RECIPE" else one for one in arguments]
        said = CliRunner().invoke(app, [*told, "--out", str(roots[name])])
        assert said.exit_code == 0, said.exception
        assert "| pope | F1 | 70.0" in (roots[name] / "README.md").read_text()


ADAPTERS = ("lora", "mma", "mixlora")
VERBS = {"train": ["train", "RECIPE", "--resume"], "demo": ["demo"], "sweep": ["sweep", "any.yaml"]}


def test_scoring_and_retention_renew_the_card_of_a_run_and_of_no_model(
    make_run, language, tmp_path, monkeypatch
):
    root = make_run("lora")
    page = yaml.safe_load((root / "recipe.yaml").read_text())
    page["data"]["evaluate"] = [page["data"]["train"][0]]
    (root / "recipe.yaml").write_text(yaml.safe_dump(page))
    scored = CliRunner().invoke(app, ["eval", str(root)])
    assert scored.exit_code == 0, scored.exception
    assert "| average |" in (root / "README.md").read_text()

    def measure(*_, **__):
        of_models = [Interval(1.0, 0.0, 2.0)] * 3
        row = RetentionLine("right %", 3, *of_models, None)
        kept = Retention(str(root), "toy", "lora", [row], {}, [])
        return kept, kept.write(root / "eval")

    monkeypatch.setattr("varifocal.evaluation.retention.measure_retention", measure)
    said = CliRunner().invoke(app, ["retention", str(root)])
    assert said.exit_code == 0, said.exception
    assert "| right % | 1.0 (0.0 to 2.0) |" in (root / "README.md").read_text()
    renew_card(language)
    assert not (language / "README.md").exists()


def test_a_fully_tuned_run_is_finished(make_run):
    root = give_results(make_run(None))
    page = yaml.safe_load((root / "recipe.yaml").read_text())
    page["tuner"] = {"type": "full"}
    (root / "recipe.yaml").write_text(yaml.safe_dump(page))
    assert "The run is not finished" in make_card(root).markdown()
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text("{}")
    card = make_card(root)
    assert "varifocal ask" in card.markdown()
    assert card.metadata["library_name"] == "transformers"
