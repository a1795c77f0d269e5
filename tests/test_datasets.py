import itertools
import sysconfig
from pathlib import Path

import pytest
import torch

from isometry import datasets
from isometry.datasets import Data, characters, digits, encode, load
from isometry.errors import InvalidTypeError, InvalidValueError, MissingExtraError, NotFoundError


def toy(count=10):
    x = torch.arange(float(count)).reshape(count, 1)
    y = torch.arange(count) % 3
    return Data(name="toy", train_inputs=x, train_targets=y, test_inputs=x[:3], test_targets=y[:3])


def test_digits_are_standardised_over_the_training_part():
    data = digits()
    assert data.train_inputs.shape == (1437, 64)
    assert data.test_inputs.shape == (360, 64)
    assert data.train_inputs.double().mean(0).abs().max() < 1e-6
    assert abs(data.train_inputs.double().pow(2).mean() - 1) < 1e-5
    # The test part is scaled by the training part's numbers, so it is close to 1 but not exactly 1.
    second_moment = data.test_inputs.double().pow(2).mean()
    assert 0.9 < second_moment < 1.1
    assert abs(second_moment - 1) > 1e-5


def test_digits_hold_every_image_of_the_source_exactly_once():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    data = digits()
    both = torch.cat([data.train_inputs, data.test_inputs])
    # Undo the map with the known extremes of every pixel; a pixel that never varies is 0 here.
    low, high = torch.tensor(pixels).float().aminmax(dim=0)
    ours_low, ours_high = both.aminmax(dim=0)
    grey = ((both - ours_low) / (ours_high - ours_low).clamp(min=1e-9) * (high - low) + low).round()
    rows = sorted((*row, label) for row, label in zip(pixels.tolist(), labels.tolist(), strict=True))
    targets = torch.cat([data.train_targets, data.test_targets])
    ours = sorted((*row, label) for row, label in zip(grey.tolist(), targets.tolist(), strict=True))
    assert ours == rows


def test_digits_split_depends_on_the_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = digits()
    torch.rand(3)
    second, other = digits(), digits(seed=1)
    assert torch.equal(first.test_inputs, second.test_inputs)
    assert not torch.equal(first.test_inputs, other.test_inputs)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_digits_as_1024_pixels_are_the_same_images():
    small, large = digits(flat=False), digits(size=32, flat=False)
    assert large.train_inputs.shape == (1437, 1, 32, 32)
    assert torch.equal(small.train_targets, large.train_targets)
    # The mean over 4×4 blocks of the interpolation follows the original up to its smoothing.
    pooled = torch.nn.functional.avg_pool2d(large.train_inputs, 4).flatten()
    correlation = torch.corrcoef(torch.stack([pooled, small.train_inputs.flatten()]))[0, 1]
    assert correlation > 0.95


@pytest.mark.parametrize("options", [{"size": 16}, {"test": 0}, {"test": 1797}])
def test_digits_refuse_impossible_options(options):
    with pytest.raises(InvalidValueError, match=next(iter(options))):
        digits(**options)


def test_digits_name_the_extra_they_need(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'isometry\[data\]'"):
        digits()


def test_batches_visit_every_sample_once_per_pass_in_an_order_of_their_own():
    stream = toy().batches(5, seed=3)
    first = torch.cat([inputs for inputs, _ in itertools.islice(stream, 2)]).flatten()
    second = torch.cat([inputs for inputs, _ in itertools.islice(stream, 2)]).flatten()
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(10))
    assert first.tolist() != second.tolist()


def test_batches_keep_inputs_and_targets_together_and_repeat_for_the_same_seed():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    batches = [list(itertools.islice(toy().batches(4, seed=seed), 5)) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    for inputs, targets in batches[0]:
        assert inputs.shape == (4, 1)
        assert torch.equal(inputs.flatten().long() % 3, targets)
    same = [torch.equal(a[0], b[0]) for a, b in zip(batches[0], batches[1], strict=True)]
    other = [torch.equal(a[0], b[0]) for a, b in zip(batches[0], batches[2], strict=True)]
    assert all(same)
    assert not all(other)


@pytest.mark.parametrize("size", [0, 11, 2.0])
def test_batches_refuse_an_impossible_size(size):
    with pytest.raises(InvalidValueError, match="from 1 to 10"):
        toy().batches(size)


def test_classes_are_counted_over_both_parts_and_unknown_for_values():
    x = torch.zeros(2, 3)
    data = Data(
        name="t", train_inputs=x, train_targets=torch.tensor([0, 1]), test_inputs=x,
        test_targets=torch.tensor([4, 0]),
    )  # fmt: skip
    assert data.classes == 5
    values = Data(name="t", train_inputs=x, train_targets=x, test_inputs=x, test_targets=x)
    assert values.classes is None


def test_data_refuse_what_does_not_fit_together():
    x = torch.zeros(4, 3)
    with pytest.raises(InvalidValueError, match=r"train part.*\(4, 3\).*\(5,\)"):
        Data(name="t", train_inputs=x, train_targets=torch.zeros(5), test_inputs=x, test_targets=x)
    with pytest.raises(InvalidValueError, match="test part"):
        Data(name="t", train_inputs=x, train_targets=x, test_inputs=x[:0], test_targets=x[:0])
    with pytest.raises(InvalidTypeError, match="test_targets must be a tensor, got list"):
        Data(name="t", train_inputs=x, train_targets=x, test_inputs=x, test_targets=[1, 2, 3, 4])


def test_characters_are_the_standard_library_shifted_by_one():
    data = characters(block=50, modules=("heapq", "textwrap"))
    folder = Path(sysconfig.get_path("stdlib"))
    text = "".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in ("heapq", "textwrap"))
    codes = encode(text)
    assert torch.equal(data.train_inputs[0], codes[:50])
    assert torch.equal(data.train_targets[0], codes[1:51])
    # Blocks 0 to 8 are for training, block 9 is the first of the test.
    assert torch.equal(data.test_inputs[0], codes[450:500])
    assert torch.equal(data.test_targets[0], codes[451:501])
    assert len(data.train_inputs) + len(data.test_inputs) == (len(codes) - 1) // 50
    decoded = "".join(datasets.VOCABULARY[code] for code in data.train_inputs[1].tolist())
    assert decoded == text[50:100]


def test_characters_have_a_fixed_vocabulary():
    assert len(datasets.VOCABULARY) == len(set(datasets.VOCABULARY)) == 97
    assert encode("é\t~").tolist() == [96, 96, 95]
    data = load("characters")
    assert data.classes is not None
    assert data.classes <= 97
    assert len(data.train_inputs) > 5000


def test_characters_refuse_an_impossible_block_and_a_missing_module():
    with pytest.raises(InvalidValueError, match="block"):
        characters(block=0)
    with pytest.raises(InvalidValueError, match="block"):
        characters(block=10**8, modules=("heapq",))
    with pytest.raises(NotFoundError, match="'no_such_module'"):
        characters(modules=("no_such_module",))


def test_load_suggests_the_nearest_name():
    assert load("digits32").train_inputs.shape == (1437, 1024)
    with pytest.raises(NotFoundError, match="did you mean 'digits'"):
        load("digit")
    with pytest.raises(NotFoundError, match="known: digits, digits32, characters"):
        load("imagenet")
