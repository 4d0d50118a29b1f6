"""Sciencebook's images: caption and pixels each tell the answer, read by small plain readers."""

import re

import numpy as np
import pytest

from varifocal.sciencebook import SKILLS, compose, draw_image
from varifocal.sciencebook.drawing import COLOURS, SHAPES
from varifocal.sciencebook.skill import NUMBERS

IMAGE = [name for name, skill in SKILLS.items() if skill.needs == "image"]
BRIGHT = ("red", "blue", "green", "yellow", "orange", "purple")


def word_in(caption, words):
    """The one of `words` that the caption holds."""
    found = [word for word in words if re.search(rf"(?<!\w){word}(?!\w)", caption.lower())]
    assert len(found) == 1, (caption, found)
    return found[0]


def side_in(caption, left, right, neither=None):
    return {"left": left, "right": right, None: neither}[
        next((word for word in ("left", "right") if word in caption.split(". ", 1)[1]), None)
    ]


def colour_of(question, caption):
    shape = re.search(r"is the (\w+)\?", question)[1]
    return re.search(rf"(\w+) {shape}", caption)[1]


CAPTIONS = {
    "magnets": lambda q, c: "repel" if len(set(re.findall("north|south", c))) == 1 else "attract",
    "circuits": lambda q, c: "it lights up" if "full loop" in c else "it stays dark",
    "forces": lambda q, c: side_in(c, "to the left", "to the right", "it stays still"),
    "seesaw": lambda q, c: side_in(c, "the left box", "the right box", "both weigh the same"),
    "concentrations": lambda q, c: side_in(c, "the left one", "the right one"),
    "particle_heat": lambda q, c: side_in(c, "the left one", "the right one"),
    "states_of_matter": lambda q, c: word_in(c, ("solid", "liquid", "gas")),
    "thermometer": lambda q, c: re.search(r"up to (\w+ degrees)", c)[1],
    "ruler": lambda q, c: re.search(r"is (\w+ inches)", c)[1],
    "clock": lambda q, c: re.search(r"points to (\w+)\.", c)[1] + " o'clock",
    "counting": lambda q, c: word_in(c, NUMBERS),
    "shapes": lambda q, c: word_in(c, SHAPES),
    "colors": colour_of,
    "fractions": lambda q, c: re.search(r"\w+: (.*)\.", c)[1],
    "moon_phase": lambda q, c: word_in(c, ("full", "half", "crescent", "new")) + " moon",
    "weather": lambda q, c: word_in(c, ("sunny", "rainy", "snowy", "cloudy")),
    "shadows": lambda q, c: side_in(c, "from the right", "from the left", "from above"),
    "rock_layers": lambda q, c: "the " + re.search(r"bottom layer is (\w+)", c)[1] + " layer",
    "plant_parts": lambda q, c: re.search(r"points to the (\w+)", c)[1],
    "food_chain": lambda q, c: re.search(r"The (?:fox|owl) eats (the \w+)", c)[1],
    "bar_chart": lambda q, c: re.search(r"tallest bar is (\w+)", c)[1],
    "compass": lambda q, c: word_in(c, ("north", "south", "east", "west")),
    "flags": lambda q, c: "a " + word_in(c, ("star", "cross", "circle", "heart", "tree")),
    "traffic_light": lambda q, c: {"red": "stop", "yellow": "slow down", "green": "go"}[
        word_in(c, ("red", "yellow", "green"))
    ],
    "prepositions": lambda q, c: word_in(c, ("on", "under", "beside")),
    "feelings": lambda q, c: word_in(c, ("happy", "sad", "angry", "surprised")),
    "actions": lambda q, c: word_in(c, ("sleeps", "runs", "sits", "jumps")),
    "one_or_many": lambda q, c: {"one": "singular", "many": "plural"}[word_in(c, ("one", "many"))],
}


class Page:
    """An image's pixels, and where a colour is on it."""

    def __init__(self, image, question, caption):
        self.pixels = np.asarray(image, dtype=np.int32)
        self.question, self.caption = question, caption

    def mask(self, colour, reach=50):
        """[224, 224] bool: the pixels of a named colour, or of a red-green-blue triple."""
        target = COLOURS[colour] if isinstance(colour, str) else colour
        return ((self.pixels - np.array(target)) ** 2).sum(-1) < reach**2

    def spot(self, colour, reach=50):
        """The middle (x, y) of a colour."""
        rows, columns = np.nonzero(self.mask(colour, reach))
        return np.median(columns), np.median(rows)

    def span(self, mask, axis):
        """First and last column (axis 0) or row (axis 1) with four pixels of the mask."""
        touched = np.flatnonzero(mask.sum(axis) >= 4)
        return touched[0], touched[-1]

    def colour(self, names=BRIGHT):
        """The first colour word of the caption."""
        return next(word for word in re.findall(r"\w+", self.caption.lower()) if word in names)


