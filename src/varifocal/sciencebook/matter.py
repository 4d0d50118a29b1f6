"""Matter from images: solutions, hot and cold particles, states of matter."""

from __future__ import annotations

from varifocal.sciencebook.dice import Dice
from varifocal.sciencebook.drawing import COLOURS, Canvas, scatter
from varifocal.sciencebook.skill import Skill, SkillQuestion

SIDES = ("the left one", "the right one")


def concentrations(dice: Dice) -> SkillQuestion:
    """Two beakers with few and many particles: which solution is more concentrated?"""
    answer = dice.choice(SIDES)
    colour = dice.choice(("red", "blue", "green", "purple", "orange", "black"))
    few, many = dice.integer(2, 4), dice.integer(13, 17)
    counts = (many, few) if answer == SIDES[0] else (few, many)
    side = answer.split()[1]
    return SkillQuestion(
        question=f"Which of these two solutions has a higher concentration of {colour} particles?",
        choices=SIDES,
        answer=answer,
        solution=(
            "Both beakers hold the same volume of solvent, so compare the numbers of "
            f"particles. The left beaker has {counts[0]} and the right beaker has {counts[1]}. "
            f"The {side} beaker has more particles in the same volume, so the more concentrated "
            f"solution is {answer}."
        ),
        caption=f"Two glasses of water with {colour} balls. The {side} glass has more balls.",
        draw=lambda canvas: _draw_beakers(canvas, colour, counts),
    )


def _draw_beakers(canvas: Canvas, colour: str, counts: tuple[int, int]) -> None:
    width, top, floor = 86, 42 + canvas.jitter(8), 184 + canvas.jitter(8)
    level = top + canvas.dice.uniform(16, 26)
    radius = canvas.dice.uniform(7.5, 9)
    water = canvas.dice.choice(((214, 236, 250), (226, 240, 246), (222, 246, 240)))
    fill = canvas.colour(colour)
    for left, count in zip((18, 120), counts, strict=True):
        right = left + width
        canvas.rectangle((left, level, right, floor), water, outline=None)
        rim = [(left - 5, top), (left, top + 5), (left, floor), (right, floor), (right, top + 5)]
        canvas.line([*rim, (right + 5, top)], width=4)
        inner = (left + radius + 4, level + radius + 2, right - radius - 4, floor - radius - 4)
        for point in scatter(canvas.dice, count, inner, 2 * radius + 3):
            canvas.circle(point, radius, fill)


def particle_heat(dice: Dice) -> SkillQuestion:
    """Two boxes of slow and fast particles: which is hotter?"""
    answer = dice.choice(SIDES)
    colour = dice.choice(("red", "blue", "green", "purple", "orange"))
    words = ("fast", "slow") if answer == SIDES[0] else ("slow", "fast")
    side = answer.split()[1]
    return SkillQuestion(
        question=(
            "The trails show how fast the particles move. Which sample has the higher temperature?"
        ),
        choices=SIDES,
        answer=answer,
        solution=(
            "Both samples have particles of the same mass, so compare their speeds. The "
            f"particles on the {side} have longer trails: they move faster and have more "
            f"kinetic energy. So, the sample with the higher temperature is {answer}."
        ),
        caption=f"Two boxes of {colour} balls. The balls in the {side} box move faster.",
        draw=lambda canvas: _draw_moving(canvas, colour, words),
    )


def _draw_moving(canvas: Canvas, colour: str, words: tuple[str, str]) -> None:
    fill = canvas.colour(colour)
    trail = canvas.dice.choice(((120, 124, 132), (160, 130, 110), (110, 130, 170)))
    top, count = 36 + canvas.jitter(6), canvas.dice.integer(4, 5)
    for left, word in zip((16, 120), words, strict=True):
        canvas.rectangle((left, top, left + 90, top + 152), COLOURS["white"], width=3, radius=4)
        length = canvas.dice.uniform(30, 36) if word == "fast" else canvas.dice.uniform(4, 6)
        rows = [top + 18 + (152 - 36) * (row + 0.5) / count for row in range(count)]
        for y in rows:
            forward = canvas.dice.choice((-1, 1))
            room = (90 - 28 - 2 * length * 0.5) / 2
            x = left + 45 + forward * length * 0.5 + canvas.jitter(max(0, room - length * 0.25))
            for height in (-6, 0, 6):
                tail = x - forward * (13 + length)
                canvas.line([(x - forward * 8, y + height), (tail, y + height)], trail, 3)
            canvas.circle((x, y), 10.5, fill)


