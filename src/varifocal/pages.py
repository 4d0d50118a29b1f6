"""HTML from the Jinja2 templates in `templates/`: every value is escaped, images are inside."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from PIL.Image import Image


def render(template: str, **values: Any) -> str:
    """Fill a template.

    Args:
        template: its file in `templates/`.
        values: what it names; a name without a value is an error.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("varifocal"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.globals["png_of"] = png_of
    return environment


def png_of(file: Path) -> str:
    """Return a PNG file as an address that holds it."""
    return _address(file.read_bytes(), "png")


def small_copy(image: Image, side: int, kind: str = "jpeg") -> str:
    """Shrink an image to fit into a square, and return it as an address that holds it.

    Args:
        image: it is changed.
        side: of the square, in pixels.
        kind: `jpeg` or `png`.
    """
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, kind, quality=85)
    return _address(file.getvalue(), kind)


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
