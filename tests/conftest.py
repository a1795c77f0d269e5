"""One thread per test process: tensors are small here, and pytest-xdist already fills every core."""

import torch

torch.set_num_threads(1)
