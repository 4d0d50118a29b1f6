"""What is shared of a run names what others have: no path of this machine, no empty template."""

import json
import re
import shutil

import pytest
import torch

from varifocal.assemble import open_run
from varifocal.errors import ModelError, RunError
from varifocal.exporting.export import export_run
from varifocal.exporting.request import Order
from varifocal.hub import upload
from varifocal.models.saved import describe_adapter
from varifocal.reports.sharing import push_run
from varifocal.trained_weights import Trained

MMA = {"type": "mma", "adapt_vision_tower": False}


def paths_in(directory):
    """Absolute paths in a folder's texts."""
    return [
        found
        for file in directory.rglob("*")
        if file.suffix in (".md", ".json", ".jinja")
        for found in re.findall(r"[\"' `](/[\w.-]+/[\w./-]+)", file.read_text())
    ]


@pytest.mark.parametrize("tuner", [MMA, {"type": "lora"}, {"type": "mixlora"}, {"type": "none"}])
def test_an_adapter_has_its_own_card_and_no_path_of_here(make_run, tuner):
    run = make_run(tuner)
    describe_adapter(run.adapter, open_run(run.root)[0])
    card = (run.adapter / "README.md").read_text()
    assert card.startswith("---\nbase_model: language\nlibrary_name: peft\n")
    assert "More Information Needed" not in card
    assert ("`import varifocal` registers it" in card) == (tuner["type"] in ("mma", "mixlora"))
    assert paths_in(run.adapter) == []
    open_run(run.root)


@pytest.mark.parametrize("form", ["merged", "lora", "llava", "model"])
def test_an_export_names_no_path_of_here(make_run, tmp_path, form):
    run = make_run({"type": "lora"})
    command = f"varifocal export {run.root} --to {form}"
    (done,) = export_run(Order(run, form, num_prompts=2, command=command), tmp_path / "out")
    assert paths_in(done.directory) == []
    assert (
        f"varifocal export {run.root.name} --to {form}"
        in (done.directory / "README.md").read_text()
    )


def test_a_run_is_uploaded_without_data_checkpoints_or_paths(
    make_run, parts_directory, tmp_path, hub, monkeypatch
):
    import huggingface_hub

    run = make_run({"type": "lora"})
    (run.evaluations).mkdir()
    data = tmp_path / "my data" / "a.jsonl"
    score = {
        "path": str(data),
        "command": f"varifocal eval {run.root} --data '{data.parent}'",
        "left_out": [f"{tmp_path}/rows/b.jsonl: line 3 has no answer"],
    }
    (run.evaluations / "mine.json").write_text(json.dumps(score))
    (run.evaluations / "mine.predictions.jsonl").write_text("{}\n")
    copy = tmp_path / "copy"
    monkeypatch.setattr(
        huggingface_hub,
        "upload_folder",
        lambda *, repo_id, folder_path, commit_message: shutil.copytree(folder_path, copy),
    )
    push_run(run.root, "me/mine")
    assert hub == [("me/mine", True)]
    assert paths_in(copy) == []
    assert str(tmp_path) not in (copy / "recipe.yaml").read_text()
    assert {path.name for path in copy.iterdir()} >= {"README.md", "recipe.yaml", "adapter"}
    assert [path.name for path in (copy / "eval").iterdir()] == ["mine.json"]
    assert json.loads((copy / "eval" / "mine.json").read_text()) == {
        "path": "a.jsonl",
        "command": "varifocal eval run --data 'my data'",
        "left_out": ["b.jsonl: line 3 has no answer"],
    }
    assert not (copy / "checkpoints").exists()
    recipe = (copy / "recipe.yaml").read_text()
    for name in ("language", "clip"):  # found as a hub's id would be
        recipe = recipe.replace(f": {name}\n", f": {parts_directory / name}\n")
    (copy / "recipe.yaml").write_text(recipe)
    shared, mine = (open_run(root)[1].model for root in (copy, run.root))
    assert all(map(torch.equal, shared.parameters(), mine.parameters()))


def test_a_hub_that_cannot_be_reached_ends_in_a_sentence(tmp_path, monkeypatch):
    import huggingface_hub

    nobody = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9", token="hf_x")
    monkeypatch.setattr(huggingface_hub, "create_repo", nobody.create_repo)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ModelError, match=r"did not take .* as me/mine: .*refused.*can be reached"):
        upload(tmp_path, "me/mine", message="a test")


def test_a_run_that_stopped_is_not_uploaded(make_run, hub, monkeypatch):
    run = make_run({"type": "lora"})
    stopped = Trained(run.adapter, step=1)
    monkeypatch.setattr("varifocal.reports.sharing.find_trained", lambda run: stopped)
    with pytest.raises(RunError, match=r"has not reached its end; go on with: varifocal train"):
        push_run(run.root, "me/mine")
    assert hub == []
