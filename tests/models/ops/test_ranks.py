from unittest.mock import Mock

import torch
from torch import distributed as dist

from models.ops.ranks import SMALL, Ranks


def test_tensors_of_any_size_and_type_are_summed_and_small_ones_of_a_type_travel_as_one(monkeypatch):
    sent = []

    def all_reduce(tensor: torch.Tensor, async_op: bool) -> Mock:
        """Add what another rank with ten times the numbers would."""
        sent.append(tensor.numel())
        tensor += 10 * tensor
        return Mock()

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    tensors = [torch.randn(3, 2), torch.randn(SMALL + 1), torch.tensor(2.0, dtype=torch.float64), torch.randn(0, 4),
               torch.arange(5), torch.randn(4)]
    expected = [11 * tensor for tensor in tensors]
    Ranks(0, 2).sum_(*tensors)
    for tensor, total in zip(tensors, expected, strict=True):
        assert tensor.dtype == total.dtype
        torch.testing.assert_close(tensor, total)
    assert sorted(sent) == [1, 5, 6 + 0 + 4, SMALL + 1]


def test_a_single_rank_sends_nothing(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", None)
    tensor = torch.ones(3)
    Ranks().sum_(tensor)
    assert tensor.tolist() == [1, 1, 1]
