"""Reading instruments from images: thermometer, ruler and clock."""

from __future__ import annotations

import math
from itertools import combinations

from varifocal.sciencebook.dice import Dice
from varifocal.sciencebook.drawing import COLOURS, INK, Canvas
from varifocal.sciencebook.skill import NUMBERS, Skill, SkillQuestion, capitalised, with_article

TEMPERATURES = (0, 10, 20, 30, 40)
DEGREES = {
    0: "zero degrees",
    10: "ten degrees",
    20: "twenty degrees",
    30: "thirty degrees",
    40: "forty degrees",
}


def thermometer(dice: Dice) -> SkillQuestion:
    """A thermometer with a wide red column: which temperature does it show?"""
    offered = tuple(sorted(dice.sample(TEMPERATURES, 3)))
    shown = dice.choice(offered)
    answer = DEGREES[shown]
    return SkillQuestion(
        question="Which temperature does this thermometer show?",
        choices=tuple(DEGREES[number] for number in offered),
        answer=answer,
        solution=(
            "Find the top of the red column and read the number beside it. "
            f"The column ends at the mark {shown}. So, the thermometer shows {answer} Celsius."
        ),
        caption=f"A thermometer. The red column goes up to {answer}.",
        draw=lambda canvas: _draw_thermometer(canvas, shown),
    )


def _draw_thermometer(canvas: Canvas, shown: int) -> None:
    x, base, step = 96 + canvas.jitter(22), 164, 33
    red = canvas.colour("red")
    glass = (238, 244, 250)
    canvas.rectangle((x - 17, 12, x + 17, base + 20), glass, width=3, radius=17)
    canvas.circle((x, base + 24), 25, glass, width=3)
    canvas.circle((x, base + 24), 20, red, outline=None)
    canvas.rectangle((x - 11, base - step * shown / 10, x + 11, base + 24), red, outline=None)
    for number in TEMPERATURES:
        y = base - step * number / 10
        canvas.line([(x + 17, y), (x + 33, y)], width=3)
        canvas.text((x + 52, y), str(number), 22)
        if number < TEMPERATURES[-1]:
            canvas.line([(x + 17, y - step / 2), (x + 26, y - step / 2)], width=2)
    canvas.text((x - 38, 24), "°C", 20)


LENGTHS = tuple(combinations(range(2, 7), 3))


def ruler(dice: Dice) -> SkillQuestion:
    """An object above a ruler: how long is it?"""
    offered = dice.choice(LENGTHS)
    length = dice.choice(offered)
    thing = dice.choice(("pencil", "ribbon"))
    colour = dice.choice(("red", "blue", "green", "orange", "purple"))
    names = {number: f"{NUMBERS[number]} inches" for number in offered}
    answer = names[length]
    return SkillQuestion(
        question=f"The {thing} starts at zero. How long is it?",
        choices=tuple(names.values()),
        answer=answer,
        solution=(
            f"The left end of the {thing} is at 0. Read the number below its right end. "
            f"It ends at {length}. So, the {thing} is {answer} long."
        ),
        caption=f"{capitalised(with_article(colour))} {thing} above a ruler. It is {answer} long.",
        draw=lambda canvas: _draw_ruler(canvas, thing, colour, length),
    )


def _draw_ruler(canvas: Canvas, thing: str, colour: str, length: int) -> None:
    left, inch, y = 18, 30.5, 92 + canvas.jitter(20)
    canvas.rectangle(
        (left - 6, y + 34, left + 6 * inch + 8, y + 84), canvas.colour("yellow"), width=3
    )
    for quarter in range(25):
        x = left + inch * quarter / 4
        height = 20 if quarter % 4 == 0 else 11 if quarter % 2 == 0 else 6
        canvas.line([(x, y + 35), (x, y + 35 + height)], width=2.4 if quarter % 4 == 0 else 1.2)
        if quarter % 4 == 0:
            canvas.text((x, y + 68), str(quarter // 4), 18)
    end, fill = left + inch * length, canvas.colour(colour)
    if thing == "ribbon":
        canvas.rectangle((left, y - 8, end, y + 18), fill, width=2.5)
    else:
        canvas.rectangle((left, y - 8, end - 20, y + 20), fill, width=2.5)
        canvas.polygon(
            [(end - 20, y - 8), (end, y + 6), (end - 20, y + 20)], (246, 220, 170), width=2.5
        )
        canvas.polygon([(end - 7, y + 1), (end, y + 6), (end - 7, y + 11)], INK)
    for x in (left, end):
        canvas.line([(x, y + 22), (x, y + 33)], (190, 60, 60), 2)


def clock(dice: Dice) -> SkillQuestion:
    """A clock at a full hour: what time is it?"""
    first = dice.integer(1, 3)
    offered = tuple(range(first, 13, 3))
    hour = dice.choice(offered)
    answer = f"{NUMBERS[hour]} o'clock"
    return SkillQuestion(
        question="What time does this clock show?",
        choices=tuple(f"{NUMBERS[number]} o'clock" for number in offered),
        answer=answer,
        solution=(
            "The long hand points straight up, so it is a full hour. Read the number at the "
            f"tip of the short red hand: it is {hour}. So, the time is {answer}."
        ),
        caption=f"A round clock. The short red hand points to {NUMBERS[hour]}. It is {answer}.",
        draw=lambda canvas: _draw_clock(canvas, hour),
    )


def _draw_clock(canvas: Canvas, hour: int) -> None:
    centre, radius = (112, 112), canvas.dice.uniform(90, 98)
    rim = canvas.colour(canvas.dice.choice(("blue", "green", "brown", "purple", "gray")))
    canvas.circle(centre, radius, rim, width=3)
    canvas.circle(centre, radius - 11, COLOURS["white"], width=2)
    for number in range(1, 13):
        angle = math.radians(30 * number - 90)
        reach = radius - 26
        place = (centre[0] + reach * math.cos(angle), centre[1] + reach * math.sin(angle))
        canvas.text(place, str(number), 19)
    angle, reach = math.radians(30 * hour - 90), radius - 46
    canvas.line([centre, (centre[0], centre[1] - radius + 40)], INK, 4)
    tip = (centre[0] + reach * math.cos(angle), centre[1] + reach * math.sin(angle))
    canvas.arrow(centre, tip, canvas.colour("red"), 9)
    canvas.circle(centre, 7, INK)


MEASURES = (
    Skill(
        name="thermometer",
        title="Read a thermometer",
        subject="natural science",
        topic="units-and-measurement",
        category="Weather and climate",
        grades=(1, 4),
        needs="image",
        num_choices=3,
        lecture=(
            "A thermometer measures temperature. The liquid in its tube rises when it gets "
            "warmer and falls when it gets colder. To read it, find the top of the liquid and "
            "look at the number next to it."
        ),
        make=thermometer,
    ),
    Skill(
        name="ruler",
        title="Measure with an inch ruler",
        subject="natural science",
        topic="units-and-measurement",
        category="Units and measurement",
        grades=(2, 4),
        needs="image",
        num_choices=3,
        lecture=(
            "To measure the length of an object with a ruler, line up one end of the object "
            "with zero. Then read the number at the other end."
        ),
        make=ruler,
    ),
    Skill(
        name="clock",
        title="Tell the time",
        subject="natural science",
        topic="units-and-measurement",
        category="Units and measurement",
        grades=(1, 3),
        needs="image",
        num_choices=4,
        lecture=(
            "A clock has a short hand and a long hand. The short hand shows the hour. When the "
            "long hand points to twelve, it is exactly that hour."
        ),
        make=clock,
    ),
)
