"""Heat maps: red harms, blue helps, grey is undefined, and what cannot be drawn is refused."""

import numpy as np
import PIL.Image
import pytest

from varifocal.analysis.heatmap import (
    _reach,
    interference_heatmap,
    layer_heatmaps,
    overlap_heatmap,
    usage_panels,
)

TASKS = ["magnets", "a task with a name that is far too long for a heat map"]
RED, BLUE, GREY = (103, 0, 31), (5, 48, 97), (216, 220, 225)


def pixels(path):
    with PIL.Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def share_of(colour, path):
    return float((np.abs(pixels(path) - colour).max(-1) < 6).mean())


def drawn(tmp_path, cells, **options):
    interference_heatmap(cells, TASKS, tmp_path / "map.png", **options)
    return tmp_path / "map.png"


def test_colours_tell_harm_from_help(tmp_path):
    harm = drawn(tmp_path, [[1, -1], [-1, 1]])
    assert share_of(RED, harm) > 0.05
    help_ = drawn(tmp_path, [[1, 1], [1, 1]])
    assert share_of(RED, help_) < 0.02 < 0.1 < share_of(BLUE, help_)  # the scale has red, too
    none = drawn(tmp_path, [[1, None], [None, 1]])
    assert share_of(GREY, none) > 0.05


def test_an_unsure_cell_looks_otherwise(tmp_path):
    sure = pixels(drawn(tmp_path, [[1, 0.2], [0.2, 1]]))
    unsure = drawn(tmp_path, [[1, 0.2], [0.2, 1]], sure=[[True, True], [False, True]])
    assert not np.array_equal(sure, pixels(unsure))


def test_outliers_do_not_bleach_the_rest():
    assert _reach([np.array([[1, 40.0], [-0.2, 1]])]) == 1.0
    assert _reach([np.array([[1, 0.3], [-0.3, 1]])]) == pytest.approx(0.3)
    assert _reach([np.array([[1, np.nan], [np.nan, 1]])]) == 1.0


def test_layers_are_drawn_one_by_one(tmp_path):
    harm, help_ = [[1, -1], [-1, 1]], [[1, 1], [1, 1]]
    for name, cells in (("harm", harm), ("help", help_)):
        blocks = {f"layer {number}": cells if number == 7 else help_ for number in range(8)}
        layer_heatmaps(blocks, TASKS, tmp_path / f"{name}.png")
    assert not np.array_equal(pixels(tmp_path / "harm.png"), pixels(tmp_path / "help.png"))


def test_routing_images_show_what_they_are_given(tmp_path):
    for name, value in (("same", 1.0), ("other", 0.2)):
        overlap_heatmap([[1, value], [value, 1]], TASKS, tmp_path / f"{name}.png", "Overlap")
        usage_panels(
            {"layer 0": [[value, 1 - value], [0.5, 0.5]]}, TASKS, tmp_path / f"{name}2.png", ""
        )
    for end in ("", "2"):
        first, second = (pixels(tmp_path / f"{name}{end}.png") for name in ("same", "other"))
        assert first.shape != second.shape or not np.array_equal(first, second)


def test_a_matrix_has_to_fit_its_tasks(tmp_path):
    with pytest.raises(ValueError, match=r"2 tasks need a square matrix of them, it is \(1, 2\)"):
        drawn(tmp_path, [[1, 2]])
    with pytest.raises(ValueError, match="no layer"):
        layer_heatmaps({}, TASKS, tmp_path / "map.png")