def states_of_matter(dice: Dice) -> SkillQuestion:
    """Particles in a box: solid, liquid or gas?"""
    states = ("solid", "liquid", "gas")
    answer = dice.choice(states)
    colour = dice.choice(("red", "blue", "green", "purple", "orange"))
    arrangement, steps = {
        "solid": (
            "packed in neat rows at the bottom",
            "are close together in neat rows and stay in place",
        ),
        "liquid": (
            "loose and close together at the bottom",
            "are close together but in no order, and fill the bottom",
        ),
        "gas": ("few and far apart all over the box", "are far apart and fill the whole box"),
    }[answer]
    return SkillQuestion(
        question="The balls stand for particles in a closed box. Which state of matter is shown?",
        choices=states,
        answer=answer,
        solution=f"Look at the particles. They {steps}. So, the matter in the box is a {answer}.",
        caption=f"A box with {colour} balls. The balls are {arrangement}, like a {answer}.",
        draw=lambda canvas: _draw_state(canvas, colour, answer),
    )


def _draw_state(canvas: Canvas, colour: str, state: str) -> None:
    left, top, right, floor = 36, 36, 188, 190
    canvas.rectangle((left, top, right, floor), COLOURS["white"], width=4, radius=4)
    fill = canvas.colour(colour)
    radius = canvas.dice.uniform(10, 12)
    if state == "gas":
        inner = (left + 18, top + 18, right - 18, floor - 18)
        for point in scatter(canvas.dice, canvas.dice.integer(6, 9), inner, 36):
            canvas.circle(point, radius, fill)
        return
    rows = canvas.dice.integer(3, 4)
    if state == "solid":
        columns = 5
        start = canvas.dice.uniform(left + radius + 6, right - 6 - radius * 2 * columns + radius)
        for row in range(rows):
            for column in range(columns):
                centre = (start + 2 * radius * column, floor - 4 - radius * (1 + 2 * row))
                canvas.circle(centre, radius, fill)
        return
    for row in range(rows):
        for column in range(5):
            x = left + radius + 4 + (column + 0.5 * (row % 2)) * (144 - 2 * radius) / 4.6
            y = floor - 5 - radius * (1 + 2.15 * row)
            canvas.circle((x + canvas.jitter(3), y + canvas.jitter(3)), radius, fill)


MATTER = (
    Skill(
        name="concentrations",
        title="Compare concentrations of solutions",
        subject="natural science",
        topic="chemistry",
        category="Solutions",
        grades=(6, 10),
        needs="image",
        num_choices=2,
        lecture=(
            "A solution is made of a solvent, such as water, and a solute that is dissolved in "
            "it. The concentration of a solution says how many particles of solute there are "
            "in a certain volume.\nconcentration = number of particles / volume\nIf two "
            "solutions have the same volume, the one with more particles of solute has the "
            "higher concentration."
        ),
        make=concentrations,
    ),
    Skill(
        name="particle_heat",
        title="Relate temperature to the speed of particles",
        subject="natural science",
        topic="physics",
        category="Particle motion and energy",
        grades=(6, 10),
        needs="image",
        num_choices=2,
        lecture=(
            "All matter is made of particles that never stop moving. The faster they move, the "
            "more kinetic energy they have.\nTemperature measures the average kinetic energy "
            "of the particles. If two samples are made of the same particles, the one whose "
            "particles move faster is hotter."
        ),
        make=particle_heat,
    ),
    Skill(
        name="states_of_matter",
        title="Identify solids, liquids, and gases from particles",
        subject="natural science",
        topic="chemistry",
        category="States of matter",
        grades=(3, 7),
        needs="image",
        num_choices=3,
        lecture=(
            "Solid, liquid, and gas are states of matter. In a solid the particles are packed "
            "together in order and stay in place. In a liquid they are close together but can "
            "move past each other. In a gas they are far apart and fill all the space they can."
        ),
        make=states_of_matter,
    ),
)
