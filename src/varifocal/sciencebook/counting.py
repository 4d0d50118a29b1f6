"""Looking and counting from images: numbers, shapes, colours and fractions."""

from __future__ import annotations

from itertools import combinations

from varifocal.sciencebook.dice import Dice
from varifocal.sciencebook.drawing import COLOURS, INK, SHAPES, Canvas, draw_shape
from varifocal.sciencebook.skill import (
    NUMBERS,
    Skill,
    SkillQuestion,
    capitalised,
    joined,
    with_article,
)

BRIGHT = ("red", "blue", "green", "yellow", "orange", "purple")


def counting(dice: Dice) -> SkillQuestion:
    """Several things of one kind: how many?"""
    offered = tuple(sorted(dice.sample(range(1, 8), 3)))
    number = dice.choice(offered)
    shape = dice.choice(("circle", "square", "triangle", "star", "heart"))
    colour = dice.choice(BRIGHT)
    answer = NUMBERS[number]
    things = f"{colour} {shape}{'s' if number > 1 else ''}"
    return SkillQuestion(
        question=f"How many {shape}s are there in this picture?",
        choices=tuple(NUMBERS[count] for count in offered),
        answer=answer,
        solution=(
            f"Point at each {shape} once and count: {', '.join(NUMBERS[1 : number + 1])}. "
            f"The last number tells how many there are. So, the number of {shape}s is {answer}."
        ),
        caption=capitalised(f"{answer} {things}."),
        draw=lambda canvas: draw_crowd(canvas, shape, colour, number),
    )


GRIDS = {1: (1, 1), 2: (2, 2), 3: (2, 2), 4: (2, 2), 5: (3, 2), 6: (3, 2), 7: (3, 3)}


def draw_crowd(canvas: Canvas, shape: str, colour: str, number: int) -> None:
    """Draw one to seven equal shapes, none touching another."""
    columns, rows = GRIDS[number]
    if columns != rows and canvas.dice.chance(0.5):
        columns, rows = rows, columns
    cells = [(column, row) for column in range(columns) for row in range(rows)]
    width, height = 196 / columns, 196 / rows
    radius = canvas.dice.uniform(22, 25)
    fill = canvas.colour(colour)
    for column, row in canvas.dice.sample(cells, number):
        x = 14 + width * (column + 0.5) + canvas.jitter(width / 2 - 1.15 * radius)
        y = 14 + height * (row + 0.5) + canvas.jitter(height / 2 - 1.15 * radius)
        draw_shape(canvas, shape, (x, y), radius, fill, canvas.jitter(12))


def shapes(dice: Dice) -> SkillQuestion:
    """One large shape: what is it called?"""
    offered = tuple(sorted(dice.sample(SHAPES, 3)))
    answer = dice.choice(offered)
    colour = dice.choice(BRIGHT)
    facts = {
        "circle": "is round and has no corners",
        "square": "has four equal sides and four corners",
        "triangle": "has three sides and three corners",
        "star": "has five points",
        "heart": "has two round bumps at the top and a point at the bottom",
        "cross": "has four equal arms",
    }
    return SkillQuestion(
        question="What is the name of this shape?",
        choices=offered,
        answer=answer,
        solution=(
            f"Look at the sides and corners. This shape {facts[answer]}. So, it is a {answer}."
        ),
        caption=f"{capitalised(with_article(colour))} {answer}.",
        draw=lambda canvas: draw_shape(
            canvas,
            answer,
            (112 + canvas.jitter(28), 112 + canvas.jitter(28)),
            canvas.dice.uniform(46, 74),
            canvas.colour(colour),
            canvas.jitter(20),
        ),
    )


def colours(dice: Dice) -> SkillQuestion:
    """Three shapes of three colours: which colour has one of them?"""
    offered = tuple(sorted(dice.sample(BRIGHT, 3)))
    asked, *others = dice.sample(("circle", "square", "triangle", "star", "heart"), 3)
    answer = dice.choice(offered)
    rest = dice.shuffled([colour for colour in offered if colour != answer])
    things = dice.shuffled([(asked, answer), *zip(others, rest, strict=True)])
    names = [f"{with_article(colour)} {shape}" for shape, colour in things]
    return SkillQuestion(
        question=f"Which color is the {asked}?",
        choices=offered,
        answer=answer,
        solution=(
            f"The picture shows {joined(names)}. Find the {asked}. So, the color of the {asked} "
            f"is {answer}."
        ),
        caption=capitalised(f"{joined(names)}."),
        draw=lambda canvas: _draw_three(canvas, things),
    )


