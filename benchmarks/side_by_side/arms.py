"""The three ways to train the same thing, each as its user would have it.

The samples of each step are those of Varifocal's packed rows: the other two arms are given them
in the same groups. Seed, first weights, optimiser, schedule and clipping are the recipe's in all
three. Letters: B samples, T tokens, V vocabulary.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from benchmarks.side_by_side.gate import AtGate, Enough, Gate
from benchmarks.side_by_side.limit import flops_of, products
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    get_scheduler,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from varifocal.assemble import Assembly, assemble
from varifocal.data.encoding.encoder import Encoded
from varifocal.data.rows.packing import PackedDataset
from varifocal.planning.shapes import build_shapes
from varifocal.recipe import LoraSection, Recipe
from varifocal.run import RunDirectory
from varifocal.training.examples import TrainingData, load_training_data
from varifocal.training.train import build_trainer
from varifocal.training.tuner import attach_tuner

PADDED = 512


def varifocal(recipe: Recipe, directory: Path, gate: Gate) -> None:
    """(a) The parts of `varifocal train`, in its order."""
    parts, data = _load(recipe)
    tuned = parts.with_model(attach_tuner(parts.base, recipe.tuner))
    started = time.perf_counter()
    if tuned.features is not None:
        tuned.features.fill(list(data.images()))
    seconds = time.perf_counter() - started
    run = RunDirectory.create(directory)
    trainer = build_trainer(recipe, run, tuned, data, lambda stage, done, total, note="": None)
    trainer.add_callback(AtGate(gate))
    efficiency = cast(PackedDataset, data.rows).efficiency
    gate.loaded(tuned.model, features_seconds=seconds, packing_efficiency=efficiency)
    trainer.train()


def paper_loop(recipe: Recipe, directory: Path, gate: Gate) -> None:
    """(b) LaVIN's loop: every row padded to 512, all logits, the tower on every row.

    As arXiv 2305.15023's public code does: a row without an image sends a black one through the
    tower, whose features are then dropped; there is no mask for the padding, which stands after
    what is learned.
    """
    parts, data = _load(recipe)
    model = attach_tuner(parts.base, recipe.tuner).train()
    batches = (_padded(parts, samples) for samples in steps_of(recipe, data))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    args = recipe.training
    optimizer = torch.optim.AdamW(
        trained,
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.weight_decay,
    )
    schedule = get_scheduler(
        args.lr_scheduler_type, optimizer, int(args.warmup_steps), args.max_steps
    )
    gate.loaded(model)
    for batch in batches:
        loss = _loss_of_all_rows(model, parts.base, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, args.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        gate.step(loss.item())


def _padded(parts: Assembly, samples: Sequence[Encoded]) -> dict[str, Tensor]:
    """Rows of 512 tokens, and an image for each, black where there is none."""
    tokenizer = parts.encoder.tokenizer
    ids = torch.full((len(samples), PADDED), cast(int, tokenizer.pad_token_id))
    labels = torch.full_like(ids, -100)
    side = cast(Any, parts.base).vision_tower.image_size
    pixels = torch.zeros(len(samples), 3, side, side, dtype=cast(Any, parts.base).dtype)
    for number, sample in enumerate(samples):
        ids[number, : len(sample)] = torch.tensor(sample.input_ids)
        labels[number, : len(sample)] = torch.tensor(sample.labels)
        if sample.images:
            pixels[number] = _pixels(parts, sample).to(pixels.dtype)
    is_vision_language = torch.tensor([bool(sample.images) for sample in samples])
    return {"input_ids": ids, "labels": labels, "pixel_values": pixels, "sees": is_vision_language}


def _loss_of_all_rows(model: nn.Module, base: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    features = cast(Any, base).see(batch["pixel_values"])
    logits = model(
        input_ids=batch["input_ids"], image_features=features[batch["sees"]], use_cache=False
    ).logits  # [B, T, V]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten())


def trainer_peft(recipe: Recipe, directory: Path, gate: Gate) -> None:
    """(c) transformers' Trainer, PEFT's LoRA and a collator that pads to the longest of a batch."""
    parts, data = _load(recipe)
    tuner = cast(LoraSection, recipe.tuner)
    config = LoraConfig(
        r=tuner.rank,
        lora_alpha=int(tuner.lora_alpha),
        lora_dropout=tuner.dropout,
        target_modules=list(tuner.target_modules),
        modules_to_save=["connector"],
    )
    given = {"output_dir": str(directory), "report_to": "none", "disable_tqdm": True}
    given |= {"remove_unused_columns": False, "use_cpu": not torch.cuda.is_available()}
    trainer = _SameSteps(
        model=get_peft_model(parts.base, config),
        args=TrainingArguments(**{**recipe.training.trainer_arguments(), **given}),
        data_collator=_Pad(parts),
        callbacks=[AtGate(gate)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.steps = steps_of(recipe, data)
    gate.loaded(cast(nn.Module, trainer.model))
    trainer.train()


class _SameSteps(Trainer):
    """A Trainer that is given its samples in groups."""

    steps: list[list[Encoded]]

    def get_train_dataloader(self) -> Any:
        samples = [sample for step in self.steps for sample in step]
        numbers = iter(range(len(samples)))
        groups = [[next(numbers) for _ in step] for step in self.steps]
        return DataLoader(
            cast(Any, samples), batch_sampler=groups, collate_fn=cast(Any, self.data_collator)
        )


class _Pad:
    """transformers' padding of ids and labels, and the images through the image processor."""

    def __init__(self, parts: Assembly) -> None:
        self.parts = parts
        self.pad = DataCollatorForSeq2Seq(parts.encoder.tokenizer)

    def __call__(self, samples: Sequence[Encoded]) -> dict[str, Any]:
        rows = [
            {"input_ids": one.input_ids.tolist(), "labels": one.labels.tolist()} for one in samples
        ]
        batch = dict(self.pad(rows))
        pixels = [_pixels(self.parts, one) for one in samples if one.images]
        if pixels:
            batch["pixel_values"] = torch.cat(pixels).to(cast(Any, self.parts.base).dtype)
        return batch


