"""Comparisons on files written by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from varifocal.errors import DataError, RunError
from varifocal.evaluation.baselines import Baselines
from varifocal.evaluation.compare import Comparison, compare_runs
from varifocal.evaluation.predictions import read_predictions


def write(place: Path, suite: str, *rows: dict, page: dict | None = None) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    file = place / f"{suite}.predictions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if page is not None:
        (place / f"{suite}.json").write_text(json.dumps(page))
    return file


def row(id_: int, correct: float | None, **more: object) -> dict:
    """A benchmark's line: right answers say "yes", wrong ones "no"."""
    said = {"text": "yes." if correct else "no.", "parsed": "yes" if correct else "no"}
    return {"id": str(id_), "prompt_sha": f"p{id_}", "gold": ["yes"], "correct": correct,
            **said, **more}  # fmt: skip


def both(tmp_path: Path, first: list[dict], second: list[dict], suite: str = "toy") -> Comparison:
    write(tmp_path / "a" / "eval", suite, *first)
    write(tmp_path / "b" / "eval", suite, *second)
    return compare_runs(tmp_path / "a", tmp_path / "b")


def test_a_table_on_paper(tmp_path) -> None:
    """Ten items; the first has 0-5 right, the second 2-9: 2 lost, 4 won, 4 both, none neither.

    60 % against 80 %; McNemar: 2 (1 + 6 + 15) / 2^6 = 0.6875.
    """
    first = [row(i, float(i < 6), tags={"kind": "low" if i < 5 else "high"}) for i in range(10)]
    found = both(tmp_path, first, [row(i, float(i >= 2)) for i in range(10)])
    suite = found.suites[0]
    everything, high, low = suite.rows
    assert (found.first, found.second, suite.suite, suite.notes) == ("a", "b", "toy", [])
    assert everything.first.value == 60
    assert everything.second.value == 80
    assert everything.first.low == pytest.approx(31.27, abs=0.01)  # Wilson, 6 of 10
    assert everything.difference.value == pytest.approx(20)
    assert everything.difference.low < 0 < everything.difference.high
    counts = (everything.won, everything.lost, everything.both, everything.neither)
    assert (counts, everything.p) == ((4, 2, 4, 0), 0.6875)
    assert (low.name, low.count, low.won, low.lost) == ("kind: low", 5, 0, 2)
    assert (high.name, high.count, high.won, high.lost) == ("kind: high", 5, 4, 0)
    assert [pair.first.id for pair in suite.of_kind("won")] == ["6", "7", "8", "9"]
    told = found.to_dict()["suites"][0]["items"]
    assert [(one["id"], one["kind"]) for one in told[:2]] == [("0", "lost"), ("1", "lost")]


def test_another_prompt_is_left_out_and_said(tmp_path) -> None:
    first = [row(1, 1.0), row(2, 1.0), row(3, 1.0)]
    second = [row(1, 0.0), row(2, 0.0, prompt_sha="other"), row(4, 1.0)]
    suite = both(tmp_path, first, second).suites[0]
    assert [pair.first.id for pair in suite.pairs] == ["1"]
    assert suite.notes == [
        "1 item that only the first has: left out",
        "1 item that only the second has: left out",
        "1 item asked with different prompts (prompt_sha or the words): left out; --any-prompt "
        "takes them in",
    ]
    taken = compare_runs(tmp_path / "a", tmp_path / "b", any_prompt=True).suites[0]
    assert [pair.first.id for pair in taken.pairs] == ["1", "2"]
    assert taken.notes[-1].endswith("compared all the same")


def test_other_gold_answers_and_protocols_are_said(tmp_path) -> None:
    write(tmp_path / "a", "toy", row(1, 1.0), row(2, 1.0), page={"blind": True})
    write(tmp_path / "b", "toy", row(1, 1.0, gold=["no"]), row(2, 1.0), page={"blind": False})
    suite = compare_runs(tmp_path / "a", tmp_path / "b").suites[0]
    assert suite.notes == [
        "the protocol differs in blind: True / False",
        "1 item left out: the files have other gold answers",
    ]


