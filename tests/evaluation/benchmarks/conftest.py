"""Small data folders in every benchmark's official files, written by the tests."""

import json

import PIL.Image
import pytest


def write_scienceqa(folder, turn):
    """Two questions of three choices, one with a picture; `turn` moves the gold answers on."""
    problems = {}
    for number, question in enumerate(("Which attracts?", "Which shines?")):
        problems[str(number)] = {
            "question": question,
            "choices": ["iron", "wood", "a stone"],
            "answer": (number + turn) % 3,
            "hint": "Metals shine." if number else "",
            "image": None if number else "image.png",
            "subject": "natural science",
            "grade": f"grade{3 + 5 * number}",
            "lecture": "",
            "solution": "",
        }
    picture = folder / "images" / "test" / "0" / "image.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (8, 8), "red").save(picture)
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": list(problems)}))


def write_nlvr(folder, turn):
    """Two sentences about one picture; `turn` moves true and false."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (8, 8), "red").save(folder / "images" / "0.png")
    lines = [
        {
            "id": f"{number}-0-0",
            "sentence": sentence,
            "label": ("true", "false")[(number + turn) % 2],
            "image": "images/0.png",
        }
        for number, sentence in enumerate(("There is a box.", "There is a tower."))
    ]
    (folder / "dev.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


FILES = {
    "scienceqa": write_scienceqa,
    "sciencebook": write_scienceqa,
    "nlvr": write_nlvr,
}
"""A writer a benchmark: (folder, turn) -> the official files of a few items in the folder.

The questions are the same for every `turn`; the gold answer of each item under turn 1 is another
one than under turn 0. A new row of the table needs its line here.
"""


@pytest.fixture(scope="session")
def official_files():
    return FILES
