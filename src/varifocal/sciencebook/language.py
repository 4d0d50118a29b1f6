"""Language from images: prepositions, feelings, actions, one and many."""

from __future__ import annotations

from varifocal.sciencebook.counting import draw_crowd
from varifocal.sciencebook.dice import Dice
from varifocal.sciencebook.drawing import COLOURS, INK, SIZE, Canvas, Colour, Point
from varifocal.sciencebook.skill import NUMBERS, Skill, SkillQuestion, capitalised, with_article

PLACES = {
    "on": "The {} touches the top of the table",
    "under": "The {} is below the top of the table",
    "beside": "The {} is at the side of the table",
}


def prepositions(dice: Dice) -> SkillQuestion:
    """A thing and a table: where is the thing?"""
    answer = dice.choice(tuple(PLACES))
    thing = dice.choice(("ball", "box", "cup"))
    colour = dice.choice(("red", "blue", "green", "orange", "purple"))
    return SkillQuestion(
        question=f"Which word completes the sentence? The {thing} is ___ the table.",
        choices=tuple(PLACES),
        answer=answer,
        solution=(
            f"A preposition can tell where something is. {PLACES[answer].format(thing)}. "
            f'So, the word that completes the sentence is "{answer}".'
        ),
        caption=f"{capitalised(with_article(colour))} {thing} {answer} a brown table.",
        draw=lambda canvas: _draw_table(canvas, thing, colour, answer),
    )


def _draw_table(canvas: Canvas, thing: str, colour: str, place: str) -> None:
    floor, side = 190, canvas.dice.choice((-1, 1))
    canvas.background(canvas.paper, (206, 186, 160), horizon=174)
    middle = 112 - (34 * side if place == "beside" else canvas.jitter(14))
    half, top = 66, 112 + canvas.jitter(6)
    brown = canvas.colour("brown")
    for x in (middle - half + 8, middle + half - 8):
        canvas.rectangle((x - 6, top, x + 6, floor), brown)
    canvas.rectangle((middle - half - 6, top - 7, middle + half + 6, top + 7), brown, width=2.5)
    x, base = {
        "on": (middle + canvas.jitter(30), top - 8),
        "under": (middle + canvas.jitter(14), floor),
        "beside": (middle + side * (half + 34), floor),
    }[place]
    size, fill = canvas.dice.uniform(22, 26), canvas.colour(colour)
    if thing == "ball":
        canvas.circle((x, base - size), size, fill, width=2.5)
        canvas.arc((x, base - size), size * 0.5, size, 0, 360, COLOURS["white"], 2.5)
    elif thing == "box":
        canvas.rectangle((x - size, base - 1.8 * size, x + size, base), fill, width=2.5)
        canvas.line([(x, base - 1.8 * size), (x, base)], COLOURS["white"], 4)
    else:
        handle = side if place == "beside" else 1
        canvas.circle((x + handle * size, base - 0.9 * size), size * 0.5, None, fill, width=5)
        rim = [(x - size, base - 1.8 * size), (x + size, base - 1.8 * size)]
        canvas.polygon([*rim, (x + 0.7 * size, base), (x - 0.7 * size, base)], fill, width=2.5)


FEELINGS = {
    "happy": "a big smile",
    "sad": "a mouth turned down and blue tears",
    "angry": "a red face and dark brows",
    "surprised": "a round open mouth",
}


def feelings(dice: Dice) -> SkillQuestion:
    """A child's face: which word tells the feeling?"""
    offered = tuple(sorted(dice.sample(tuple(FEELINGS), 3)))
    answer = dice.choice(offered)
    hair = dice.choice(("brown", "black", "orange"))
    return SkillQuestion(
        question="Which word describes how this child feels?",
        choices=offered,
        answer=answer,
        solution=f"Look at the face. It has {FEELINGS[answer]}. So, the child is {answer}.",
        caption=(
            f"The face of a child with {hair} hair. The child is {answer}, with {FEELINGS[answer]}."
        ),
        draw=lambda canvas: _draw_face(canvas, answer, hair),
    )


