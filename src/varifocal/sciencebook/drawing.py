"""A small drawing board for school-book images: named colours, smooth edges, random placement.

Coordinates are those of a 224 x 224 page, x to the right and y down. The board is drawn at twice
the size and halved at the end, which smooths every edge; it also moves and zooms each image a
little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from varifocal.sciencebook.dice import Dice

Colour = tuple[int, int, int]
Point = tuple[float, float]

SIZE = 224
OVERSAMPLING = 2

COLOURS: dict[str, Colour] = {
    "red": (216, 38, 42),
    "blue": (36, 92, 208),
    "green": (44, 158, 66),
    "yellow": (248, 208, 40),
    "orange": (244, 132, 24),
    "purple": (134, 58, 180),
    "pink": (244, 134, 182),
    "brown": (134, 84, 46),
    "black": (38, 38, 42),
    "white": (252, 252, 252),
    "gray": (146, 150, 156),
}
PAPERS: tuple[Colour, ...] = (
    *((255, 255, 255), (250, 247, 238), (240, 246, 252), (244, 250, 240)),
    *((252, 243, 240), (246, 242, 250), (238, 240, 242), (255, 251, 226)),
)
INK: Colour = (45, 45, 52)


class Canvas:
    """A page to draw on.

    Attributes:
        dice: the image's own dice, for jitter.
        paper: the background colour.
    """

    def __init__(self, dice: Dice, paper: Colour | None = None) -> None:
        """Take a fresh page; `paper` None picks a light one."""
        self.dice = dice
        self.paper = paper or dice.choice(PAPERS)
        self._zoom = OVERSAMPLING * dice.uniform(0.9, 1.0)
        middle = SIZE * OVERSAMPLING / 2 - self._zoom * SIZE / 2
        self._shift = (middle + self.jitter(8), middle + self.jitter(8))
        side = SIZE * OVERSAMPLING
        self._image = Image.new("RGB", (side, side), self.paper)
        self._draw = ImageDraw.Draw(self._image)

    def finish(self) -> Image.Image:
        """Return the image, RGB, 224 x 224."""
        return self._image.reduce(OVERSAMPLING)

    def jitter(self, reach: float) -> float:
        """A random number from `-reach` to `reach`."""
        return self.dice.uniform(-reach, reach)

    def colour(self, name: str) -> Colour:
        """A shade of a named colour."""
        shift = self.jitter(14)
        red, green, blue = (
            round(min(255, max(0, part + shift + self.jitter(6)))) for part in COLOURS[name]
        )
        return red, green, blue

    def background(self, top: Colour, ground: Colour | None = None, horizon: float = 150) -> None:
        """Fill the whole page with `top`, and below the line y = `horizon` with `ground`."""
        side = SIZE * OVERSAMPLING
        self._draw.rectangle((0, 0, side, side), fill=top)
        if ground is not None:
            self._draw.rectangle((0, self._at((0, horizon))[1], side, side), fill=ground)

    def rectangle(
        self,
        box: tuple[float, float, float, float],
        fill: Colour | None,
        outline: Colour | None = INK,
        width: float = 2,
        radius: float = 0,
    ) -> None:
        """Draw a box given as left, top, right, bottom, with corners rounded by `radius`."""
        corners = (*self._at(box[:2]), *self._at(box[2:]))
        self._draw.rounded_rectangle(
            corners, radius * self._zoom, fill=fill, outline=outline, width=self._length(width)
        )

    def circle(
        self,
        centre: Point,
        radius: float,
        fill: Colour | None,
        outline: Colour | None = INK,
        width: float = 2,
    ) -> None:
        """Draw a disc."""
        self.ellipse(centre, radius, radius, fill, outline, width)

    def ellipse(
        self,
        centre: Point,
        half_width: float,
        half_height: float,
        fill: Colour | None,
        outline: Colour | None = INK,
        width: float = 2,
    ) -> None:
        """Draw an ellipse with upright axes."""
        self._draw.ellipse(
            self._box(centre, half_width, half_height),
            fill=fill,
            outline=outline,
            width=self._length(width) if outline else 0,
        )

    def pie(
        self,
        centre: Point,
        radius: float,
        start: float,
        end: float,
        fill: Colour,
        outline: Colour | None = INK,
    ) -> None:
        """Draw a piece of pie; angles in degrees, clockwise from the right."""
        box = self._box(centre, radius, radius)
        self._draw.pieslice(box, start, end, fill=fill, outline=outline, width=self._length(2))

    def arc(
        self,
        centre: Point,
        half_width: float,
        half_height: float,
        start: float,
        end: float,
        colour: Colour = INK,
        width: float = 4,
    ) -> None:
        """Draw a part of an ellipse's rim; angles in degrees, clockwise from the right."""
        box = self._box(centre, half_width, half_height)
        self._draw.arc(box, start, end, fill=colour, width=self._length(width))

    def polygon(
        self, points: Sequence[Point], fill: Colour, outline: Colour | None = INK, width: float = 2
    ) -> None:
        """Draw a filled shape with straight edges."""
        corners = [self._at(point) for point in points]
        self._draw.polygon(corners, fill=fill)
        if outline is not None:
            ring = [*corners, corners[0], corners[1]]
            self._draw.line(ring, fill=outline, width=self._length(width), joint="curve")

    def line(self, points: Sequence[Point], colour: Colour = INK, width: float = 3) -> None:
        """Draw a line through the points, with round ends."""
        corners = [self._at(point) for point in points]
        self._draw.line(corners, fill=colour, width=self._length(width), joint="curve")
        radius = width * self._zoom / 2
        for x, y in (corners[0], corners[-1]):
            self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def arrow(self, start: Point, end: Point, colour: Colour = INK, width: float = 6) -> None:
        """Draw an arrow whose tip is at `end`."""
        angle = math.atan2(end[1] - start[1], end[0] - start[0])
        head = 2.4 * width
        neck = (end[0] - head * math.cos(angle), end[1] - head * math.sin(angle))
        side = (0.55 * head * -math.sin(angle), 0.55 * head * math.cos(angle))
        self.line([start, neck], colour, width)
        wings = [(neck[0] + side[0], neck[1] + side[1]), (neck[0] - side[0], neck[1] - side[1])]
        self.polygon([end, *wings], colour, outline=None)

    def text(self, centre: Point, words: str, size: float = 16, colour: Colour = INK) -> None:
        """Write a line of text around its centre; `size` is the letters' height on the page."""
        font = _font(round(size * self._zoom))
        self._draw.text(self._at(centre), words, fill=colour, font=font, anchor="mm")

    def _at(self, point: Sequence[float]) -> Point:
        return (
            self._shift[0] + point[0] * self._zoom,
            self._shift[1] + point[1] * self._zoom,
        )

    def _box(self, centre: Point, half_width: float, half_height: float) -> tuple[float, ...]:
        left, top = self._at((centre[0] - half_width, centre[1] - half_height))
        right, bottom = self._at((centre[0] + half_width, centre[1] + half_height))
        return left, top, right, bottom

    def _length(self, length: float) -> int:
        return max(1, round(length * self._zoom))


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def scatter(
    dice: Dice, count: int, box: tuple[float, float, float, float], gap: float
) -> list[Point]:
    """Throw points into a box (left, top, right, bottom), at least `gap` apart if there is room."""
    points: list[Point] = []
    while len(points) < count:
        for _ in range(40):
            point = (dice.uniform(box[0], box[2]), dice.uniform(box[1], box[3]))
            if all(math.dist(point, other) >= gap for other in points):
                break
        else:
            gap *= 0.93
            continue
        points.append(point)
    return points


