import math

import pytest
import torch

from training.optimizer import (
    BETAS,
    EPSILON,
    MOMENTUM,
    TABLE_LR,
    USER_LR,
    WARM_UP,
    LayerAdam,
    RowAdam,
    TableSGD,
    default_batch_size,
    layers_lr,
    lr_factor,
    planned_epochs,
)


@pytest.mark.parametrize("decays", [(0.0, 3.0), (3.0, 0.0), (0.5, 0.5)])
def test_movies_that_few_steps_meet_move_as_if_they_were_in_every_step(decays):
    """As torch's SGD moves them, for which the others' gradients are zero; steps of most movies take all along."""
    chance, num_movies, lr = torch.Generator().manual_seed(0), 9, 0.04
    tables = [torch.nn.Parameter(torch.randn(num_movies, *shape, dtype=torch.float64, generator=chance))
              for shape in ((), (2, 3))]
    references = [torch.nn.Parameter(table.detach().clone()) for table in tables]
    expected = torch.optim.SGD([{"params": [table], "weight_decay": decay} for table, decay in zip(references, decays)],
                               1, momentum=MOMENTUM, nesterov=True)
    sgd = TableSGD(dict(zip(tables, decays, strict=True)), lr)
    for number, met in enumerate([[0, 3], [1], [3, 5], [], [0, 8], [0, 1, 2, 4, 5, 8], [7], [3], [0, 3, 7], [3]]):
        movies, factor = torch.tensor(met, dtype=torch.int64), 1 / (1 + number % 4)
        for _ in range(2):  # who has caught up has nothing to catch up with
            sgd.catch_up(movies)
        for table, reference in zip(tables, references, strict=True):
            torch.testing.assert_close(table[movies], reference[movies])
            grad = torch.randn(len(met), *table.shape[1:], dtype=torch.float64, generator=chance)
            table.grad = torch.sparse_coo_tensor(movies.unsqueeze(0), grad, table.shape, is_coalesced=True,
                                                 check_invariants=True)
            reference.grad = table.grad.to_dense()
        sgd.step(factor)
        for group in expected.param_groups:
            group["lr"] = lr * TABLE_LR * factor
        expected.step()
    sgd.catch_up()
    for table, momentum, reference in zip(tables, sgd.momentum, references, strict=True):
        torch.testing.assert_close(table, reference)
        torch.testing.assert_close(momentum, expected.state[reference]["momentum_buffer"])


def test_row_adam_moves_the_rows_alone_that_a_gradient_reaches():
    """The others neither move on by their momentum nor grow older."""
    for is_sparse in (False, True):
        table = torch.ones(4, 2)
        rows, gradient = RowAdam(table, lr=0.1), torch.tensor([[0.0, 0], [1, 0], [0, 0], [-2, 3]])
        for _ in range(2):
            rows.step_of(gradient.to_sparse(1) if is_sparse else gradient, factor=1.0)
            before = table.clone()
        assert rows.state["steps"].view(-1).tolist() == [0, 2, 0, 2]
        gradient[3] = 0
        rows.step_of(torch.sparse_coo_tensor([[1, 3]], gradient[[1, 3]], (4, 2), check_invariants=True)
                     if is_sparse else gradient, factor=1.0)
        assert rows.state["steps"].view(-1).tolist() == [0, 3, 0, 2]
        assert (table != before).tolist() == [[False, False], [True, False], [False, False], [False, False]]


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
    (120_000, 15, 100, 20), (120_000, 20, 100, 16), (120_000, 40, 100, 8)])
def test_fewer_epochs_are_planned_for_more_users_in_many_steps(num_users, num_steps, most, expected):
    assert planned_epochs(num_users, num_steps, most) == expected


@pytest.mark.parametrize(("num_users", "expected"), [(1, 128), (102_399, 128), (102_400, 256), (204_799, 256),
                                                     (204_800, 512), (409_599, 512), (409_600, 4096),
                                                     (480_189, 4096), (10_000_000, 4096)])
def test_steps_have_more_users_where_an_epoch_has_many(num_users, expected):
    assert default_batch_size(num_users, 250 * num_users) == (expected, 1)


@pytest.mark.parametrize(("num_users", "num_ratings", "fewest", "expected"), [
    (120_042, 198_049, 128, (16_384, 64)),  # in 7.3 steps: in 14.7 of half as many users would be 13,516 ratings
    (10_000, 2_500_000, 128, (128, 1)), (10_000, 2_499_999, 128, (256, 2)),  # 32,000 ratings a step
    (1536, 1536, 128, (128, 1)), (1537, 1537, 128, (256, 2)),  # 12 steps
    (1682, 75_974, 64, (256, 4)), (9700, 81_000, 64, (1024, 16)),
    (10, 10, 128, (128, 1)), (1, 1, 64, (64, 1)), (500_000, 500_000, 128, (32_768, 8))])
def test_steps_have_more_users_where_these_have_few_ratings(num_users, num_ratings, fewest, expected):
    assert default_batch_size(num_users, num_ratings, fewest) == expected


def test_layers_move_by_the_root_of_how_many_times_steps_are_enlarged():
    """Up to 16 times, from a rate of 10 times the base."""
    assert [layers_lr(enlarged) for enlarged in (1, 4, 16, 32)] == [10, 20, 40, 40]


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


def test_layers_follow_pytorchs_adam_and_one_without_a_gradient_stays():
    ours, theirs = ([torch.nn.Parameter(torch.arange(4.0).view(2, 2)), torch.nn.Parameter(torch.ones(3)),
                     torch.nn.Parameter(torch.ones(2))] for _ in range(2))
    layers, adam = LayerAdam(ours), torch.optim.Adam(theirs, 0.1, BETAS, EPSILON)
    for step, lr in enumerate((0.1, 0.05, 0.02)):
        for parameters in (ours, theirs):
            for k, parameter in enumerate(parameters[:2]):
                parameter.grad = torch.full_like(parameter, 1.0 + step - 2 * k)
        adam.param_groups[0]["lr"] = lr
        layers.step(lr)
        adam.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)
    assert torch.equal(ours[2], torch.ones(2)) and layers.state["steps"][2] == 0
