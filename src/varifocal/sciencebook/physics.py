"""Physics from images: magnets, circuits, forces, weights and shadows."""

from __future__ import annotations

from varifocal.sciencebook.dice import Dice
from varifocal.sciencebook.drawing import COLOURS, INK, Canvas, Point
from varifocal.sciencebook.skill import Skill, SkillQuestion, capitalised, with_article

POLE_COLOURS = {"north": "red", "south": "blue"}


def magnets(dice: Dice) -> SkillQuestion:
    """Two bar magnets with facing poles: do they attract or repel?"""
    answer = dice.choice(("attract", "repel"))
    first = dice.choice(("north", "south"))
    second = first if answer == "repel" else {"north": "south", "south": "north"}[first]
    upright = dice.chance(0.35)
    here, there = ("upper", "lower") if upright else ("left", "right")
    alike = (
        "the same, and poles that are the same"
        if answer == "repel"
        else "different, and different poles"
    )
    return SkillQuestion(
        question="Will these magnets attract or repel each other?",
        choices=("attract", "repel"),
        answer=answer,
        solution=(
            f"Look at the two poles that face each other. The {first} pole of one magnet is "
            f"closest to the {second} pole of the other magnet. These poles are {alike} "
            f"{answer} each other. So, these magnets will {answer} each other."
        ),
        caption=(
            f"Two magnets. The {here} magnet shows its {POLE_COLOURS[first]} {first} side "
            f"to the {POLE_COLOURS[second]} {second} side of the {there} magnet."
        ),
        draw=lambda canvas: _draw_magnets(canvas, first, second, upright),
    )


def _draw_magnets(canvas: Canvas, first: str, second: str, upright: bool) -> None:
    gap = canvas.dice.uniform(10, 26)
    length = canvas.dice.uniform(76, 88)
    breadth = canvas.dice.uniform(44, 60)
    far = {"north": "south", "south": "north"}
    start = 112 - gap / 2 - length
    ends = [far[first], first, second, far[second]]
    starts = [start, start + length / 2, 112 + gap / 2, 112 + gap / 2 + length / 2]
    slant = canvas.jitter(6)
    for place, (pole, along) in enumerate(zip(ends, starts, strict=True)):
        across = 112 - breadth / 2 + (slant if place < 2 else -slant)
        box = (along, across, along + length / 2, across + breadth)
        if upright:
            box = (box[1], box[0], box[3], box[2])
        canvas.rectangle(box, canvas.colour(POLE_COLOURS[pole]), width=2.5)
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        canvas.text(centre, pole[0].upper(), 34, COLOURS["white"])


LOOPS = {
    "none": (
        "The switch is closed and the battery is there, so the wire makes a full loop.",
        "The switch is closed. There is a battery, and the loop has no gap.",
    ),
    "switch": (
        "The battery is there but the switch is open, so there is a gap in the wire.",
        "The switch is open, so the loop has a gap and no current can flow.",
    ),
    "battery": (
        "The switch is closed but the battery is missing, so there is a gap in the wire.",
        "There is no battery to push a current through the loop.",
    ),
}


def circuits(dice: Dice) -> SkillQuestion:
    """A loop with bulb, battery and switch: does the bulb light up?"""
    answer = dice.choice(("it lights up", "it stays dark"))
    fault = "none" if answer == "it lights up" else dice.choice(("switch", "battery"))
    caption, steps = LOOPS[fault]
    return SkillQuestion(
        question="What does the light bulb in this circuit do?",
        choices=("it lights up", "it stays dark"),
        answer=answer,
        solution=(
            f"Follow the wire around the circuit. {steps} So, this is what the bulb does: {answer}."
        ),
        caption=f"An electric circuit with a light bulb. {caption}",
        draw=lambda canvas: _draw_circuit(canvas, fault),
    )


def _draw_circuit(canvas: Canvas, fault: str) -> None:
    left, right = 46 + canvas.jitter(6), 178 + canvas.jitter(6)
    top, bottom = 66 + canvas.jitter(6), 170 + canvas.jitter(6)
    wire = canvas.colour(canvas.dice.choice(("gray", "brown", "green", "black")))
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    canvas.line(corners, wire, 5)
    middle = (left + right) / 2
    switch_left = canvas.dice.chance(0.5)
    _draw_bulb(canvas, (middle, top))
    _draw_battery(canvas, (middle, bottom), missing=fault == "battery")
    side = left if switch_left else right
    outward = -1 if switch_left else 1
    _draw_switch(canvas, (side, (top + bottom) / 2), outward, is_open=fault == "switch")


