"""Which columns of a table hold what, by their names and by what stands in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from varifocal.data.readers.base import Record, Records, read_in_order
from varifocal.data.readers.captions import IMAGE_ENDINGS
from varifocal.errors import DataError, nearest

_NAMES = {
    "choices": "choices options candidates alternatives",
    "split": "split subset fold partition",
    "question": "question questions query prompt instruction ask asked q "
    "frage pregunta domanda pergunta vraag",
    "answer": "answer answers response reply output completion target label labels class category "
    "gold truth solution a antwort klasse reponse respuesta risposta resposta antwoord",
    "caption": "caption captions description text beschreibung",
    "image": "image images img picture photo photograph file filename filepath imagepath path bild "
    "foto datei imagen immagine imagem",
}
"""Names of a column, normalised, by what it is for us; the first that fits is taken."""

WHICH_CLASS = "What does the image show?"
DESCRIBE = "Describe the image."
_MARKS = ("?", "\uff1f")
_OPTION = re.compile(r"(?:option|choice|opt)?[ _-]?(?:[a-f]|[1-6])", re.IGNORECASE)
SAMPLE = 200
_MOST_CLASSES = 50
SCORED = ("test", "val", "valid", "validation", "dev")
"""Names of a split to score on."""


def _normal(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


class Columns:
    """Which columns of a table hold what, by their names and by what stands in them."""

    def __init__(
        self, file: Path, rows: Sequence[Record], homes: Sequence[Path], asked: dict[str, str]
    ) -> None:
        self.file, self.homes = file, homes
        self.values = {
            str(name): [row.row.get(name) for row in rows if row.row.get(name) not in (None, "")]
            for name in dict.fromkeys(name for row in rows for name in row.row)
        }
        for name in asked.values():
            if name not in self.values:
                raise DataError(
                    f"'{file}' has no column '{name}' but {', '.join(self.values)}"
                    f"{nearest(name, self.values)}"
                )
        self.home, self.ending = file.parent, ""
        self.image = asked.get("image") or self._find_image()
        if self.image:
            self.home, self.ending = self._find_home()
        options = [name for name in self.values if _OPTION.fullmatch(name)]
        taken = {self.image, *asked.values(), *(options if len(options) > 1 else ())}
        names = {ours: asked.get(ours) or self._named(ours, taken) for ours in _NAMES}
        self.question = names["question"] or self._asking(taken | set(names.values()))
        self.choices, self.split = names["choices"], names["split"]
        if len(options) > 1:
            self.choices = "|".join(f"{{{name}}}" for name in options)
        self.answer = names["answer"]
        self.caption = "" if self.question or self.answer else names["caption"]
        if not self.answer and not self.caption and self.question:
            self.answer = self._last_one({*taken, self.question, self.choices, self.split})

    def _named(self, ours: str, taken: set[str]) -> str:
        words = _NAMES[ours].split()
        names = [name for name in self.values if name not in taken]
        whole = [name for word in words for name in names if _normal(name) == word]
        parts = [
            name
            for word in words
            for name in names
            if len(word) > 1 and word in re.split(r"[\W_]+", name.lower())
        ]
        result = next(iter([*whole, *parts]), "")
        taken.add(result)
        return result

    def _find_image(self) -> str:
        shares = {name: _share(values, self._is_image) for name, values in self.values.items()}
        best = max(shares, key=lambda name: shares[name], default="")
        named = self._named("image", set())
        return best if best and shares[best] > 0.5 else named

    def _is_image(self, value: Any) -> bool:
        if isinstance(value, Mapping):
            return "bytes" in value or "path" in value
        if isinstance(value, bytes):
            return True
        if isinstance(value, list):
            return bool(value) and self._is_image(value[0])
        if not isinstance(value, str) or len(value) > _LONGEST_PATH or "\n" in value:
            return False
        return value.lower().endswith(IMAGE_ENDINGS)

    def _find_home(self) -> tuple[Path, str]:
        """Return the folder, and the ending that names lack, with which most files are there."""
        names = [value for value in self.values[self.image] if _is_path(value)]
        endings = dict.fromkeys(["", *IMAGE_ENDINGS])
        counts = {
            (home, ending): sum((home / f"{name}{ending}").is_file() for name in names)
            for ending in endings
            for home in self.homes
        }
        return max(counts, key=lambda pair: counts[pair])

    def _asking(self, taken: set[str]) -> str:
        ends = {
            name: _share(values, lambda value: str(value).rstrip().endswith(_MARKS))
            for name, values in self.values.items()
            if name not in taken
        }
        best = max(ends, key=lambda name: ends[name], default="")
        return best if best and ends[best] >= 0.5 else ""

    def _last_one(self, taken: set[str]) -> str:
        left = [
            name
            for name, values in self.values.items()
            if name not in taken and values and _normal(name) not in ("id", "index", "number", "")
        ]
        return left[0] if len(left) == 1 else ""

    def mapping(self, records: Records) -> dict[str, str]:
        """Return the recipe's `columns`; a column that has our name already is left out.

        Raises:
            DataError: question or answer cannot be told.
        """
        columns = {"question": self.question, "answer": self.answer, "choices": self.choices}
        image = f"{{{self.image}}}{self.ending}" if self.ending else self.image
        columns |= {"image": image, "split": self.split}
        if self.image and not self.question and self.caption:
            columns |= {"question": DESCRIBE, "answer": self.caption}
        elif self.image and not self.question and self.answer:
            columns |= {"question": WHICH_CLASS, "choices": self._classes(records)}
        missing = [ours for ours in ("question", "answer") if not columns[ours]]
        if missing:
            raise DataError(
                f"'{self.file}' has no column that looks like the {' or the '.join(missing)} but "
                f"{', '.join(self.values)}; say which it is with --columns {missing[0]}=NAME"
            )
        own = {"image": ("image", "images"), "answer": ("answer", "answers")}
        return {
            ours: name
            for ours, name in columns.items()
            if name and name not in own.get(ours, (ours,))
        }

    def splits(self, records: Records) -> list[str]:
        """Return the names of the rows to train on and to score on, where a column has both."""
        rows = (row for row in read_in_order(records) if isinstance(row, Record))
        names = {str(row.row.get(self.split)) for row in rows} if self.split else set()
        scored = [name for name in SCORED if name in names]
        return ["train", scored[0]] if scored and "train" in names else []

    def _classes(self, records: Records) -> str:
        """Return the classes as choices of every row; "" where they are too many, or no classes."""
        counts = Counter(
            str(row.row.get(self.answer))
            for row in read_in_order(records)
            if isinstance(row, Record)
        )
        are_classes = 2 <= len(counts) <= min(_MOST_CLASSES, len(records) // 2)
        return "|".join(counts) if are_classes and "|" not in "".join(counts) else ""

    def image_folder(self, file: Path) -> dict[str, str]:
        """Return the recipe's `image_folder`, where it is not the file's own."""
        return (
            {} if self.home == file.parent or not self.image else {"image_folder": str(self.home)}
        )

    def check_images(self, records: Records) -> None:
        """Refuse rows whose images are not there.

        Raises:
            DataError: the text names the first.
        """
        if not self.image:
            return
        absent = list(dict.fromkeys(self._absent(records)))
        if absent:
            names = (image.name for image in self.home.iterdir())
            hint = nearest(Path(absent[0][1]).name, names)
            count = "an image that is" if len(absent) == 1 else f"{len(absent)} images that are"
            raise DataError(
                f"'{self.file}' names {count} not in '{self.home}', first {absent[0][1]!r} in "
                f"{absent[0][0]}{hint}; add what is missing, or take its rows out"
            )

    def _absent(self, records: Records) -> Iterator[tuple[str, str]]:
        seen: set[str] = set()
        for record in read_in_order(records):
            value = record.row.get(self.image) if isinstance(record, Record) else None
            if isinstance(record, DataError) or not _is_path(value) or str(value) in seen:
                continue
            seen.add(str(value))
            if not (self.home / f"{value}{self.ending}").is_file():
                yield record.place, f"{value}{self.ending}"

    def notes(self) -> list[str]:
        """Say which column was taken for what, where its name is not ours."""
        taken = {
            "image": self.image,
            "question": self.question,
            "answer": self.answer or self.caption,
            "choices": self.choices,
        }
        return [
            f"column '{name}' is read as the {ours}"
            for ours, name in taken.items()
            if name and name != ours
        ]


_LONGEST_PATH = 1000


def _is_path(value: Any) -> bool:
    is_text = (
        isinstance(value, str) and len(value) < _LONGEST_PATH and not value.startswith("data:")
    )
    return is_text and bool(value.strip())


def _share(values: Sequence[Any], test: Any) -> float:
    return sum(map(test, values)) / len(values) if values else 0.0
