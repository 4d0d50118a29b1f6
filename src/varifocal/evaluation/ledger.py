"""The file of predictions: appended while a model answers, read back after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from varifocal.errors import RunError
from varifocal.evaluation.asking import Prompt
from varifocal.evaluation.items import Answer
from varifocal.locking import alone
from varifocal.writing import write_text

Line = dict[str, Any]


class Ledger:
    """Predictions as JSON lines, each marked with what it was made by.

    Args:
        path: the file.
        identity: what decides an answer beside its prompt; lines of another one are not kept.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._path, self._identity = path, identity
        self._kept: list[Line] = []

    def read(self, prompts: Mapping[str, Prompt], trust: bool = True) -> dict[str, Answer]:
        """Return the answers that an earlier call left to the very same prompts, by id.

        Args:
            prompts: by id.
            trust: False keeps nothing.
        """
        self._kept, answers = [], {}
        lines: list[str] = []
        if self._path.is_file():  # a kill may have cut a character; other breaks are text
            lines = self._path.read_text(encoding="utf-8", errors="replace").split("\n")
        for line in filter(None, map(_line_or_none, lines)) if trust else ():
            name = str(line.get("id"))
            prompt = prompts.get(name)
            asked = prompt is not None and line.get("prompt_sha") == prompt.sha
            if asked and line.get("made_by") == self._identity and name not in answers:
                self._kept.append(line)
                scores = tuple(line.get("scores") or ())
                answers[name] = Answer(name, text=line.get("text"), scores=scores)
        return answers

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others from the file for the while; a kill lets go of it.

        Raises:
            RunError: another process has it, or the folder cannot be written.
        """
        with alone(self._path.parent, self._path.name):
            yield

    @contextmanager
    def open(self) -> Iterator[Callable[[Line], None]]:
        """Yield what appends a line; a line is on the disk when it returns.

        Raises:
            RunError: the disk does not take it.
        """
        self.finish(self._kept)  # without the line that a kill cut, and without others' lines
        with self._path.open("a", encoding="utf-8") as file:
            yield lambda line: self._append(file, line)

    def finish(self, lines: Sequence[Line]) -> None:
        """Write all lines in their order, whole or not at all."""
        write_text(self._path, "".join(map(self._text, lines)))

    def _append(self, file: Any, line: Line) -> None:
        try:
            file.write(self._text(line))
            file.flush()
        except OSError as error:
            raise RunError(
                f"{self._path} cannot be written ({error.strerror}); what was answered before is "
                "kept: mend that and repeat the command"
            ) from error

    def _text(self, line: Line) -> str:
        return json.dumps({**line, "made_by": self._identity}, ensure_ascii=False) + "\n"


def _line_or_none(text: str) -> Line | None:
    """Read a line; None for one that a kill cut short."""
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) else None
