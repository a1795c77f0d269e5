import json
import math
import struct

import pytest

from isometry.compare.comparison import Comparison, Entry
from isometry.compare.training import Run
from isometry.errors import InvalidValueError, NotFoundError
from isometry.profile import Profile, Signal, Stats


def run(accuracy=0.5, lr=0.1, seed=0, diverged=None, losses=(2.3, 1.0, 0.5, 0.4)):
    if diverged is not None:
        losses = (*losses[: diverged - 1], math.nan)
    return Run(lr=lr, seed=seed, losses=losses, evaluated=(0, 2) if diverged else (0, 2, 4),
               accuracies=(0.1, 0.3) if diverged else (0.1, 0.3, accuracy),
               test_losses=(2.3, 1.0) if diverged else (2.3, 1.0, 0.5), diverged=diverged)  # fmt: skip


def profile(factor):
    rows = [
        Signal(name=str(i), kind="Linear", forward=Stats(rms=factor**i, cosine=0.1), backward=Stats(rms=1.0))
        for i in range(4)
    ]
    return Profile(tuple(rows), parameters=tuple(Signal(name=f"{i}.weight", shape=(5, 3)) for i in range(4)))


def entry(name, runs, factor=1.0):
    return Entry(name=name, description=f"start {name}", profile=profile(factor), runs=tuple(runs), lr=0.1)


@pytest.fixture
def comparison():
    return Comparison(
        title="three layers",
        data="digits",
        chance=0.1,
        threshold=0.9,
        entries=(
            entry("good", [run(0.95), run(0.2, lr=0.5)]),
            entry("bad", [run(diverged=3)], factor=1000.0),
            entry("seeds", [run(0.7), run(0.9, seed=1), run(seed=2, diverged=3), run(0.8, seed=3)]),
        ),
        skipped=(("mirrored", "tanh has no mirrored slope"),),
    )


def test_entries_are_found_by_name_place_and_slice(comparison):
    assert comparison["bad"] is comparison[1]
    assert [one.name for one in comparison[:2]] == ["good", "bad"]
    assert len(comparison) == 3
    with pytest.raises(NotFoundError, match="it has good, bad, seeds"):
        comparison["ugly"]


def test_the_run_shown_is_the_median_over_the_seeds_at_the_best_rate(comparison):
    assert comparison["good"].best == (comparison["good"].runs[0],)
    # Worst to best: diverged, 0.7, 0.8, 0.9; the lower of the two in the middle.
    assert comparison["seeds"].run.accuracy == 0.7


def test_the_table_has_a_row_per_start_with_its_numbers(comparison):
    table = comparison.table()
    rows = {row[0]: row for row in table.rows}
    assert rows["good"][1:] == ["1 → 1", "×1", "1", "0.1 → 0.1", "0.1", "0.4", "95%", "4 steps"]
    assert rows["bad"][1:3] == ["1 → 1e+06", "×1000"]
    assert rows["bad"][6:] == ["nan", "diverged, step 3", "–"]
    assert "70% (70% to 90%" not in rows["seeds"][7]
    assert rows["seeds"][7] == "80% (70% to 90%, 1 diverged)"
    assert "mirrored: left out, tanh has no mirrored slope" in str(table)


def test_there_is_a_sentence_for_every_row_in_the_text(comparison):
    text = str(comparison)
    for name, said in comparison.sentences().items():
        assert f"{name}: {said}" in text
    assert "grows by ×1000 a layer" in comparison.sentences()["bad"]


def test_json_brings_back_the_same_record(comparison, tmp_path):
    path = tmp_path / "deep" / "comparison.json"
    comparison.save(path)
    loaded = Comparison.load(path)
    # nan is unequal to itself: compare the text, which writes it as a string.
    assert loaded.to_json() == comparison.to_json()
    assert loaded["good"] == comparison["good"]
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["entries"][1]["runs"][0]["losses"][-1] == "nan"
    assert data["sentences"] == comparison.sentences()


def test_json_of_another_kind_is_refused(comparison, tmp_path):
    with pytest.raises(InvalidValueError, match=r"isometry\.comparison"):
        Comparison.from_json(profile(1.0).to_json())
    with pytest.raises(NotFoundError, match="no file"):
        Comparison.load(tmp_path / "none.json")
    data = json.loads(comparison.to_json())
    data["entries"][0]["runs"][0]["lr"] = None
    with pytest.raises(InvalidValueError, match=r"entries\[0\]\.runs\[0\]\.lr"):
        Comparison.from_json(json.dumps(data))
    data = json.loads(comparison.to_json())
    data["skipped"] = [["alone"]]
    with pytest.raises(InvalidValueError, match="skipped"):
        Comparison.from_json(json.dumps(data))


def test_the_plots_are_two_pictures_of_some_size(comparison, tmp_path):
    written = comparison.plot(tmp_path / "new" / "folder")
    assert [path.name for path in written] == ["signal.png", "training.png"]
    for path in written:
        header = path.read_bytes()[:24]
        assert header[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", header[16:24])
        assert width > 1000
        assert height > 500


def test_long_names_of_starts_leave_room_to_draw(tmp_path):
    names = [f"path/to/some/file_of_mine.py:start_{i}" for i in range(8)]
    many = tuple(entry(name, [run()]) for name in names)
    found = Comparison(title="t", data="d", chance=0.1, threshold=0.9, entries=many)
    assert len(found.plot(tmp_path)) == 2  # matplotlib warns, and warnings are errors, where there is no room


def test_a_model_without_hidden_layers_is_plotted_by_its_training_alone(tmp_path):
    flat = Profile((Signal(name="", kind="Linear", forward=Stats(rms=1.0)),))
    one = Entry(name="torch", description="", profile=flat, runs=(run(),), lr=0.1)
    found = Comparison(title="t", data="d", chance=0.1, threshold=0.9, entries=(one,))
    assert [path.name for path in found.plot(tmp_path)] == ["training.png"]


def test_it_shows_itself_in_one_line(comparison):
    names = ", ".join(entry.name for entry in comparison)
    assert repr(comparison) == f"<Comparison, {comparison.title} on {comparison.data}: {names}>"
