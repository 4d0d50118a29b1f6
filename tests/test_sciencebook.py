"""Sciencebook: the layout, its determinism, and questions that only the image can answer."""

import doctest
import importlib
import json
import math
import pkgutil
import re
from collections import Counter, defaultdict

import pytest
from PIL import Image

from varifocal import sciencebook
from varifocal.errors import DataError, RunError
from varifocal.sciencebook import SKILLS, chance, compose, make_sciencebook, write

IMAGE = [name for name, skill in SKILLS.items() if skill.needs == "image"]
TEXT = [name for name, skill in SKILLS.items() if skill.needs == "text"]
NONE = [name for name, skill in SKILLS.items() if skill.needs == "none"]
OFFICIAL_KEYS = {
    *("question", "choices", "answer", "hint", "image", "task", "grade", "subject", "topic"),
    *("category", "skill", "lecture", "solution", "split"),
}


def compose_many(names, split, count, seed=0):
    """`count` records, taking the skills in turns."""
    return [
        compose(names[place % len(names)], split, place // len(names), seed)[0]
        for place in range(count)
    ]


def contents(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    root = tmp_path_factory.mktemp("book") / "deep" / "sciencebook"
    summary = make_sciencebook(root, train=2 * len(SKILLS), val=len(SKILLS), test=50, seed=7)
    return root, summary, json.loads((root / "problems.json").read_text(encoding="utf-8"))


def test_there_are_enough_skills_of_every_kind():
    assert len(SKILLS) >= 18
    assert len(IMAGE) >= 10
    assert len(TEXT) >= 4
    assert len(NONE) >= 4
    for names in (IMAGE, TEXT + NONE):
        subjects = Counter(SKILLS[name].subject for name in names)
        assert set(subjects) == {"natural science", "social science", "language science"}
    grades = {grade for skill in SKILLS.values() for grade in range(*skill.grades)}
    assert grades | {12} == set(range(1, 13))
    assert len({skill.title for skill in SKILLS.values()}) == len(SKILLS)


def test_layout_is_scienceqas(book):
    root, summary, problems = book
    splits = json.loads((root / "pid_splits.json").read_text(encoding="utf-8"))
    assert {split: len(ids) for split, ids in splits.items()} == summary.num_questions
    assert sorted(name for ids in splits.values() for name in ids) == sorted(problems)
    for split, ids in splits.items():
        assert all(problems[name]["split"] == split for name in ids)
    for name, record in problems.items():
        has_image = record["image"] is not None
        assert set(record) == OFFICIAL_KEYS | ({"caption"} if has_image else set())
        assert 2 <= len(record["choices"]) == len(set(record["choices"])) <= 4
        assert 0 <= record["answer"] < len(record["choices"])
        assert re.fullmatch("grade([1-9]|1[0-2])", record["grade"])
        assert record["lecture"]
        assert record["solution"]
        assert (root / "images" / record["split"] / name / "image.png").exists() == has_image
    with Image.open(next(root.rglob("image.png"))) as image:
        assert (image.size, image.mode) == ((224, 224), "RGB")
    assert summary.num_images == len(list(root.rglob("*.png")))


def test_questions_are_spread_evenly_over_the_skills(book):
    _, summary, problems = book
    train = Counter(record["skill"] for record in problems.values() if record["split"] == "train")
    assert set(train.values()) == {2}
    assert summary.skills == tuple(SKILLS)
    assert summary.chance == pytest.approx(
        sum(chance(record["skill"]) for record in problems.values()) / len(problems)
    )


def test_what_a_record_says_of_its_context(book):
    _, _, problems = book
    needs = {skill.title: skill.needs for skill in SKILLS.values()}
    for record in problems.values():
        has = "image" if record["image"] else "text" if record["hint"] else "none"
        assert has == needs[record["skill"]]


def test_same_seed_same_bytes_whatever_else_is_made(tmp_path):
    names = ["magnets", "story", "concentrations"]
    for folder, sizes in {"a": (6, 2, 2), "b": (6, 2, 2), "c": (30, 9, 0)}.items():
        train, val, test = sizes
        make_sciencebook(tmp_path / folder, train=train, val=val, test=test, seed=3, skills=names)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    small, large = (json.loads((tmp_path / f / "problems.json").read_text()) for f in "ac")
    kept = [name for name in small if small[name]["split"] != "test"]
    assert all(small[name] == large[name] for name in kept)
    for image in (tmp_path / "a" / "images" / "train").rglob("*.png"):
        twin = tmp_path / "c" / image.relative_to(tmp_path / "a")
        assert image.read_bytes() == twin.read_bytes()


def test_another_seed_makes_other_images(tmp_path):
    for seed in (0, 1):
        make_sciencebook(
            tmp_path / str(seed), train=4, val=4, test=4, seed=seed, skills=["magnets", "colors"]
        )
    images = [path.read_bytes() for path in tmp_path.rglob("*.png")]
    assert len(set(images)) == len(images) == 24


@pytest.mark.parametrize("name", TEXT + NONE)
def test_no_text_is_in_two_splits(name):
    texts = {
        split: {
            (record["question"], record["hint"])
            for record in compose_many([name], split, 150, seed)
        }
        for seed, split in ((0, "train"), (1, "val"), (2, "test"))
    }
    assert not texts["train"] & (texts["val"] | texts["test"])
    assert not texts["val"] & texts["test"]
    assert len(texts["test"]) >= 2


@pytest.mark.parametrize("name", SKILLS)
def test_answer_positions_are_uniform(name):
    records = compose_many([name], "train", 400)
    assert all(len(record["choices"]) == SKILLS[name].num_choices for record in records)
    counts = Counter(record["answer"] for record in records)
    expected = 400 * chance(name)
    bound = 4 * math.sqrt(expected * (1 - chance(name)))
    assert all(abs(counts[place] - expected) < bound for place in range(SKILLS[name].num_choices))


@pytest.mark.parametrize("name", IMAGE)
def test_every_text_comes_with_every_answer(name):
    answers = defaultdict(Counter)
    for record in compose_many([name], "train", 6000 if name in ("counting", "colors") else 1500):
        text = (record["question"], tuple(sorted(record["choices"])))
        answers[text][record["choices"][record["answer"]]] += 1
    often = {text: seen for text, seen in answers.items() if sum(seen.values()) >= 20}
    assert len(often) > 0.8 * len(answers)
    for (_, choices), seen in often.items():
        assert set(seen) == set(choices)


class TextScorer:
    """Naive Bayes over words, places and whole texts; it never sees an image."""

    def __init__(self, records):
        self.seen, self.right = Counter(), Counter()
        for record in records:
            for place in range(len(record["choices"])):
                features = self.features(record, place)
                self.seen.update(features)
                self.right.update(features if place == record["answer"] else ())

    @staticmethod
    def features(record, place):
        choice = record["choices"][place]
        text = f"{record['question']} {record['hint']}"
        return [
            ("place", place),
            ("choice", choice),
            ("whole", text, tuple(sorted(record["choices"])), choice),
            ("grade", record["grade"], choice),
            ("grade and place", record["grade"], place),
            *(("word", word, choice) for word in set(re.findall(r"\w+", text))),
        ]

    def score(self, record, place):
        return sum(
            math.log((self.right[feature] + 1) / (self.seen[feature] + len(record["choices"])))
            for feature in self.features(record, place)
        )

    def z_score(self, records):
        """How far its accuracy is from chance, in standard deviations."""
        hits = sum(
            max(range(len(record["choices"])), key=lambda place: self.score(record, place))
            == record["answer"]
            for record in records
        )
        guesses = [1 / len(record["choices"]) for record in records]
        return (hits - sum(guesses)) / math.sqrt(sum(p * (1 - p) for p in guesses))


def test_text_alone_does_not_answer_image_questions():
    scorer = TextScorer(compose_many(list(SKILLS), "train", 2000))
    assert abs(scorer.z_score(compose_many(IMAGE, "test", 1500))) < 3.5


def test_text_alone_does_not_answer_any_image_skill():
    scores = {
        name: TextScorer(compose_many([name], "train", 400)).z_score(
            compose_many([name], "test", 200)
        )
        for name in IMAGE
    }
    assert max(map(abs, scores.values())) < 4, scores


def test_the_scorer_would_find_a_shortcut():
    def leaky(split, count):
        return [
            {**record, "hint": record["caption"]} for record in compose_many(IMAGE, split, count)
        ]

    assert TextScorer(leaky("train", 2000)).z_score(leaky("test", 600)) > 8


@pytest.mark.parametrize("name", SKILLS)
def test_solution_ends_with_the_answer_and_the_question_hides_it(name):
    for record in compose_many([name], "train", 60):
        last = re.split(r"(?<=[.!?]) ", record["solution"])[-1].lower()
        answer = record["choices"][record["answer"]]
        others = [choice for choice in record["choices"] if choice != answer]

        def mentions(text, choice):
            return re.search(rf"(?<!\w){re.escape(choice.lower())}(?!\w)", text) is not None

        assert mentions(last, answer), record
        assert not any(mentions(last, other) for other in others), record
        asked = [mentions(record["question"].lower(), choice) for choice in record["choices"]]
        assert len(set(asked)) == 1, record
        assert record["solution"] not in record["question"] + record["hint"] + record["lecture"]


def test_skills_are_chosen_by_name_in_table_order(tmp_path):
    names = ["story", "magnets", "story"]
    summary = make_sciencebook(tmp_path, train=4, val=0, test=0, seed=0, skills=names)
    assert summary.skills == ("magnets", "story")
    assert summary.num_questions == {"train": 4, "val": 0, "test": 0}
    assert summary.num_images == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"skills": ["magnet"]}, "skills: no skill 'magnet'; did you mean 'magnets'?"),
        ({"skills": []}, "skills: name at least one skill, or leave it out to take all"),
        ({"val": -1}, "val: cannot make -1 questions; give 0 or more"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(DataError, match=re.escape(message)):
        make_sciencebook(tmp_path, **{"train": 1, "val": 0, "test": 0, "seed": 0, **arguments})
    assert not list(tmp_path.iterdir())


def test_unknown_skill_has_no_chance():
    with pytest.raises(DataError, match="did you mean 'thermometer'"):
        chance("thermometre")


def test_a_finished_data_set_is_not_overwritten(tmp_path):
    make_sciencebook(tmp_path, train=1, val=0, test=0, seed=0)
    before = contents(tmp_path)
    with pytest.raises(DataError, match="already holds a data set"):
        make_sciencebook(tmp_path, train=1, val=0, test=0, seed=1)
    assert contents(tmp_path) == before


def test_one_that_another_process_finishes_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    alone = write.alone

    def finish_first(root):
        monkeypatch.setattr(write, "alone", alone)
        make_sciencebook(root, train=1, val=0, test=0, seed=0)
        finish_first.made = contents(root)
        return alone(root)

    monkeypatch.setattr(write, "alone", finish_first)
    with pytest.raises(DataError, match="already holds a data set"):
        make_sciencebook(tmp_path, train=1, val=0, test=0, seed=1)
    assert contents(tmp_path) == finish_first.made


def test_a_killed_run_leaves_no_problems_json_and_can_be_repeated(tmp_path):
    def killer(done, total):
        if done == 3:
            raise KeyboardInterrupt

    sizes = {"train": 6, "val": 0, "test": 0, "seed": 0}
    with pytest.raises(KeyboardInterrupt):
        make_sciencebook(tmp_path, **sizes, progress=killer)
    assert list(tmp_path.rglob("*.png"))
    assert not list(tmp_path.glob("*.json"))
    calls = []
    make_sciencebook(tmp_path, **sizes, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 6) for done in range(1, 7)]
    assert (tmp_path / "problems.json").exists()


def test_a_disk_that_refuses_is_named(tmp_path):
    (tmp_path / "images").write_text("in the way")
    with pytest.raises(RunError, match=r"Varifocal did not make it: it holds images; choose"):
        make_sciencebook(tmp_path, train=1, val=0, test=0, seed=0, skills=["magnets"])
    (tmp_path / ".varifocal").touch()
    with pytest.raises(DataError, match=f"cannot write the data set in {re.escape(str(tmp_path))}"):
        make_sciencebook(tmp_path, train=1, val=0, test=0, seed=0, skills=["magnets"])


def test_examples_in_docstrings_run():
    attempted = 0
    for module in pkgutil.iter_modules(sciencebook.__path__, f"{sciencebook.__name__}."):
        result = doctest.testmod(importlib.import_module(module.name))
        assert result.failed == 0
        attempted += result.attempted
    assert attempted >= 8
