import dataclasses
import math

import pytest

from isometry.errors import InvalidValueError, NotFoundError
from isometry.profile import Profile, Signal, Stats


@pytest.fixture
def profile():
    rows = (
        Signal(name="", kind="Net", shape=(4, 3), forward=Stats(rms=1.0)),
        Signal(name="body", kind="Sequential", shape=(4, 8), forward=Stats(rms=0.5)),
        Signal(name="body.0", kind="Linear", shape=(4, 8), forward=Stats(rms=0.7), backward=Stats(rms=2e-5)),
        Signal(name="body.0", call=1, kind="Linear", shape=(4, 8), forward=Stats(rms=math.inf, std=math.nan)),
        Signal(name="head", kind="Linear", shape=(4, 3), forward=Stats(rms=1.0, saturated=0.25)),
    )
    weight = Signal(name="head.weight", kind="Linear", shape=(3, 8), forward=Stats(rms=0.1))
    return Profile(rows, parameters=(weight,), source="measured", notes=("a remark",))


def test_it_is_a_sequence(profile):
    assert len(profile) == 5
    assert [row.name for row in profile][-1] == "head"
    assert profile[0].kind == "Net"
    assert profile[-1].name == "head"
    assert [row.name for row in profile[1:3]] == ["body", "body.0"]


def test_look_up_by_name_call_and_parameter(profile):
    assert profile["body.0"].forward.rms == 0.7
    assert profile["body.0", 1].forward.rms == math.inf
    assert profile[""].kind == "Net"
    assert profile["head.weight"].forward.rms == 0.1


def test_a_side_of_a_row():
    row = Signal(name="fc", forward=Stats(rms=2.0))
    assert row.stats("forward") is row.forward
    assert row.rms() == 2.0
    assert row.stats("backward") is None
    assert row.rms("backward") is None
    assert Signal(name="fc", forward=Stats(mean=1.0)).rms() is None


def test_an_unknown_name_comes_with_the_nearest(profile):
    with pytest.raises(
        NotFoundError, match=r"no module or parameter named 'body\.1'.*did you mean 'body\.0'"
    ):
        profile["body.1"]
    with pytest.raises(NotFoundError, match="called 2 times, so there is no call 2"):
        profile["body.0", 2]


def test_leaves_have_no_modules_inside(profile):
    assert [(row.name, row.call) for row in profile.leaves()] == [("body.0", 0), ("body.0", 1), ("head", 0)]


def test_the_table_is_a_tree_with_the_known_columns(profile):
    text = str(profile)
    assert "  0 (Linear)" in text
    assert "  0 #1 (Linear)" in text
    assert "Grad RMS" in text
    assert "Satur." in text
    assert "25%" in text
    assert "inf" in text
    assert "Kurt." not in text
    assert "Cosine" not in text
    assert text.endswith("a remark")
    assert max(map(len, text.splitlines())) <= 110


def test_depth_leaves_and_parameters(profile):
    shallow = str(profile.table(depth=1))
    assert "0 #1" not in shallow
    assert "2 deeper rows are not shown" in shallow
    assert "body.0 #1 (Linear)" in str(profile.table(leaves=True))
    assert "head.weight" in str(profile.table(parameters=True))
    with pytest.raises(InvalidValueError, match="depth must be 0 or more"):
        profile.table(depth=-1)


def test_a_skipped_container_stays_in_the_label():
    rows = (Signal(name="", kind="Net"), Signal(name="layers.0.fc", kind="Linear"))
    assert "layers.0.fc (Linear)" in str(Profile(rows))


def test_json_round_trip(profile, tmp_path):
    profile.save(tmp_path / "p.json")
    again = Profile.load(tmp_path / "p.json")
    assert repr(again) == repr(profile)  # == would fail on nan
    assert "NaN" not in profile.to_json()
    assert "Infinity" not in profile.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "versions 1 to 1"),
        ({"schema": "x"}, "expected an object"),
        ({"source": "guessed"}, "source must be one of"),
        ({"signals": None}, "signals must be of type list"),
        ({"signals": [{"name": 3}]}, r"signals\[0\]\.shape"),
        ({"signals": [{"name": "a", "size": 3}]}, r"signals\[0\] has entries .* size"),
        ({"notes": [1]}, "a note must be of type str"),
    ],
)
def test_a_broken_file_is_refused_with_the_place(profile, change, message):
    with pytest.raises(InvalidValueError, match=message):
        Profile.from_data(profile.to_data() | change)


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Stats().rms = 1.0


def test_the_plot_shows_leaves_forward_and_backward(profile, tmp_path):
    figure = profile.plot(tmp_path / "p.png")
    lines = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert lines[0][0] == 0.7
    assert lines[0][2] == 1.0
    assert math.isnan(lines[0][1])
    assert lines[1][0] == 2e-5
    assert math.isnan(lines[1][2])
    assert (tmp_path / "p.png").stat().st_size > 0


def test_it_shows_itself_in_one_line(profile):
    assert repr(profile) == (
        f"<Profile, measured: {len(profile.signals)} calls, {len(profile.parameters)} parameters>"
    )
