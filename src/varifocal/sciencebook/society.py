"""Society from images: charts, maps, flags and rules of the road."""

from __future__ import annotations

from varifocal.sciencebook.dice import Dice
from varifocal.sciencebook.drawing import COLOURS, INK, Canvas, Point, draw_shape
from varifocal.sciencebook.skill import Skill, SkillQuestion

HEIGHTS = (3.0, 1.8, 1.0)
BAR_COLOURS = ("red", "blue", "green", "yellow", "orange", "purple")


def bar_chart(dice: Dice) -> SkillQuestion:
    """Three coloured bars: which is the tallest?"""
    offered = tuple(sorted(dice.sample(BAR_COLOURS, 3)))
    answer = dice.choice(offered)
    rest = dice.shuffled([colour for colour in offered if colour != answer])
    bars = dice.shuffled(list(zip([answer, *rest], HEIGHTS, strict=True)))
    goods = dice.choice(("hats", "shirts", "kites"))
    return SkillQuestion(
        question=(
            f"The chart shows how many {goods} of each color a shop sold. Which color sold most?"
        ),
        choices=offered,
        answer=answer,
        solution=(
            f"The tallest bar stands for the color with the most {goods}. Compare the bars. "
            f"The tallest bar is {answer}."
        ),
        caption=f"A chart with three bars. The tallest bar is {answer}.",
        draw=lambda canvas: _draw_bars(canvas, bars),
    )


def _draw_bars(canvas: Canvas, bars: list[tuple[str, float]]) -> None:
    left, floor, unit = 34, 186, 48 + canvas.jitter(3)
    for step in range(4):
        y = floor - step * unit
        canvas.line([(left, y), (212, y)], (206, 208, 214), 1.5)
        canvas.text((left - 13, y), str(step * 5), 14)
    width = canvas.dice.uniform(38, 46)
    for place, (colour, units) in enumerate(bars):
        height = unit * (units - 0.12 + canvas.jitter(0.12))
        x = left + 12 + 57 * place
        canvas.rectangle((x, floor - height, x + width, floor), canvas.colour(colour))
        canvas.text((x + width / 2, floor + 13), colour, 15)
    canvas.line([(left, 30), (left, floor), (212, floor)], INK, 3)


DIRECTIONS = {"north": (0, -1), "south": (0, 1), "east": (1, 0), "west": (-1, 0)}


def compass(dice: Dice) -> SkillQuestion:
    """A map with a house in the middle: in which direction lies the lake?"""
    answer = dice.choice(tuple(DIRECTIONS))
    place = dice.choice(("lake", "forest", "mountain"))
    return SkillQuestion(
        question=f"In which direction from the house is the {place} on this map?",
        choices=tuple(DIRECTIONS),
        answer=answer,
        solution=(
            f"Start at the house in the middle and go to the {place}. You move {_moved(answer)} on "
            f"the map. So, the {place} lies {answer} of the house."
        ),
        caption=(
            f"A map with a red house. The {place} is {answer} of the house, {_moved(answer)} on "
            "the map."
        ),
        draw=lambda canvas: _draw_map(canvas, place, answer),
    )


def _moved(direction: str) -> str:
    return {"north": "up", "south": "down", "east": "right", "west": "left"}[direction]


def _draw_map(canvas: Canvas, place: str, direction: str) -> None:
    land = canvas.dice.choice(((226, 238, 205), (240, 234, 208), (232, 240, 222)))
    canvas.rectangle((10, 10, 214, 214), land, width=3)
    middle = (112 + canvas.jitter(3), 112 + canvas.jitter(3))
    dx, dy = DIRECTIONS[direction]
    reach = canvas.dice.uniform(60, 64)
    spot = (middle[0] + dx * reach + canvas.jitter(3), middle[1] + dy * reach + canvas.jitter(3))
    canvas.line([middle, spot], canvas.colour("brown"), 4)
    _draw_house(canvas, middle)
    _draw_place(canvas, place, spot)
    corner = canvas.dice.choice(((38, 46), (186, 46), (38, 184), (186, 184)))
    canvas.arrow((corner[0], corner[1] + 18), (corner[0], corner[1] - 12), INK, 4)
    canvas.text((corner[0], corner[1] - 22), "N", 18)


def _draw_house(canvas: Canvas, centre: Point) -> None:
    x, y = centre
    canvas.rectangle((x - 17, y - 6, x + 17, y + 20), (250, 240, 215))
    canvas.polygon([(x - 23, y - 5), (x, y - 26), (x + 23, y - 5)], canvas.colour("red"))
    canvas.rectangle((x - 5, y + 5, x + 5, y + 20), canvas.colour("brown"))


def _draw_place(canvas: Canvas, place: str, centre: Point) -> None:
    x, y = centre
    if place == "lake":
        canvas.ellipse(centre, 30, 22, canvas.colour("blue"))
        for rise in (-6, 6):
            canvas.arc((x - 6, y + rise), 10, 5, 200, 340, COLOURS["white"], 2.5)
    elif place == "forest":
        for dx, dy in ((-17, -4), (17, -4), (0, 8)):
            canvas.rectangle(
                (x + dx - 3, y + dy + 8, x + dx + 3, y + dy + 18), canvas.colour("brown")
            )
            canvas.polygon(
                [(x + dx - 14, y + dy + 9), (x + dx, y + dy - 22), (x + dx + 14, y + dy + 9)],
                canvas.colour("green"),
            )
    else:
        canvas.polygon([(x - 28, y + 20), (x - 4, y - 26), (x + 20, y + 20)], canvas.colour("gray"))
        canvas.polygon([(x - 12, y - 13), (x - 4, y - 26), (x + 4, y - 13)], COLOURS["white"])
        canvas.polygon([(x + 1, y + 20), (x + 15, y - 8), (x + 29, y + 20)], canvas.colour("brown"))