def _draw_bulb(canvas: Canvas, centre: Point) -> None:
    x, y = centre
    canvas.rectangle((x - 11, y - 8, x + 11, y + 12), canvas.colour("gray"), radius=3)
    canvas.circle((x, y - 26), 24, (250, 250, 244), width=3)
    canvas.line(
        [(x - 7, y - 8), (x - 8, y - 28), (x, y - 20), (x + 8, y - 28), (x + 7, y - 8)], width=2
    )


def _draw_battery(canvas: Canvas, centre: Point, missing: bool) -> None:
    x, y = centre
    if missing:
        canvas.rectangle((x - 34, y - 8, x + 34, y + 8), canvas.paper, outline=None)
        for end in (x - 34, x + 34):
            canvas.circle((end, y), 5, INK)
        return
    canvas.rectangle((x + 34, y - 8, x + 42, y + 8), canvas.colour("gray"))
    canvas.rectangle((x - 38, y - 18, x + 34, y + 18), canvas.colour("black"), radius=3)
    canvas.rectangle((x + 6, y - 18, x + 34, y + 18), canvas.colour("orange"), radius=3)
    canvas.text((x - 24, y), "-", 30, COLOURS["white"])
    canvas.text((x + 20, y), "+", 30, INK)


def _draw_switch(canvas: Canvas, centre: Point, outward: int, is_open: bool) -> None:
    x, y = centre
    canvas.rectangle((x - 6, y - 26, x + 6, y + 26), canvas.paper, outline=None)
    tip = (x + outward * 34, y - 14) if is_open else (x, y - 26)
    canvas.line([(x, y + 26), tip], canvas.colour("red"), 8)
    for end in (y - 26, y + 26):
        canvas.circle((x, end), 7, canvas.colour("blue"))


def forces(dice: Dice) -> SkillQuestion:
    """Two arrows pull at a box: which way does it begin to move?"""
    answer = dice.choice(("to the left", "to the right", "it stays still"))
    lengths = {"to the left": (60, 26), "to the right": (26, 60), "it stays still": (44, 44)}[
        answer
    ]
    colour = dice.choice(("brown", "orange", "purple", "green"))
    if answer == "it stays still":
        sight = "Both arrows are the same size."
        steps = "The two forces are equal and opposite, so they are balanced. The box is at rest:"
    else:
        side = "left" if answer == "to the left" else "right"
        sight = f"The big arrow goes to the {side}."
        steps = (
            f"The force toward the {side} is larger than the other one. The box will move this way:"
        )
    return SkillQuestion(
        question="Two people pull at a resting box. Which way will it begin to move?",
        choices=("to the left", "to the right", "it stays still"),
        answer=answer,
        solution=f"Compare the arrows. A longer arrow stands for a larger force. {steps} {answer}.",
        caption=f"{capitalised(with_article(colour))} box with two red arrows. {sight}",
        draw=lambda canvas: _draw_forces(canvas, colour, lengths),
    )


def _draw_forces(canvas: Canvas, colour: str, lengths: tuple[float, float]) -> None:
    ground = 158 + canvas.jitter(10)
    canvas.background(canvas.paper, canvas.colour("gray"), horizon=ground)
    half = canvas.dice.uniform(24, 30)
    middle = ground - half
    canvas.rectangle(
        (112 - half, ground - 2 * half, 112 + half, ground), canvas.colour(colour), width=3
    )
    canvas.line([(112 - half, ground - 2 * half), (112 + half, ground)], width=3)
    canvas.line([(112 - half, ground), (112 + half, ground - 2 * half)], width=3)
    red = canvas.colour("red")
    for sign, length in zip((-1, 1), lengths, strict=True):
        reach = length * canvas.dice.uniform(0.97, 1.03) if lengths[0] != lengths[1] else length
        start = (112 + sign * (half + 3), middle)
        canvas.arrow(start, (start[0] + sign * reach, middle), red, width=5 + reach / 6)


