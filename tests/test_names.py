import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from isometry.names import canonical_name, unwrap

# torch.compile's own imports use what torch itself deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def test_wrappers_leave_no_trace_in_names():
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 4)))
    expected = [name for name, _ in model.named_parameters()]
    model[1] = checkpoint_wrapper(model[1])
    wrapped = nn.DataParallel(torch.compile(model))
    names = [name for name, _ in wrapped.named_parameters()]
    assert names != expected
    assert [canonical_name(name) for name in names] == expected


def test_module_is_a_wrapper_only_where_it_leads():
    assert canonical_name("module.module.weight") == "weight"
    assert canonical_name("encoder.module.weight") == "encoder.module.weight"
    assert canonical_name("module") == "module"
    assert canonical_name("") == ""


def test_unwrap_finds_the_users_own_module():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 3)

    holder = Holder()
    assert unwrap(holder) is holder
    assert unwrap(nn.DataParallel(torch.compile(holder))) is holder
    assert unwrap(checkpoint_wrapper(holder)) is holder
