"""Earth and sky from images: the Moon, weather, shadows and layers of rock."""

from __future__ import annotations

import math

from varifocal.sciencebook.dice import Dice
from varifocal.sciencebook.drawing import COLOURS, Canvas, Colour, Point
from varifocal.sciencebook.skill import Skill, SkillQuestion, with_article

PHASES = {
    "full moon": ("A bright round full moon in a dark sky.", "The whole disk is lit"),
    "half moon": (
        "A half moon in a dark sky. Half of it is bright.",
        "One half of the disk is lit",
    ),
    "crescent moon": ("A thin crescent moon in a dark sky.", "Only a thin edge is lit"),
    "new moon": (
        "A dark new moon in a dark sky. None of it is bright.",
        "No part of the disk is lit",
    ),
}


def moon_phase(dice: Dice) -> SkillQuestion:
    """The Moon in the night sky: which phase is it in?"""
    offered = tuple(sorted(dice.sample(tuple(PHASES), 3)))
    answer = dice.choice(offered)
    caption, sight = PHASES[answer]
    return SkillQuestion(
        question="Which phase of the Moon does this picture show?",
        choices=offered,
        answer=answer,
        solution=f"Look at the part that is lit by the Sun. {sight}. So, this is a {answer}.",
        caption=caption,
        draw=lambda canvas: _draw_moon(canvas, answer),
    )


def _draw_moon(canvas: Canvas, phase: str) -> None:
    night = canvas.dice.choice(((18, 24, 58), (26, 26, 46), (14, 34, 62)))
    canvas.background(night)
    for _ in range(14):
        star = (canvas.dice.uniform(8, 216), canvas.dice.uniform(8, 216))
        canvas.circle(star, canvas.dice.uniform(0.8, 1.8), (236, 236, 220), outline=None)
    x, y = 112 + canvas.jitter(18), 112 + canvas.jitter(18)
    radius = canvas.dice.uniform(58, 76)
    canvas.circle((x, y), radius, (62, 66, 88), (98, 102, 124), width=2.5)
    bulge = {"full moon": 1.0, "half moon": 0.0, "crescent moon": -0.68}.get(phase)
    if bulge is None:
        return
    side, tilt = canvas.dice.choice((-1, 1)), canvas.jitter(0.3)
    steps = [math.pi * (step / 40 - 0.5) for step in range(41)]
    limb = [(math.cos(step), math.sin(step)) for step in steps]
    edge = [(-bulge * math.cos(step), math.sin(step)) for step in reversed(steps)]
    lit: list[Point] = []
    for across, down in (*limb, *edge):
        turned = (across * math.cos(tilt) - down * math.sin(tilt)) * side
        fallen = across * math.sin(tilt) + down * math.cos(tilt)
        lit.append((x + radius * turned, y + radius * fallen))
    canvas.polygon(lit, (250, 244, 206), outline=None)


SKIES = {
    "sunny": "A yellow sun shines in a blue sky. The weather is sunny.",
    "rainy": "Blue rain falls from a dark cloud. The weather is rainy.",
    "snowy": "White snow falls on the ground. The weather is snowy.",
    "cloudy": "Gray clouds cover the sky. The weather is cloudy.",
}


def weather(dice: Dice) -> SkillQuestion:
    """A landscape with a sky: what is the weather like?"""
    offered = tuple(sorted(dice.sample(tuple(SKIES), 3)))
    answer = dice.choice(offered)
    return SkillQuestion(
        question="What is the weather like in this picture?",
        choices=offered,
        answer=answer,
        solution=(
            f"Look at the sky and the ground. {SKIES[answer].split('.')[0]}. So, it is {answer}."
        ),
        caption=SKIES[answer],
        draw=lambda canvas: _draw_weather(canvas, answer),
    )


