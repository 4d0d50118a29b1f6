"""Animals' heads and bodies for food chains, drawn from circles and triangles."""

from __future__ import annotations

from varifocal.sciencebook.drawing import COLOURS, INK, Canvas, Point

PINK = (246, 170, 190)


def draw_animal(canvas: Canvas, name: str, centre: Point, radius: float) -> None:
    """Draw a fox, owl, rabbit, mouse, bird, beetle or snail within about `radius` of `centre`."""
    _Pen(canvas, centre, radius).draw(name)


class _Pen:
    """Draws in an animal's own coordinates: (0, 0) its centre, 1 its radius."""

    def __init__(self, canvas: Canvas, centre: Point, radius: float) -> None:
        self.canvas, self.centre, self.radius = canvas, centre, radius

    def draw(self, name: str) -> None:
        {
            "fox": self.fox,
            "owl": self.owl,
            "rabbit": self.rabbit,
            "mouse": self.mouse,
            "bird": self.bird,
            "beetle": self.beetle,
            "snail": self.snail,
        }[name]()

    def at(self, x: float, y: float) -> Point:
        return self.centre[0] + self.radius * x, self.centre[1] + self.radius * y

    def oval(
        self, x: float, y: float, wide: float, high: float, fill: tuple[int, int, int]
    ) -> None:
        self.canvas.ellipse(self.at(x, y), wide * self.radius, high * self.radius, fill, width=1.8)

    def corners(self, fill: tuple[int, int, int], *points: Point) -> None:
        self.canvas.polygon([self.at(*point) for point in points], fill, width=1.8)

    def eyes(self, apart: float, y: float, size: float = 0.09) -> None:
        for side in (-1, 1):
            self.oval(side * apart, y, size, size, INK)

    def fox(self) -> None:
        orange = self.canvas.colour("orange")
        for side in (-1, 1):
            self.corners(orange, (side * 0.9, -1), (side * 0.95, -0.1), (side * 0.2, -0.5))
        self.corners(orange, (-1, -0.2), (0, -0.6), (1, -0.2), (0, 1))
        for side in (-1, 1):
            self.corners(COLOURS["white"], (side * 0.96, -0.15), (side * 0.3, 0.2), (0, 0.96))
        self.eyes(0.38, -0.08)
        self.oval(0, 0.86, 0.15, 0.13, INK)

    def owl(self) -> None:
        brown = self.canvas.colour("brown")
        for side in (-1, 1):
            self.corners(brown, (side * 0.75, -1.05), (side * 0.8, -0.3), (side * 0.1, -0.7))
        self.oval(0, 0.1, 0.85, 0.95, brown)
        self.oval(0, 0.5, 0.5, 0.5, (214, 178, 130))
        for side in (-1, 1):
            self.oval(side * 0.36, -0.25, 0.34, 0.34, COLOURS["white"])
        self.eyes(0.36, -0.25, 0.16)
        self.corners(COLOURS["orange"], (-0.14, 0.02), (0.14, 0.02), (0, 0.32))

    def rabbit(self) -> None:
        fur = (250, 246, 242)
        for side in (-1, 1):
            self.oval(side * 0.34, -0.6, 0.22, 0.62, fur)
            self.oval(side * 0.34, -0.56, 0.1, 0.44, PINK)
        self.oval(0, 0.35, 0.72, 0.64, fur)
        self.eyes(0.3, 0.2)
        self.oval(0, 0.46, 0.12, 0.09, PINK)
        self.canvas.line([self.at(0, 0.55), self.at(0, 0.72)], width=1.8)

    def mouse(self) -> None:
        gray = (150, 152, 160)
        self.canvas.arc(self.at(0.85, 0.35), self.radius * 0.35, self.radius * 0.4, 0, 180, PINK, 4)
        for side in (-1, 1):
            self.oval(side * 0.6, -0.5, 0.42, 0.42, gray)
            self.oval(side * 0.6, -0.5, 0.24, 0.24, PINK)
        self.corners(gray, (-0.66, -0.2), (0.66, -0.2), (0, 0.95))
        self.oval(0, 0, 0.68, 0.5, gray)
        self.eyes(0.27, 0.02)
        self.oval(0, 0.84, 0.13, 0.12, PINK)

    def bird(self) -> None:
        blue = self.canvas.colour("blue")
        self.corners(blue, (0.4, 0.1), (1.1, -0.3), (1.1, 0.4))
        self.oval(0, 0.2, 0.75, 0.56, blue)
        self.oval(-0.5, -0.35, 0.42, 0.42, blue)
        self.corners(COLOURS["orange"], (-0.85, -0.5), (-1.25, -0.3), (-0.85, -0.16))
        self.oval(0.1, 0.15, 0.42, 0.28, (150, 196, 250))
        self.oval(-0.58, -0.42, 0.08, 0.08, INK)
        for x in (-0.15, 0.15):
            self.canvas.line([self.at(x, 0.75), self.at(x, 1.05)], COLOURS["orange"], 3)

    def beetle(self) -> None:
        self.oval(0, -0.62, 0.42, 0.34, INK)
        for side in (-1, 1):
            for y, reach in ((-0.2, 1.0), (0.2, 1.08), (0.6, 0.95)):
                self.canvas.line([self.at(0, y), self.at(side * reach, y + 0.12)], width=3)
        self.oval(0, 0.15, 0.8, 0.82, self.canvas.colour("red"))
        self.canvas.line([self.at(0, -0.66), self.at(0, 0.96)], width=3)
        for x, y in ((0.4, -0.15), (0.35, 0.5), (0.18, 0.2)):
            for side in (-1, 1):
                self.oval(side * x, y, 0.13, 0.13, INK)

    def snail(self) -> None:
        body = (222, 196, 120)
        for x in (-0.95, -0.7):
            self.canvas.line([self.at(-0.75, 0.3), self.at(x, -0.4)], body, 4)
            self.oval(x, -0.42, 0.08, 0.08, INK)
        self.oval(-0.75, 0.35, 0.25, 0.3, body)
        self.corners(body, (-0.95, 0.8), (-0.9, 0.4), (0.4, 0.5), (1.15, 0.8))
        self.oval(0.2, 0.1, 0.68, 0.66, self.canvas.colour("brown"))
        self.oval(0.2, 0.1, 0.45, 0.43, (226, 178, 128))
        self.oval(0.2, 0.1, 0.22, 0.21, (134, 84, 46))
