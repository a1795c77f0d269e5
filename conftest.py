"""What all tests share: one torch thread a worker, since the suite runs in as many workers as there are cores."""

import torch

torch.set_num_threads(1)
