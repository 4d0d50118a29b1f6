"""The model card of one run: what it is, what it cost, what it scored, and what nobody tested.

Reads the files of the run directory alone; no model is opened. The front matter is what the Hugging
Face hub reads from a README.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from varifocal.plotting import loss_curve
from varifocal.reports.blocks import (
    Block,
    Bullets,
    Code,
    Figure,
    Grid,
    Heading,
    Paragraph,
    to_html,
    to_markdown,
)
from varifocal.reports.card_scores import (
    Sample,
    ScoreLine,
    read_object_if_any,
    read_samples,
    read_scores,
)
from varifocal.reports.card_sections import in_short, limits, retention_blocks
from varifocal.reports.runs import RunSummary, read_run
from varifocal.reports.runs_table import COST_ROWS
from varifocal.run import RunDirectory
from varifocal.trained_weights import scores_folder
from varifocal.writing import atomic_file, write_text

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

CARD = "README.md"
SAMPLES = 6

_SIDE = 320  # pixels of a sample's longer side
_HUB_NAMES = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_METHODS = {
    "mma": "Mixture-of-Modality Adaptation (MMA, LaVIN)",
    "mixlora": "Conditional Mixture-of-LoRA (MixLoRA)",
    "lora_experts": "a mixture of LoRA experts",
    "lora": "LoRA",
    "peft": "a method of PEFT",
    "full": "full tuning",
    "none": "its connector alone",
}


@dataclass(frozen=True)
class Card:
    """A run's model card.

    Attributes:
        metadata: the front matter.
        blocks: the page.
        folder: the run's directory, where images are.
    """

    metadata: ModelCardData
    blocks: Sequence[Block]
    folder: Path

    def markdown(self) -> str:
        """The card as the hub reads it."""
        return f"---\n{self.metadata.to_yaml()}\n---\n\n{to_markdown(self.blocks, self.folder)}"

    def html(self) -> str:
        """The card as one page with its images inside."""
        return to_html(self.blocks, str(self.metadata.model_name))


def write_card(root: str | Path, html: Path | None = None) -> tuple[Path, ...]:
    """Write `README.md` into a run directory, and the page if one is wanted.

    Args:
        root: the run directory, finished or not.
        html: where the page goes.

    Raises:
        RunError: there is no run here.
    """
    card = make_card(root)
    files = [card.folder / CARD]
    write_text(files[0], card.markdown())
    if html is not None:
        write_text(html, card.html())
        files.append(html)
    return tuple(files)


def renew_card(root: str | Path) -> None:
    """Write a run's card again, since the run has changed; a model is no run and has none."""
    if RunDirectory(Path(root)).recipe.is_file():
        write_card(root)


def make_card(root: str | Path) -> Card:
    """Read a run and lay out its card; its loss plot and small sample images are written.

    Raises:
        RunError: there is no run here.
    """
    run = RunDirectory.open(root)
    summary = read_run(run.root)
    scored = scores_folder(run)
    scores = read_scores(scored)
    retention = read_object_if_any(scored / "retention.json")
    blocks = [
        *_head(summary),
        *in_short(scores, retention),
        *_samples(run, scores),
        *_how_to_load(run, summary),
        *_scores(scores),
        *retention_blocks(retention),
        *_cost(run, summary),
        *_data(run),
        *_recipe(summary),
        *_plots(run, summary),
        Heading("Limits"),
        Bullets(limits(run, summary, scores)),
    ]
    return Card(metadata(summary, scores), blocks, run.root)


def metadata(run: RunSummary, scores: Sequence[ScoreLine]) -> ModelCardData:
    """Return the front matter.

    A base model or a data set that is no hub's is left out, because the hub refuses a path there.
    """
    from huggingface_hub import ModelCardData  # the hub's client takes a tenth of a second

    whole = run.knobs.get("tuner.type") == "full"
    has_vision = bool(run.knobs.get("model.vision_tower"))
    bases = [_hub_name(run.knobs.get(key)) for key in _PART_KEYS]
    sources = [value for key, value in run.knobs.items() if re.search(r"train\[\d+\]\.hub$", key)]
    hub = dict.fromkeys(name for name in map(_hub_name, sources) if name)
    return ModelCardData(
        base_model=[name for name in dict.fromkeys(bases) if name] or None,
        library_name="transformers" if whole else "peft",
        pipeline_tag="image-text-to-text" if has_vision else "text-generation",
        license="other",
        license_name="as-its-base-models",
        datasets=[*hub] or None,
        tags=["varifocal", str(run.knobs.get("tuner.type", "adapter"))],
        model_name=run.name,
        eval_results=[_result(score) for score in scores if score.main] or None,
    )