def seesaw(dice: Dice) -> SkillQuestion:
    """A seesaw with two boxes: which side is heavier?"""
    answer = dice.choice(("the left box", "the right box", "both weigh the same"))
    tilt = {"the left box": -1, "the right box": 1, "both weigh the same": 0}[answer]
    left, right = dice.sample(("red", "blue", "green", "orange", "purple"), 2)
    if tilt == 0:
        sight, steps = "The seesaw is level.", "The plank is level, so neither box pulls harder:"
    else:
        side = "left" if tilt < 0 else "right"
        sight = f"The {side} side is down."
        steps = f"The {side} end is down, so gravity pulls harder on"
    return SkillQuestion(
        question="Compare the two boxes on the seesaw. Which is heavier?",
        choices=("the left box", "the right box", "both weigh the same"),
        answer=answer,
        solution=(
            f"A seesaw goes down on the side of the heavier object. Look at the plank. {steps} "
            f"{answer}."
        ),
        caption=(
            f"{capitalised(with_article(left))} box and {with_article(right)} box on a seesaw. "
            f"{sight}"
        ),
        draw=lambda canvas: _draw_seesaw(canvas, tilt, (left, right)),
    )


def _draw_seesaw(canvas: Canvas, tilt: int, colours: tuple[str, str]) -> None:
    pivot = (112, 138 + canvas.jitter(8))
    rise = tilt * canvas.dice.uniform(30, 38)
    ends = [(pivot[0] - 84, pivot[1] - rise), (pivot[0] + 84, pivot[1] + rise)]
    base = pivot[1] + 46
    canvas.line([(14, base), (210, base)], canvas.colour("green"), 7)
    canvas.polygon([pivot, (88, base), (136, base)], canvas.colour("gray"))
    half = canvas.dice.uniform(18, 22)
    for sign, colour in zip((-1, 1), colours, strict=True):
        x = pivot[0] + sign * 60
        y = pivot[1] + sign * rise * 60 / 84 - 4
        lean = rise * half / 84
        floor = [(x - half, y - lean), (x + half, y + lean)]
        roof = [(px + lean, py - 2 * half) for px, py in reversed(floor)]
        canvas.polygon([*floor, *roof], canvas.colour(colour), width=2.5)
    canvas.line(ends, canvas.colour("brown"), 9)


PHYSICS = (
    Skill(
        name="magnets",
        title="Predict whether magnets attract or repel",
        subject="natural science",
        topic="physics",
        category="Magnets",
        grades=(2, 5),
        needs="image",
        num_choices=2,
        lecture=(
            "Magnets can pull or push on each other without touching. When magnets attract, "
            "they pull together. When magnets repel, they push apart.\nEvery magnet has two "
            "poles, called north and south. Opposite poles attract: a north pole and a south "
            "pole pull together. Poles that are the same repel: two north poles, or two south "
            "poles, push apart."
        ),
        make=magnets,
    ),
    Skill(
        name="circuits",
        title="Decide whether a circuit is complete",
        subject="natural science",
        topic="physics",
        category="Electricity",
        grades=(4, 7),
        needs="image",
        num_choices=2,
        lecture=(
            "An electric current flows only through a complete loop. A battery pushes the "
            "current, wires lead it, and a light bulb turns it into light.\nA closed switch "
            "joins the wires. An open switch leaves a gap, and then no current flows anywhere "
            "in the loop."
        ),
        make=circuits,
    ),
    Skill(
        name="forces",
        title="Find the direction of the net force",
        subject="natural science",
        topic="physics",
        category="Velocity, acceleration, and forces",
        grades=(6, 9),
        needs="image",
        num_choices=3,
        lecture=(
            "A force is a push or a pull. Every force has a direction and a strength. Arrows "
            "can show forces: the longer the arrow, the larger the force.\nWhen two opposite "
            "forces are equal, they are balanced and an object at rest stays at rest. When "
            "they are not equal, the object begins to move in the direction of the larger "
            "force."
        ),
        make=forces,
    ),
    Skill(
        name="seesaw",
        title="Compare weights on a seesaw",
        subject="natural science",
        topic="physics",
        category="Force and motion",
        grades=(1, 4),
        needs="image",
        num_choices=3,
        lecture=(
            "Gravity pulls heavy objects down more strongly than light ones. On a seesaw with "
            "equal arms, the heavier object moves down and the lighter one moves up. If both "
            "objects weigh the same, the seesaw is level."
        ),
        make=seesaw,
    ),
)
