"""One thread a process: tests that start workers beside themselves would otherwise share a core many times over."""

import torch

torch.set_num_threads(1)
