"""The fixtures do what the other tests lean on."""

import torch


def test_memory_that_nobody_wrote_is_nan():
    like = torch.zeros(3, 4).transpose(0, 1)
    for made in (
        torch.empty(5),
        torch.empty_like(like),
        torch.empty_like(like, memory_format=torch.contiguous_format),
        like.new_empty(2, 2),
        torch.empty_strided((2, 3), (5, 1)),
        torch.empty(7, dtype=torch.float64),
        torch.zeros(2).resize_(9)[2:],
    ):
        assert made.isnan().all()
