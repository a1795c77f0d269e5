"""The benchmark's own functions: cells build, starts write, halving and verdicts decide as the page says."""

import json
import math
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("trainability")


@pytest.fixture
def store(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("trainability_kept")


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("trainability_report")


def cell_named(benchmark, part, name):
    return next(cell for cell in benchmark.cells(part) if cell.name == name)


@pytest.mark.parametrize("part", ["mlp", "cnn", "transformer"])
def test_every_cell_is_named_once_and_its_model_fits_its_data(benchmark, part):
    cells = list(benchmark.cells(part))
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        if cell.name.split()[-1] in ("6", "10", "30"):
            inputs, targets = next(cell.data().batches(4))
            with torch.random.fork_rng():
                scores = cell.build()(inputs)
            assert scores.shape[:-1] == targets.shape
            assert scores.shape[-1] >= cell.data().classes


def test_a_model_on_one_batch_learns_its_rows_by_heart_in_any_order(benchmark):
    cell = replace(cell_named(benchmark, "corpus", "lstm"), rates=(3e-3,))
    rows = cell.build().eval()
    assert torch.equal(rows(torch.tensor([2, 0])), rows(torch.arange(4))[[2, 0]])
    assert benchmark.run(cell, "torch").trains


def test_exact_gains_keep_the_second_moment_where_the_plain_rules_lose_it(benchmark):
    cell = cell_named(benchmark, "mlp", "relu 10")
    rms = {}
    for start in ("torch", "xavier", "kaiming", "orthogonal"):
        first, last = benchmark._signal(cell, benchmark._model(cell, start, 0))["forward"]
        rms[start] = last / first
    assert 0.4 < rms["kaiming"] < 2
    assert 0.4 < rms["orthogonal"] < 2
    assert rms["xavier"] < 0.15  # 2^(-8/2) in a wide network
    assert rms["torch"] < 0.3


def test_behind_sums_and_norms_the_gain_is_one_and_behind_an_activation_its_own(benchmark):
    model = benchmark._model(cell_named(benchmark, "transformer", "pre-norm plain 6"), "kaiming", 0)
    stds = {
        name: p.std().item() * math.sqrt(p.shape[1]) for name, p in model.named_parameters() if p.dim() == 2
    }
    assert stds["blocks.0.attention.q.weight"] == pytest.approx(1.0, abs=0.06)
    assert stds["blocks.0.feed.up.weight"] == pytest.approx(1.0, abs=0.06)
    assert stds["blocks.0.feed.down.weight"] == pytest.approx(1.5335, abs=0.06)


def test_a_run_is_kept_and_found_again_for_the_same_settings_alone(benchmark, store, tmp_path):
    path = tmp_path / "kept.jsonl"
    full = cell_named(benchmark, "mlp", "tanh 10")
    cell = replace(full, steps=30, every=15, rates=(1e-4, 3e-3), thorough=False)
    result = benchmark.run(cell, "xavier")
    assert result.error is None
    assert result.lr == 3e-3
    assert result.mean > 0.6
    store.keep(result, path)
    again = store.kept(cell, "xavier", path)
    assert store.strict(asdict(again)) == store.strict(asdict(result))
    assert store.kept(replace(cell, steps=31), "xavier", path) is None
    assert store.kept(cell, "torch", path) is None
    assert store.current(path) == []  # the cell of this name has other settings
    store.keep(replace(result, settings=full.settings), path)
    assert [r.start for r in store.current(path)] == ["xavier"]


def test_the_kept_file_has_the_order_of_the_page_and_strict_numbers(benchmark, store, report, tmp_path):
    path = tmp_path / "kept.jsonl"
    cell = cell_named(benchmark, "transformer", "none-norm gated 16")
    level = {"level": ["accuracy", 0.9]}
    lost = report.Result(part=cell.part, cell=cell.name, start="auto", settings=cell.settings)
    lost.quality, lost.diverged, lost.tuning = (
        [math.inf, 2.123456789],
        [3, None],
        {"0": 4.5, "0.01": math.inf},
    )
    store.keep(lost, path)
    store.keep(report.Result(part="mlp", cell="tanh 10", start="auto", settings=level, error="no"), path)
    store.keep(report.Result(part="mlp", cell="relu 10", start="auto", settings=level), path)
    store.keep(report.Result(part="mlp", cell="relu 10", start="auto", settings=level, seconds=2.0), path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["cell"] for line in lines] == ["relu 10", "tanh 10", cell.name]
    assert "Infinity" not in lines[-1]
    assert "NaN" not in lines[-1]
    assert store.load(path)[-1].quality == [math.inf, 2.1235]
    assert store.load(path)[-1].tuning["0.01"] == math.inf
    assert store.load(path)[0].seconds == 2.0


def test_what_only_the_page_said_is_judged_like_a_run_and_marked(benchmark, store, report):
    cell = cell_named(benchmark, "mlp", "relu 10")

    def told(start, page, level=("accuracy", 0.9)):
        return report.Told("mlp", "relu 10", start, {"level": list(level)}, page=page)

    best, behind = told("a", "95.0 ± 0.7 @50"), told("b", "92.1 ± 0.5 @100")
    assert (best.mean, best.scatter) == pytest.approx((0.95, 0.007))
    assert (best.steps, best.trains) == (50, True)
    assert not told("c", "8.6").trains
    assert told("c", "8.6").seeds == 1
    assert [report.best_or_level(one, [best, behind]) for one in (best, behind)] == [True, False]
    assert told("d", "diverged", ("loss", 2.9)).mean == math.inf
    assert told("e", "2 of 3 diverged", ("loss", 2.9)).figure() == "2 of 3 diverged"
    assert "| 95.0 ± 0.7 @50\\* † |" in report.markdown([best, behind])
    again = store.from_line(store.to_line(best))
    assert again == replace(best, lr=again.lr)
    assert again.settings != store.strict(cell.settings)


def test_the_page_says_what_is_kept(store, report):
    page = report.PAGE.read_text(encoding="utf-8")
    assert (
        page.split(report.BEGIN)[1].split(report.END)[0].strip() == report.markdown(store.current()).strip()
    )


def test_the_better_two_rates_run_in_full_and_one_where_nothing_was_learnt(benchmark):
    assert benchmark._finalists({"0": 2.3, "0.01": math.inf, "0.001": 1.0, "0.0001": 2.0}) == [0.001, 0.0001]
    assert benchmark._finalists({"0": 2.3, "0.01": math.inf, "0.001": 2.29, "0.0001": 2.3}) == [0.001]


def made(report, start, quality, level=("accuracy", 0.9)):
    return report.Result(
        part="mlp",
        cell="relu 10",
        start=start,
        settings={"level": list(level)},
        quality=quality,
        reached=[20] * len(quality),
        signal={"forward": [1.0, 0.5]},
    )


def test_best_means_trained_and_not_behind_by_more_than_the_noise(report):
    best, close = made(report, "a", [0.97, 0.98, 0.96]), made(report, "b", [0.965, 0.96, 0.97])
    behind, untrained = made(report, "c", [0.92, 0.93, 0.92]), made(report, "d", [0.95, 0.2, 0.3])
    cell = [best, close, behind, untrained]
    assert [report.best_or_level(one, cell) for one in cell] == [True, True, False, False]
    assert not untrained.trains
    loss = [made(report, "a", [2.3, 2.4], ("loss", 2.9)), made(report, "b", [2.6, 2.7], ("loss", 2.9))]
    assert [report.best_or_level(one, loss) for one in loss] == [True, False]


def test_a_diverged_or_failed_start_counts_as_untrained(report):
    failed = made(report, "a", [])
    failed.error = "ModelError: no"
    assert not failed.trains
    assert "failed" in failed.line()
    lost = made(report, "b", [math.inf, 2.4], ("loss", 2.9))
    assert not lost.trains
    text = report.report([failed, made(report, "b", [0.95])])
    assert "1 of 1" in text
    assert "0 of 1" in text


def test_the_page_has_one_pair_of_markers_with_the_tables_between(report):
    page = report.PAGE.read_text(encoding="utf-8")
    assert page.count(report.BEGIN) == page.count(report.END) == 1
    assert page.split(report.BEGIN)[1].split(report.END)[0].count("|---|") >= 1
