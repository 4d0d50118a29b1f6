"""What a frozen image encoder's features tell of images it never saw, skill by skill.

For each image skill of sciencebook and each word that some of its descriptions have and others
lack, a ridge classifier learns on the encoder's patches, pooled to 4 x 4 cells, of new training
images whether the description has the word, and is asked about images of the test split. The
score is the accuracy balanced between having and lacking (50 % knows nothing), averaged over the
skill's words. Next to the shipped ViT stand the same ViT before training and EfficientNet-Lite0.

    python -m studies.small_vit_probe runs/probe [--vit DIR] [--train 80] [--test 40]
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from studies.command import run_study, take_out
from studies.record import write_study
from studies.small_vit import SHAPE, image_skills, words_of
from varifocal.errors import RunError
from varifocal.models.connector import pool_cells
from varifocal.models.preprocessing import load_image_processor
from varifocal.models.sources import find_checkpoint
from varifocal.models.vision import VISION_MODELS, VisionTower, build_tower
from varifocal.sciencebook import compose, draw_image
from varifocal.writing import write_json, write_text

SEED = 77
"""Of the images; pre-training had another."""
CELLS = (4, 4)
RIDGE = 0.01
"""Of the mean square of the features."""


def images_of(skill: str, split: str, count: int) -> tuple[list[Image.Image], list[set[str]]]:
    """Draw images of a skill, with the words of their descriptions."""
    pil_images, words = [], []
    for index in range(count):
        record, question = compose(skill, split, index, SEED)
        pil_images.append(draw_image(skill, split, index, SEED, question))
        words.append(set(words_of(record["caption"])))
    return pil_images, words


@torch.inference_mode()
def features(tower: VisionTower, processor: object, pil_images: Sequence[Image.Image]) -> Tensor:
    """Encode images: [N, cells x C], as a connector would pool them."""
    pooled = []
    for start in range(0, len(pil_images), 25):
        batch = list(pil_images[start : start + 25])
        pixels = processor(images=batch, return_tensors="pt")["pixel_values"]  # type: ignore[operator]
        pooled.append(pool_cells(tower(pixels), tower.grid, CELLS).flatten(1).float())
    return torch.cat(pooled)


def balanced(train: Tensor, has: Tensor, test: Tensor, test_has: Tensor) -> float:
    """Percent right of a ridge classifier, balanced between the two answers; 50 knows nothing.

    Args:
        train: features [N, F].
        has: [N] of 0 and 1.
        test: [M, F].
        test_has: [M].
    """
    mean, scale = train.mean(dim=0), train.std(dim=0) + 1e-6
    x, z = (train - mean) / scale, (test - mean) / scale
    kernel = x @ x.T
    kernel += RIDGE * kernel.diagonal().mean() * torch.eye(len(x))
    share = has.mean()
    weights = torch.linalg.solve(kernel, (has - share) / (share * (1 - share)))
    # the middle between what the two kinds of training images would score
    says = z @ (x.T @ weights)
    own = x @ (x.T @ weights)
    threshold = (own[has == 1].mean() + own[has == 0].mean()) / 2
    right = (says > threshold) == (test_has == 1)
    return 50 * float(right[test_has == 1].float().mean() + right[test_has == 0].float().mean())


def score(
    train: Tensor, train_words: Sequence[set[str]], test: Tensor, test_words: Sequence[set[str]]
) -> float | None:
    """Average over the words that tell a skill's images apart; None without such a word."""
    scores = []
    for word in sorted(set().union(*train_words)):
        has = torch.tensor([float(word in words) for words in train_words])
        test_has = torch.tensor([float(word in words) for words in test_words])
        if 0.1 <= has.mean() <= 0.9 and 0.05 <= test_has.mean() <= 0.95:
            scores.append(balanced(train, has, test, test_has))
    return float(np.mean(scores)) if scores else None


def towers(vit: str, others: Sequence[str] = ()) -> dict[str, tuple[VisionTower, object]]:
    """Load the ViT, the same one before training, and others, by name."""
    torch.manual_seed(0)
    fresh = build_tower(Dinov2Model(Dinov2Config(**SHAPE)), feature_layer=-1)
    found = {"untrained ViT": (fresh.eval(), load_image_processor(find_checkpoint(vit)))}
    for name in (vit, *others):
        checkpoint = find_checkpoint(name)
        kind = VISION_MODELS[checkpoint.config.model_type]
        model = kind.from_pretrained(checkpoint.path, dtype=torch.float32)
        found[name] = (build_tower(model).eval(), load_image_processor(checkpoint))
    return found


def probe(out: Path, vit: str, train: int, test: int) -> dict[str, dict[str, float]]:
    """Score every encoder on every image skill that OUT has not yet: skill -> encoder -> percent.

    The scores are kept in OUT after each skill, so that a stopped probe goes on.

    Raises:
        RunError: OUT has scores of another ViT, or of other numbers of images.
    """
    file = out / "scores.json"
    asked = {"vit": vit, "train": train, "test": test}
    scores = _kept(file, asked)
    encoders = towers(vit, ["efficientnet-lite0"])
    for skill in image_skills():
        if skill in scores:
            continue
        pil_images, words = images_of(skill, "train", train)
        others, other_words = images_of(skill, "test", test)
        for name, (tower, processor) in encoders.items():
            own = features(tower, processor, pil_images)
            found = score(own, words, features(tower, processor, others), other_words)
            if found is not None:
                scores.setdefault(skill, {})[name] = round(found, 1)
        write_json(file, {"asked": asked, "scores": scores})
    return scores


def _kept(file: Path, asked: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Read the scores that a stopped probe left, and refuse those of another call."""
    if not file.is_file():
        return {}
    page = json.loads(file.read_text())
    if page.get("asked") != asked:
        raise RunError(
            f"{file} holds scores of {page.get('asked', 'an older probe')}, and this call asks "
            f"for {asked}; call the probe as before, or choose another OUT"
        )
    return page["scores"]


def table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Write the page's Markdown table, with the mean over skills below."""
    names = list(next(iter(scores.values())))
    lines = [f"| skill | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for skill, own in scores.items():
        lines.append(f"| {skill} | {' | '.join(f'{own[name]:.1f}' for name in names)} |")
    means = [np.mean([own[name] for own in scores.values()]) for name in names]
    return "\n".join([*lines, f"| **mean** | {' | '.join(f'**{mean:.1f}**' for mean in means)} |"])


def main() -> None:
    """Probe, and write OUT/small-vit.json and OUT/small-vit.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--vit", default="sciencebook-vit")
    parser.add_argument("--train", type=int, default=80)
    parser.add_argument("--test", type=int, default=40)
    options = parser.parse_args()
    take_out(options.out)
    scores = probe(options.out, options.vit, options.train, options.test)
    given = f"--vit {options.vit} --train {options.train} --test {options.test}"
    command = f"python -m studies.small_vit_probe OUT {given}"
    figures = {
        "pictures": {"train": options.train, "test": options.test},
        "balanced_accuracy": scores,
    }
    write_study(options.out / "small-vit.json", command, [SEED], figures)
    write_text(options.out / "small-vit.md", table(scores) + "\n")


if __name__ == "__main__":
    run_study(main)
