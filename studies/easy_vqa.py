"""easy-VQA's questions (PyPI `easy-vqa`, MIT) in ScienceQA's layout, its answers as choices."""

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from varifocal.errors import DataError
from varifocal.writing import write_json

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
KINDS = {"shape": SHAPES, "colour": COLOURS}
"""What is asked -> the answers it can have, which the question's choices are. Yes or no is left
out: a guess that does not look gets most of it."""


def installed() -> Path:
    """Find the installed package's data.

    Raises:
        DataError: it is not installed.
    """
    found = find_spec("easy_vqa")
    if found is None or found.origin is None:
        raise DataError("easy-vqa is not installed; pip install --no-deps easy-vqa==1.0")
    return Path(found.origin).parent / "data"


def write_easy_vqa(data: Path, out: Path, counts: Mapping[str, int]) -> None:
    """Write one question an image, of the kinds in turn, and what the image shows as its caption.

    Args:
        data: of the package.
        out: folder of the data set; one that is finished stays.
        counts: questions of `train` and of `test`.
    """
    if (out / "problems.json").is_file():
        return
    problems: dict[str, Any] = {}
    for split, count in counts.items():
        questions = json.loads((data / split / "questions.json").read_text())
        for image, record in _in_turn(questions, count):
            name = f"{split}-{image}"
            problems[name] = {**record, "split": split}
            place = out / "images" / split / name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(data / split / "images" / f"{image}.png", place / "image.png")
    splits = {
        split: [name for name, record in problems.items() if record["split"] == split]
        for split in counts
    }
    write_json(out / "pid_splits.json", splits)
    write_json(out / "problems.json", problems)


def _in_turn(
    questions: Sequence[tuple[str, str, int]], count: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield images in their order, each with its first question of the kind whose turn it is."""
    by_image: dict[int, list[tuple[str, str]]] = {}
    for text, answer, image in questions:
        by_image.setdefault(image, []).append((text, answer))
    turn = 0
    for image in sorted(by_image):
        answers = {
            kind: next((each for each in by_image[image] if each[1] in wanted), None)
            for kind, wanted in KINDS.items()
        }
        shape, colour = answers["shape"], answers["colour"]
        if shape is None or colour is None:  # not asked of this image
            continue
        kind = list(KINDS)[turn % len(KINDS)]
        text, answer = shape if kind == "shape" else colour
        caption = f"A {colour[1]} {shape[1]}."
        yield image, {**_record(kind, text, answer), "caption": caption}
        turn += 1
        if turn == count:
            return


def _record(kind: str, text: str, answer: str) -> dict[str, Any]:
    """Write a question as ScienceQA's `problems.json` does."""
    return {
        "question": text[0].upper() + text[1:],
        "choices": list(KINDS[kind]),
        "answer": KINDS[kind].index(answer),
        "hint": "",
        "image": "image.png",
        "task": "closed choice",
        "grade": "grade1",
        "subject": "natural science",
        "topic": "easy-vqa",
        "category": kind,
        "skill": kind,
        "lecture": "",
        "solution": "",
    }


def main() -> None:
    """Write the data set: `python -m studies.easy_vqa DIR --train 600 --test 120`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the data set")
    parser.add_argument("--train", type=int, default=600, help="questions to train on")
    parser.add_argument("--test", type=int, default=120, help="questions to score on")
    given = parser.parse_args()
    write_easy_vqa(installed(), given.out, {"train": given.train, "test": given.test})


if __name__ == "__main__":
    main()
