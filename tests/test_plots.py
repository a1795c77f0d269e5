import itertools
import math
import sys

import pytest

from isometry.errors import InvalidValueError, MissingExtraError
from isometry.plots import curves, heat_map, lines_by_depth

INF, NAN = math.inf, math.nan


def texts(figure):
    from matplotlib.text import Text

    return {text.get_text() for text in figure.findobj(Text)}


def marks(ax):
    return {tuple(collection.get_offsets()[:, 0]) for collection in ax.collections}


def test_every_series_carries_its_name_and_values():
    figure = lines_by_depth({"forward": {"relu": [1.0, 0.5], "tanh": [1.0, 2.0]}}, title="Depth")
    assert {"relu", "tanh", "forward", "Depth"} <= texts(figure)
    assert [list(line.get_ydata()) for line in figure.axes[0].lines[:2]] == [[1.0, 0.5], [1.0, 2.0]]
    assert figure.axes[0].get_yscale() == "log"


def test_what_a_logarithmic_axis_cannot_show_is_marked_where_it_is():
    figure = lines_by_depth({"": {"x": [1.0, 0.0, INF, NAN, None, 2.0]}})
    assert marks(figure.axes[0]) == {(1.0,), (2.0,), (3.0,)}
    assert any("infinite" in text for text in texts(figure))


def test_a_finite_picture_has_no_legend_for_broken_values():
    figure = lines_by_depth({"": {"x": [1.0, 2.0, None]}})
    assert not figure.axes[0].collections
    assert not any("infinite" in text for text in texts(figure))


def test_a_linear_axis_shows_zero_and_marks_nan():
    figure = curves({"accuracy": {"x": [(0, 0.0), (10, NAN), (20, 1.0)]}})
    assert marks(figure.axes[0]) == {(10.0,)}
    assert figure.axes[0].lines[0].get_ydata()[0] == 0.0


def test_labels_at_the_same_height_are_moved_apart():
    figure = curves({"": {f"series {index}": [(0, 1.0), (1, 1.0)] for index in range(6)}})
    heights = sorted(a.xy[1] for a in figure.axes[0].texts if a.get_text().startswith("series"))
    gaps = [b - a for a, b in itertools.pairwise(heights)]
    assert min(gaps) >= 0.05 - 1e-9
    assert heights[0] >= 0
    assert heights[-1] <= 1


def test_extreme_values_stay_on_the_axis():
    figure = lines_by_depth({"": {"x": [1e-320, 1e-290, 1e290, 1.7e308]}})
    bottom, top = figure.axes[0].get_ylim()
    assert 0 < bottom <= 1e-290
    assert 1e290 <= top < INF


def test_only_broken_values_still_give_a_picture(tmp_path):
    lines_by_depth({"": {"x": [NAN, INF, 0.0]}}, path=tmp_path / "deep" / "x.png")
    assert (tmp_path / "deep" / "x.png").read_bytes()[1:4] == b"PNG"


def test_the_heat_map_shows_the_logarithm_and_signs():
    figure = heat_map([[1.0, 10.0], [0.0, NAN], [INF, None]], rows=["a", "b", "c"], columns=[0, 10])
    mesh = figure.axes[0].collections[0].get_array()
    assert mesh[0].tolist() == [0.0, 1.0]
    assert {"0", "×", "∞", "a", "b", "c"} <= texts(figure)


def test_nothing_to_draw_is_said():
    for panels in ({}, {"": {}}, {"": {"x": []}}):
        with pytest.raises(InvalidValueError, match="nothing to draw"):
            lines_by_depth(panels)
    with pytest.raises(InvalidValueError, match="nothing to draw"):
        heat_map([], rows=[], columns=[])
    with pytest.raises(InvalidValueError, match="expected 1 rows of 2 values"):
        heat_map([[1.0]], rows=["a"], columns=[0, 1])


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"isometry\[plots\]"):
        lines_by_depth({"": {"x": [1.0]}})


def test_no_global_state_is_touched():
    import matplotlib

    before = dict(matplotlib.rcParams)
    lines_by_depth({"": {"x": [1.0, 2.0]}})
    assert dict(matplotlib.rcParams) == before