_PART_KEYS = ("model.language_model", "model.vision_tower")


def _hub_name(name: Any) -> str | None:
    """A name that the hub takes: `owner/name`, and no directory here."""
    text = _HUB_NAMES.get(str(name), str(name))
    return text if _HUB_NAME.fullmatch(text) and not Path(text).exists() else None


def _result(score: ScoreLine) -> EvalResult:
    from huggingface_hub import EvalResult

    kind = "accuracy" if score.measure.startswith(("accuracy", "average")) else score.measure
    return EvalResult(
        task_type="question-answering",
        dataset_type=score.suite,
        dataset_name=score.suite,
        metric_type=kind,
        metric_value=round(score.value, 2),
        metric_name=f"{score.measure} ({score.protocol})",
    )


def _head(run: RunSummary) -> Iterator[Block]:
    yield Heading(run.name, 1)
    language, tower = (run.knobs.get(key) for key in _PART_KEYS)
    kind = str(run.knobs.get("tuner.type"))
    method = _METHODS.get(kind, kind)
    if kind == "peft":
        method += f" ({run.knobs.get('tuner.method')})"
    is_vision_language = f", seeing through {tower}" if tower else ""
    count = run.trained_parameters
    trained = "" if count is None else f"{count:,} parameters were trained."
    if not run.finished:
        trained = f"The run is not finished ({run.state})."
    yield Paragraph(f"{language}, adapted by {method}{is_vision_language}. {trained}")


def _how_to_load(run: RunDirectory, summary: RunSummary) -> Iterator[Block]:
    yield Heading("How to use it")
    if not summary.finished:
        yield Code(run.resume_command, "bash")
        if run.newest_checkpoint() is None:
            return
        yield Paragraph("Until then it is opened as of its newest checkpoint.")
    has_vision = bool(summary.knobs.get("model.vision_tower"))
    image = ' --image "image.png"' if has_vision else ""
    yield Code(f'varifocal ask {shlex.quote(str(run.root))} "What is this?"{image}', "bash")
    shown = ', ["image.png"]' if has_vision else ""
    lines = [
        "import varifocal as vf\n",
        f"model = vf.load({str(run.root)!r})",
        f'print(model.ask("What is this?"{shown}))',
    ]
    yield Code("\n".join(lines), "python")


def _scores(scores: Sequence[ScoreLine]) -> Iterator[Block]:
    yield Heading("Scores")
    if not scores:
        yield Paragraph("Nothing has been scored yet.")
        return
    yield Paragraph(
        "Percent unless a measure says otherwise, with 95 % intervals over the items. An answer "
        "that cannot be read counts as wrong and is told as unparsed."
    )
    missing = {score.suite: score.left_out for score in scores if score.left_out}
    if missing:
        counts = ", ".join(f"{suite} {count:,}" for suite, count in missing.items())
        yield Paragraph(
            f"Items that could not be asked, and that the scores are without: {counts}."
        )
    lines = [
        [score.suite, score.measure, f"{score.value:.1f}", score.interval, f"{score.count:,}",
         f"{score.unparsed:,}"]
        for score in scores
    ]  # fmt: skip
    yield Grid(["suite", "measure", "score", "95 % interval", "items", "unparsed"], lines)
    figures = [[score.suite, score.next_to] for score in scores if score.main and score.next_to]
    if figures:
        yield Grid(["suite", "next to its main score: blind rules, likelihood both ways"], figures)
    protocols = {score.suite: score.protocol for score in scores}
    yield Grid(["suite", "protocol"], [[*pair] for pair in protocols.items()])


def _samples(run: RunDirectory, scores: Sequence[ScoreLine]) -> Iterator[Block]:
    finals = [score.suite for score in scores if score.suite in ("after",)]
    samples = read_samples(scores_folder(run), SAMPLES, next(iter(finals), None))
    if not samples:
        return
    yield Heading("Sample answers")
    yield Paragraph(f"From the first predictions of {samples[0].suite}: right and wrong ones.")
    for number, sample in enumerate(samples):
        yield Heading(f"{sample.verdict} (item {sample.id})", 3)
        small = _small(sample, run.plots / "samples" / f"{number}.png")
        if small is not None:
            yield Figure(small, f"item {sample.id}", width=240)
        answer = "nothing that can be read" if sample.answer is None else sample.answer
        yield Bullets(
            [
                f"asked: {sample.question}",
                f"answered: {answer}",
                f"right: {sample.gold}",
            ]
        )