def _draw_three(canvas: Canvas, things: list[tuple[str, str]]) -> None:
    centres = canvas.dice.choice(
        (
            ((62, 66), (160, 66), (112, 158)),
            ((112, 66), (62, 158), (160, 158)),
            ((62, 66), (62, 160), (158, 112)),
            ((158, 66), (158, 160), (62, 112)),
        )
    )
    for (shape, colour), (x, y) in zip(things, canvas.dice.shuffled(centres), strict=True):
        centre = (x + canvas.jitter(7), y + canvas.jitter(7))
        fill = canvas.colour(colour)
        draw_shape(canvas, shape, centre, canvas.dice.uniform(33, 39), fill, canvas.jitter(12))


FRACTIONS = {
    "one half": (1, 2),
    "one third": (1, 3),
    "two thirds": (2, 3),
    "one quarter": (1, 4),
    "three quarters": (3, 4),
}
FRACTION_SETS = tuple(combinations(FRACTIONS, 3))


def fractions(dice: Dice) -> SkillQuestion:
    """A circle or a bar in equal parts: what fraction is coloured?"""
    offered = dice.choice(FRACTION_SETS)
    answer = dice.choice(offered)
    part, whole = FRACTIONS[answer]
    colour = dice.choice(("red", "blue", "green", "orange", "purple"))
    form = dice.choice(("circle", "bar", "circle"))
    verb = "is" if part == 1 else "are"
    return SkillQuestion(
        question="What fraction of this figure is colored?",
        choices=offered,
        answer=answer,
        solution=(
            f"The figure is cut into {NUMBERS[whole]} equal parts. {capitalised(NUMBERS[part])} of "
            f"these parts {verb} colored. {part} out of {whole} is {part}/{whole}, so the "
            f"answer is {answer}."
        ),
        caption=(
            f"A {form} with {NUMBERS[whole]} equal parts. {capitalised(NUMBERS[part])} of the "
            f"parts {verb} {colour}: {answer}."
        ),
        draw=lambda canvas: _draw_fraction(canvas, form, colour, part, whole),
    )


def _draw_fraction(canvas: Canvas, form: str, colour: str, part: int, whole: int) -> None:
    fill, white = canvas.colour(colour), COLOURS["white"]
    if form == "circle":
        centre = (112 + canvas.jitter(10), 112 + canvas.jitter(10))
        radius, start = canvas.dice.uniform(72, 88), canvas.dice.choice((-90, 0, 90, 180))
        for piece in range(whole):
            turn = start + 360 * piece / whole
            canvas.pie(centre, radius, turn, turn + 360 / whole, fill if piece < part else white)
        canvas.circle(centre, radius, None, width=3)
        return
    first = canvas.dice.integer(0, whole - part)
    upright = canvas.dice.chance(0.4)
    height = canvas.dice.uniform(64, 90)
    for piece in range(whole):
        along = 18 + 188 * piece / whole
        box = (along, 112 - height / 2, along + 188 / whole, 112 + height / 2)
        if upright:
            box = (box[1], box[0], box[3], box[2])
        canvas.rectangle(box, fill if first <= piece < first + part else white, INK, width=3)


COUNTING = (
    Skill(
        name="counting",
        title="Count objects",
        subject="natural science",
        topic="units-and-measurement",
        category="Observation and counting",
        grades=(1, 2),
        needs="image",
        num_choices=3,
        lecture=(
            "Scientists count what they observe. To count, point at each object once and say "
            "the next number. The last number you say tells how many objects there are."
        ),
        make=counting,
    ),
    Skill(
        name="shapes",
        title="Name a shape",
        subject="natural science",
        topic="units-and-measurement",
        category="Observation and counting",
        grades=(1, 2),
        needs="image",
        num_choices=3,
        lecture=(
            "Shapes are told apart by their sides and corners. A circle is round and has no "
            "corners. A triangle has three sides, and a square has four equal sides. A star "
            "has points, a heart has two bumps, and a cross has four arms."
        ),
        make=shapes,
    ),
    Skill(
        name="colors",
        title="Match objects and colors",
        subject="natural science",
        topic="science-and-engineering-practices",
        category="Observation and counting",
        grades=(1, 2),
        needs="image",
        num_choices=3,
        lecture=(
            "An observation is something you notice with your senses. The color and the shape "
            "of an object are properties that you can see. To describe one object among "
            "several, find it first and then look at its property."
        ),
        make=colours,
    ),
    Skill(
        name="fractions",
        title="Read a fraction from a figure",
        subject="natural science",
        topic="units-and-measurement",
        category="Parts and wholes",
        grades=(3, 5),
        needs="image",
        num_choices=3,
        lecture=(
            "A fraction tells how much of a whole is meant. Count the equal parts of the "
            "whole: that is the number below the line. Count the parts that are meant: that is "
            "the number above the line."
        ),
        make=fractions,
    ),
)
