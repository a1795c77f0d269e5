import math

import pytest

from isometry.errors import InvalidValueError, NotFoundError
from isometry.profile import Profile, Signal, Stats
from isometry.strictjson import parse
from isometry.watch.history import Finding, History, Snapshot


@pytest.fixture
def history():
    def profile(size):
        return Profile(
            (
                Signal(name="", forward=Stats(rms=size)),
                Signal(name="a", forward=Stats(rms=size, std=1.0), backward=Stats(rms=size / 10)),
                Signal(name="b", forward=Stats(rms=1.0)),
                Signal(name="b", call=1, forward=Stats(rms=0.0)),
            ),
            source="watched",
        )

    snapshots = (
        Snapshot(step=0, loss=2.3, profile=profile(1.0), updates={"a.weight": 1e-3}),
        Snapshot(step=10, loss=math.inf, profile=profile(100.0), updates={"a.weight": math.inf}),
    )
    return History(snapshots, (Finding(step=10, symptom="exploding variance", name="a", message="grew."),))


def test_json_round_trip(history, tmp_path):
    history.save(tmp_path / "h.json")
    assert History.load(tmp_path / "h.json") == history
    assert "Infinity" not in history.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "isometry.profile"}, "expected an object"),
        ({"version": 2}, "versions 1 to 1 of isometry.history"),
        ({"snapshots": {}}, "snapshots must be of type list"),
        ({"findings": [{"symptom": "tired"}]}, r"findings\[0\].symptom must be one of"),
    ],
)
def test_a_broken_file_is_refused(history, change, message):
    from isometry.strictjson import dump

    with pytest.raises(InvalidValueError, match=message):
        History.from_json(dump(parse(history.to_json()) | change))


def test_a_missing_file():
    with pytest.raises(NotFoundError):
        History.load("nowhere.json")


def test_the_table_lists_the_findings(history):
    text = str(history)
    assert "2 steps observed, 1 finding" in text
    assert "exploding variance" in text
    assert str(history.findings[0]) == "step 10, a: exploding variance: grew."


def test_the_plot_is_layer_by_step(history, tmp_path):
    figure = history.plot(tmp_path / "h.png")
    grid = figure.axes[0].collections[0].get_array()
    assert grid[0].tolist() == [0.0, 2.0]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b", "b #1"]
    assert (tmp_path / "h.png").stat().st_size > 0
    backward = history.plot(side="backward").axes[0].collections[0].get_array()
    assert backward.shape == (1, 2)


def test_what_cannot_be_plotted_is_said(history):
    with pytest.raises(InvalidValueError, match="nothing was observed"):
        History().plot()
    with pytest.raises(InvalidValueError, match="side must be"):
        history.plot(side="sideways")


def test_it_shows_itself_in_one_line(history):
    assert repr(history) == "<History: 2 steps observed, 1 found>"