def _small(sample: Sample, path: Path) -> Path | None:
    """Write a sample's image, smaller, into the run."""
    from varifocal.data.example import Image
    from varifocal.errors import DataError

    if sample.image is None:
        return None
    try:
        image = Image(sample.image).open()
    except DataError:
        return None
    image.thumbnail((_SIDE, _SIDE))
    with atomic_file(path) as staging:
        image.save(staging, format="PNG")
    return path


def _cost(run: RunDirectory, summary: RunSummary) -> Iterator[Block]:
    plan = read_object_if_any(run.root / "plan.json")
    planned, measured = (_part(plan, key) for key in ("predicted", "measured"))
    measured = {**measured, **summary.cost}
    lines = [
        [label, say(measured.get(key)), say(planned.get(key))]
        for label, key, say in COST_ROWS
        if key in measured or key in planned
    ]
    known_rows = {key for _, key, _ in COST_ROWS}
    for key in planned:
        label, factor = _ONLY_PLANNED.get(key, (key.replace("_", " "), 1))
        if key not in known_rows and _number(planned[key]) != "-":
            cells = [_number(_times(part.get(key), factor)) for part in (measured, planned)]
            lines.append([label, *cells])
    if not lines:
        return
    yield Heading("Cost")
    known = any(cells[2] != "-" for cells in lines)
    head = ["", "measured", "predicted"] if known else ["", "measured"]
    yield Grid(head, [cells[: len(head)] for cells in lines])


_ONLY_PLANNED = {
    "examples": ("examples an epoch", 1),
    "tokens_padding": ("padding tokens", 1),
    "pad_share": ("padding %", 100),
    "flops_masked": ("TFLOP on padding", 1e-12),
    "flops_keep": ("TFLOP of the base's answers", 1e-12),
    "micro_batch": ("rows at once", 1),
    "largest_micro_batch": ("most rows that fit", 1),
    "num_devices": ("devices", 1),
    "num_dropped": ("examples left out", 1),
    "num_cut": ("examples cut", 1),
    "device_memory_gib": ("memory of a device GiB", 1),
    "usd": ("price USD", 1),
}
"""What a plan knows next to `COST_ROWS`: what a reader calls it, and its factor to that unit."""


def _times(value: Any, factor: float) -> Any:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return value * factor if known and factor != 1 else value


def _part(page: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = page.get(key)
    return part if isinstance(part, dict) else {}


def _number(value: Any) -> str:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:,}" if isinstance(value, int) and known else f"{value:,.4g}" if known else "-"


def _data(run: RunDirectory) -> Iterator[Block]:
    yield Heading("Data")
    page = read_object_if_any(run.data)
    realised = [source for source in page.get("realised") or [] if isinstance(source, dict)]
    if realised:
        keys = ("source", "modality", "samples", "tokens", "trained_tokens")
        yield Grid(
            ["source", "modality", "samples", "tokens", "trained tokens"],
            [[_cell(source.get(key)) for key in keys] for source in realised],
        )
    prints = _provenance(run).get("data") or {}
    if prints:
        rows = [[str(place), str(digest)] for place, digest in prints.items()]
        yield Grid(["data", "content hash (SHA-256)"], rows)
    if not realised and not prints:
        yield Paragraph("The run has not written down its data yet.")


def _provenance(run: RunDirectory) -> Mapping[str, Any]:
    try:
        page = yaml.safe_load(run.recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    provenance = page.get("provenance") if isinstance(page, dict) else None
    return provenance if isinstance(provenance, dict) else {}


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _recipe(summary: RunSummary) -> Iterator[Block]:
    yield Heading("Recipe")
    yield Paragraph("What differs from the defaults; recipe.yaml in the run directory has all.")
    yield Grid(
        ["knob", "value"],
        [[key, str(value)] for key, value in summary.knobs.items() if key in summary.chosen],
    )


def _plots(run: RunDirectory, summary: RunSummary) -> Iterator[Block]:
    losses = [line for line in summary.metrics if {"step", "loss"} <= set(line)]
    blocks: list[Block] = []
    if losses:
        path = run.plots / "loss.png"
        loss_curve(losses, path)
        blocks.append(Figure(path, "training loss"))
    places = (run.plots / "routing.png", *sorted(run.analysis.glob("routing*.png")))
    blocks += [Figure(path, f"routing ({path.stem})") for path in places if path.is_file()]
    if blocks:
        yield Heading("Plots")
        yield from blocks
