"""Pre-train the small ViT that Varifocal ships, `sciencebook-vit`, on sciencebook's own images.

The images are drawn by the generator (no licence, no download) and so are their labels: the words
of each image's true description. A one-layer decoder writes the description from the patches, and
a linear layer reads the set of its words from the CLS token; both are thrown away afterwards. Every
image is new, drawn as training goes, all of the training split, with a seed that no study uses.

    python -m studies.small_vit runs/small-vit          # 1,200 steps of 32 images, one thread

Writes OUT/model (config, float16 safetensors, image processor), OUT/log.jsonl and OUT/state.pt,
from which a stopped training goes on. Letters: N images, P patches, L words, D width, V
vocabulary.
"""

import argparse
import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, Dinov2Config, Dinov2Model

from studies.command import run_study, take_out
from varifocal.sciencebook import SKILLS, compose, draw_image

SEED = 20_261_122
"""Of the images; the studies make theirs with seeds from 0 to 9."""
SIDE = 224
MEAN = STD = 0.5
SHAPE = {
    "image_size": SIDE,
    "patch_size": 28,
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "vision_feature_layer": -1,  # the layer that was taught
}
BATCH = 32
LEARNING_RATE = 8e-4
WEIGHT_DECAY = 0.05
WARMUP = 100
NUM_COLLECTED = 300
"""Descriptions of each skill from which the vocabulary is taken."""
PAD, START, END, UNKNOWN = range(4)


def image_skills() -> list[str]:
    """Name the skills whose questions have an image."""
    return [name for name in SKILLS if compose(name, "train", 0, 0)[1].draw]


def words_of(caption: str) -> list[str]:
    """Split a description into its words.

    >>> words_of("Two magnets. It is three o'clock.")
    ['two', 'magnets', 'it', 'is', 'three', "o'clock"]
    """
    return re.findall(r"[a-z']+", caption.lower())


class Vocabulary:
    """The words of the descriptions; four places stand before them: pad, start, end, unknown."""

    def __init__(self, captions: Sequence[str]) -> None:
        self.words = sorted({word for caption in captions for word in words_of(caption)})
        self._place = {word: place + 4 for place, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words) + 4

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Return [N, L]: start, the words, end, then padding."""
        rows = [
            [START, *(self._place.get(word, UNKNOWN) for word in words_of(caption)), END]
            for caption in captions
        ]
        longest = max(len(row) for row in rows)
        return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])

    def sets(self, tokens: Tensor) -> Tensor:
        """Turn [N, L] words into [N, V]: 1 where the description has the word."""
        present = torch.zeros(len(tokens), len(self)).scatter_(1, tokens, 1.0)
        present[:, : UNKNOWN + 1] = 0
        return present


def normalised(images: Sequence[np.ndarray]) -> Tensor:
    """Turn images [H, W, 3] of bytes into [N, 3, H, W] as the image processor does."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return (pixels.float() / 255 - MEAN) / STD


def augmented(pixels: Tensor, random: torch.Generator) -> Tensor:
    """Shift, brighten and stretch the contrast a little, each image on its own; no mirror image.

    Left and right, and the colours, must stay what the description says.
    """
    count = len(pixels)
    shifts = torch.randint(-10, 11, (count, 2), generator=random)
    moved = torch.stack(
        [image.roll((int(y), int(x)), (1, 2)) for image, (y, x) in zip(pixels, shifts, strict=True)]
    )
    contrast = 1 + 0.3 * (torch.rand(count, 1, 1, 1, generator=random) - 0.5)
    brightness = 0.2 * (torch.rand(count, 1, 1, 1, generator=random) - 0.5)
    return moved * contrast + brightness


