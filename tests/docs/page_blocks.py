"""A page's fenced blocks, and the commands that its sentences name."""

import re
from dataclasses import dataclass

FENCE = re.compile(r"^```(?P<language>[\w-]*)(?: title=\"(?P<marker>[^\"]*)\")?\s*$")

SPAN = r"`((?:varifocal|python|make|pytest) [^`]+)`"

RUN = ("bash", "sh", "python")
SHOWN = ("text", "yaml", "json")

MARKERS = ("needs ", "takes ")
"""A block whose marker begins so is not run: what it needs, or how long it takes, stands in it."""

LONG = ("docs/studies/", "docs/papers/")
"""Pages whose commands take hours, or hardware that is not here: none of their blocks runs."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    `line` is that of its first line of text; `marker` what its title says, or "".
    """

    page: str
    line: int
    language: str
    marker: str
    text: str

    @property
    def runs(self):
        return self.language in RUN and not self.only_read

    @property
    def only_read(self):
        stays = self.marker.startswith(MARKERS) or self.page.startswith(LONG)
        return self.language in RUN and stays

    @property
    def where(self):
        return f"{self.page}:{self.line}"


def blocks(page, text):
    """Return a page's blocks in their order.

    Raises:
        ValueError: a fence without a known language, one that is not closed, or an indented block.
    """
    found, start, inside = [], None, []
    for number, line in enumerate(text.splitlines(), 1):
        if start is None and line.startswith("```"):
            fence = FENCE.match(line)
            if fence is None or fence["language"] not in (*RUN, *SHOWN):
                raise ValueError(f"{page}:{number}: {line}: name one of {(*RUN, *SHOWN)}")
            start, inside = (number + 1, fence), []
        elif start is not None and line.strip() == "```":
            first, fence = start
            lines = "\n".join(inside) + "\n"
            found.append(Block(page, first, fence["language"], fence["marker"] or "", lines))
            start = None
        elif start is not None:
            inside.append(line)
    if start is not None:
        raise ValueError(f"{page}:{start[0]}: the block is not closed")
    if indented := re.search(r"(?m)^(?![-*\d ]).*\n\n {4}\S.*$", prose(text)):
        raise ValueError(f"{page}: an indented block; fence it: {indented[0].splitlines()[-1]}")
    return found


def prose(text):
    """Leave the fenced blocks out."""
    return re.sub(r"(?ms)^```.*?^```\s*$", "", text)


def spans(text):
    """Return the commands in backticks outside of the blocks, with the line breaks taken out."""
    return [" ".join(span.split()) for span in re.findall(SPAN, prose(text))]