def regular_polygon(centre: Point, radius: float, corners: int, angle: float = -90) -> list[Point]:
    """The corners of a regular polygon; `angle` in degrees turns the first one, -90 is the top."""
    steps = [math.radians(angle + 360 * corner / corners) for corner in range(corners)]
    return [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in steps]


def star_points(centre: Point, radius: float, angle: float = -90) -> list[Point]:
    """The ten corners of a five-pointed star."""
    outer = regular_polygon(centre, radius, 5, angle)
    inner = regular_polygon(centre, radius * 0.42, 5, angle + 36)
    return [point for pair in zip(outer, inner, strict=True) for point in pair]


SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")


def draw_shape(
    canvas: Canvas, name: str, centre: Point, radius: float, fill: Colour, angle: float = 0
) -> None:
    """Draw one of `SHAPES`, turned by `angle` degrees."""
    if name == "circle":
        canvas.circle(centre, radius * 0.92, fill)
    elif name == "square":
        canvas.polygon(regular_polygon(centre, radius * 1.1, 4, angle - 45), fill)
    elif name == "triangle":
        lower = (centre[0], centre[1] + radius * 0.15)
        canvas.polygon(regular_polygon(lower, radius * 1.1, 3, angle - 90), fill)
    elif name == "star":
        canvas.polygon(star_points(centre, radius * 1.12, angle - 90), fill)
    elif name == "heart":
        canvas.polygon(_turned(_heart(radius), centre, angle), fill)
    else:
        canvas.polygon(_turned(_cross(radius), centre, angle), fill)


def _turned(points: Sequence[Point], centre: Point, angle: float) -> list[Point]:
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return [(centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos) for x, y in points]


def _heart(radius: float) -> list[Point]:
    steps = [2 * math.pi * step / 40 for step in range(40)]
    curve = [
        13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        for t in steps
    ]
    return [
        (radius * math.sin(t) ** 3, -radius * (y + 2) / 16)
        for t, y in zip(steps, curve, strict=True)
    ]


def _cross(radius: float) -> list[Point]:
    arm, reach = radius * 0.34, radius
    return [
        *((-arm, -reach), (arm, -reach), (arm, -arm), (reach, -arm), (reach, arm), (arm, arm)),
        *((arm, reach), (-arm, reach), (-arm, arm), (-reach, arm), (-reach, -arm), (-arm, -arm)),
    ]
