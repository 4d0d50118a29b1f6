"""From a run directory to artifacts that others load; nothing leaves without the gate's consent."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from varifocal.assemble import Assembly, open_run
from varifocal.data.example import Example
from varifocal.errors import ModelError
from varifocal.exporting.artifacts import Job, make
from varifocal.exporting.cards import LIBRARIES, NARROW, export_notes, loading
from varifocal.exporting.end_of_turn import Stops, answers_of_run, check_stops
from varifocal.exporting.folders import (
    PARITY,
    check_replaceable,
    files_of,
    read_parity,
    routes_of,
    write_export_card,
)
from varifocal.exporting.liveness import write_probe
from varifocal.exporting.parity import (
    Parity,
    Rounding,
    compare_logits,
    prompts,
    references,
    rounding,
)
from varifocal.exporting.plain_tensors import language_model
from varifocal.exporting.request import Order, check_possible
from varifocal.exporting.stored import put_unrounded
from varifocal.hub import cut_paths, upload
from varifocal.locking import alone
from varifocal.models.saved import shared_name
from varifocal.progress import Progress, silent
from varifocal.recipe import leaves_text
from varifocal.writing import atomic_directory, write_json, write_text


@dataclass(frozen=True)
class Exported:
    """One artifact.

    Attributes:
        directory: where it lies.
        parity: how near it is to the trained model, before its numbers are rounded.
        rounding: what rounding them costs; None where they were not, or that did not fit in memory.
        stops: how its answers end.
        layers: how many layers that the adapter changes were held against the trained ones.
        notes: what a user has to know.
    """

    directory: Path
    parity: Parity
    rounding: Rounding | None
    stops: Stops
    layers: int
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return what `parity.json` holds."""
        return {
            **asdict(self.parity),
            "passed": self.parity.passed,
            "rounding": None if self.rounding is None else asdict(self.rounding),
            "stops": asdict(self.stops),
            "layers": self.layers,
        }


def export_run(order: Order, out: Path, progress: Progress | None = None) -> list[Exported]:
    """Write a run as what others load, and hold each artifact against the trained model.

    MMA gives two artifacts, `out/text` and `out/image`, since its weights differ by modality, and
    so does a LoRA with `text_route: base`, whose text route is the base model; as a LoRA there is
    `out/image` alone then. Any other tuner, and `model`, gives one, `out` itself. They take their
    places together, after the last has passed the gate: where one fails, what stood there before
    stays.

    Args:
        order: what is asked for.
        out: the folder; an export that stands there is replaced.
        progress: called with the stage, done, total, and what is done in a few words.

    Raises:
        RunError: the run has neither weights nor a checkpoint, the folder holds something else than
            an export, another process writes there, or the disk is full.
        ModelError: this tuner has no such form, or the artifact failed the parity gate.
    """
    routes = routes_of(order.to, order.run)
    say, steps = partial(progress or silent, "export"), 1 + len(routes)
    for name, _ in routes:
        check_replaceable(out / name)
    # a narrower format is what the weights are rounded to at the end, and not before
    dtype = "float32" if order.dtype == "float32" else None
    recipe, parts = open_run(order.run.root, dtype=dtype, strength=order.strength)
    check_possible(order, recipe, parts)
    say(0, steps, f"the trained model answers {order.num_prompts} prompts")
    parts, is_wide = in_float32(parts)
    done = []
    with ExitStack() as places:
        if len(routes) > 1:
            places.enter_context(alone(out, "export"))  # both have to be of one run
        for step, (name, modality) in enumerate(routes, start=1):
            asked = [order.prompt] if order.prompt else _examples(order, parts, name)
            cases = references(parts, asked, modality)
            target = out / name if name else out
            questions, answered = answers_of_run(parts, asked, modality)
            say(step, steps, f"{target}: writing and comparing")
            staging = places.enter_context(atomic_directory(target))
            arguments = (asked, cases, questions, answered, str(target))
            job = Job(order, recipe, parts, name, modality or 0, *arguments)
            done.append(_write(job, target, staging, is_wide=is_wide))
    say(steps, steps)
    return done


def _examples(order: Order, parts: Assembly, route: str) -> Sequence[Example]:
    is_vision_language = parts.load_images is not None
    if route:
        return list(prompts(order.num_prompts, images=is_vision_language and route == "image"))
    half = order.num_prompts // 2 if is_vision_language else 0
    return [*prompts(order.num_prompts - half, images=False), *prompts(half, images=True)]


