"""The folders of an export: which it writes or may replace, and their cards; needs no torch."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varifocal.errors import RunError
from varifocal.recipe import leaves_text, load_recipe
from varifocal.run import RunDirectory
from varifocal.writing import check_folder, listed

if TYPE_CHECKING:
    from varifocal.exporting.end_of_turn import Stops
    from varifocal.exporting.parity import Parity, Rounding

ROUTES = {"text": 0, "image": 1}

PARITY = "parity.json"
"""What the gate found; by this file a folder is known as an export."""


def routes_of(to: str, run: RunDirectory) -> list[tuple[str, int | None]]:
    """List the artifacts' names and the modalities of their rows; None where rows differ.

    Of an adapter that leaves text to the base model there is no LoRA for text.
    """
    if to in ("model", "route"):
        return [("", None)]
    tuner = load_recipe(run.recipe, check_paths=False).tuner
    if to == "lora" and leaves_text(tuner):
        return [("image", ROUTES["image"])]
    return list(ROUTES.items()) if tuner.type == "mma" or leaves_text(tuner) else [("", 0)]


def check_replaceable(directory: Path) -> None:
    """Refuse to replace a folder that is not empty and no export, or holds other files as well.

    Raises:
        RunError: it is; the text names some of what it holds.
    """
    check_folder(directory, mark=PARITY)
    if not (directory / PARITY).is_file():
        return
    present = files_of(directory)
    written = set(read_parity(directory).get("files", present))  # of older exports nobody knows
    if strange := [name for name in present if name not in written]:
        raise RunError(
            f"{directory} would be replaced, and it holds what no export wrote: {listed(strange)}; "
            "move that, or choose another --out"
        )


def files_of(directory: Path) -> list[str]:
    """List the files of a folder and its subfolders, by their paths from there."""
    files = (path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(directory).as_posix() for path in files)


def read_parity(directory: Path) -> dict[str, Any]:
    """Read an artifact's parity back.

    Raises:
        RunError: the folder is no export.
    """
    file = directory / PARITY
    if not file.is_file():
        raise RunError(f"{directory} is no export of Varifocal: it has no parity.json")
    return json.loads(file.read_text())


_VERSIONS = ("varifocal", "torch", "transformers", "peft")


def write_export_card(
    title: str,
    *,
    base: str,
    library: str,
    load: str,
    parity: Parity,
    rounding: Rounding | None,
    stops: Stops,
    notes: Sequence[str],
    command: str,
) -> str:
    """Write a Hugging Face model card.

    Args:
        title: what was exported.
        base: the language model that the run was trained on.
        library: `transformers` or `peft`.
        load: Python that loads it.
        parity: the gate's result.
        rounding: what the number format of the weights costs; None where nothing was rounded.
        stops: how answers end.
        notes: what a user has to know, a sentence each.
        command: that made it.
    """
    from huggingface_hub import ModelCardData

    bullets = "\n".join(f"- {note}" for note in notes)
    metadata = ModelCardData(base_model=base, library_name=library, tags=["varifocal"])
    return f"""---
{metadata.to_yaml()}
---

# {title}

```python
{load}
```

{bullets}

## Parity with the trained model

{_table(parity)}

{_rounding(rounding)}

{_stops(stops)}

Made by `{command}` with {_versions()}.
"""


def _table(parity: Parity) -> str:
    rows: Mapping[str, str] = {
        "prompts": f"{parity.prompts} ({parity.tokens} tokens)",
        "computed in": parity.dtype,
        "largest gap of two logits": f"{parity.largest_gap:.3g} (allowed: {parity.bound:.3g}; "
        f"the largest logit is {parity.largest_logit:.3g})",
        "root mean square of the gaps, by that of the logits": f"{parity.relative_gap:.2g} "
        f"(allowed: {parity.relative_bound:.3g})",
        "same next token": f"{parity.agreement:.2%} (needed: {parity.least_agreement:.0%})",
        "verdict": "passed" if parity.passed else "failed",
    }
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"| | |\n|---|---|\n{lines}"


def _rounding(rounding: Rounding | None) -> str:
    if rounding is None:
        return "No number was rounded."
    return (
        f"Rounding the weights to {rounding.dtype} comes on top of that. Computed in float32, it "
        f"moves a logit by up to {rounding.largest_gap:.3g} and the logits by "
        f"{rounding.relative_gap:.2g} of themselves (root mean square), and it changes "
        f"{1 - rounding.agreement:.2%} of the next tokens."
    )


def _stops(stops: Stops) -> str:
    return (
        f"Answers end with the run's end of turn, token {stops.end_of_turn}; generation stops at "
        f"{list(stops.stop_ids)}. {stops.same} of {stops.answers} greedy answers are the run's, "
        f"token by token; {stops.ended} of them came to their end."
    )


def _versions() -> str:
    named = ", ".join(f"{name} {version(name)}" for name in _VERSIONS)
    return f"{named}, Python {platform.python_version()}"
