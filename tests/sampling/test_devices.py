"""Drawing on a device, shown with the CPU in that part: the operations are torch's, the way is the GPU's."""

import numpy as np
import pytest
import torch
from torch import nn

from isometry.sampling import Constant, Normal, TruncatedNormal, Uniform, devices, fill_keyed_, write_
from isometry.sampling.operations import OnTensors, operations

CPU = torch.device("cpu")
LAWS = [Normal(0.3, 0.1), Uniform(-0.2, 0.7), TruncatedNormal(0.5), TruncatedNormal(0.5, 1.0, 3.5)]


@pytest.fixture
def there(monkeypatch):
    """Let CPU tensors be drawn as those of a device are; the number of transforms done so."""
    done = []

    def transforms(target, law):
        found = type(law) in devices._LAWS and target.device == CPU
        done.append(found)
        return found

    monkeypatch.setattr(devices, "transforms", transforms)
    monkeypatch.setattr(devices, "wait", lambda device: None)  # for a CPU there is nothing to wait for
    return done


def drawn(shape, law, dtype=torch.float32, name="w"):
    return fill_keyed_(torch.empty(shape, dtype=dtype), law, seed=1, name=name)


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
def test_the_values_are_the_cpus_to_the_bit(law, dtype, request):
    shapes = [(), (7,), (600, 700), (3, 5, 1100), (0, 4)]
    expected = [drawn(shape, law, dtype) for shape in shapes]
    done = request.getfixturevalue("there")
    for shape, values in zip(shapes, expected, strict=True):
        assert torch.equal(drawn(shape, law, dtype), values)
    assert all(done)
    assert done


def test_whole_models_and_their_groups(request):
    def build():
        return nn.ParameterList(nn.Parameter(torch.empty(n % 7 + 1, 9)) for n in range(80))

    laws = {str(i): LAWS[i % 4] for i in range(70)} | {str(i): Constant(2.0) for i in range(70, 80)}
    expected, found = build(), build()
    write_(expected, laws, seed=3, keep=())
    request.getfixturevalue("there")
    write_(found, laws, seed=3, keep=())
    assert all(torch.equal(x, y) for x, y in zip(expected, found, strict=True))


def test_strided_targets(there):
    whole = torch.zeros(64, 96)
    fill_keyed_(whole.t()[::2], Normal(1.0), seed=1, name="w")
    assert torch.equal(whole.t()[::2], drawn((48, 64), Normal(1.0)))
    assert not whole.t()[1::2].any()


def test_a_device_that_agrees_is_trusted_and_one_that_does_not_is_not(monkeypatch):
    devices.agrees.cache_clear()
    assert devices.agrees(CPU)
    devices.agrees.cache_clear()

    def rough(x, out):
        out.copy_(x.double().sqrt() * (1 + 2.0**-23))

    monkeypatch.setattr(OnTensors, "sqrt", staticmethod(rough))
    assert not devices.agrees(CPU)
    devices.agrees.cache_clear()

    def lacking(x, out):
        raise RuntimeError("not implemented for this device")

    monkeypatch.setattr(OnTensors, "sqrt", staticmethod(lacking))
    assert not devices.agrees(CPU)
    devices.agrees.cache_clear()


def test_laws_of_ones_own_are_drawn_with_numpy():
    class Own(Normal):
        def transform(self, bits, out):
            assert isinstance(bits, np.ndarray)
            super().transform(bits, out)

    class OnGpu:
        is_cuda, device = True, CPU

    assert not devices.transforms(OnGpu(), Own(1.0))
    assert devices.transforms(OnGpu(), Normal(1.0))


def test_clipping_is_the_same_on_both():
    values = np.linspace(-2, 2, 101, dtype=np.float32)
    tensor = torch.from_numpy(values.copy())
    for each in (values, tensor):
        operations(each).clip(each, np.float32(-0.7), np.float32(1.1))
    assert np.array_equal(values, tensor.numpy())