def batch_of(step: int, size: int, skills: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Draw a step's new images, the skills in turns: pixels [N, 3, H, W] and descriptions."""
    images, captions = [], []
    for place in range(step * size, (step + 1) * size):
        index, row = divmod(place, len(skills))
        record, question = compose(skills[row], "train", index, SEED)
        images.append(np.asarray(draw_image(skills[row], "train", index, SEED, question)))
        captions.append(record["caption"])
    random = torch.Generator().manual_seed(SEED + step)
    return augmented(normalised(images), random), captions


class Describer(nn.Module):
    """The ViT with the two readers that teach it.

    Args:
        tower: the ViT.
        vocabulary: number of words V.
    """

    def __init__(self, tower: Dinov2Model, vocabulary: int) -> None:
        super().__init__()
        width = tower.config.hidden_size
        self.tower = tower
        self.set_of_words = nn.Linear(width, vocabulary)
        nn.init.constant_(self.set_of_words.bias, -3.0)  # a description has 12 of 230 words
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(64, width)
        self.writer = nn.TransformerDecoderLayer(
            width, tower.config.num_attention_heads, 4 * width, 0.0, batch_first=True
        )
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, pixels: Tensor, tokens: Tensor, sets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two losses: of the written description, and of the set of its words."""
        states = self.tower(pixel_values=pixels).last_hidden_state  # [N, 1 + P, D]
        given, wanted = tokens[:, :-1], tokens[:, 1:]
        length = given.shape[1]
        written = self.writer(
            self.words(given) + self.places.weight[:length],
            states[:, 1:],
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(length),
            tgt_is_causal=True,
        )
        logits = F.linear(written, self.words.weight)  # [N, L - 1, V]
        spelled = F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=PAD)
        seen = self.set_of_words(states[:, 0]).float()
        listed = F.binary_cross_entropy_with_logits(seen, sets, reduction="sum") / len(sets)
        return spelled, listed


def learning_rate(step: int, steps: int) -> float:
    """Factor on the learning rate: a straight warm-up, then half a cosine to 0."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def vocabulary_of(skills: Sequence[str]) -> Vocabulary:
    """Collect the words of the skills' descriptions."""
    return Vocabulary(
        [
            compose(name, "train", index, SEED)[0]["caption"]
            for name in skills
            for index in range(NUM_COLLECTED)
        ]
    )


class Pretraining:
    """A describer, its optimiser, and how far they are.

    Args:
        steps: of the whole training, of which the learning rate's schedule knows.
    """

    def __init__(self, steps: int) -> None:
        torch.manual_seed(0)
        self.skills = image_skills()
        self.vocabulary = vocabulary_of(self.skills)
        # the backward pass of bfloat16 SDPA is slow on a CPU
        self.tower = Dinov2Model(Dinov2Config(**SHAPE, attn_implementation="eager"))
        self.model = Describer(self.tower, len(self.vocabulary)).train()
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY
        )
        self.steps, self.done, self.cpu_seconds = steps, 0, 0.0

    def step(self, size: int) -> tuple[float, float]:
        """Take one step; return its two losses."""
        started = time.process_time()
        pixels, texts = batch_of(self.done, size, self.skills)
        tokens = self.vocabulary.encode(texts)
        with torch.autocast("cpu", torch.bfloat16):
            spelled, listed = self.model(pixels, tokens, self.vocabulary.sets(tokens))
        (spelled + 0.1 * listed).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = LEARNING_RATE * learning_rate(self.done, self.steps)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.done += 1
        self.cpu_seconds += time.process_time() - started
        return spelled.item(), listed.item()

    def keep(self, file: Path) -> None:
        """Write the state, whole or not at all."""
        partial = file.with_suffix(".partial")
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "done": self.done,
            "cpu_seconds": self.cpu_seconds,
        }
        torch.save(state, partial)
        partial.replace(file)

    def go_on(self, file: Path) -> None:
        """Take up a state that `keep` wrote."""
        state = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.done, self.cpu_seconds = state["done"], state["cpu_seconds"]


def pretrain(out: Path, steps: int, size: int) -> Dinov2Model:
    """Train, or go on; log and keep the state every 20 steps."""
    training, state = Pretraining(steps), out / "state.pt"
    if state.is_file():
        training.go_on(state)
    while training.done < steps:
        spelled, listed = training.step(size)
        if training.done % 20 == 0 or training.done == steps:
            line = {
                "step": training.done,
                "description_loss": round(spelled, 4),
                "word_loss": round(listed, 4),
                "cpu_seconds": round(training.cpu_seconds, 1),
            }
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            training.keep(state)
    return training.tower.eval()


def save(tower: Dinov2Model, directory: Path) -> None:
    """Write a `from_pretrained` directory: float16 weights and the image processor."""
    tower.half().save_pretrained(directory)
    CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    ).save_pretrained(directory)


def main() -> None:
    """Pre-train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=BATCH)
    options = parser.parse_args()
    take_out(options.out)
    save(pretrain(options.out, options.steps, options.batch), options.out / "model")


if __name__ == "__main__":
    run_study(main)
