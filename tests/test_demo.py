"""What a demo says plain language lost; folders of an older one are answered with a sentence."""

import json

import pytest

from varifocal.demo import OncePerPrompt, run_demo, score_language, score_start
from varifocal.errors import RunError
from varifocal.evaluation.benchmark import Answer, Prompt
from varifocal.evaluation.retention import Retention, RetentionLine
from varifocal.evaluation.statistics import Interval
from varifocal.run import RunDirectory


@pytest.mark.parametrize("text", ['{"columns": {"IMG": {"value": 1.0}}}', "{", ""])
def test_a_score_of_a_former_kind_is_named(text, tmp_path):
    run = RunDirectory(tmp_path)
    run.evaluations.mkdir()
    (run.evaluations / "start-blind.json").write_text(text)
    with pytest.raises(RunError, match=r"start-blind\.json is damaged or of a former kind; delete"):
        score_start(run, None, [], None)


@pytest.mark.parametrize("text", [json.dumps({"quick": True, "before": {}}), "3", "{"])
def test_a_result_of_a_former_kind_is_named(text, tmp_path):
    (tmp_path / "demo.json").write_text(text)
    with pytest.raises(RunError, match=r"demo\.json is damaged or of a former kind \(it lacks"):
        run_demo(tmp_path, quick=True)


def line(name, on, change=None):
    """A line of retention's table, whose base has 100 and whose intervals say nothing."""
    found = [Interval(value, 0.0, 999.0) for value in (100.0, 100.0, on)]
    factor = None if change is None else Interval(change, 0.0, 9.0)
    return RetentionLine(name, 4, *found, factor)


def test_lost_language_is_what_retention_measures(tmp_path, monkeypatch):
    """Two factors and a percentage of the trained model, by the command that repeats them."""
    lines = [
        line("perplexity", 110.0, 1.10049),
        line("questions right %", 75.0, -25.0),
        line("answer tokens agreeing %", 90.0),
        line("answers the same %", 62.46),
        line("perplexity after an image", 80.0, 0.7996),
        line("answer tokens agreeing % after an image", 70.0),
    ]
    asked, told = {}, []

    def measure(root, *, progress, **settings):
        asked.update(settings, root=root)
        progress("on: text", 1, 4)
        return Retention(str(root), "toy", "mma", lines, {}, []), root / "retention.json"

    monkeypatch.setattr("varifocal.demo.measure_retention", measure)
    found = score_language(RunDirectory(tmp_path), 4, lambda *stage: told.append(stage))
    assert found == {"perplexity": 1.1, "perplexity_after_image": 0.8, "answers_same": 62.5}
    assert asked == {
        "root": tmp_path,
        "limit": 4,
        "command": f"varifocal retention {tmp_path} --limit 4",
    }
    assert told == [("language, on: text", 1, 4)]


class CountingAsker:
    """Scores a prompt by its length, and notes what it was asked."""

    model = None
    prepare = write = None

    def __init__(self):
        self.asked = []

    def score(self, prompts, normalisation):
        self.asked.append([prompt.key for prompt in prompts])
        return [Answer(scores=(float(prompt.length),)) for prompt in prompts]


def test_a_frozen_model_scores_equal_prompts_once():
    """Within a batch, in a later one and in another pass; the mean is another score."""
    inner = CountingAsker()
    asker = OncePerPrompt(inner)
    a, b, c = (
        Prompt(key, length, False, None) for key, length in ((b"a", 1), (b"b", 2), (b"c", 3))
    )
    assert [answer.scores for answer in asker.score([a, b, a], "sum")] == [(1.0,), (2.0,), (1.0,)]
    assert [answer.scores for answer in asker.score([c, b], "sum")] == [(3.0,), (2.0,)]
    assert asker.score([a, b, c], "sum")[2].scores == (3.0,)
    assert inner.asked == [[b"a", b"b"], [b"c"]]
    asker.score([a], "mean")
    assert inner.asked[-1] == [b"a"]
