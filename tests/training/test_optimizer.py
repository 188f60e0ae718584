import pytest
import torch

from training.optimizer import BETAS, EPSILON, USER_RATE, RowAdam, planned_epochs, schedule


def test_row_adam_equals_adam_when_every_row_is_touched_every_step():
    torch.manual_seed(0)
    table = torch.randn(5, 3)
    reference = torch.nn.Parameter(table.clone())
    adam = torch.optim.Adam([reference], lr=0.01 * USER_RATE, betas=BETAS, eps=EPSILON)
    rows = RowAdam(table, lr=0.01)
    for _ in range(20):
        reference.grad = torch.randn(5, 3)
        adam.step()
        rows.step(torch.arange(5), reference.grad, factor=1.0)
    torch.testing.assert_close(table, reference.data)


def test_row_adam_leaves_other_rows_alone():
    table = torch.ones(4, 2)
    rows = RowAdam(table, lr=0.01)
    rows.step(torch.tensor([1, 3]), torch.ones(2, 2), factor=0.5)
    assert (table[[0, 2]] == 1).all() and (rows.state["steps"][[0, 2]] == 0).all()
    torch.testing.assert_close(table[[1, 3]], torch.full((2, 2), 1 - 0.01 * USER_RATE * 0.5))


def test_rate_warms_up_and_falls_to_nearly_zero():
    factors = [schedule(step, 100) for step in range(100)]
    assert factors[0] < factors[3] < factors[5] == max(factors[5:])
    assert factors[-1] < 1e-3


@pytest.mark.parametrize(("num_users", "most", "expected"), [(10, 100, 20), (12_000, 100, 10), (480_189, 100, 8),
                                                             (480_189, 3, 3)])
def test_fewer_epochs_are_planned_for_more_users(num_users, most, expected):
    assert planned_epochs(num_users, most) == expected
