"""Living things from images: plants and food chains, their animals drawn from simple shapes."""

from __future__ import annotations

import math

from varifocal.sciencebook.dice import Dice
from varifocal.sciencebook.drawing import COLOURS, INK, Canvas, Point
from varifocal.sciencebook.skill import Skill, SkillQuestion

PLANT_PARTS = {
    "flower": (40, 22, "colorful and makes the seeds"),
    "leaf": (92, 44, "flat and green and makes food from sunlight"),
    "stem": (132, 7, "long and thin and carries water up"),
    "root": (186, 24, "under the ground and takes in water"),
}


def plant_parts(dice: Dice) -> SkillQuestion:
    """An arrow points at a part of a plant: which part?"""
    answer = dice.choice(tuple(PLANT_PARTS))
    petals = dice.choice(("yellow", "pink", "purple", "orange"))
    return SkillQuestion(
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


def food_chain(dice: Dice) -> SkillQuestion:
    """A food chain of three: what does the hunter eat?"""
    offered = tuple(sorted(dice.sample(PREY, 3)))
    answer = dice.choice(offered)
    hunter = dice.choice(("fox", "owl"))
    return SkillQuestion(
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
        needs="image",
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
        needs="image",
        num_choices=3,
        lecture=(
            "A food chain shows who eats what. Plants make their own food. Some animals eat "
            "plants, and other animals eat these animals. Each arrow points from the food to "
            "the animal that eats it."
        ),
        make=food_chain,
    ),
)


PINK = (246, 170, 190)


def draw_animal(canvas: Canvas, name: str, centre: Point, radius: float) -> None:
    """Draw a fox, owl, rabbit, mouse, bird, beetle or snail within about `radius` of `centre`."""
    _Pen(canvas, centre, radius).draw(name)


class _Pen:
    """Draws in an animal's own coordinates: (0, 0) its centre, 1 its radius."""

    def __init__(self, canvas: Canvas, centre: Point, radius: float) -> None:
        self.canvas, self.centre, self.radius = canvas, centre, radius

    def draw(self, name: str) -> None:
        {
            "fox": self.fox,
            "owl": self.owl,
            "rabbit": self.rabbit,
            "mouse": self.mouse,
            "bird": self.bird,
            "beetle": self.beetle,
            "snail": self.snail,
        }[name]()

    def at(self, x: float, y: float) -> Point:
        return self.centre[0] + self.radius * x, self.centre[1] + self.radius * y

    def oval(
        self, x: float, y: float, wide: float, high: float, fill: tuple[int, int, int]
    ) -> None:
        self.canvas.ellipse(self.at(x, y), wide * self.radius, high * self.radius, fill, width=1.8)

    def corners(self, fill: tuple[int, int, int], *points: Point) -> None:
        self.canvas.polygon([self.at(*point) for point in points], fill, width=1.8)

    def eyes(self, apart: float, y: float, size: float = 0.09) -> None:
        for side in (-1, 1):
            self.oval(side * apart, y, size, size, INK)

    def fox(self) -> None:
        orange = self.canvas.colour("orange")
        for side in (-1, 1):
            self.corners(orange, (side * 0.9, -1), (side * 0.95, -0.1), (side * 0.2, -0.5))
        self.corners(orange, (-1, -0.2), (0, -0.6), (1, -0.2), (0, 1))
        for side in (-1, 1):
            self.corners(COLOURS["white"], (side * 0.96, -0.15), (side * 0.3, 0.2), (0, 0.96))
        self.eyes(0.38, -0.08)
        self.oval(0, 0.86, 0.15, 0.13, INK)

    def owl(self) -> None:
        brown = self.canvas.colour("brown")
        for side in (-1, 1):
            self.corners(brown, (side * 0.75, -1.05), (side * 0.8, -0.3), (side * 0.1, -0.7))
        self.oval(0, 0.1, 0.85, 0.95, brown)
        self.oval(0, 0.5, 0.5, 0.5, (214, 178, 130))
        for side in (-1, 1):
            self.oval(side * 0.36, -0.25, 0.34, 0.34, COLOURS["white"])
        self.eyes(0.36, -0.25, 0.16)
        self.corners(COLOURS["orange"], (-0.14, 0.02), (0.14, 0.02), (0, 0.32))

    def rabbit(self) -> None:
        fur = (250, 246, 242)
        for side in (-1, 1):
            self.oval(side * 0.34, -0.6, 0.22, 0.62, fur)
            self.oval(side * 0.34, -0.56, 0.1, 0.44, PINK)
        self.oval(0, 0.35, 0.72, 0.64, fur)
        self.eyes(0.3, 0.2)
        self.oval(0, 0.46, 0.12, 0.09, PINK)
        self.canvas.line([self.at(0, 0.55), self.at(0, 0.72)], width=1.8)

    def mouse(self) -> None:
        gray = (150, 152, 160)
        self.canvas.arc(self.at(0.85, 0.35), self.radius * 0.35, self.radius * 0.4, 0, 180, PINK, 4)
        for side in (-1, 1):
            self.oval(side * 0.6, -0.5, 0.42, 0.42, gray)
            self.oval(side * 0.6, -0.5, 0.24, 0.24, PINK)
        self.corners(gray, (-0.66, -0.2), (0.66, -0.2), (0, 0.95))
        self.oval(0, 0, 0.68, 0.5, gray)
        self.eyes(0.27, 0.02)
        self.oval(0, 0.84, 0.13, 0.12, PINK)

    def bird(self) -> None:
        blue = self.canvas.colour("blue")
        self.corners(blue, (0.4, 0.1), (1.1, -0.3), (1.1, 0.4))
        self.oval(0, 0.2, 0.75, 0.56, blue)
        self.oval(-0.5, -0.35, 0.42, 0.42, blue)
        self.corners(COLOURS["orange"], (-0.85, -0.5), (-1.25, -0.3), (-0.85, -0.16))
        self.oval(0.1, 0.15, 0.42, 0.28, (150, 196, 250))
        self.oval(-0.58, -0.42, 0.08, 0.08, INK)
        for x in (-0.15, 0.15):
            self.canvas.line([self.at(x, 0.75), self.at(x, 1.05)], COLOURS["orange"], 3)

    def beetle(self) -> None:
        self.oval(0, -0.62, 0.42, 0.34, INK)
        for side in (-1, 1):
            for y, reach in ((-0.2, 1.0), (0.2, 1.08), (0.6, 0.95)):
                self.canvas.line([self.at(0, y), self.at(side * reach, y + 0.12)], width=3)
        self.oval(0, 0.15, 0.8, 0.82, self.canvas.colour("red"))
        self.canvas.line([self.at(0, -0.66), self.at(0, 0.96)], width=3)
        for x, y in ((0.4, -0.15), (0.35, 0.5), (0.18, 0.2)):
            for side in (-1, 1):
                self.oval(side * x, y, 0.13, 0.13, INK)

    def snail(self) -> None:
        body = (222, 196, 120)
        for x in (-0.95, -0.7):
            self.canvas.line([self.at(-0.75, 0.3), self.at(x, -0.4)], body, 4)
            self.oval(x, -0.42, 0.08, 0.08, INK)
        self.oval(-0.75, 0.35, 0.25, 0.3, body)
        self.corners(body, (-0.95, 0.8), (-0.9, 0.4), (0.4, 0.5), (1.15, 0.8))
        self.oval(0.2, 0.1, 0.68, 0.66, self.canvas.colour("brown"))
        self.oval(0.2, 0.1, 0.45, 0.43, (226, 178, 128))
        self.oval(0.2, 0.1, 0.22, 0.21, (134, 84, 46))
