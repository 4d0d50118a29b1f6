"""From a run directory to artifacts that others load; nothing leaves without the gate's consent."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from varifocal.assemble import Assembly, open_run
from varifocal.data.example import Example
from varifocal.errors import ModelError
from varifocal.exporting.artifacts import Job, make
from varifocal.exporting.folders import (
    PARITY,
    check_replaceable,
    files_of,
    read_parity,
    routes_of,
    write_card,
)
from varifocal.exporting.parity import Parity, Rounding, compare, prompts, references, rounding
from varifocal.exporting.plain import language_model
from varifocal.exporting.request import Order, check_possible
from varifocal.exporting.stopping import Stops, answers_of_run, check_stops
from varifocal.exporting.stored import put_unrounded
from varifocal.locking import alone
from varifocal.recipe import leaves_text
from varifocal.trained import find_trained
from varifocal.writing import atomic_directory, write_json, write_text

_PLAIN = (
    "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    "model = AutoModelForCausalLM.from_pretrained(HERE)\n"
    "tokenizer = AutoTokenizer.from_pretrained(HERE)"
)
_LORA = (
    "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
    'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
    "model = PeftModel.from_pretrained(base, HERE)\n"
    "model.generation_config.eos_token_id = {ends}"
)
_LLAVA = (
    "from transformers import AutoProcessor, LlavaForConditionalGeneration\n\n"
    "model = LlavaForConditionalGeneration.from_pretrained(HERE)\n"
    "processor = AutoProcessor.from_pretrained(HERE)"
)
_GGUF = (
    "from llama_cpp import Llama\n\n"
    'model = Llama(HERE + "/model.gguf")\n'
    'model.create_chat_completion([{{"role": "user", "content": "..."}}], temperature=0)'
)
_MODEL = (
    "import varifocal\nfrom transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
    "model = AutoModelForImageTextToText.from_pretrained(HERE)\n"
    "processor = AutoProcessor.from_pretrained(HERE)"
)
_LOADING = {
    "merged": _PLAIN,
    "lora": _LORA,
    "route": _LORA,
    "llava": _LLAVA,
    "gguf": _GGUF,
    "model": _MODEL,
}
_LIBRARIES = {"lora": "peft", "route": "peft", "gguf": "gguf"}


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


def export(order: Order, out: Path, tell: Callable[[str], None] | None = None) -> list[Exported]:
    """Write a run as what others load, and hold each artifact against the trained model.

    MMA gives two artifacts, `out/text` and `out/image`, since its weights differ by modality, and
    so does a LoRA with `text_route: base`, whose text route is the base model; as a LoRA there is
    `out/image` alone then. Any other tuner, and `model`, gives one, `out` itself. They take their
    places together, after the last has passed the gate: where one fails, what stood there before
    stays.

    Args:
        order: what is asked for.
        out: the folder; an export that stands there is replaced.
        tell: told of each step in a few words.

    Raises:
        RunError: the run has neither weights nor a checkpoint, the folder holds something else than
            an export, another process writes there, or the disk is full.
        ModelError: this tuner has no such form, or the artifact failed the parity gate.
    """
    say = tell or (lambda text: None)
    routes = routes_of(order.to, order.run)
    for name, _ in routes:
        check_replaceable(out / name)
    # a narrower format is what the weights are rounded to at the end, and not before
    dtype = "float32" if order.dtype == "float32" else None
    recipe, parts = open_run(order.run.root, dtype=dtype, strength=order.strength)
    check_possible(order, recipe, parts)
    say(f"the trained model answers {order.num_prompts} prompts")
    parts, is_wide = in_float32(parts)
    done = []
    with ExitStack() as places:
        if len(routes) > 1:
            places.enter_context(alone(out, "export"))  # both have to be of one run
        for name, modality in routes:
            asked = [order.prompt] if order.prompt else _examples(order, parts, name)
            cases = references(parts, asked, modality)
            target = out / name if name else out
            questions, answered = answers_of_run(parts, asked, modality)
            say(f"{target}: writing and comparing")
            staging = places.enter_context(atomic_directory(target))
            told = (asked, cases, questions, answered, str(target))
            job = Job(order, recipe, parts, name, modality or 0, *told)
            done.append(_write(job, target, staging, is_wide=is_wide))
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
    made = make(job, staging)
    notes = (*_notes(job), *made.notes, *(() if is_wide else (_NARROW,)))
    lost = None
    if made.wanted and is_wide and job.dtype.itemsize < torch.float32.itemsize:
        lost = rounding(made.cases, made.model, job.dtype)
        put_unrounded(made.model, made.wanted)
    held = torch.float32 if is_wide else language_model(job.parts.base)[0].dtype
    parity = compare(made.cases, made.model, held, job.order.max_gap)
    parity.check(str(target))
    end = job.parts.encoder.end_of_turn_id
    stops = check_stops(made.model, made.answered, end, made.ends, str(target))
    done = Exported(target, parity, lost, stops, made.layers, notes)
    _write_papers(job, done, staging)
    return done


_TEXT_IS_BASE = (
    "Rows without an image belong to the base model; put to this route, they would get what was "
    "learnt from images. vLLM's default_mm_loras gives a LoRA to requests with an image alone."
)
_NARROW = (
    "Twice this model in float32 did not fit into memory, so the gate compared logits in the run's "
    "own number format; the layers that the adapter changes were compared one by one in float64."
)


def _notes(job: Job) -> Iterator[str]:
    grafted = language_model(job.parts.base)[1] != ""
    if (trained := find_trained(job.order.run)).step is not None:
        yield f"The run had not reached its end: this is the run as of step {trained.step}."
    if job.order.strength != 1 and not job.is_base:
        yield f"What the adapter changes is scaled by {job.order.strength:g} (--strength)."
    if job.is_base:
        yield "The text route: the base model itself, to which the run leaves rows of text."
    elif job.route == "text":
        yield "The text route: what the model does with rows that show no image."
    if job.route == "image":
        yield "The image route: what the model does with rows that show an image."
        if leaves_text(job.recipe.tuner):
            yield _TEXT_IS_BASE
    if job.form == "llava":
        yield from _llava_notes(job)
    elif job.form == "model":
        yield from _model_notes(job)
    elif grafted:
        yield (
            "The language model alone: vision tower and connector stay in the run. Fed with their "
            "visual tokens as `inputs_embeds`, the image route gives the run's logits."
            if job.route == "image"
            else "The language model alone, without vision tower and connector."
        )
        if job.route and getattr(job.recipe.tuner, "adapt_vision_tower", False):
            yield (
                "The vision tower's adapters, where it has any, are routed by each image's own "
                "state and have no folded form; they stay in the run."
            )
    if job.form == "lora" and job.recipe.tuner.type == "mma":
        yield "PEFT runs it and does not merge it, since it has a bias; --to merged writes that."
    if job.form == "gguf":
        yield "The gate read the file back with transformers, not with llama.cpp."


def _model_notes(job: Job) -> Iterator[str]:
    yield (
        "Language model, vision tower, connector and processor in one folder, for transformers' "
        "Auto classes after `import varifocal`. The gate put the processor's own ids and pixels "
        "to it."
    )
    if job.keeps_adapter:
        yield (
            "The adapter answers by modality or by prompt and equals no single set of weights, so "
            "adapter_model.safetensors holds it; from_pretrained puts it on. From a hub, download "
            "the folder first, and name the folder."
        )


def _llava_notes(job: Job) -> Iterator[str]:
    yield (
        "transformers' LLaVA: language model, vision tower, projector and processor. The gate put "
        "the processor's own ids and pixels to it."
    )
    if job.route == "image":
        yield (
            "Questions without an image belong to the text route next to it; put to this one, "
            "they get the image route."
        )
    yield (
        "The run prepares images with Pillow: load the processor with backend='pil' where "
        "torchvision is installed, whose resizing differs slightly."
    )


def _write_papers(job: Job, done: Exported, directory: Path) -> None:
    order, base = job.order, job.recipe.model.language_model
    title = job.recipe.name or order.run.root.name
    card = write_card(
        f"{title}, {job.route} route" if job.route else title,
        base=base,
        library=_LIBRARIES.get(job.form, "transformers"),
        load=_LOADING[job.form].format(base=base, ends=job.ends),
        parity=done.parity,
        rounding=done.rounding,
        stops=done.stops,
        notes=done.notes,
        command=order.command
        or shlex.join(["varifocal", "export", str(order.run.root), "--to", order.to]),
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
    from huggingface_hub import create_repo, upload_folder
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    routes = [part for part in sorted(directory.iterdir()) if (part / PARITY).is_file()]
    for part in routes or [directory]:
        if not read_parity(part)["passed"]:
            raise ModelError(f"{part} did not pass the parity gate, so it is not pushed")
    try:
        create_repo(repo_id, private=private, exist_ok=True)
        told = upload_folder(
            repo_id=repo_id, folder_path=directory, commit_message="varifocal export"
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"the hub did not take {directory} as {repo_id}: {str(error).splitlines()[0]}; log in "
            "with `hf auth login`, and name a repository of your own"
        ) from error
    return str(told)


_BYTES = 4
_MODELS = 2  # the trained one, and what was written
_ROOM = 1.1  # for activations, logits and the layer that is being merged


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
    needed = int(_ROOM * _MODELS * _BYTES * sum(p.numel() for p in model.parameters()))
    for device in dict.fromkeys((own, torch.device("cpu"))):
        if free_bytes(device) + (held if device == own else 0) >= needed:
            return device
    return None


def free_bytes(device: torch.device) -> int:
    """Return how many bytes of memory can still be taken on a device, in a container too."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
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
