"""What `forget` means for those who hold packed weights by address."""

import torch

import swintormer_kernels as sk
from swintormer_kernels import packed


def test_forget_is_seen_by_the_generation():
    before, layer = packed.generation(), torch.nn.Linear(2, 2)
    packed.packed_weight([layer.weight], "twice", lambda: 2 * layer.weight)
    assert packed.generation() == before, "new versions are made beside a graph's; only forget takes some away"
    sk.forget(layer)
    sk.forget(layer)
    assert packed.generation() == before + 2