def test_what_blind_rules_score_is_shown(tmp_path, run) -> None:
    blind = {"chance": 50.0, "majority": 75.0, "majority_answer": "yes", "longest": 25.0}
    pages = {"toy": {"baselines": blind}, "book": {"baselines": blind}}
    for name in ("a", "b"):
        for suite, page in pages.items():
            file = write(tmp_path / name / "eval", suite, row(1, 1.0), row(2, float(name == "b")))
            file.with_name(f"{suite}.json").write_text(json.dumps(page))
    code, out, _ = run("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both")
    assert code == 0
    told = "guessing 50.0; always 'yes' 75.0; the longest option 25.0"
    assert out.count(f"blind rules, over all items of the suite: {told}") == 2
    suites = json.loads((tmp_path / "both" / "compare.json").read_text())["suites"]
    assert [suite["baselines"] for suite in suites] == [[blind, blind]] * 2
    assert "always &#39;yes&#39; 75.0" in (tmp_path / "both" / "compare.html").read_text()
    (tmp_path / "b" / "eval" / "toy.json").write_text(json.dumps({"baselines": {"chance": 20}}))
    _, out, _ = run("compare", tmp_path / "a", tmp_path / "b", "--suite", "toy")
    assert "blind rules, over all items of a: guessing 50.0" in out
    assert "blind rules, over all items of b: guessing 20.0\n" in out


def test_files_without_baselines_say_none(tmp_path) -> None:
    suite = both(tmp_path, [row(1, 1.0)], [row(1, 0.0)]).suites[0]
    assert suite.baselines == (Baselines(), Baselines())


def test_columns_and_options_are_taken_from_the_lines(tmp_path) -> None:
    shown = {"options": ["attract", "repel"], "gold": ["repel"], "columns": ["NO", "average"]}
    first = row(7, 0.0, **shown, text=None, choice=0, parsed="attract", images=["a.png"])
    second = row(7, 1.0, **shown, text=None, choice=1, parsed="repel", images=["a.png"])
    suite = both(tmp_path, [first], [second]).suites[0]
    pair = suite.pairs[0]
    assert (pair.kind, pair.first.answer, pair.second.answer) == ("won", "attract", "repel")
    assert (pair.first.gold, pair.first.options) == ("repel", ("attract", "repel"))
    assert pair.first.images == ("a.png",)
    assert [one.name for one in suite.rows] == ["all", "NO"]


@pytest.mark.parametrize(
    ("folder", "suite", "command"),
    [
        ("eval", "book-test", ""),
        ("eval", "book-test-generate-blind", " --score generate --blind"),
        ("eval/checkpoint-8", "book-test", " --checkpoint 8"),
        ("eval", "book-test-blind-strength-0.25", " --blind --strength 0.25"),
    ],
)
def test_a_file_of_the_former_kind_names_the_command_that_makes_it_anew(
    tmp_path, folder, suite, command
) -> None:
    former = {"id": "1", "options": ["x", "y"], "gold": 0, "prediction": 0, "correct": True}
    file = write(tmp_path / "run" / folder, suite, former)
    with pytest.raises(DataError) as error:
        read_predictions(file)
    assert str(error.value) == (
        f"{file} is of a former kind; make it anew with: varifocal eval {tmp_path}/run{command}"
    )


def test_lines_without_a_digest_asked_in_other_words_differ(tmp_path) -> None:
    plain = {"id": "1", "options": ["x", "y"], "gold": ["x"], "parsed": "x", "correct": 1.0}
    write(tmp_path / "a", "toy", {**plain, "question": "Which?"})
    write(tmp_path / "b", "toy", {**plain, "question": "Which one?"})
    assert (
        "1 item asked with different prompts"
        in compare_runs(tmp_path / "a", tmp_path / "b").suites[0].notes[0]
    )


def test_unread_answers_and_partial_credit(tmp_path) -> None:
    """0.3 against 0.9 and 0.6 against 0.6: an average, no share; a sign test."""
    first = [row(1, 0.3), row(2, 0.6, parsed=None, text="?")]
    found = both(tmp_path, first, [row(1, 0.9), row(2, 0.6)]).suites[0]
    assert [pair.kind for pair in found.pairs] == ["won", "changed"]
    assert found.rows[0].difference.value == pytest.approx(30)
    assert (found.rows[0].first.low, found.rows[0].first.high) == pytest.approx((30, 60))
    assert (found.pairs[1].first.answer, found.pairs[1].first.is_read) == ("?", False)


