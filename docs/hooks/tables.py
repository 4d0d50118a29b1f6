"""Rows of Markdown tables."""

import re
from collections.abc import Iterable


def table_row(cells: Iterable[str]) -> str:
    """Join cells; a bar inside one would end it, but for those in backticks."""
    escaped = (re.sub(r"(`[^`]*`)|\|", lambda found: found[1] or r"\|", cell) for cell in cells)
    return f"| {' | '.join(escaped)} |"