def blobs(mask):
    """The number of connected parts of at least 40 pixels."""
    left = set(zip(*np.nonzero(mask), strict=True))
    count = 0
    while left:
        stack, size = [left.pop()], 0
        while stack:
            row, column = stack.pop()
            size += 1
            around = {(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)}
            stack.extend(around & left)
            left -= around
        count += size >= 40
    return count


def read_magnets(page):
    poles = np.stack([page.mask("red"), page.mask("blue")])
    if "upper" in page.caption:
        poles = poles.transpose(0, 2, 1)
    along = poles.sum(1)
    middle = np.flatnonzero(along.sum(0)[80:144] == 0) + 80
    before, after = along[:, middle[0] - 15 : middle[0]], along[:, middle[-1] + 1 :][:, :15]
    return "repel" if before.sum(1).argmax() == after.sum(1).argmax() else "attract"


def read_circuit(page):
    first, last = page.span(page.mask("red"), 0)
    works = last - first < 16 and page.mask("orange").sum() > 300
    return "it lights up" if works else "it stays dark"


def read_forces(page):
    arrows = page.mask("red")
    middle = round(sum(page.span(page.mask("black"), 0)) / 2)
    ratio = arrows[:, :middle].sum() / arrows[:, middle:].sum()
    return "to the left" if ratio > 1.5 else "to the right" if ratio < 0.67 else "it stays still"


def read_seesaw(page):
    left, right = re.search(r"An? (\w+) box and an? (\w+) box", page.caption).groups()
    heights = [
        np.nonzero(half[:170])[0].mean()
        for half in (page.mask(left)[:, :112], page.mask(right)[:, 112:])
    ]
    fall = heights[0] - heights[1]
    return "the left box" if fall > 15 else "the right box" if fall < -15 else "both weigh the same"


def read_fuller_half(mask):
    return "the left one" if mask[:, :112].sum() > mask[:, 112:].sum() else "the right one"


def read_state(page):
    if blobs(page.mask(page.colour())) < 10:
        return "gas"
    balls, box = page.span(page.mask(page.colour()), 0), page.span(page.mask((45, 45, 52)), 0)
    return "solid" if balls[1] - balls[0] < 0.84 * (box[1] - box[0]) else "liquid"


def read_thermometer(page):
    first, last = page.span(page.mask("red"), 1)
    words = ("zero", "ten", "twenty", "thirty", "forty")
    return words[np.searchsorted((56, 88, 120, 150), last - first)] + " degrees"


def read_ruler(page):
    start, end = page.span(page.mask("yellow"), 0)
    scale = (end - start) / 197
    first, last = page.span(page.mask(page.colour(), 35), 0)
    hidden = 20 if "pencil" in page.question else 0
    return NUMBERS[round(((last - first) / scale + hidden) / 30.5)] + " inches"


def read_clock(page):
    face = page.mask(page.pixels[0, 0], 8)
    x, y = (sum(page.span(~face, axis)) / 2 for axis in (0, 1))
    red_x, red_y = page.spot("red")
    hour = round(np.degrees(np.arctan2(red_x - x, y - red_y)) / 30) % 12
    return NUMBERS[hour or 12] + " o'clock"


def read_fraction(page):
    figure = ~page.mask(page.pixels[0, 0], 8)
    (left, right), (top, bottom) = page.span(figure, 0), page.span(figure, 1)
    x, y = np.meshgrid(np.linspace(-1, 1, right - left), np.linspace(-1, 1, bottom - top))
    inside = x**2 + y**2 < 1 if "circle" in page.caption else x < 2
    box = slice(top, bottom), slice(left, right)
    coloured, white = page.mask(page.colour())[box], page.mask("white")[box]
    share = (coloured & inside).sum() / ((coloured | white) & inside).sum()
    values = {
        "one half": 1 / 2,
        "one third": 1 / 3,
        "two thirds": 2 / 3,
        "one quarter": 1 / 4,
        "three quarters": 3 / 4,
    }
    return min(values, key=lambda name: abs(values[name] - share))


def read_moon(page):
    bright, dark = page.mask((250, 244, 206), 30).sum(), page.mask((62, 66, 88), 12).sum()
    share = bright / (bright + dark)
    return ("new moon", "crescent moon", "half moon", "full moon")[
        np.searchsorted((0.05, 0.35, 0.8), share)
    ]


def read_weather(page):
    if page.mask("yellow").sum() > 1500:
        return "sunny"
    if page.mask("white", 30)[-10:].mean() > 0.9:
        return "snowy"
    return "rainy" if page.mask("blue").sum() > 300 else "cloudy"


def read_shadow(page):
    away = page.spot((52, 82, 44), 30)[0] - page.spot("brown")[0]
    return "from the left" if away > 15 else "from the right" if away < -15 else "from above"