def test_f1_of_yes(tmp_path) -> None:
    """Gold y y n n. First says y n n n: F1 2/3. Second says y y y n: F1 4/5."""
    gold = ("yes", "yes", "no", "no")

    def side(*said: str) -> list[dict]:
        pairs = enumerate(zip(said, gold, strict=True))
        return [row(i, float(one == right), gold=[right], parsed=one) for i, (one, right) in pairs]

    found = both(tmp_path, side("yes", "no", "no", "no"), side("yes", "yes", "yes", "no"), "pope")
    f1 = found.suites[0].rows[1]
    assert f1.name == "F1 of yes"
    assert f1.p is None
    assert f1.first.value == pytest.approx(200 / 3)
    assert f1.second.value == pytest.approx(80)
    assert f1.difference.value == pytest.approx(80 - 200 / 3)


def test_mmes_pairs(tmp_path) -> None:
    """An image counts where both questions are right: 1 of 2 against 0 of 2."""
    first = [row(i, float(i != 3), group=f"g{i // 2}", gold=["x"]) for i in range(4)]
    second = [row(i, float(i in (0, 3)), group=f"g{i // 2}", gold=["x"]) for i in range(4)]
    pairs = both(tmp_path, first, second, "mme").suites[0].rows[1]
    assert (pairs.name, pairs.count, pairs.first.value, pairs.second.value) == (
        "accuracy+", 2, 50, 0,
    )  # fmt: skip


def test_no_credit_compares_answers(tmp_path) -> None:
    found = both(tmp_path, [row(1, None), row(2, None)], [row(1, None), row(2, None, parsed="x")])
    assert found.suites[0].rows == []
    assert found.suites[0].notes == ["the files give items no credit; 1 of 2 answers are the same"]


def test_suites_that_one_has(tmp_path) -> None:
    write(tmp_path / "a" / "eval", "pope", row(1, 1.0))
    with pytest.raises(RunError, match="no predictions at "):
        compare_runs(tmp_path / "a", tmp_path / "b")
    write(tmp_path / "b" / "eval", "gqa", row(1, 1.0))
    with pytest.raises(RunError, match="no suite that both have"):
        compare_runs(tmp_path / "a", tmp_path / "b")
    write(tmp_path / "b" / "eval", "pope", row(1, 1.0))
    assert compare_runs(tmp_path / "a", tmp_path / "b").notes == [
        f"only {tmp_path / 'b'} has predictions of gqa"
    ]
    with pytest.raises(RunError, match="did you mean 'pope'"):
        compare_runs(tmp_path / "a", tmp_path / "b", ["popo"])


def test_damaged_files(tmp_path) -> None:
    file = write(tmp_path, "toy", row(1, 1.0), row(1, 1.0))
    with pytest.raises(DataError, match="line 2: the id '1' stands there twice"):
        read_predictions(file)
    whole = json.dumps(row(1, 1.0))
    file.write_text(f"{whole}\n{whole[:20]}")
    assert list(read_predictions(file).lines) == ["1"], "what a kill cut short is left out"
    file.write_text(f"{whole[:20]}\n{whole}\n")
    with pytest.raises(DataError, match="line 1 is no prediction"):
        read_predictions(file)


def test_the_verb_does_without_torch(tmp_path) -> None:
    """Its import would take longer than everything else that a comparison does."""
    (tmp_path / "data.jsonl").write_text(
        json.dumps({"id": "1", "prompt": "Up?", "response": "yes"}) + "\n"
    )
    for name in ("a", "b"):
        write(tmp_path / name / "eval", "toy", row(1, float(name == "b"), question="Up?"))
        (tmp_path / name / "recipe.yaml").write_text(
            "model: {language_model: smollm2-135m-instruct}\ndata:\n  evaluate:\n"
            f"    - {{path: {tmp_path / 'data.jsonl'}}}\n"
        )
    code = (
        "import sys\nfrom varifocal.cli import main\n"
        "sys.argv = ['varifocal', 'compare', 'a', 'b', '--out', 'both']\n"
        "try: main()\n"
        "finally: assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "1 shared item" in done.stdout
    assert (tmp_path / "both" / "compare.html").is_file()
