"""Living things from images: plants and food chains."""

from __future__ import annotations

import math

from varifocal.sciencebook.animals import draw_animal
from varifocal.sciencebook.dice import Dice
from varifocal.sciencebook.drawing import COLOURS, Canvas
from varifocal.sciencebook.skill import Question, Skill

PLANT_PARTS = {
    "flower": (40, 22, "colorful and makes the seeds"),
    "leaf": (92, 44, "flat and green and makes food from sunlight"),
    "stem": (132, 7, "long and thin and carries water up"),
    "root": (186, 24, "under the ground and takes in water"),
}


def plant_parts(dice: Dice) -> Question:
    """An arrow points at a part of a plant: which part?"""
    answer = dice.choice(tuple(PLANT_PARTS))
    petals = dice.choice(("yellow", "pink", "purple", "orange"))
    return Question(
        question="Which part of the plant does the red arrow point to?",
        choices=tuple(PLANT_PARTS),
        answer=answer,
        solution=(
            f"Follow the arrow to its tip. The part there is {PLANT_PARTS[answer][2]}. "
            f"So, it is the {answer}."
        ),
        caption=f"A plant in brown ground. A red arrow points to the {answer}.",
        draw=lambda canvas: _draw_plant(canvas, petals, answer),
    )


def _draw_plant(canvas: Canvas, petals: str, part: str) -> None:
    canvas.background(canvas.paper, (168, 122, 82), horizon=158)
    side = canvas.dice.choice((-1, 1))
    x = 112 - 22 * side + canvas.jitter(8)
    green = canvas.colour("green")
    for reach, depth in ((-24, 196), (-9, 204), (9, 204), (24, 196)):
        canvas.line([(x, 156), (x + reach * 0.6, 178), (x + reach, depth)], (240, 226, 196), 6)
    canvas.line([(x, 44), (x, 160)], green, 9)
    for way in (-1, 1):
        leaf = [(x, 104), (x + way * 18, 82), (x + way * 46, 86), (x + way * 28, 104)]
        canvas.polygon(leaf, green)
    fill = canvas.colour(petals)
    for petal in range(6):
        angle = math.radians(60 * petal)
        canvas.circle((x + 17 * math.cos(angle), 40 + 17 * math.sin(angle)), 12, fill)
    canvas.circle((x, 40), 11, canvas.colour("brown"))
    height, reach, _ = PLANT_PARTS[part]
    tip = x + side * (reach + 6 + (6 if part == "flower" else 0))
    canvas.arrow((tip + side * 62, height + canvas.jitter(8)), (tip, height), COLOURS["red"], 10)


PREY = ("rabbit", "mouse", "bird", "beetle", "snail")


def food_chain(dice: Dice) -> Question:
    """A food chain of three: what does the hunter eat?"""
    offered = tuple(sorted(dice.sample(PREY, 3)))
    answer = dice.choice(offered)
    hunter = dice.choice(("fox", "owl"))
    return Question(
        question=f"What does the {hunter} eat in this food chain?",
        choices=tuple(f"the {prey}" for prey in offered),
        answer=f"the {answer}",
        solution=(
            "The arrows of a food chain point from the food to the animal that eats it. "
            f"The arrow to the {hunter} starts at one animal, so this is its food: the {answer}."
        ),
        caption=f"A food chain. The {answer} eats the plant. The {hunter} eats the {answer}.",
        draw=lambda canvas: _draw_chain(canvas, answer, hunter),
    )


def _draw_chain(canvas: Canvas, prey: str, hunter: str) -> None:
    side = canvas.dice.choice((-1, 1))
    plant, eaten, eater = (112 - side * 66, 166), (112 + side * 48, 150), (112 - side * 44, 48)
    for (x0, y0), (x1, y1), start, end in ((plant, eaten, 0.25, 0.54), (eaten, eater, 0.36, 0.66)):
        tail = (x0 + (x1 - x0) * start, y0 + (y1 - y0) * start)
        canvas.arrow(tail, (x0 + (x1 - x0) * end, y0 + (y1 - y0) * end), width=6)
    green, (x, y) = canvas.colour("green"), plant
    for reach in (-22, -8, 8, 22):
        blade = [(x + reach / 3 - 4, y + 24), (x + reach, y - 26), (x + reach / 3 + 4, y + 24)]
        canvas.polygon(blade, green)
    draw_animal(canvas, prey, eaten, 42)
    draw_animal(canvas, hunter, eater, 32)


LIFE = (
    Skill(
        name="plant_parts",
        title="Identify the parts of a plant",
        subject="natural science",
        topic="biology",
        category="Plants",
        grades=(1, 4),
        needs="picture",
        num_choices=4,
        lecture=(
            "Most plants have roots, a stem, leaves and flowers. The roots take in water from "
            "the soil. The stem carries it up. The leaves make food with the help of sunlight. "
            "The flowers make seeds."
        ),
        make=plant_parts,
    ),
    Skill(
        name="food_chain",
        title="Read a food chain",
        subject="natural science",
        topic="biology",
        category="Ecological interactions",
        grades=(3, 6),
        needs="picture",
        num_choices=3,
        lecture=(
            "A food chain shows who eats what. Plants make their own food. Some animals eat "
            "plants, and other animals eat these animals. Each arrow points from the food to "
            "the animal that eats it."
        ),
        make=food_chain,
    ),
)
