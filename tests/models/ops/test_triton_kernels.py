"""What Triton compiles for a GPU, beside the CPU's loops and plain indexing.

Without a GPU these tests run in Triton's interpreter (tests/conftest.py sees to that), on smaller shapes.
"""

import pytest
import torch

from models.ops import array_ops, backend, numba_kernels
from models.ops.ragged import paired_dot, pool, ridge_solve
from models.ops.rating_pattern import RatingPattern
from training.optimizer import BETAS, EPSILON, RowAdam

pytest.importorskip("triton", minversion="3.7", reason="Triton is missing, or too old for its interpreter to run here")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

from models.ops import triton_kernels as gpu_kernels  # noqa: E402

pytestmark = pytest.mark.gpu
# Ratings of the users: none, tiles that are full and that are not, chunks. The interpreter is slow.
COUNTS = [3, 0, 1, 64, 200, 900, 0, 65, 0] if DEVICE == "cuda" else [3, 0, 1, 32, 100, 330, 0, 33, 0]
NUM_MOVIES = 90
SHAPES = [(2, 33), (1, 5), (2, 1), (3, 16), (1, 65), (1, 127)] if DEVICE == "cuda" else [(2, 17), (3, 5), (2, 1)]


def ratings(counts: list[int] = COUNTS) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows and movies of ratings of users with so many each."""
    row = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    return row, torch.randint(NUM_MOVIES, row.shape)


def pattern_of(row: torch.Tensor, indices: torch.Tensor, num_users: int, members: int,
               device: str = DEVICE) -> RatingPattern:
    return RatingPattern(row.to(device), indices.to(device), num_users, NUM_MOVIES, members)


def on_device(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.to(DEVICE) for tensor in tensors]


def close(mine: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(mine.cpu(), reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("members", "dim"), SHAPES)
def test_products_and_sums_are_those_of_plain_indexing(members, dim):
    torch.manual_seed(0)
    row, indices = ratings()
    users, movies = torch.randn(len(COUNTS), members, dim), torch.randn(NUM_MOVIES, members, dim)
    weight, pattern = torch.randn(len(row), members), pattern_of(row, indices, len(COUNTS), members)
    there = dict(zip(("users", "movies", "weight"), on_device(users, movies, weight), strict=True))
    close(gpu_kernels.dots(there["users"], there["movies"], pattern), (users[row] * movies[indices]).sum(-1))
    close(gpu_kernels.sum_by_user(there["movies"], there["weight"], pattern),
          torch.zeros_like(users).index_add_(0, row, movies[indices] * weight.unsqueeze(-1)))
    close(gpu_kernels.sum_by_movie(there["users"], there["weight"], pattern),
          torch.zeros_like(movies).index_add_(0, indices, users[row] * weight.unsqueeze(-1)))


@pytest.mark.parametrize(("members", "dim"), SHAPES)
def test_ridge_regressions_are_those_of_the_cpu(members, dim):
    torch.manual_seed(0)
    row, indices = ratings()
    inputs = (torch.randn(NUM_MOVIES, members, dim + 1), torch.randn(len(row)),
              torch.randn(len(COUNTS), members, dim), torch.rand(len(COUNTS), members, dim) + 0.5)
    right = torch.randn(len(COUNTS), members, dim)
    here, there = (pattern_of(row, indices, len(COUNTS), members, device) for device in ("cpu", DEVICE))
    solution, residual, inverse = gpu_kernels.ridge(*on_device(*inputs), there, keep=True)
    expected, expected_residual, factor = numba_kernels.ridge(*inputs, here, keep=True)
    # Movies that span less than all coordinates are badly conditioned.
    tolerance, between_calls = (1e-4, 1e-5) if dim < NUM_MOVIES else (2e-3, 1e-3)
    close(solution, expected, tolerance)
    close(residual, expected_residual, tolerance)
    close(gpu_kernels.ridge_again(inverse, right.to(DEVICE)), numba_kernels.ridge_again(factor, right), 5 * tolerance)
    close(gpu_kernels.ridge(*on_device(*inputs), there, keep=False)[0], solution.cpu(), between_calls)


def test_a_regression_of_what_is_not_finite_is_not_finite():
    row, indices = ratings([20, 20])
    movies = torch.ones(NUM_MOVIES, 2, 4)
    movies[indices[3], 1, 0] = torch.nan
    movies, target, prior = on_device(movies, torch.ones(40), torch.zeros(2, 2, 3))
    solution, residual, _ = gpu_kernels.ridge(movies, target, prior, torch.ones_like(prior),
                                              pattern_of(row, indices, 2, 2), keep=False)
    assert solution[:, 0].isfinite().all() and not solution[0, 1].isfinite().any()
    assert residual[:, 0].isfinite().all() and not residual[:20, 1].isfinite().any()


@pytest.mark.parametrize("seed", [0, 1, -16, 77, 5_000_000_123])
def test_random_numbers_are_those_of_the_cpu_to_the_bit(seed):
    users, movies = torch.randint(2**40, (3000,)), torch.randint(2**20, (3000,))
    for columns in ((users,), (users, movies)):
        assert torch.equal(gpu_kernels.uniform(seed, *on_device(*columns)).cpu(), array_ops.uniform(seed, *columns))


def test_there_is_nothing_of_nobody():
    nothing = torch.zeros(0, dtype=torch.int64)
    nobody, without_ratings = pattern_of(nothing, nothing, 0, 2), pattern_of(nothing, nothing, 3, 2)
    movies = torch.randn(NUM_MOVIES, 2, 4, device=DEVICE)
    users, weight, target = movies[:0], torch.zeros(0, 2, device=DEVICE), torch.zeros(0, device=DEVICE)
    assert gpu_kernels.dots(users, movies, nobody).shape == (0, 2)
    assert gpu_kernels.sum_by_user(movies, weight, nobody).shape == (0, 2, 4)
    assert not gpu_kernels.sum_by_movie(users, weight, nobody).any()
    prior = users[..., 1:]
    assert gpu_kernels.ridge(movies, target, prior, prior, nobody)[0].shape == (0, 2, 3)
    assert gpu_kernels.uniform(0, *on_device(nothing)).numel() == 0
    prior = torch.randn(3, 2, 3, device=DEVICE)
    close(gpu_kernels.ridge(movies, target, prior, torch.ones_like(prior), without_ratings)[0], prior.cpu())
    assert not gpu_kernels.sum_by_user(movies, weight, without_ratings).any()


@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")
def test_gradients_on_a_gpu_are_those_of_the_cpu():
    torch.manual_seed(0)
    row, indices = ratings([*COUNTS, 1500])
    inputs = [torch.randn(NUM_MOVIES, 2, 34), torch.randn(len(row)), torch.randn(len(COUNTS) + 1, 2, 33),
              torch.rand(len(COUNTS) + 1, 2, 33) + 1]
    grad, results = torch.randn_like(inputs[2]), []
    for device in ("cpu", DEVICE):
        leaves = [tensor.to(device).requires_grad_() for tensor in inputs]
        solution, residual = ridge_solve(*leaves, pattern_of(row, indices, len(grad), 2, device))
        results.append([solution, residual, *torch.autograd.grad(solution, leaves, grad.to(device))])
    for mine, reference in zip(*results[::-1], strict=True):
        close(mine.detach(), reference.detach(), 5e-3)


def test_the_operations_differentiate_through_the_kernels():
    """All of them together, in the interpreter too: each finds its ratings and its sums."""
    torch.manual_seed(0)
    row, indices = ratings([5, 0, 40])
    movies, prior = torch.randn(NUM_MOVIES, 2, 5), torch.randn(3, 2, 4)
    table, weight, target = torch.randn(NUM_MOVIES, 6), torch.randn(len(row)), torch.randn(len(row))
    results = []
    for ops, device in ((gpu_kernels, DEVICE), (array_ops, "cpu")):
        leaves = [tensor.to(device).requires_grad_() for tensor in (movies, target, prior, table)]
        pattern = pattern_of(row, indices, 3, 2, device)
        with backend.forced(ops):
            users, _ = ridge_solve(*leaves[:3], torch.ones_like(leaves[2]), pattern)
            score = paired_dot(users, leaves[0][..., 1:], pattern)
            pooled = pool(leaves[3], weight.to(device), row.to(device), indices.to(device), 3)
            results.append(torch.autograd.grad(score.square().sum() + pooled.square().sum(), leaves))
    for mine, reference in zip(*results, strict=True):
        close(mine, reference, 2e-3)


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