def _draw_weather(canvas: Canvas, sky: str) -> None:
    top: dict[str, Colour] = {
        "sunny": (150, 208, 248),
        "rainy": (186, 198, 212),
        "snowy": (150, 172, 206),
        "cloudy": (214, 222, 230),
    }
    ground = (250, 252, 255) if sky == "snowy" else canvas.colour("green")
    canvas.background(top[sky], ground, horizon=172)
    x = 112 + canvas.jitter(22)
    if sky == "sunny":
        _draw_sun(canvas, (x, 84 + canvas.jitter(10)))
    elif sky == "cloudy":
        for dx, dy in ((-44, 46), (44, 58), (0, 92)):
            _draw_cloud(canvas, (x + dx, dy + canvas.jitter(6)), 30, (168, 174, 182))
    else:
        _draw_cloud(canvas, (x, 64), 46, (112, 118, 130) if sky == "rainy" else (236, 240, 246))
        for column in range(6):
            for row in range(3):
                drop = (x - 65 + 26 * column + canvas.jitter(5), 110 + 25 * row + canvas.jitter(5))
                _draw_drop(canvas, drop, sky)


def _draw_sun(canvas: Canvas, centre: Point) -> None:
    yellow, radius = canvas.colour("yellow"), canvas.dice.uniform(32, 40)
    for ray in range(12):
        across, down = math.cos(math.radians(30 * ray)), math.sin(math.radians(30 * ray))
        start = (centre[0] + (radius + 7) * across, centre[1] + (radius + 7) * down)
        end = (centre[0] + (radius + 24) * across, centre[1] + (radius + 24) * down)
        canvas.line([start, end], yellow, 6)
    canvas.circle(centre, radius, yellow, (226, 160, 20), width=3)


def _draw_cloud(canvas: Canvas, centre: Point, size: float, fill: Colour) -> None:
    x, y = centre
    puffs = (
        (-0.9, 0.15, 0.55),
        (-0.3, -0.25, 0.7),
        (0.4, -0.15, 0.65),
        (0.95, 0.2, 0.5),
        (0, 0.25, 0.6),
    )
    for dx, dy, radius in puffs:
        canvas.circle(
            (x + dx * size, y + dy * size), radius * size + 2.5, (84, 90, 100), outline=None
        )
    for dx, dy, radius in puffs:
        canvas.circle((x + dx * size, y + dy * size), radius * size, fill, outline=None)


def _draw_drop(canvas: Canvas, point: Point, sky: str) -> None:
    x, y = point
    if sky == "rainy":
        canvas.line([(x + 4, y - 8), (x - 4, y + 8)], COLOURS["blue"], 5)
    else:
        canvas.circle(point, 5.5, COLOURS["white"], (190, 200, 216), width=1)


LIGHTS = {
    "from the left": (1, "Its long shadow falls to the right."),
    "from the right": (-1, "Its long shadow falls to the left."),
    "from above": (0, "Its short shadow lies below it."),
}


def shadows(dice: Dice) -> SkillQuestion:
    """A tree and its shadow: where does the light come from?"""
    answer = dice.choice(tuple(LIGHTS))
    side, sight = LIGHTS[answer]
    thing = dice.choice(("tree", "post"))
    way = "The tree is lit from its top" if side == 0 else "The light comes from the other side"
    way = way.replace("tree", thing)
    return SkillQuestion(
        question=f"Look at the shadow of the {thing}. Where does the light come from?",
        choices=tuple(LIGHTS),
        answer=answer,
        solution=(
            f"A shadow lies on the side away from the light. {sight} {way}. "
            f"So, the sunlight comes {answer}."
        ),
        caption=f"{with_article(thing).capitalize()} on the grass. {sight}",
        draw=lambda canvas: _draw_shadow(canvas, thing, side),
    )


def _draw_shadow(canvas: Canvas, thing: str, side: int) -> None:
    sky = canvas.dice.choice(((206, 232, 250), (224, 238, 250), (250, 240, 214)))
    canvas.background(sky, (150, 204, 112), horizon=130)
    x, base = 112 - 42 * side + canvas.jitter(10), 172 + canvas.jitter(6)
    dark, length = (52, 82, 44), canvas.dice.uniform(84, 100)
    if side == 0:
        canvas.ellipse((x, base), 34 if thing == "tree" else 16, 10, dark, outline=None)
    else:
        far = x + side * length
        canvas.polygon(
            [(x - 6, base - 4), (x + 6, base + 5), (far, base + 15), (far, base + 1)],
            dark,
            outline=None,
        )
        if thing == "tree":
            canvas.ellipse((far - side * 12, base + 8), 38, 13, dark, outline=None)
    brown = canvas.colour("brown")
    if thing == "post":
        canvas.rectangle((x - 8, base - 112, x + 8, base + 4), brown, radius=3)
        canvas.circle((x, base - 118), 13, canvas.colour("red"))
        return
    canvas.rectangle((x - 8, base - 54, x + 8, base + 3), brown)
    for dx, dy, radius in ((-20, -66, 24), (20, -66, 24), (0, -92, 28), (0, -68, 26)):
        canvas.circle((x + dx, base + dy), radius, canvas.colour("green"), outline=None)


