"""Histograms of data: every example stands in a bar, on its side of the limit."""

import numpy as np
import pytest

from varifocal.reports import histogram


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Keep the figure that is saved."""
    figures = []
    monkeypatch.setattr(histogram, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def bars(axes):
    return [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in axes.patches]


def test_every_example_stands_in_a_bar(drawn, tmp_path):
    lengths = {"text": np.array([3, 40, 41]), "image": np.array([90, 500])}
    histogram.length_histogram(lengths, tmp_path / "x.png", limit=64)
    (axes,) = drawn[0].axes
    assert sum(height for _, _, height in bars(axes)) == 5
    assert max(x + width for x, width, _ in bars(axes)) > 500
    (note,) = axes.texts
    assert note.get_text() == "max_length 64\n40.0% beyond"
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["text (3)", "image (2)"]


@pytest.mark.parametrize("values", [{0: 7, 20: 3}, dict.fromkeys(range(90), 2)])
def test_image_tokens_are_counted(drawn, tmp_path, values):
    histogram.image_token_histogram(values, tmp_path / "x.png")
    assert sum(height for _, _, height in bars(drawn[0].axes[0])) == sum(values.values())


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no length"):
        histogram.length_histogram({"text": np.zeros(0, np.int64)}, tmp_path / "x", limit=None)
    with pytest.raises(ValueError, match="no count"):
        histogram.image_token_histogram({}, tmp_path / "x.png")
