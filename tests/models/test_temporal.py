import pytest
import torch

from models.ops import array_ops, backend, numba_kernels
from models.temporal import WINDOWS, MovieBiasOverTime, RecentUserBias


def test_a_movie_has_a_bias_in_every_period():
    bias = MovieBiasOverTime(num_movies=3, num_days=320)
    assert bias.days == 10
    with torch.no_grad():
        bias.table.copy_(torch.arange(96.0).view(3, 32))
    movie_idx, day = torch.tensor([0, 0, 2, 2, 1]), torch.tensor([0, 9, 10, 319, 315])
    assert bias(bias.table, movie_idx, day).tolist() == [0, 0, 65, 95, 63]


@torch.no_grad()
def recent_bias(days: list[int], residuals: list[float], asked: int, rows: list[int] | None = None) -> float:
    """Return the recent bias of user 0 on a day, of the window of 4 days alone."""
    recent = RecentUserBias(num_days=101)
    recent.weight.zero_()
    recent.weight[WINDOWS.index(4)] = 2.0
    recent.log_shrinkage.fill_(torch.tensor(3.0).log())
    row = torch.tensor(rows or [0] * len(days))
    return float(recent(row, torch.tensor(days), torch.tensor(residuals), torch.tensor([0]), torch.tensor([asked]), 2))


def test_the_recent_bias_is_the_shrunk_mean_of_the_residuals_near_the_question():
    # a window of 4 days is the question's day and three to either side
    assert recent_bias([91, 92, 95, 98, 99], [5.0, 7.0, 1.0, 2.0, 9.0], asked=95) == pytest.approx(2 * 10 / (3 + 3))
    assert recent_bias([20, 92, 93], [5.0, 7.0, 1.0], asked=96) == pytest.approx(2 * 1 / (1 + 3))
    assert recent_bias([2, 3, 4], [5.0, 7.0, 1.0], asked=0) == pytest.approx(2 * 12 / (2 + 3))
    assert recent_bias([97, 97, 100], [5.0, 7.0, 1.0], asked=100) == pytest.approx(2 * 13 / (3 + 3))


def test_the_recent_bias_is_nothing_where_nothing_was_rated_and_of_the_user_alone():
    assert recent_bias([20, 30], [5.0, 7.0], asked=100) == 0
    assert recent_bias([100, 100], [5.0, 7.0], asked=100, rows=[0, 1]) == pytest.approx(2 * 5 / (1 + 3))
    assert recent_bias([100, 0], [5.0, 7.0], asked=100, rows=[0, 1]) == pytest.approx(2 * 5 / (1 + 3))


@pytest.mark.parametrize("ops", [array_ops, numba_kernels], ids=["array", "numba"])
@torch.no_grad()
def test_recent_biases_of_many_questions_equal_those_counted_one_by_one(ops):
    torch.manual_seed(0)
    recent = RecentUserBias(num_days=900).double()
    recent.weight.copy_(torch.randn(len(WINDOWS)))
    row, target_row = torch.randint(6, (60,)), torch.randint(7, (40,))
    day, target_day = torch.randint(700, (60,)), torch.randint(900, (40,))
    target_row, target_day = torch.cat([target_row, target_row[-3:]]), torch.cat([target_day, target_day[-3:]])  # twice
    key, target_key = (row * 1000 + day).sort().values, (target_row * 1000 + target_day).sort().values
    row, day, target_row, target_day = key // 1000, key % 1000, target_key // 1000, target_key % 1000
    residual = torch.randn(60, dtype=torch.float64)
    with backend.forced(ops):
        biases = recent(row, day, residual, target_row, target_day, 7)
    for user, asked, found in zip(target_row.tolist(), target_day.tolist(), biases, strict=True):
        of_user = row == user
        expected = 0
        for window, weight, shrinkage in zip(WINDOWS, recent.weight, recent.log_shrinkage.exp(), strict=True):
            near = residual[of_user][(day[of_user] - asked).abs() < window]
            expected += weight * near.sum() / (len(near) + shrinkage)
        torch.testing.assert_close(found, expected)