ROCKS = ("red", "yellow", "brown", "gray", "white")


def rock_layers(dice: Dice) -> SkillQuestion:
    """Three layers of rock: which is the oldest?"""
    offered = tuple(sorted(dice.sample(ROCKS, 3)))
    answer = dice.choice(offered)
    layers = [answer, *dice.shuffled([colour for colour in offered if colour != answer])]
    return SkillQuestion(
        question="These layers of rock were never turned over. Which layer is the oldest?",
        choices=tuple(f"the {colour} layer" for colour in offered),
        answer=f"the {answer} layer",
        solution=(
            "New layers of rock form on top of old ones, so the oldest layer is at the bottom. "
            f"Look at the lowest layer. The oldest one is the {answer} layer."
        ),
        caption=f"Three layers of rock. The bottom layer is {answer}.",
        draw=lambda canvas: _draw_layers(canvas, layers),
    )


def _draw_layers(canvas: Canvas, layers: list[str]) -> None:
    cuts = [198, 142 + canvas.jitter(8), 92 + canvas.jitter(8), 44 + canvas.jitter(8)]
    waves = [(canvas.dice.uniform(2, 6), canvas.dice.uniform(0, 6)) for _ in cuts]
    waves[0] = (0, 0)
    across = [18 + 188 * step / 24 for step in range(25)]
    rims = [
        [(x, cut + size * math.sin(x / 22 + start)) for x in across]
        for cut, (size, start) in zip(cuts, waves, strict=True)
    ]
    for colour, lower, upper in zip(layers, rims[:-1], rims[1:], strict=True):
        fill = canvas.colour(colour)
        canvas.polygon([*lower, *reversed(upper)], fill, width=2.5)
        grain: Colour = (fill[0] * 4 // 5, fill[1] * 4 // 5, fill[2] * 4 // 5)
        for _ in range(12):
            x = canvas.dice.uniform(26, 198)
            low, high = lower[0][1] - 14, upper[0][1] + 14
            canvas.ellipse((x, canvas.dice.uniform(high, low)), 4, 2, grain, outline=None)
    canvas.line(rims[-1], canvas.colour("green"), 6)


EARTH = (
    Skill(
        name="moon_phase",
        title="Identify phases of the Moon",
        subject="natural science",
        topic="earth-science",
        category="Astronomy",
        grades=(3, 8),
        needs="image",
        num_choices=3,
        lecture=(
            "The Sun always lights one half of the Moon. As the Moon moves around Earth, we "
            "see different amounts of its lit half. These are its phases.\nAt a full moon we "
            "see the whole lit half, at a new moon nothing of it, at a half moon one half, and "
            "at a crescent moon only a thin edge."
        ),
        make=moon_phase,
    ),
    Skill(
        name="weather",
        title="Describe the weather",
        subject="natural science",
        topic="earth-science",
        category="Weather and climate",
        grades=(1, 2),
        needs="image",
        num_choices=3,
        lecture=(
            "Weather is what the air is like at a certain place and time. It can be sunny or "
            "cloudy. Drops of water fall from clouds as rain, and flakes of ice fall as snow."
        ),
        make=weather,
    ),
    Skill(
        name="shadows",
        title="Find the light from a shadow",
        subject="natural science",
        topic="physics",
        category="Light",
        grades=(2, 5),
        needs="image",
        num_choices=3,
        lecture=(
            "Light travels in straight lines. When something blocks it, a shadow forms on the "
            "other side. Light from one side makes a long shadow. Light from above makes a "
            "short one."
        ),
        make=shadows,
    ),
    Skill(
        name="rock_layers",
        title="Compare ages of rock layers",
        subject="natural science",
        topic="earth-science",
        category="Fossils",
        grades=(5, 9),
        needs="image",
        num_choices=3,
        lecture=(
            "Sedimentary rock forms in layers. Each new layer forms on top of the older ones. "
            "So, in rock that was never turned over, the oldest layer is at the bottom and the "
            "youngest is at the top."
        ),
        make=rock_layers,
    ),
)
