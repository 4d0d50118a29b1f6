"""docs/evaluation.md has every suite and benchmark, in the table's own words, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from varifocal.evaluation.benchmarks.protocols import PROTOCOLS
from varifocal.evaluation.benchmarks.registry import BENCHMARKS, SUITES

PAGE = Path(__file__).parents[3] / "docs" / "evaluation.md"
ROWS = {
    "suite": [(f"`{k}`", ", ".join(f"`{name}`" for name in v)) for k, v in SUITES.items()],
    "benchmark | answer": [
        (f"`{one.name}`", one.method, one.main, one.protocol) for one in BENCHMARKS.values()
    ],
    "benchmark | files": [(f"`{one.name}`", one.files, one.source) for one in BENCHMARKS.values()],
    "protocol | benchmark": [
        (f"`{name}`", f"`{row}`", protocol.sentence)
        for name, rows in PROTOCOLS.items()
        for row, protocol in rows.items()
    ],
}


@pytest.mark.parametrize("title", ROWS)
def test_a_table_of_the_page_is_the_codes(title: str) -> None:
    lines = iter(PAGE.read_text(encoding="utf-8").splitlines())
    assert any(line.startswith(f"| {title} ") for line in lines)
    next(lines)  # the rule under the heads
    told = []
    for line in lines:
        if not line.startswith("|"):
            break
        told.append(line)
    assert told == [f"| {' | '.join(row)} |" for row in ROWS[title]]