def read_rock(page):
    heights = {
        colour: page.spot(colour)[1]
        for colour in ("red", "yellow", "brown", "gray")
        if page.mask(colour).sum() > 1500
    }
    lowest = max(heights, key=heights.get)
    return f"the {lowest if heights[lowest] > 150 else 'white'} layer"


def read_plant(page):
    return ("flower", "leaf", "stem", "root")[
        np.searchsorted((66, 112, 156), page.spot("red", 30)[1])
    ]


def read_food(page):
    marks = {"beetle": "red", "bird": "blue", "mouse": (150, 152, 160), "rabbit": (246, 170, 190)}
    least = {"beetle": 600, "bird": 600, "mouse": 1200, "rabbit": 100}
    seen = (prey for prey in marks if page.mask(marks[prey], 40).sum() > least[prey])
    return "the " + next(seen, "snail")


def read_bars(page):
    heights = {
        colour: page.mask(colour, 35).sum(0).max()
        for colour in BRIGHT
        if page.mask(colour, 35).sum() > 300
    }
    return max(heights, key=heights.get)


def read_compass(page):
    marks = {"lake": "blue", "forest": "green", "mountain": "gray"}
    colour = next(colour for place, colour in marks.items() if place in page.question)
    (x, y), (home_x, home_y) = page.spot(colour, 40), page.spot("red", 40)
    if abs(x - home_x) > abs(y - home_y):
        return "east" if x > home_x else "west"
    return "south" if y > home_y else "north"


def read_traffic_light(page):
    lights = {"stop": "red", "slow down": "yellow", "go": "green"}
    return max(lights, key=lambda order: page.mask(lights[order], 45).sum())


def read_table(page):
    top = page.mask("brown")
    top[top.sum(1) < 80] = False
    left, right = page.span(top, 0)
    x, y = page.spot(page.colour())
    if not left < x < right:
        return "beside"
    return "on" if y < page.span(top, 1)[0] else "under"


def read_face(page):
    marks = {
        "happy": (170, 30, 44),
        "sad": "blue",
        "angry": (232, 100, 84),
        "surprised": (120, 30, 40),
    }
    return max(marks, key=lambda feeling: page.mask(marks[feeling], 18).sum())


PIXELS = {
    "magnets": read_magnets,
    "circuits": read_circuit,
    "forces": read_forces,
    "seesaw": read_seesaw,
    "concentrations": lambda page: read_fuller_half(page.mask(page.colour((*BRIGHT, "black")))),
    "particle_heat": lambda page: read_fuller_half(~page.mask("white", 30)),
    "states_of_matter": read_state,
    "thermometer": read_thermometer,
    "ruler": read_ruler,
    "clock": read_clock,
    "counting": lambda page: NUMBERS[blobs(page.mask(page.colour()))],
    "fractions": read_fraction,
    "moon_phase": read_moon,
    "weather": read_weather,
    "shadows": read_shadow,
    "rock_layers": read_rock,
    "plant_parts": read_plant,
    "food_chain": read_food,
    "bar_chart": read_bars,
    "compass": read_compass,
    "traffic_light": read_traffic_light,
    "prepositions": read_table,
    "feelings": read_face,
    "one_or_many": lambda page: "singular" if blobs(page.mask(page.colour())) == 1 else "plural",
}
"""A reader a skill; shapes, colors, flags and actions are told by outline and have none."""


@pytest.mark.parametrize("name", IMAGE)
def test_the_caption_tells_the_answer(name):
    for index in range(80):
        record, question = compose(name, "val", index, seed=1)
        assert CAPTIONS[name](record["question"], record["caption"]) == question.answer, record


@pytest.mark.parametrize("name", PIXELS)
def test_the_image_shows_the_answer(name):
    for index in range(24):
        record, question = compose(name, "test", index, seed=1)
        image = draw_image(name, "test", index, 1, question)
        page = Page(image, record["question"], record["caption"])
        assert PIXELS[name](page) == question.answer, (index, record)


@pytest.mark.parametrize("name", IMAGE)
def test_nothing_is_cut_off_at_the_edge(name):
    for index in range(16):
        record, question = compose(name, "train", index, seed=1)
        pixels = np.asarray(draw_image(name, "train", index, 1, question), dtype=np.int32)
        sky, ground = pixels[0, 0], pixels[-1, 0]
        for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
            plain = [abs(edge - colour).sum(-1) < 8 for colour in (sky, ground)]
            assert (plain[0] | plain[1]).mean() > 0.9, (index, record)


def test_every_image_skill_has_a_reader():
    assert set(CAPTIONS) == set(IMAGE)
    assert set(IMAGE) - set(PIXELS) == {"shapes", "colors", "flags", "actions"}
