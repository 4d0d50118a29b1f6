"""One image of a benchmark is missing or broken: counted and named, skipped, or an end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image as Images

from varifocal.data.example import Example
from varifocal.errors import DataError, ImageError
from varifocal.evaluation.benchmark import Answer, Prompt
from varifocal.evaluation.benchmarks.registry import BENCHMARKS, load_items
from varifocal.evaluation.compare import compare_predictions
from varifocal.evaluation.predictions import read_predictions
from varifocal.evaluation.runner import About, AskOptions, Result, run

ABOUT = About(model="tiny", fingerprint="w1")


class Yes:
    """Says yes, and takes the first choice, to whatever it is asked."""

    def __init__(self) -> None:
        self.model, self.asked = torch.nn.Identity(), 0

    def prepare(self, example: Example, *, with_options: bool) -> Prompt:
        lengths = (1,) * len(example.choices) if with_options else ()
        return Prompt(f"{example.name}{len(example.images)}".encode(), 1, False, example, lengths)

    def score(self, prompts, normalisation):
        self.asked += len(prompts)
        return [Answer(scores=(-1.0, *[-2.0] * (len(one.option_lengths) - 1))) for one in prompts]

    def write(self, prompts, max_new_tokens):
        self.asked += len(prompts)
        return [Answer("Yes.")] * len(prompts)


def pope(folder: Path, count: int = 4) -> Path:
    """POPE's official files, the right answer always yes, and COCO's images."""
    (folder / "val2014").mkdir(parents=True)
    for split in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": n, "image": f"{n}.png", "text": "Is there a dog?", "label": "yes"}
            for n in range(count)
        ]
        text = "\n".join(map(json.dumps, rows))
        (folder / f"coco_pope_{split}.json").write_text(text)
    return images(folder / "val2014", count)


def nlvr(folder: Path, count: int = 4) -> Path:
    """Sentences that are always true, with an image each."""
    folder.mkdir(parents=True)
    rows = [
        {"id": str(n), "sentence": "It is red.", "label": "true", "image": f"{n}.png"}
        for n in range(count)
    ]
    (folder / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return images(folder, count)


def images(folder: Path, count: int) -> Path:
    for number in range(count):
        Images.new("RGB", (8, 6), (20 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


MADE = {"pope": (pope, "random"), "nlvr": (nlvr, None)}


def score(name: str, folder: Path, asker: Yes, out: Path, **way) -> Result:
    items = load_items(BENCHMARKS[name], folder, MADE[name][1])
    return run(
        BENCHMARKS[name], items, asker, out, options=AskOptions(split=None, **way), about=ABOUT
    )


def damage(image: Path, how: str) -> None:
    if how == "missing":
        image.unlink()
    else:
        image.write_bytes(image.read_bytes()[:40] if how == "cut" else b"")


@pytest.mark.parametrize("how", ["missing", "cut", "empty"])
@pytest.mark.parametrize("name", MADE)
def test_one_broken_image(name: str, how: str, tmp_path: Path) -> None:
    place = MADE[name][0](tmp_path / name)
    damage(place / "2.png", how)
    with pytest.raises(DataError, match=r"item '.*2': .*2\.png.*--on-bad-record skip"):
        score(name, tmp_path / name, Yes(), tmp_path / "eval")
    found = score(name, tmp_path / name, Yes(), tmp_path / "eval", on_bad_record="skip")
    assert len(found.answered) == 3
    assert len(found.left_out) == 1
    assert "2.png" in found.left_out[0]
    page = json.loads(found.file.read_text())
    assert (page["items"], page["items_left_out"]) == (3, 1)
    assert page["measures"][0]["count"] == 3
    blind = score(name, tmp_path / name, Yes(), tmp_path / "eval", blind=True)
    assert (len(blind.answered), blind.left_out) == (4, [])


@pytest.mark.parametrize("name", MADE)
def test_an_image_that_is_put_back_is_asked_by_the_next_call(name: str, tmp_path: Path) -> None:
    place = MADE[name][0](tmp_path / name)
    kept = (place / "1.png").read_bytes()
    damage(place / "1.png", "missing")
    score(name, tmp_path / name, Yes(), tmp_path / "eval", on_bad_record="skip")
    (place / "1.png").write_bytes(kept)
    asker = Yes()
    found = score(name, tmp_path / name, asker, tmp_path / "eval", on_bad_record="skip")
    assert (asker.asked, found.num_stored, len(found.answered)) == (1, 3, 4)
    lines = found.file.with_name(f"{found.name}.predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"][-1] for line in lines] == list("0123")


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    place = nlvr(tmp_path / "nlvr", 2)
    for image in place.glob("*.png"):
        image.unlink()
    with pytest.raises(DataError, match="nlvr: all 2 items are left out; item '0'"):
        score("nlvr", tmp_path / "nlvr", Yes(), tmp_path / "eval", on_bad_record="skip")


def test_a_comparison_says_what_could_not_be_asked(tmp_path: Path) -> None:
    place = nlvr(tmp_path / "nlvr")
    score("nlvr", tmp_path / "nlvr", Yes(), tmp_path / "first")
    damage(place / "2.png", "missing")
    score("nlvr", tmp_path / "nlvr", Yes(), tmp_path / "second", on_bad_record="skip")
    files = [tmp_path / one / "nlvr.predictions.jsonl" for one in ("first", "second")]
    found = compare_predictions(*map(read_predictions, files))
    assert found.rows[0].count == 3
    assert "1 item that the second could not be asked: left out" in found.notes


def test_training_still_refuses_a_missing_image(tmp_path: Path) -> None:
    from varifocal.data.loading import load_source
    from varifocal.recipe import FileSection

    place = nlvr(tmp_path / "nlvr")
    damage(place / "2.png", "missing")
    columns = {"question": "{sentence}", "answer": "label"}
    with pytest.raises(ImageError, match="no image"):
        load_source(FileSection(path=str(place / "dev.jsonl"), columns=columns))
