"""What Triton compiles for a GPU, beside the CPU's loops and plain indexing.

Without a GPU these tests run in Triton's interpreter (tests/conftest.py sees to that), on smaller shapes.
"""

import pytest
import torch

from models.ops import numba_kernels as kernels
from models.ops.ragged import Pairs, ridge_solve, starts
from models.temporal import WINDOWS
from training import batches
from training.optimizer import BETAS, EPSILON, RowAdam

pytest.importorskip("triton", minversion="3.7", reason="Triton is missing, or too old for its interpreter to run here")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

from models.ops import triton_kernels as gpu_kernels  # noqa: E402

pytestmark = pytest.mark.gpu
# Ratings of the users: none, tiles that are full and that are not, chunks. The interpreter is slow.
COUNTS = [3, 0, 1, 64, 200, 900, 0, 65, 0] if DEVICE == "cuda" else [3, 0, 1, 32, 100, 330, 0, 33, 0]
NUM_FILMS = 90
SHAPES = [(2, 33), (1, 5), (2, 1), (3, 16), (1, 65), (1, 127)] if DEVICE == "cuda" else [(2, 17), (3, 5), (2, 1)]


def ratings(counts: list[int] = COUNTS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the rows and films of ratings of users with so many each, and where each user's begin."""
    row = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return row, torch.randint(NUM_FILMS, row.shape), starts(row, len(counts))


def on_device(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.to(DEVICE) for tensor in tensors]


def close(mine: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(mine.cpu(), reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("heads", "size"), SHAPES)
def test_products_and_sums_are_those_of_plain_indexing(heads, size):
    torch.manual_seed(0)
    row, column, start = ratings()
    users, films = torch.randn(len(COUNTS), heads, size), torch.randn(NUM_FILMS, heads, size)
    weight = torch.randn(len(row), heads)
    there = dict(zip(("users", "films", "weight", "column", "start"), on_device(users, films, weight, column, start),
                     strict=True))
    close(gpu_kernels.dots(there["users"], there["films"], there["column"], there["start"]),
          (users[row] * films[column]).sum(-1))
    close(gpu_kernels.sum_films(there["films"], there["weight"], there["column"], there["start"]),
          torch.zeros_like(users).index_add_(0, row, films[column] * weight.unsqueeze(-1)))
    close(gpu_kernels.sum_users(there["users"], there["weight"], there["column"], there["start"], NUM_FILMS),
          torch.zeros_like(films).index_add_(0, column, users[row] * weight.unsqueeze(-1)))


@pytest.mark.parametrize(("heads", "size"), SHAPES)
def test_ridge_regressions_are_those_of_the_cpu(heads, size):
    torch.manual_seed(0)
    row, column, start = ratings()
    films, wanted = torch.randn(NUM_FILMS, heads, size + 1), torch.randn(len(row))
    prior, penalty = torch.randn(len(COUNTS), heads, size), torch.rand(len(COUNTS), heads, size) + 0.5
    right = torch.randn_like(prior)
    inputs = films, wanted, column, start, prior, penalty
    solution, left, kept = gpu_kernels.ridge(*on_device(*inputs), keep=True)
    expected, expected_left, factor = kernels.ridge(*inputs, keep=True)
    # Films that span less than all coordinates are badly conditioned.
    tolerance, between_calls = (1e-4, 1e-5) if size < NUM_FILMS else (2e-3, 1e-3)
    close(solution, expected, tolerance)
    close(left, expected_left, tolerance)
    close(gpu_kernels.ridge_again(kept, right.to(DEVICE)), kernels.ridge_again(factor, right), 5 * tolerance)
    close(gpu_kernels.ridge(*on_device(*inputs), keep=False)[0], solution.cpu(), between_calls)


def test_a_regression_of_what_is_not_finite_is_not_finite():
    _, column, start = ratings([20, 20])
    films = torch.ones(NUM_FILMS, 2, 4)
    films[column[3], 1, 0] = torch.nan
    films, wanted, column, start, prior = on_device(films, torch.ones(40), column, start, torch.zeros(2, 2, 3))
    solution, left, _ = gpu_kernels.ridge(films, wanted, column, start, prior, torch.ones_like(prior), keep=False)
    assert solution[:, 0].isfinite().all() and not solution[0, 1].isfinite().any()
    assert left[:, 0].isfinite().all() and not left[:20, 1].isfinite().any()


def test_moods_are_those_of_the_cpu():
    torch.manual_seed(0)
    asked_counts = [5, 2, 0, 70, 1, 130, 1, 0, 3]
    days, asked = (torch.cat([torch.randint(most, (count,)).sort().values for count in counts])
                   for most, counts in ((900, COUNTS), (1000, asked_counts)))
    inputs = days, torch.randn(len(days)), ratings()[2], asked, ratings(asked_counts)[2]
    close(gpu_kernels.mood_sums(*on_device(*inputs), WINDOWS), kernels.mood_sums(*inputs, WINDOWS))


@pytest.mark.parametrize("seed", [0, 1, 16, 77, 5_000_000_123])
def test_chance_is_that_of_the_cpu_to_the_bit(seed):
    users, movies = torch.randint(2**40, (3000,)), torch.randint(2**20, (3000,))
    for columns in ((users,), (users, movies)):
        assert torch.equal(gpu_kernels.uniform(seed, *on_device(*columns)).cpu(), batches.uniform(seed, *columns))


def test_there_is_nothing_of_nobody():
    nothing, start = on_device(torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    films = torch.randn(5, 2, 4, device=DEVICE)
    users, weight = films[:0], torch.zeros(0, 2, device=DEVICE)
    assert gpu_kernels.dots(users, films, nothing, start).shape == (0, 2)
    assert gpu_kernels.sum_films(films, weight, nothing, start).shape == (0, 2, 4)
    assert not gpu_kernels.sum_users(users, weight, nothing, start, 5).any()
    prior = users[..., 1:]
    assert gpu_kernels.ridge(films, films[:0, 0, 0], nothing, start, prior, prior, True)[0].shape == (0, 2, 3)
    assert gpu_kernels.mood_sums(nothing, films[:0, 0, 0], start, nothing, start, WINDOWS).shape == (2, 0, len(WINDOWS))
    assert gpu_kernels.uniform(0, nothing).numel() == 0
    nobodys = torch.zeros(4, dtype=torch.int64, device=DEVICE)  # users without ratings
    prior = torch.randn(3, 2, 3, device=DEVICE)
    solution = gpu_kernels.ridge(films, films[:0, 0, 0], nothing, nobodys, prior, torch.ones_like(prior), True)[0]
    close(solution, prior.cpu())
    assert not gpu_kernels.sum_films(films, weight, nothing, nobodys).any()


@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")
def test_gradients_on_a_gpu_are_those_of_the_cpu():
    torch.manual_seed(0)
    row, column, _ = ratings([*COUNTS, 1500])
    inputs = [torch.randn(NUM_FILMS, 2, 34), torch.randn(len(row)), torch.randn(len(COUNTS) + 1, 2, 33),
              torch.rand(len(COUNTS) + 1, 2, 33) + 1]
    grad, results = torch.randn_like(inputs[2]), []
    for device in ("cpu", DEVICE):
        leaves = [tensor.to(device).requires_grad_() for tensor in inputs]
        solution, left = ridge_solve(*leaves, Pairs(row.to(device), column.to(device), len(grad), NUM_FILMS, 2))
        results.append([solution, left, *torch.autograd.grad(solution, leaves, grad.to(device))])
    for mine, reference in zip(*results[::-1], strict=True):
        close(mine.detach(), reference.detach(), 5e-3)


def test_rows_move_as_adam_moves_them():
    torch.manual_seed(0)
    for width in (16, 5):
        ours, reference = (RowAdam(torch.ones(7, width, device=device), 0.01) for device in (DEVICE, "cpu"))
        for step in range(1, 4):
            rows, grad = torch.randperm(7)[:4], torch.randn(4, width)
            gpu_kernels.row_adam(ours.table, ours.state["mean"], ours.state["square"], ours.state["steps"],
                                 *on_device(rows, grad), ours.lr * step, BETAS, EPSILON)
            reference.step(rows, grad, step)
        close(ours.table, reference.table)
        for name, value in reference.state.items():
            close(ours.state[name], value)
