"""What all tests share: one torch thread a worker, as pytest-xdist already fills every core."""

import torch

torch.set_num_threads(1)
