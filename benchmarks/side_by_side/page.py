"""The recipe that all arms read."""

from pathlib import Path
from typing import Any

import yaml
from benchmarks.side_by_side.material import Shape, write_material

from varifocal.recipe.processor import processor_has_bfloat16

MODEL: dict[str, Any] = {
    "language_model": "smollm2-135m-instruct",
    "vision_tower": "efficientnet-lite0",
    "connector": {"type": "patch_mlp", "num_tokens": 16, "num_global_tokens": 4},
    "dtype": "bfloat16" if processor_has_bfloat16() else "float32",
    "attn_implementation": "sdpa",  # the default of all three
}
TUNER: dict[str, Any] = {"type": "lora", "rank": 8, "dropout": 0.0}
TRAINING: dict[str, Any] = {
    "max_steps": 60,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 5,
    "logging_steps": 1,
    "save_strategy": "no",
    "compile_layers": True,
}


def write_page(
    directory: Path,
    shape: Shape,
    *,
    rows: int = 2,
    model: dict[str, Any] | None = None,
    tuner: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
) -> Path:
    """Write the material and the recipe; return the recipe's file.

    Args:
        directory: for both.
        shape: of the material.
        rows: packed rows a step.
        model: keys of this section that differ from the benchmark's; and so
        tuner: here,
        training: here,
        data: and here.
    """
    directory.mkdir(parents=True, exist_ok=True)
    samples = write_material(directory / "material", shape)
    data = {
        "train": [{"path": str(samples), "format": "llava"}],
        "max_length": shape.longest,
        "row_length": shape.longest,
        "overflow": "truncate_prompt",
        "system_prompt": "",
        **(data or {}),
    }
    page = {
        "seed": 0,
        "model": {**MODEL, **(model or {})},
        "tuner": {**TUNER, **(tuner or {})},
        "data": data,
        "training": {**TRAINING, "per_device_train_batch_size": rows, **(training or {})},
    }
    file = directory / "recipe.yaml"
    file.write_text(yaml.safe_dump(page, sort_keys=False))
    return file
