"""What the arms learn from: made questions and answers with the lengths of real ones.

The quantiles below are tokens of SmolLM2's tokenizer in its chat template, measured on the 700
ScienceQA questions without an image of /work/shared/data/scienceqa-text, train and val (Lu et al.
2022; no text of it is here). Lengths are drawn between them; prompt and answer keep the rank
correlation that was measured with them. An image adds what its connector makes of it.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from PIL import Image, ImageDraw

LEVELS = tuple(range(0, 101, 5))  # per cent
PROMPT = (33, 43, 45, 48, 49, 51, 54, 56, 59, 62, 65, 69, 73, 76, 79, 85, 90, 110, 129, 155, 216)
ANSWERS = {
    "QCM-ALE": (
        *(2, 82, 118, 134, 142, 150, 155, 165, 184, 193, 205, 212, 224, 234, 263, 290, 309, 328),
        *(346, 427, 880),
    ),
    "QCM-A": (2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 6, 7, 8, 11, 14, 16, 17, 20, 26, 56),
}
CORRELATION = {"QCM-ALE": 0.28, "QCM-A": 0.51}
TEMPLATE = (15, 2)  # tokens of the chat template in a prompt and in an answer

# One token each with a space before it, for SmolLM2.
WORDS = (
    *("the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with"),
    *("be", "by", "on", "not", "he", "this", "are", "or", "his", "from", "at", "which"),
)


@dataclass(frozen=True)
class Shape:
    """How many samples of what kind.

    Attributes:
        samples: how many.
        kind: `QCM-ALE`, answers with lecture and explanation as the paper trains, or `QCM-A`.
        images: share of samples with an image, 0 to 1.
        stretch: factor on all lengths.
        longest: tokens; answers are cut there.
        visual_tokens: that an image takes.
    """

    samples: int = 600
    kind: str = "QCM-ALE"
    images: float = 0.5
    stretch: float = 1.0
    longest: int = 512
    visual_tokens: int = 20


def draw_lengths(shape: Shape, seed: int = 0) -> list[tuple[int, int]]:
    """Draw tokens of prompt (without its image) and answer of every sample."""
    share = CORRELATION[shape.kind]
    one, other = np.random.default_rng(seed).standard_normal((2, shape.samples))
    both = one, share * one + (1 - share**2) ** 0.5 * other
    tables = PROMPT, ANSWERS[shape.kind]
    prompts, answers = (
        np.interp([100 * NormalDist().cdf(z) for z in normals], LEVELS, table) * shape.stretch
        for normals, table in zip(both, tables, strict=True)
    )
    room = shape.longest - shape.visual_tokens
    prompts = np.minimum(prompts, room // 2).astype(int)
    answers = np.minimum(answers, room - prompts).astype(int)
    return list(zip(prompts.tolist(), answers.tolist(), strict=True))


def write_material(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """Write samples in LLaVA's format and their images; return the file.

    An answer goes from each word to a fixed next one, four times out of five: there is something
    to learn. Every `1 / images`-th sample has an image of its own, 480 x 320.
    """
    draw = random.Random(seed)
    following = dict(zip(WORDS, draw.sample(WORDS, len(WORDS)), strict=True))
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (prompt, answer) in enumerate(draw_lengths(shape, seed)):
        asked = " ".join(draw.choices(WORDS, k=max(prompt - TEMPLATE[0], 1)))
        row: dict[str, object] = {"id": str(number)}
        if int((number + 1) * shape.images) > int(number * shape.images):
            row["image"] = f"images/{number}.png"
            _draw_image(folder / f"images/{number}.png", draw)
            asked = f"<image>\n{asked}"
        words = [draw.choice(WORDS)]
        while len(words) < answer - TEMPLATE[1]:
            words.append(following[words[-1]] if draw.random() < 0.8 else draw.choice(WORDS))
        turns = (("human", asked), ("gpt", " ".join(words)))
        row["conversations"] = [{"from": who, "value": text} for who, text in turns]
        rows.append(row)
    file = folder / "samples.json"
    file.write_text(json.dumps(rows))
    return file


def _draw_image(file: Path, draw: random.Random) -> None:
    """A few coloured boxes."""
    image = Image.new("RGB", (480, 320), _colour(draw))
    brush = ImageDraw.Draw(image)
    for _ in range(6):
        left, top = draw.randrange(400), draw.randrange(260)
        brush.rectangle((left, top, left + draw.randrange(9, 80), top + 50), fill=_colour(draw))
    image.save(file)


def _colour(draw: random.Random) -> tuple[int, int, int]:
    return draw.randrange(256), draw.randrange(256), draw.randrange(256)
