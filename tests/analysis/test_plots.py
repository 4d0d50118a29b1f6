"""Plots: what they refuse, and that what is drawn is what was given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from varifocal.plotting import loss_curve, panels, routing_plot, smoothed, whole_steps
from varifocal.reports.contact_sheet import SheetCard, _wrap, contact_sheet

GREEN, RED = (0x2E, 0x7D, 0x43), (0xB9, 0x3A, 0x32)


def pixels(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def share_of(colour: tuple[int, int, int], image: np.ndarray) -> float:
    return float((np.abs(image.astype(int) - colour).max(-1) < 8).mean())


def card(correct: bool = True, **changes: object) -> SheetCard:
    image = PIL.Image.new("RGB", (40, 40), (10, 20, 240))
    fields = {
        "image": image,
        "question": "Will these magnets attract or repel each other? It costs $5 or $6.",
        "options": ["attract", "repel"],
        "answer": "attract",
        "gold": "attract" if correct else "repel",
        "correct": correct,
    }
    return SheetCard(**{**fields, **changes})  # type: ignore[arg-type]


def test_loss_curve_draws_rows_that_have_a_loss(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    loss_curve([*rows, {"step": 2, "train_runtime": 9.0}, {"loss": 7.0}], tmp_path / "a.png")
    loss_curve(rows[::-1], tmp_path / "b.png")
    loss_curve([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.9}], tmp_path / "c.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    assert not np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "c.png"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "c.png"]


def test_steps_are_whole_numbers() -> None:
    _, (axes,) = panels(3.0, 2.0, [1])
    axes.plot([1, 2], [0.5, 0.25])
    assert any(step % 1 for step in axes.get_xticks())
    whole_steps(axes)
    assert not any(step % 1 for step in axes.get_xticks())


def test_a_loss_curve_needs_losses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both 'step' and 'loss'"):
        loss_curve([{"step": 1}], tmp_path / "a.png")


def test_smoothing_starts_at_the_first_value_and_keeps_constants() -> None:
    values = np.array([4.0, 2.0, 2.0, 2.0])
    assert smoothed(values, span=0.5).tolist() == pytest.approx(
        [4.0, (0.5 * 4 + 2) / 1.5, (0.25 * 4 + 0.5 * 2 + 2) / 1.75, (0.5 + 3.5) / 1.875]
    )
    assert smoothed(np.full(50, 3.0)).tolist() == pytest.approx([3.0] * 50)


def test_routing_plot_shows_the_layers_in_their_order(tmp_path: Path) -> None:
    flat = {f"layers.{layer}": [[0.5, 0.5], [0.5, 0.5]] for layer in range(4)}
    first, last = ({**flat, f"layers.{layer}": [[0.9, 0.1], [0.5, 0.5]]} for layer in (0, 3))
    for name, table in {"flat": flat, "first": first, "last": last}.items():
        routing_plot(table, tmp_path / f"{name}.png")
    routing_plot(dict(reversed(last.items())), tmp_path / "turned.png")
    assert np.array_equal(pixels(tmp_path / "first.png"), pixels(tmp_path / "turned.png"))
    for other in ("flat", "last"):
        assert not np.array_equal(pixels(tmp_path / "first.png"), pixels(tmp_path / f"{other}.png"))


@pytest.mark.parametrize("table", [{}, {"a": [0.5, 0.5]}, {"a": [[1.0, 0.0]]}])
def test_a_routing_plot_needs_two_by_two_weights(tmp_path: Path, table: dict) -> None:
    with pytest.raises(ValueError, match=r"\[2, 2\]"):
        routing_plot(table, tmp_path / "a.png")


def test_the_verdict_has_a_colour(tmp_path: Path) -> None:
    contact_sheet([card(True)], tmp_path / "right.png")
    contact_sheet([card(False)], tmp_path / "wrong.png")
    right, wrong = pixels(tmp_path / "right.png"), pixels(tmp_path / "wrong.png")
    assert share_of(GREEN, right) > 0.01 > share_of(RED, right)
    assert share_of(RED, wrong) > 0.01 > share_of(GREEN, wrong)
    assert share_of((10, 20, 240), right) > 0.15


def test_six_cards_stand_in_two_rows(tmp_path: Path) -> None:
    long = card(question="word " * 200, options=["option " * 40] * 30, answer=None, correct=False)
    cards = [card(), long, card(image=None), card(options=[]), card(False), card()]
    contact_sheet(cards, tmp_path / "six.png", title="Six")
    contact_sheet([card()], tmp_path / "one.png")
    six, one = pixels(tmp_path / "six.png"), pixels(tmp_path / "one.png")
    assert six.shape[1] == pytest.approx(3 * one.shape[1], abs=3)
    assert six.shape[0] > 2 * one.shape[0]
    last = six[six.shape[0] // 2 :, 2 * six.shape[1] // 3 :]
    assert share_of(GREEN, last) > 0.01
    assert share_of(RED, last) < 0.001


def test_text_is_text_and_not_mathematics(tmp_path: Path) -> None:
    formula = r"$\nosuchcommand{$"  # matplotlib refuses it where it reads mathematics
    contact_sheet([card(question=formula)], tmp_path / "card.png")
    contact_sheet([card()], tmp_path / "title.png", title=formula)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_sheet_needs_cards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one card"):
        contact_sheet([], tmp_path / "a.png")


@pytest.mark.parametrize(
    ("text", "most", "lines"),
    [
        ("", 3, [""]),
        ("aa bb cc", 3, ["aa bb", "cc"]),
        ("abcdefghijk", 3, ["abcdef", "ghijk"]),
        ("aa bb cc dd", 1, ["aa ..."]),
        ("abcdefghijk", 1, ["ab ..."]),
        ("a\nb", 1, ["a b"]),
    ],
)
def test_wrapping_at_six_characters(text: str, most: int, lines: list[str]) -> None:
    assert _wrap(text, 6.0, lambda line: float(len(line)), most) == lines


def test_importing_does_not_load_matplotlib() -> None:
    code = "import sys, varifocal.reports.contact_sheet; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
