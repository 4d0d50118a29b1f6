"""The analyses of a trained run: from its directory to JSON and images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from varifocal.analysis.gradients import AdapterGradient
from varifocal.analysis.heatmap import (
    interference_heatmap,
    layer_heatmaps,
    overlap_heatmap,
    usage_panels,
)
from varifocal.analysis.interference import ALL, Estimator, Interference, measure_interference
from varifocal.analysis.routing import TaskRouting, measure_routing
from varifocal.analysis.tasks import TaskExamples, encode_tasks, load_tasks
from varifocal.assemble import Assembly, open_run
from varifocal.locking import alone
from varifocal.plotting import routing_plot
from varifocal.progress import Progress
from varifocal.recipe import Recipe
from varifocal.run import RunDirectory
from varifocal.writing import claim_folder, write_json


@dataclass(frozen=True)
class TaskSample:
    """Which examples an analysis looks at.

    Attributes:
        tasks: their names; the most frequent ones when None.
        path: other data than the run learned from.
        split: another split of it.
        per_task: at most so many examples of each task.
        seed: of their draw.
    """

    tasks: Sequence[str] | None = None
    path: Path | None = None
    split: str | None = None
    per_task: int = 16
    seed: int = 0

    def load(self, recipe: Recipe) -> TaskExamples:
        """Draw the examples.

        Raises:
            RecipeError, DataError: as `load_tasks`.
        """
        return load_tasks(
            recipe.data,
            self.tasks,
            path=self.path,
            split=self.split,
            per_task=self.per_task,
            seed=self.seed,
        )


@dataclass(frozen=True)
class WrittenFiles:
    """What an analysis leaves.

    Attributes:
        files: the JSON first, then the images.
        left_out: one sentence for each record or group of tasks that was not looked at.
    """

    files: Sequence[Path]
    left_out: Sequence[str] = field(default_factory=tuple)


@contextmanager
def analysis_folder(root: str | Path, out: Path | None) -> Iterator[Path]:
    """Yield the folder that an analysis of a run writes, kept from other processes meanwhile.

    Args:
        root: the run directory.
        out: another folder than the run's `analysis`.

    Raises:
        RunError: `out` holds other files, or another process writes an analysis there.
    """
    if out is not None:
        claim_folder(out)
    place = out or RunDirectory(Path(root)).analysis
    with alone(place, "analysis"):
        yield place


def interference_of_run(
    root: str | Path,
    asked: TaskSample,
    *,
    num_groups: int | None = None,
    with_connector: bool = False,
    estimator: Estimator = "ratio_of_means",
    out: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Interference, WrittenFiles]:
    """Measure how the tasks of a run interfere, and write it down.

    Writes `interference.json`, `interference.png` and `interference-layers.png`.

    Args:
        root: the run directory.
        asked: the examples.
        num_groups: into how many blocks the layers are joined; None for one each.
        with_connector: count the connector's parameters as well.
        estimator: see `varifocal.analysis.interference`.
        out: where to write; the run's `analysis` by default.
        progress: told of every gradient.

    Raises:
        RunError, RecipeError, ModelError, DataError: the run has no adapter, its data is not there,
            or a task is not in it.
    """
    recipe, parts = open_run(root)
    with analysis_folder(root, out) as place:
        gradient = AdapterGradient(
            parts.model, parts.load_images, num_groups=num_groups, with_connector=with_connector
        )
        drawn = asked.load(recipe)
        samples, left_out = encode_tasks(drawn, parts.encoder, recipe.data.on_bad_record)
        _fill_features(drawn, parts, progress)
        interference = measure_interference(
            samples,
            gradient,
            gradient.blocks,
            estimator=estimator,
            progress=(lambda done, total: progress("gradients", done, total)) if progress else None,
        )
        page = {
            "run": str(root),
            "tuner": recipe.tuner.type,
            "with_connector": with_connector,
            "data": list(drawn.places),
            "split": asked.split,
            "seed": asked.seed,
            **interference.as_json(),
        }
        files = [place / f"interference{end}" for end in (".json", ".png", "-layers.png")]
        write_json(files[0], page)
        _draw(interference, files[1], files[2])
        return interference, WrittenFiles(files, [*drawn.left_out, *left_out])


def _fill_features(drawn: TaskExamples, parts: Assembly, progress: Progress | None) -> None:
    """Look at every image once, before the first gradient."""
    if parts.features is not None:
        images = [
            image for own in drawn.by_task.values() for example in own for image in example.images
        ]
        of_images = (lambda done, total: progress("images", done, total)) if progress else None
        parts.features.fill(images, of_images)


def _draw(interference: Interference, whole: Path, layers: Path) -> None:
    matrix = interference.matrices[ALL]
    interference_heatmap(
        matrix.interference.numpy(), interference.tasks, whole, sure=matrix.sure.numpy()
    )
    blocks = {name: block.interference.numpy() for name, block in interference.matrices.items()}
    layer_heatmaps(
        {name: block for name, block in blocks.items() if name != ALL}, interference.tasks, layers
    )


def routing_of_run(
    root: str | Path,
    asked: TaskSample,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
) -> tuple[TaskRouting, WrittenFiles]:
    """Find out which factors of a run's adapter which task uses, and write it down.

    Writes `routing.json` and `routing-overlap.png`; for MMA `routing.png`, the weights by modality;
    for MixLoRA `routing-usage.png`, in each layer the router that tells the tasks apart most.

    Args:
        root: the run directory.
        asked: the examples.
        out: where to write; the run's `analysis` by default.
        progress: told of every example.

    Raises:
        RunError, RecipeError, ModelError, DataError: the run has no adapter that routes, its data
            is not there, or a task is not in it.
    """
    recipe, parts = open_run(root)
    with analysis_folder(root, out) as place:
        drawn = asked.load(recipe)
        samples, left_out = encode_tasks(drawn, parts.encoder, recipe.data.on_bad_record)
        routing = measure_routing(
            parts.model,
            samples,
            parts.load_images,
            (lambda done, total: progress("examples", done, total)) if progress else None,
        )
        page = {
            "run": str(root),
            "tuner": recipe.tuner.type,
            "data": list(drawn.places),
            "split": asked.split,
            "seed": asked.seed,
            **routing.as_json(),
        }
        write_json(place / "routing.json", page)
        images = _draw_routing(routing, place)
        return routing, WrittenFiles(
            [place / "routing.json", *images], [*drawn.left_out, *left_out]
        )


def _draw_routing(routing: TaskRouting, out: Path) -> list[Path]:
    overlap = out / "routing-overlap.png"
    overlap_heatmap(
        routing.overlap.numpy(), routing.tasks, overlap, "Overlap of the factors in use"
    )
    if routing.tables:
        routing_plot(routing.tables, out / "routing.png")
        return [overlap, out / "routing.png"]
    telling = {
        f"{layer}\n{_router_name(key)}": router.shares.numpy()
        for layer, routers in routing.by_layer().items()
        for key, router in [min(routers.items(), key=lambda pair: pair[1].mean_overlap)]
    }
    title = "Shares of the factors, where tasks differ most in each layer"
    usage_panels(telling, routing.tasks, out / "routing-usage.png", title)
    return [overlap, out / "routing-usage.png"]


def _router_name(key: tuple[str, str]) -> str:
    module, pool = key
    return f"{module.rpartition('.')[2]} {pool}"
