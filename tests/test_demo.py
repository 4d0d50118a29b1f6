"""Folders that an older demo left are answered with a sentence."""

import json

import pytest

from varifocal.demo import run_demo, score_start
from varifocal.errors import RunError
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
