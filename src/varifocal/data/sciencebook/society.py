"""Social science: charts, maps and countries."""

from __future__ import annotations

from varifocal.data.sciencebook.dice import Dice
from varifocal.data.sciencebook.drawing import COLOURS, INK, Canvas, Point
from varifocal.data.sciencebook.skill import Question, Skill

BAR_COLOURS = ("red", "blue", "green", "yellow", "orange", "purple")


def bar_chart(dice: Dice) -> Question:
    """Three coloured bars: which is the highest or the lowest?"""
    offered = tuple(sorted(dice.sample(BAR_COLOURS, 3)))
    answer = dice.choice(offered)
    most = dice.chance(0.5)
    rest = dice.shuffled([colour for colour in offered if colour != answer])
    ranked = [answer, *rest] if most else [*rest, answer]
    bars = dice.shuffled(list(zip(ranked, (3, 2, 1))))
    goods = dice.choice(("hats", "shirts", "kites"))
    word, form = ("most", "tallest") if most else ("fewest", "shortest")
    return Question(
        question=f"A shop drew how many {goods} of each color it sold. Of which color did it sell the {word}?",
        choices=offered,
        answer=answer,
        solution=(
            f"The {form} bar stands for the color that sold the {word} {goods}. Compare the bars. "
            f"The {form} bar is {answer}."
        ),
        caption=(
            f"A chart with three bars. The tall bar is {ranked[0]}. "
            f"The middle bar is {ranked[1]}. The short bar is {ranked[2]}."
        ),
        draw=lambda canvas: _draw_bars(canvas, bars),
    )


def _draw_bars(canvas: Canvas, bars: list[tuple[str, int]]) -> None:
    left, floor, unit = 34, 186, 48 + canvas.jitter(3)
    for step in range(4):
        y = floor - step * unit
        canvas.line([(left, y), (212, y)], (206, 208, 214), 1.5)
        canvas.text((left - 13, y), str(step * 5), 14)
    width = canvas.dice.uniform(38, 46)
    for place, (colour, rank) in enumerate(bars):
        height = unit * (rank - 0.15 + canvas.jitter(0.15))
        x = left + 12 + 57 * place
        canvas.rectangle((x, floor - height, x + width, floor), canvas.colour(colour))
        canvas.text((x + width / 2, floor + 13), colour, 15)
    canvas.line([(left, 30), (left, floor), (212, floor)], INK, 3)


DIRECTIONS = {"north": (0, -1), "south": (0, 1), "east": (1, 0), "west": (-1, 0)}


def compass(dice: Dice) -> Question:
    """A map with a house in the middle: in which direction lies the lake?"""
    answer = dice.choice(tuple(DIRECTIONS))
    place = dice.choice(("lake", "forest", "mountain"))
    return Question(
        question=f"North is at the top of this map. In which direction from the house is the {place}?",
        choices=tuple(DIRECTIONS),
        answer=answer,
        solution=(
            f"Start at the house in the middle and go to the {place}. You move {_moved(answer)} on "
            f"the map. So, the {place} lies {answer} of the house."
        ),
        caption=f"A map with a house in the middle. The {place} is {_moved(answer)}, to the {answer}.",
        draw=lambda canvas: _draw_map(canvas, place, answer),
    )


def _moved(direction: str) -> str:
    return {"north": "up", "south": "down", "east": "right", "west": "left"}[direction]


def _draw_map(canvas: Canvas, place: str, direction: str) -> None:
    land = canvas.dice.choice(((226, 238, 205), (240, 234, 208), (232, 240, 222)))
    canvas.rectangle((10, 10, 214, 214), land, width=3)
    middle = (112 + canvas.jitter(4), 112 + canvas.jitter(4))
    dx, dy = DIRECTIONS[direction]
    reach = canvas.dice.uniform(66, 72)
    spot = (middle[0] + dx * reach + canvas.jitter(6), middle[1] + dy * reach + canvas.jitter(6))
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
        canvas.polygon([(x - 32, y + 20), (x - 4, y - 26), (x + 24, y + 20)], canvas.colour("gray"))
        canvas.polygon([(x - 12, y - 13), (x - 4, y - 26), (x + 4, y - 13)], COLOURS["white"])
        canvas.polygon([(x + 2, y + 20), (x + 17, y - 8), (x + 33, y + 20)], canvas.colour("brown"))


CAPITALS = (
    *(("France", "Paris"), ("Germany", "Berlin"), ("Italy", "Rome"), ("Spain", "Madrid")),
    *(("Portugal", "Lisbon"), ("Greece", "Athens"), ("Poland", "Warsaw"), ("Austria", "Vienna")),
    *(
        ("Norway", "Oslo"),
        ("Sweden", "Stockholm"),
        ("Finland", "Helsinki"),
        ("Denmark", "Copenhagen"),
    ),
    *(("Ireland", "Dublin"), ("Hungary", "Budapest"), ("Russia", "Moscow"), ("Turkey", "Ankara")),
    *(("Egypt", "Cairo"), ("Kenya", "Nairobi"), ("Ethiopia", "Addis Ababa"), ("Ghana", "Accra")),
    *(("Japan", "Tokyo"), ("China", "Beijing"), ("India", "New Delhi"), ("Thailand", "Bangkok")),
    *(("Vietnam", "Hanoi"), ("South Korea", "Seoul"), ("Iran", "Tehran"), ("Iraq", "Baghdad")),
    *(("Canada", "Ottawa"), ("Mexico", "Mexico City"), ("Cuba", "Havana"), ("Peru", "Lima")),
    *(
        ("Chile", "Santiago"),
        ("Brazil", "Brasilia"),
        ("Argentina", "Buenos Aires"),
        ("Colombia", "Bogota"),
    ),
    *(
        ("Australia", "Canberra"),
        ("New Zealand", "Wellington"),
        ("Belgium", "Brussels"),
        ("Ukraine", "Kyiv"),
    ),
    *(
        ("Czech Republic", "Prague"),
        ("Romania", "Bucharest"),
        ("Bulgaria", "Sofia"),
        ("Cyprus", "Nicosia"),
    ),
)


def capitals(dice: Dice) -> Question:
    """Name the capital of a country."""
    country, city = dice.own(CAPITALS)
    others = [other for _, other in CAPITALS if other != city]
    return Question(
        question=dice.choice(
            ("What is the capital of {}?", "Which city is the capital of {}?")
        ).format(country),
        choices=(city, *dice.sample(others, 3)),
        answer=city,
        solution=f"The government of {country} has its seat in its capital. The capital of {country} is {city}.",
    )


SOCIETY = (
    Skill(
        name="bar_chart",
        title="Read a bar chart of sales",
        subject="social science",
        topic="economics",
        category="Social studies skills",
        grades=(2, 6),
        needs="picture",
        num_choices=3,
        lecture=(
            "A bar chart shows numbers as bars. The taller a bar, the larger its number. The tallest bar "
            "stands for the most and the shortest bar for the fewest."
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
        needs="picture",
        num_choices=4,
        lecture=(
            "Maps have four cardinal directions, or main directions: north, south, east, and west. A "
            "compass arrow marked N shows where north is. If north is at the top of the map, south is "
            "at the bottom, east is on the right, and west is on the left."
        ),
        make=compass,
    ),
    Skill(
        name="capitals",
        title="Name the capital of a country",
        subject="social science",
        topic="geography",
        category="World geography",
        grades=(5, 9),
        needs="none",
        num_choices=4,
        lecture=(
            "The capital of a country is the city where its government works. It is often, but not "
            "always, the largest city of the country."
        ),
        make=capitals,
    ),
)
