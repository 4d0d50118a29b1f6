"""What is shared of a run names what others have: no path of this machine, no empty template."""

import re

import pytest

from varifocal.assemble import open_run
from varifocal.exporting.export import export_run
from varifocal.exporting.request import Order
from varifocal.models.saved import describe_adapter

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