def _draw_face(canvas: Canvas, feeling: str, hair: str) -> None:
    x, y = 112 + canvas.jitter(14), 116 + canvas.jitter(10)
    radius = canvas.dice.uniform(70, 80)
    skins: tuple[Colour, ...] = ((250, 218, 184), (232, 190, 148), (196, 146, 104))
    skin = (232, 100, 84) if feeling == "angry" else canvas.dice.choice(skins)
    canvas.circle((x, y - 12), radius * 1.08, canvas.colour(hair))
    canvas.circle((x, y), radius, skin, width=3)
    wide = 15 if feeling == "surprised" else 10
    for side in (-1, 1):
        eye = (x + side * radius * 0.36, y - radius * 0.2)
        canvas.circle(eye, wide, COLOURS["white"])
        canvas.circle(eye, 6, INK)
        inner, outer = (x + side * radius * 0.16, eye[1]), (x + side * radius * 0.6, eye[1])
        if feeling == "angry":
            canvas.line([(inner[0], inner[1] - 8), (outer[0], outer[1] - 24)], width=8)
        elif feeling == "sad":
            canvas.line([(inner[0], inner[1] - 24), (outer[0], outer[1] - 14)], width=4)
            canvas.ellipse(
                (eye[0] + side * 4, y + radius * 0.2), 6, 13, COLOURS["blue"], outline=None
            )
    _draw_mouth(canvas, feeling, (x, y + radius * 0.48), radius)


def _draw_mouth(canvas: Canvas, feeling: str, centre: Point, radius: float) -> None:
    x, y = centre
    if feeling == "surprised":
        canvas.ellipse((x, y + 2), radius * 0.2, radius * 0.27, (120, 30, 40), width=3)
    elif feeling == "happy":
        canvas.pie((x, y - radius * 0.2), radius * 0.48, 0, 180, (170, 30, 44))
        canvas.rectangle((x - 22, y - radius * 0.2, x + 22, y - radius * 0.2 + 8), COLOURS["white"])
    else:
        canvas.arc((x, y + radius * 0.22), radius * 0.4, radius * 0.32, 195, 345, INK, 6)


ACTIONS = {
    "sleeps": "lies in a bed and sleeps",
    "runs": "takes long steps and runs",
    "sits": "sits on a chair",
    "jumps": "jumps up high with both arms up",
}


def actions(dice: Dice) -> SkillQuestion:
    """A stick figure: which verb tells what it does?"""
    offered = tuple(sorted(dice.sample(tuple(ACTIONS), 3)))
    answer = dice.choice(offered)
    colour = dice.choice(("red", "blue", "green", "purple"))
    return SkillQuestion(
        question="Which verb tells what the person does?",
        choices=offered,
        answer=answer,
        solution=(
            f"A verb names an action. The person {ACTIONS[answer]}. "
            f'So, the verb for this action is "{answer}".'
        ),
        caption=f"A person in {colour} {ACTIONS[answer]}.",
        draw=lambda canvas: _draw_person(canvas, answer, colour),
    )


LIMBS: dict[str, tuple[Point, tuple[tuple[Point, ...], ...]]] = {
    "runs": (
        (124, 46),
        (
            ((120, 66), (108, 116)),
            ((118, 74), (146, 88), (162, 70)),
            ((118, 74), (90, 84), (74, 104)),
            ((108, 116), (142, 132), (140, 172)),
            ((108, 116), (86, 146), (50, 148)),
        ),
    ),
    "jumps": (
        (112, 52),
        (
            ((112, 72), (112, 118)),
            ((112, 80), (80, 56), (68, 28)),
            ((112, 80), (144, 56), (156, 28)),
            ((112, 118), (86, 132), (90, 158)),
            ((112, 118), (138, 132), (134, 158)),
        ),
    ),
    "sits": (
        (98, 48),
        (
            ((98, 68), (98, 124)),
            ((98, 80), (120, 104), (142, 104)),
            ((98, 124), (146, 124), (146, 178)),
        ),
    ),
    "sleeps": ((48, 116), (((66, 122), (190, 122)),)),
}


