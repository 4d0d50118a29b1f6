"""Questions that are answered in words: their metric, what answers earn, what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image as Images

from varifocal.assemble import Assembly
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Example, Message
from varifocal.data.loading import load_source
from varifocal.data.metric import Gold, choose_metric
from varifocal.errors import DataError, ModelError, RecipeError
from varifocal.evaluation import evaluated_model
from varifocal.evaluation.baselines import of_choices
from varifocal.evaluation.benchmark import Answer
from varifocal.evaluation.open_answers import (
    benchmark_of,
    credit,
    items_of,
    measure,
    read_open_answer,
)
from varifocal.evaluation.predictions import read_predictions
from varifocal.evaluation.runner import About, run
from varifocal.evaluation.sources import evaluate_recipe
from varifocal.models.likelihood import best_option
from varifocal.recipe import (
    DataSection,
    EvaluationSection,
    FileSection,
    ModelSection,
    Recipe,
    SourceSection,
)


def asked(*answers: str, choices: tuple[str, ...] = (), name: str = "q") -> Example:
    turns = (Message("user", ("Which colour?",)), Message("assistant", (answers[0],)))
    gold = choices.index(answers[0]) if choices else None
    several = answers if len(answers) > 1 else ()
    return Example(turns, name, choices=choices, answer_index=gold, answers=several)


def table(path: Path, *rows: dict) -> SourceSection:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileSection(path=str(path))


# Which metric


@pytest.mark.parametrize(
    ("examples", "metric"),
    [
        ([asked("red", choices=("red", "blue"))] * 3, "likelihood"),
        ([asked("red")] * 3, "exact"),
        ([asked("red", "crimson")] * 3, "exact"),
        ([asked(*["red"] * 10)] * 3, "vqa"),
        ([asked(*["red"] * 10), asked("red")], "exact"),
    ],
)
def test_the_data_decides_where_it_is_clear(examples: list[Example], metric: str) -> None:
    assert choose_metric(None, Gold.of(examples), "a.jsonl") == metric


def test_a_recipe_decides_otherwise() -> None:
    mixed = Gold.of([asked("red"), asked("red", choices=("red", "blue"))])
    assert choose_metric("anls", mixed, "a.jsonl") == "anls"
    with pytest.raises(DataError, match="1 of 2 questions have choices and 1 have none; say how"):
        choose_metric(None, mixed, "a.jsonl")
    with pytest.raises(DataError, match="the likelihood of choices is asked for"):
        choose_metric("likelihood", mixed, "a.jsonl")
    with pytest.raises(DataError, match="take exact, anls or contains"):
        choose_metric("vqa", mixed, "a.jsonl")


def test_a_metric_belongs_to_what_is_scored() -> None:
    page = {"train": [{"path": "a.jsonl", "metric": "exact"}]}
    with pytest.raises(ValueError, match=r"says how data\.evaluate is scored"):
        DataSection.model_validate(page)
    assert DataSection.model_validate({"evaluate": page["train"]}).evaluate[0].metric == "exact"


# Several right answers


@pytest.mark.parametrize(
    ("row", "trained", "answers"),
    [
        ({"answer": "red"}, "red", ()),
        ({"answer": ["red"]}, "red", ()),
        ({"answer": ["blue", "red", "red"]}, "red", ("blue", "red", "red")),
        ({"answers": ["blue", "red", "red"]}, "red", ("blue", "red", "red")),
        ({"answers": [{"answer": "2", "answer_id": 1}, {"answer": "3"}]}, "2", ("2", "3")),
        ({"answer": "blue", "answers": ["red", "red", "blue"]}, "blue", ("red", "red", "blue")),
        (
            {"answers": {"text": ["a dog", "dog"], "answer_start": []}},
            "a dog",
            ("a dog", "dog"),
        ),
    ],
)
def test_a_row_with_several_answers(tmp_path: Path, row: dict, trained: str, answers) -> None:
    (example,) = load_source(table(tmp_path / "a.jsonl", {"question": "Which?", **row}))
    assert (example.messages[-1].text, example.answers) == (trained, answers)


# What an answer earns


@pytest.mark.parametrize(
    ("metric", "text", "references", "earned"),
    [
        ("exact", "Red.", ["red"], 1.0),
        ("exact", "Red\nbecause it is", ["red"], 1.0),
        ("exact", "dark red", ["red"], 0.0),
        ("exact", "crimson", ["red", "crimson"], 1.0),
        ("exact", "one\ntwo", ["one\ntwo"], 1.0),
        ("contains", "It is red, I think.", ["red"], 1.0),
        ("contains", "a scarred hand", ["red"], 0.0),
        ("anls", "read", ["red"], 0.75),
        ("anls", "", ["red"], 0.0),
        ("vqa", "red", ["red"] * 2 + ["blue"] * 8, 0.6),
        ("vqa", "Blue", ["red"] * 2 + ["blue"] * 8, 1.0),
        ("exact", " \n", ["red"], 0.0),
    ],
)
def test_what_an_answer_earns(metric, text: str, references: list[str], earned: float) -> None:
    (item,) = items_of([asked(*references)])
    answer = Answer(text, parsed=read_open_answer(text, item))
    assert credit(metric, item, answer) == pytest.approx(earned)


def test_a_letter_counts_where_a_question_has_choices() -> None:
    (item,) = items_of([asked("blue", choices=("red", "blue"))])
    for text, earned in (("(b)", 1.0), ("blue", 1.0), ("The answer is A.", 0.0), ("A or B", 0.0)):
        assert credit("exact", item, Answer(text, parsed=read_open_answer(text, item))) == earned


def test_measures_on_paper() -> None:
    """Four answers: one right, one that says it, one a letter off, one empty."""
    items = items_of([asked("red")] * 4)
    said = ["red", "it is red", "rod", ""]
    answered = [
        (i, Answer(t, parsed=read_open_answer(t, i))) for i, t in zip(items, said, strict=True)
    ]
    found = {one.name: one for one in measure("exact", answered)}
    assert list(found) == ["exact match", "answer contained", "ANLS (x100)"]
    assert [one.value for one in found.values()] == pytest.approx([25, 50, 100 * (1 + 2 / 3) / 4])
    assert all(one.unparsed == 1 and one.count == 4 for one in found.values())


# Baselines


def test_baselines_on_paper() -> None:
    """Always "b" is right twice, the third place three times; ties of length are split."""
    found = of_choices(
        [
            (("a", "bb", "b"), 2),
            (("a", "c", "b"), 2),
            (("aa", "c", "d"), 2),
            (("aaa", "c"), 0),
        ]
    )
    assert found.chance == pytest.approx(100 * (1 / 3 + 1 / 3 + 1 / 3 + 1 / 2) / 4)
    assert (found.majority, found.majority_answer) == (75.0, "choice C")
    assert found.longest == pytest.approx(100 * (0 + 1 / 3 + 0 + 1) / 4)


def test_options_of_one_length_make_the_longest_a_guess() -> None:
    found = of_choices([(("ab", "cd"), 0), (("ef", "gh"), 1)])
    assert found.longest == found.chance == 50.0


def test_one_choice_is_always_right_and_the_baselines_say_so() -> None:
    assert of_choices([(("only",), 0)]).chance == 100.0


def test_no_questions_have_no_baselines() -> None:
    assert of_choices([]).majority is None


def test_a_score_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ModelError, match="no numbers"):
        best_option([-1.0, float("nan")])


# From files to scores


class Said:
    """An asker that writes what it is told to; it never sees a gold answer."""

    def __init__(self, parts: Assembly, answers: list[str]) -> None:
        self.model, self._asker, self._answers = (
            parts.model,
            evaluated_model.EncodedAsker(parts),
            answers,
        )

    def prepare(self, example: Example, *, with_options: bool):
        assert example.messages[-1].role == "user"
        return self._asker.prepare(example, with_options=with_options)

    def write(self, prompts, max_new_tokens: int) -> list[Answer]:
        return [Answer(self._answers.pop(0)) for _ in prompts]


@pytest.fixture
def parts(chat_llama, tokenizer) -> Assembly:
    return Assembly(chat_llama, tokenizer, Encoder(tokenizer), None, None, None)


@pytest.fixture
def scored(parts, tmp_path, monkeypatch):
    """Score sources of a recipe with what a model would say: `scored([...], "red", ...)`."""

    def make(sources: list[SourceSection], *answers: str, **options):
        said = list(answers)
        asker = (lambda parts: Said(parts, said)) if said else evaluated_model.EncodedAsker
        monkeypatch.setattr("varifocal.evaluation.sources.EncodedAsker", asker)
        recipe = Recipe(
            model=ModelSection(language_model="tiny"),
            data=DataSection(evaluate=tuple(sources), **options),
        )
        return list(evaluate_recipe(recipe, parts, tmp_path / "eval", About(), blind=None))

    return make


def test_a_table_without_choices_is_scored_by_its_own_recipe(scored, tmp_path: Path) -> None:
    rows = [{"question": f"Colour {n}?", "answer": c} for n, c in enumerate(("red", "red", "blue"))]
    (one,) = scored([table(tmp_path / "colours.jsonl", *rows)], "Red.", "blue", "blue")
    page = json.loads(one.file.read_text())
    assert one.file == tmp_path / "eval" / "colours.json"
    assert page["main"] == "exact match"
    assert page["measures"][0]["value"] == pytest.approx(100 * 2 / 3)
    assert page["baselines"]["majority"] == pytest.approx(100 * 2 / 3)
    assert page["baselines"]["majority_answer"] == "red"
    lines = read_predictions(tmp_path / "eval" / "colours.predictions.jsonl").lines
    assert [line.credit for line in lines.values()] == [1.0, 0.0, 1.0]


def test_ten_annotators_are_scored_as_vqa(scored, tmp_path: Path) -> None:
    row = {"question": "Colour?", "answers": ["red"] * 8 + ["blue"] * 2}
    (one,) = scored([table(tmp_path / "vqa.jsonl", row)], "blue")
    page = json.loads(one.file.read_text())
    assert page["main"] == "VQA accuracy"
    assert page["measures"][0]["value"] == pytest.approx(60)


def test_records_of_one_id_are_told_apart(scored, tmp_path: Path) -> None:
    rows = [{"id": "7", "question": f"Colour {n}?", "answer": "red"} for n in range(3)]
    scored([table(tmp_path / "same.jsonl", *rows)], "red", "red", "no")
    lines = read_predictions(tmp_path / "eval" / "same.predictions.jsonl").lines
    assert list(lines) == ["7", "7 (2)", "7 (3)"]
    with_choices = [{**row, "choices": ["red", "blue"]} for row in rows]
    scored([table(tmp_path / "choices.jsonl", *with_choices)])
    assert len(read_predictions(tmp_path / "eval" / "choices.predictions.jsonl").lines) == 3


class Killed(evaluated_model.EncodedAsker):
    """An asker that is killed before its third question; it says which it was asked."""

    asked: ClassVar[list[int]] = []
    lives: ClassVar[int] = 2

    def score(self, prompts, normalisation):
        if len(Killed.asked) == Killed.lives:
            raise KeyboardInterrupt
        Killed.asked += [prompt.length for prompt in prompts]
        return super().score(prompts, normalisation)


def test_a_stopped_call_goes_on_with_the_questions_that_are_left(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("varifocal.evaluation.sources.EncodedAsker", Killed)
    rows = [
        {"question": f"Colour{'?' * n}", "choices": ["red", "blue"], "answer": "red"}
        for n in range(1, 6)
    ]
    source = table(tmp_path / "colours.jsonl", *rows)
    recipe = Recipe(
        model=ModelSection(language_model="tiny"),
        data=DataSection(evaluate=(source,), max_length=2),
        evaluation=EvaluationSection(batch_size=1),
    )

    def score(about):
        monkeypatch.setattr(Killed, "asked", [])
        return list(evaluate_recipe(recipe, parts, tmp_path / "eval", about))

    with pytest.raises(KeyboardInterrupt):
        score(About(fingerprint="w1"))
    assert len(Killed.asked) == 2
    monkeypatch.setattr(Killed, "lives", 9)
    (result,) = score(About(fingerprint="w1"))
    assert (result.num_stored, len(Killed.asked)) == (2, 3)
    (whole,) = score(About(fingerprint="w2"))
    assert (whole.num_stored, len(Killed.asked)) == (0, 5)
    assert whole.measures == result.measures


def test_likelihood_is_told_by_sum_and_by_mean(scored, tmp_path: Path) -> None:
    rows = [
        {"question": f"Colour {n}?", "choices": ["red", "a very light blue"], "answer": "red"}
        for n in range(4)
    ]
    (one,) = scored([table(tmp_path / "choices.jsonl", *rows)])
    page = json.loads(one.file.read_text())
    file = tmp_path / "eval" / "choices.predictions.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()]
    right = {"sum": 0, "mean": 0}
    for line in found:
        by_mean = [s / n for s, n in zip(line["scores"], line["num_tokens"], strict=True)]
        right["sum"] += line["scores"][0] >= line["scores"][1]
        right["mean"] += by_mean[0] >= by_mean[1]
    assert found[0]["num_tokens"] == [4, 18]  # bytes and the end of turn
    both, blind = page["by_normalisation"], page["baselines"]
    assert (both["sum"], both["mean"]) == (25 * right["sum"], 25 * right["mean"])
    assert page["measures"][-1]["value"] == both["sum"]
    assert (blind["chance"], blind["majority"], blind["longest"]) == (50, 100, 0)


def test_an_integer_gold_answer_is_read_as_in_training(scored, tmp_path: Path) -> None:
    rows = [
        {"question": "How many?", "choices": ["1", "2", "3"], "answer": 1},
        {"question": "Which?", "choices": ["wood", "iron"], "answer": 1},
    ]
    source = table(tmp_path / "gold.jsonl", *rows)
    scored([source])
    lines = read_predictions(tmp_path / "eval" / "gold.predictions.jsonl").lines
    trained = [example.messages[-1].text for example in load_source(source)]
    assert [line.gold for line in lines.values()] == trained == ["2", "iron"]


@pytest.mark.parametrize("broken", ["missing", "damaged"])
def test_images_are_not_looked_for_where_none_is_shown(scored, tmp_path, broken: str) -> None:
    Images.new("RGB", (8, 6), "red").save(tmp_path / "red.png")
    if broken == "damaged":
        (tmp_path / "b.png").write_bytes((tmp_path / "red.png").read_bytes()[:30])
    rows = [{"question": "Colour?", "answer": "red", "image": f} for f in ("red.png", "b.png")]
    (one,) = scored([table(tmp_path / "colours.jsonl", *rows)], "red", "red")
    page = json.loads(one.file.read_text())
    assert (page["items"], page["items_left_out"], page["blind"]) == (2, 0, True)


def test_a_question_without_an_answer_is_counted_or_stops(scored, tmp_path: Path) -> None:
    talks = [
        {"conversations": [{"from": "human", "value": "Colour?"}, *more]}
        for more in ([{"from": "gpt", "value": "red"}], [])
    ]
    source = table(tmp_path / "talks.jsonl", *talks)
    with pytest.raises(DataError, match="no gold answer to compare with"):
        scored([source], "red")
    (one,) = scored([source], "red", on_bad_record="skip")
    page = json.loads(one.file.read_text())
    assert (page["items"], page["items_left_out"]) == (1, 1)
    assert "no gold answer" in page["left_out"][0]


def test_a_source_of_which_nothing_is_left_is_refused(scored, tmp_path: Path) -> None:
    talk = {"conversations": [{"from": "human", "value": "Colour?"}]}
    with pytest.raises(DataError, match="all 1 records are left out"):
        scored([table(tmp_path / "talks.jsonl", talk)], "red", on_bad_record="skip")


def test_no_source_is_refused(scored) -> None:
    with pytest.raises(RecipeError, match="names no source"):
        scored([])


def test_an_open_benchmark_runs_alone(parts, tmp_path: Path) -> None:
    found = run(
        benchmark_of("exact", "colours", "here", 4),
        items_of([asked("red", name="a"), asked("blue", name="b")]),
        Said(parts, ["red", "red"]),  # pyright: ignore[reportArgumentType]
        tmp_path,
    )
    assert (found.measures[0].value, found.baselines.majority) == (50, 50)
