import math

import pytest
import torch

from training.optimizer import BETAS, EPSILON, USER_LR, WARM_UP, RowAdam, default_batch_size, lr_factor, planned_epochs


def test_row_adam_equals_adam_when_every_row_is_touched_every_step():
    torch.manual_seed(0)
    table = torch.randn(5, 3)
    reference = torch.nn.Parameter(table.clone())
    adam = torch.optim.Adam([reference], lr=0.01 * USER_LR, betas=BETAS, eps=EPSILON)
    rows = RowAdam(table, lr=0.01 * USER_LR)
    for _ in range(20):
        reference.grad = torch.randn(5, 3)
        adam.step()
        rows.step(torch.arange(5), reference.grad, factor=1.0)
    torch.testing.assert_close(table, reference.data)


def test_row_adam_leaves_other_rows_alone():
    table = torch.ones(4, 2)
    rows = RowAdam(table, lr=0.01 * USER_LR)
    rows.step(torch.tensor([1, 3]), torch.ones(2, 2), factor=0.5)
    assert (table[[0, 2]] == 1).all() and (rows.state["steps"][[0, 2]] == 0).all()
    torch.testing.assert_close(table[[1, 3]], torch.full((2, 2), 1 - 0.01 * USER_LR * 0.5))


def test_rate_warms_up_and_falls_to_nearly_zero():
    factors = [lr_factor(step, 100) for step in range(100)]
    assert factors[0] < factors[1] < factors[2] == max(factors)
    assert factors[-1] < 1e-3


@pytest.mark.parametrize(("num_users", "num_steps", "most", "expected"), [
    (10, 1, 100, 20), (12_000, 94, 100, 10), (480_189, 118, 100, 8), (480_189, 118, 3, 3),
    (120_000, 15, 100, 20), (120_000, 25, 100, 16), (120_000, 50, 100, 8)])
def test_fewer_epochs_are_planned_for_more_users_in_many_steps(num_users, num_steps, most, expected):
    assert planned_epochs(num_users, num_steps, most) == expected


@pytest.mark.parametrize(("num_users", "expected"), [(1, 128), (102_399, 128), (102_400, 256), (204_799, 256),
                                                     (204_800, 512), (409_599, 512), (409_600, 4096),
                                                     (480_189, 4096), (10_000_000, 4096)])
def test_steps_have_more_users_where_an_epoch_has_many(num_users, expected):
    assert default_batch_size(num_users, 200 * num_users) == (expected, 1)


@pytest.mark.parametrize(("num_users", "num_ratings", "fewest", "expected"), [
    (120_042, 198_049, 128, (8192, 32)),  # in 14.7 steps: in 29.3 of half as many users would be 6,758 ratings
    (10_000, 1_562_500, 128, (128, 1)), (10_000, 1_562_499, 128, (256, 2)),  # 20,000 ratings a step
    (3072, 3072, 128, (128, 1)), (3073, 3073, 128, (256, 2)),  # 24 steps
    (1682, 75_974, 64, (128, 2)), (9700, 81_000, 64, (512, 8)),
    (10, 10, 128, (128, 1)), (1, 1, 64, (64, 1)), (500_000, 500_000, 128, (32_768, 8))])
def test_steps_have_more_users_where_these_have_few_ratings(num_users, num_ratings, fewest, expected):
    assert default_batch_size(num_users, num_ratings, fewest) == expected


@pytest.mark.parametrize(("step", "num_steps", "expected"), [
    (0, 100, 1 / 3),  # the first of 2 + 1 steps of warm-up
    (1, 100, 2 / 3 * 0.5 * (1 + math.cos(0.01 * math.pi))),
    (50, 100, 0.5),
    (75, 100, 0.5 - 2**0.5 / 4),
    (99, 100, 0.5 * (1 + math.cos(0.99 * math.pi))),
    (0, 1, 1 / 1.02),  # a run of a single step learns
])
def test_rate_follows_a_line_and_then_half_a_cosine(step, num_steps, expected):
    assert lr_factor(step, num_steps) == pytest.approx(expected)


@pytest.mark.parametrize("num_steps", [1, 2, 20, 1000])
def test_rate_is_positive_at_every_step_and_falls_after_the_warm_up(num_steps):
    factors = [lr_factor(step, num_steps) for step in range(num_steps)]
    peak = factors.index(max(factors))
    assert min(factors) > 0 and max(factors) <= 1
    assert peak <= WARM_UP * num_steps + 1
    assert all(left > right for left, right in zip(factors[peak:-1], factors[peak + 1:]))