def _write(job: Job, target: Path, staging: Path, *, is_wide: bool) -> Exported:
    """Write an artifact and hold it against the trained model.

    Its tensors are compared on disk, then its logits: as rounded, which is told, and not rounded,
    which has to agree.
    """
    artifact = make(job, staging)
    notes = (*export_notes(job), *artifact.notes, *(() if is_wide else (NARROW,)))
    lost = None
    if artifact.wanted and is_wide and job.dtype.itemsize < torch.float32.itemsize:
        lost = rounding(artifact.cases, artifact.model, job.number_format)
        put_unrounded(artifact.model, artifact.wanted)
    held = torch.float32 if is_wide else language_model(job.parts.base)[0].dtype
    parity = compare_logits(artifact.cases, artifact.model, held, job.order.max_gap)
    parity.check(str(target))
    end = job.parts.encoder.end_of_turn_id
    stops = check_stops(artifact.model, artifact.answered, end, artifact.ends, str(target))
    if job.holds_adapter:
        notes = (*notes, _write_probe(job, staging))
    done = Exported(target, parity, lost, stops, artifact.layers, notes)
    _write_papers(job, done, staging)
    return done


def _write_probe(job: Job, staging: Path) -> str:
    """Write the questions by which a server's answers are told from the base model's."""
    lines = write_probe(
        job.parts,
        staging,
        modality=job.modality if job.route else None,
        takes_images=job.is_pair or job.form in ("llava", "llamacpp", "model"),
        text_is_base=job.is_pair or (job.form == "model" and leaves_text(job.recipe.tuner)),
    )
    if not lines:
        return "The adapter changes so little that no question of the gate tells it from its base."
    return (
        "Where it is served, `varifocal export HERE --verify URL` asks that server the questions "
        "of probe.json and says whether the adapter acts, is missing, or something else answers."
    )


def _write_papers(job: Job, done: Exported, directory: Path) -> None:
    order, base = job.order, shared_name(job.recipe.model.language_model)
    command = order.command or shlex.join(
        ["varifocal", "export", str(order.run.root), "--to", order.to]
    )
    title = job.recipe.name or order.run.root.name
    card = write_export_card(
        f"{title}, {job.route} route" if job.route else title,
        base=base,
        library=LIBRARIES.get(job.form, "transformers"),
        load=loading(job),
        parity=done.parity,
        rounding=done.rounding,
        stops=done.stops,
        notes=done.notes,
        command=cut_paths(command),
    )
    write_text(directory / "README.md", card)
    files = sorted({*files_of(directory), PARITY})
    write_json(directory / PARITY, {**done.as_json(), "files": files})


def push(directory: Path, repo_id: str, *, private: bool = True) -> str:
    """Upload an artifact that passed the parity gate.

    Args:
        directory: as `export` wrote it, with its routes inside or alone.
        repo_id: `owner/name`; made where it is not there.
        private: of a repository that is made now.

    Returns:
        The repository's address.

    Raises:
        RunError: the folder is no export.
        ModelError: it did not pass the gate, or the hub refuses.
    """
    routes = [part for part in sorted(directory.iterdir()) if (part / PARITY).is_file()]
    for part in routes or [directory]:
        if not read_parity(part)["passed"]:
            raise ModelError(f"{part} did not pass the parity gate, so it is not pushed")
    return upload(directory, repo_id, message="varifocal export", private=private)


_BYTES = 4
_MODELS = 2  # the trained one, and what was written
_HEADROOM = 1.1  # for activations, logits and the layer that is being merged


def in_float32(parts: Assembly) -> tuple[Assembly, bool]:
    """Hold a model in float32, on its device or else on the CPU, where two of it fit there.

    16-bit weights and adapters are held without loss. Images are prepared for the wider model.

    Args:
        parts: opened for this export alone; its model is changed.

    Returns:
        The parts, and whether all their numbers are float32 or wider.
    """
    model = cast(Any, parts.model)
    narrow = [p for p in model.parameters() if p.is_floating_point() and p.element_size() < _BYTES]
    if not narrow:
        return parts, True
    device = _device_with_room(model)
    if device is None:
        return parts, False
    model.to(device).float()
    return parts.with_model(model), True


def _device_with_room(model: nn.Module) -> torch.device | None:
    """Return the model's own device, or the CPU, or None where neither has the memory."""
    own = next(model.parameters()).device
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    needed = int(_HEADROOM * _MODELS * _BYTES * sum(p.numel() for p in model.parameters()))
    for device in dict.fromkeys((own, torch.device("cpu"))):
        if free_bytes(device) + (held if device == own else 0) >= needed:
            return device
    return None


def free_bytes(device: torch.device) -> int:
    """Return how many bytes of memory can still be taken on a device, in a container too."""
    if device.type == "cuda":
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reusable
    import psutil  # which accelerate brings

    return min([psutil.virtual_memory().available, *_left_in_group()])


def _left_in_group(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Return what a control group (v2, or v1) leaves of its memory; nothing where it sets none."""
    for folder, limit, used, cached in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (
            root / "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        try:
            most, now = (int((folder / name).read_text()) for name in (limit, used))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue  # no such group, or its limit is "max"
        return [max(most - now + int(stat.get(cached, 0)), 0)]
    return []