def _draw_person(canvas: Canvas, action: str, colour: str) -> None:
    mirrored = canvas.dice.chance(0.5)
    fill, skin = canvas.colour(colour), (240, 200, 160)

    def at(point: Point) -> Point:
        return (SIZE - point[0], point[1]) if mirrored else point

    def block(left: float, top: float, right: float, bottom: float, paint: Colour) -> None:
        first, second = sorted((at((left, 0))[0], at((right, 0))[0]))
        canvas.rectangle((first, top, second, bottom), paint)

    canvas.background(canvas.paper, (214, 206, 190), horizon=182)
    brown = canvas.colour("brown")
    if action == "sits":
        block(76, 68, 86, 184, brown)
        block(76, 130, 134, 142, brown)
        block(124, 142, 134, 184, brown)
    elif action == "sleeps":
        block(18, 90, 30, 186, brown)
        block(18, 136, 208, 162, brown)
        block(196, 120, 208, 186, brown)
        block(30, 120, 196, 137, COLOURS["white"])
    head, limbs = LIMBS[action]
    for limb in limbs:
        canvas.line([at(point) for point in limb], fill, 12)
    canvas.circle(at(head), 19, skin, width=3)
    if action == "sleeps":
        block(76, 106, 196, 138, fill)
        for place, size in (((96, 76), 22), ((118, 54), 28), ((146, 32), 34)):
            canvas.text(at(place), "Z", size)


def one_or_many(dice: Dice) -> SkillQuestion:
    """One thing or several: singular or plural?"""
    answer = dice.choice(("singular", "plural"))
    number = 1 if answer == "singular" else dice.integer(3, 6)
    shape = dice.choice(("star", "heart", "circle", "square", "triangle"))
    colour = dice.choice(("red", "blue", "green", "yellow", "orange", "purple"))
    shapes = f"one {shape}" if number == 1 else f"{NUMBERS[number]} {shape}s"
    return SkillQuestion(
        question="Do you need a singular or a plural noun to name what you see here?",
        choices=("singular", "plural"),
        answer=answer,
        solution=(
            f"The picture shows {shapes}. A singular noun names one thing and a plural noun names "
            f"more than one. {capitalised(NUMBERS[number])} needs a noun that is {answer}."
        ),
        caption=(
            f"Only one {colour} {shape}."
            if number == 1
            else f"Many {colour} {shape}s, {NUMBERS[number]}."
        ),
        draw=lambda canvas: draw_crowd(canvas, shape, colour, number),
    )


LANGUAGE = (
    Skill(
        name="prepositions",
        title="Use prepositions of place",
        subject="language science",
        topic="grammar",
        category="Prepositions",
        grades=(1, 3),
        needs="image",
        num_choices=3,
        lecture=(
            "A preposition can tell where something is. A bird on a roof touches the top of "
            "the roof. A cat under a chair is below it. A lamp beside a bed is at the side of "
            "it."
        ),
        make=prepositions,
    ),
    Skill(
        name="feelings",
        title="Choose the word for a feeling",
        subject="language science",
        topic="vocabulary",
        category="Adjectives for feelings",
        grades=(1, 2),
        needs="image",
        num_choices=3,
        lecture=(
            "Adjectives can tell how a person feels. A happy person smiles, a sad person may "
            "cry, an angry person frowns, and a surprised person opens mouth and eyes."
        ),
        make=feelings,
    ),
    Skill(
        name="actions",
        title="Choose the verb for an action",
        subject="language science",
        topic="verbs",
        category="Action verbs",
        grades=(1, 3),
        needs="image",
        num_choices=3,
        lecture="A verb can name an action, like walk, swim or read. It tells what someone does.",
        make=actions,
    ),
    Skill(
        name="one_or_many",
        title="Tell singular from plural",
        subject="language science",
        topic="grammar",
        category="Nouns",
        grades=(1, 3),
        needs="image",
        num_choices=2,
        lecture=(
            "A singular noun names one person, place or thing: cat. A plural noun names more "
            "than one: cats."
        ),
        make=one_or_many,
    ),
)