SYMBOLS = ("star", "cross", "circle", "heart", "tree")
CONTRASTS = {
    "red": ("white", "yellow"),
    "blue": ("white", "yellow", "orange"),
    "green": ("white", "yellow"),
    "purple": ("white", "yellow"),
    "yellow": ("red", "blue", "green"),
    "white": ("red", "blue", "green", "purple"),
}


def flags(dice: Dice) -> SkillQuestion:
    """A flag with a symbol: which symbol?"""
    offered = tuple(sorted(dice.sample(SYMBOLS, 3)))
    answer = dice.choice(offered)
    cloth = dice.choice(tuple(CONTRASTS))
    paint = dice.choice(CONTRASTS[cloth])
    return SkillQuestion(
        question="Which symbol is on this flag?",
        choices=tuple(f"a {symbol}" for symbol in offered),
        answer=f"a {answer}",
        solution=(
            "Symbols on a flag stand for ideas or places. Look at the middle of the cloth. "
            f"The symbol on this flag is a {answer}."
        ),
        caption=f"A {cloth} flag with a {paint} {answer}.",
        draw=lambda canvas: _draw_flag(canvas, answer, cloth, paint),
    )


def _draw_flag(canvas: Canvas, symbol: str, cloth: str, paint: str) -> None:
    canvas.rectangle((22, 14, 32, 214), canvas.colour("brown"))
    canvas.circle((27, 14), 9, canvas.colour("yellow"))
    sag = canvas.jitter(10)
    corners = [(33, 28), (208, 28 + sag), (208, 160 + sag), (33, 160)]
    canvas.polygon(corners, canvas.colour(cloth), width=3)
    centre = (120 + canvas.jitter(10), 94 + sag / 2)
    radius, fill = canvas.dice.uniform(44, 54), canvas.colour(paint)
    if symbol != "tree":
        draw_shape(canvas, symbol, centre, radius, fill)
        return
    x, y = centre
    canvas.rectangle((x - 7, y + 18, x + 7, y + radius), fill)
    for top, half in ((-54, 24), (-36, 32), (-16, 40)):
        canvas.polygon([(x - half, y + top + 40), (x, y + top), (x + half, y + top + 40)], fill)


LIGHTS = {
    "stop": ("red", "top", "must not drive on"),
    "slow down": ("yellow", "middle", "must get ready to stop"),
    "go": ("green", "bottom", "may drive on"),
}


def traffic_light(dice: Dice) -> SkillQuestion:
    """A traffic light: what does it tell the drivers?"""
    answer = dice.choice(tuple(LIGHTS))
    colour, place, rule = LIGHTS[answer]
    return SkillQuestion(
        question="What does this traffic light tell drivers to do?",
        choices=tuple(LIGHTS),
        answer=answer,
        solution=(
            f"See which light is on. It is the {colour} light at the {place}. Drivers who see it "
            f"{rule}. The light tells them: {answer}."
        ),
        caption=f"A traffic light. The {colour} light at the {place} is on.",
        draw=lambda canvas: _draw_traffic_light(canvas, colour),
    )


def _draw_traffic_light(canvas: Canvas, lit: str) -> None:
    sky = canvas.dice.choice(((206, 230, 250), (226, 238, 246), (244, 238, 222)))
    canvas.background(sky, canvas.colour("gray"), horizon=196)
    x = 112 + canvas.jitter(34)
    canvas.rectangle((x - 7, 150, x + 7, 206), (84, 88, 96))
    canvas.rectangle((x - 38, 10, x + 38, 176), canvas.colour("black"), width=3, radius=12)
    dark = {"red": (84, 34, 36), "yellow": (84, 76, 32), "green": (30, 70, 40)}
    for colour, y in (("red", 41), ("yellow", 93), ("green", 145)):
        if colour == lit:
            canvas.circle((x, y), 25, canvas.colour(colour), COLOURS["white"], width=3)
        else:
            canvas.circle((x, y), 22, dark[colour])


SOCIETY = (
    Skill(
        name="bar_chart",
        title="Read a bar chart of sales",
        subject="social science",
        topic="economics",
        category="Social studies skills",
        grades=(2, 6),
        needs="image",
        num_choices=3,
        lecture=(
            "A bar chart shows numbers as bars. The taller a bar, the larger its number. The "
            "tallest bar stands for the most and the shortest bar for the fewest."
        ),
        make=bar_chart,
    ),
    Skill(
        name="compass",
        title="Read a map: cardinal directions",
        subject="social science",
        topic="geography",
        category="Geography",
        grades=(1, 4),
        needs="image",
        num_choices=4,
        lecture=(
            "Maps have four cardinal directions, or main directions: north, south, east, and "
            "west. A compass arrow marked N shows where north is. If north is at the top of "
            "the map, south is at the bottom, east is on the right, and west is on the left."
        ),
        make=compass,
    ),
    Skill(
        name="flags",
        title="Describe a flag",
        subject="social science",
        topic="culture",
        category="Symbols",
        grades=(1, 5),
        needs="image",
        num_choices=3,
        lecture=(
            "A flag is a sign for a country, a town or a group. Its colors and symbols stand "
            "for ideas that people share. Many flags show stars, crosses or plants."
        ),
        make=flags,
    ),
    Skill(
        name="traffic_light",
        title="Follow rules on the road",
        subject="social science",
        topic="civics",
        category="Rules and laws",
        grades=(1, 3),
        needs="image",
        num_choices=3,
        lecture=(
            "Rules keep people safe. Traffic lights tell drivers what to do: red means stop, "
            "yellow means slow down because red comes next, and green means go."
        ),
        make=traffic_light,
    ),
)