def _pixels(parts: Assembly, sample: Encoded) -> Tensor:
    """A sample's images through the image processor, [N, 3, H, W]."""
    pil_images = [image.open() for image in sample.images]
    return parts.processor.image_processor(images=pil_images, return_tensors="pt")["pixel_values"]


def _load(recipe: Recipe) -> tuple[Assembly, TrainingData]:
    """What stands before every arm: the frozen parts and the encoded samples, from one seed."""
    set_seed(recipe.seed)
    parts = assemble(recipe)
    data = load_training_data(recipe.data, parts.encoder, seed=recipe.seed)
    set_seed(recipe.seed)
    return parts, data


def steps_of(recipe: Recipe, data: TrainingData) -> list[list[Encoded]]:
    """The samples of each step of Varifocal's run over the first epoch."""
    rows, many = data.rows, recipe.training.per_device_train_batch_size
    return [
        [sample for number in range(start, start + many) for sample in rows[number]]
        for start in range(0, min(len(rows) - many + 1, recipe.training.max_steps * many), many)
    ]


ARMS: dict[str, Callable[[Recipe, Path, Gate], None]] = {
    "varifocal": varifocal,
    "varifocal_plain": varifocal,
    "paper_loop": paper_loop,
    "trainer_peft": trainer_peft,
    "products": products,
}
"""`varifocal` takes two of a recipe's knobs, `training.compile_layers` and
`model.attn_implementation: segments`; `varifocal_plain` takes neither. `products` is the limit."""


def run_arm(name: str, recipe: Recipe, directory: Path, gate: Gate) -> None:
    """Run an arm until its gate has had enough.

    Args:
        name: of `ARMS`.
        recipe: as `varifocal` takes it.
        directory: for what the arm writes; a new one.
        gate: where it waits.
    """
    compiled = {"compile_layers": name == "varifocal" and recipe.training.compile_layers}
    attention = {"attn_implementation": "segments"} if name == "varifocal" else {}
    knobs = {
        "training": recipe.training.model_copy(update=compiled),
        "model": recipe.model.model_copy(update=attention),
    }
    try:
        ARMS[name](recipe.model_copy(update=knobs), directory, gate)
    except Enough:
        return


def samples_per_step(recipe: Recipe) -> Iterator[tuple[int, int, int]]:
    """Count samples, tokens and needed operations of each step."""
    _, data = _load(recipe)
    shapes = build_shapes(recipe)
    for step in steps_of(recipe, data):
        yield len(step), sum(len(sample) for sample in step), flops_of(step, shapes)
