"""Give predictions back what their file leaves out: the pictures and tags of the run's own data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from varifocal.data.example import Example
from varifocal.data.source import open_source
from varifocal.errors import VarifocalError
from varifocal.evaluation.predictions import Line, Predictions
from varifocal.recipe import load_recipe


def recall(place: Path, predictions: Predictions) -> Predictions:
    """Fill in pictures, options and tags from the sources that the run's recipe scores on.

    An example is taken for a line's only where id and question are the same. Nothing is fetched
    from the hub, and data that has moved since is no error: the page then has no pictures.

    Args:
        place: the run, its `eval`, or a file in there.
        predictions: what was read there.
    """
    wanted = {line.id: line for line in predictions.lines.values() if _lacks(line)}
    if not wanted:
        return predictions
    known: dict[str, Line] = {}
    for example in _examples(place):
        if len(known) == len(wanted):
            break
        line = wanted.get(example.id)
        if line is not None and line.question == _asked(example):
            known[line.id] = _filled(line, example)
    lines: Mapping[str, Line] = {**predictions.lines, **known}
    return replace(predictions, lines=lines)


def _lacks(line: Line) -> bool:
    return bool(line.question) and not (line.images and line.tags)


def _examples(place: Path) -> Iterator[Example]:
    """Yield what the recipe's `data.evaluate` holds on this machine, as far as still there."""
    root = next(
        (one for one in (place, *place.parents[:3]) if (one / "recipe.yaml").is_file()), None
    )
    if root is None:
        return
    try:
        for section in load_recipe(root / "recipe.yaml", check_paths=False).data.evaluate:
            if not section.streaming and section.hub is None:  # the hub's would be downloaded
                yield from (one for one in open_source(section) if isinstance(one, Example))
    except VarifocalError:
        return


def _asked(example: Example) -> str:
    return next((one.text for one in reversed(example.messages) if one.role == "user"), "")


def _filled(line: Line, example: Example) -> Line:
    paths = tuple(str(image.path) for image in example.images if image.path is not None)
    return replace(
        line,
        images=line.images or paths,
        tags=line.tags or dict(example.tags),
        options=line.options or example.choices,
    )
