import signal
from collections.abc import Iterator

import pytest
import torch

import models.ops
from models.ops import array_ops, backend, numba_kernels
from models.ops.array_ops import normal_equations, with_one
from models.ops.ragged import gather_distinct, paired_dot, pool, ridge_solve
from models.ops.rating_pattern import RatingPattern
from models.ops.threads import shared_out

MEMBERS, DIM, NUM_MOVIES = 2, 3, 7
COUNT = torch.tensor([4, 0, 1, 6])  # a user without ratings among them
ROW = torch.arange(len(COUNT)).repeat_interleave(COUNT)
INDICES = torch.tensor([5, 0, 2, 6, 2, 1, 2, 0, 6, 3, 5])  # of movie 4 there are none
BACKENDS = pytest.mark.parametrize("ops", [array_ops, numba_kernels], ids=["array", "numba"])


@pytest.fixture(params=[array_ops, numba_kernels], ids=["array", "numba"])
def pattern(request) -> Iterator[RatingPattern]:
    """The ratings, with every backend of a CPU in turn."""
    with backend.forced(request.param):
        yield RatingPattern(ROW, INDICES, len(COUNT), NUM_MOVIES, MEMBERS)


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    movies = torch.randn(NUM_MOVIES, MEMBERS, DIM + 1, dtype=torch.float64)
    target = torch.randn(len(ROW), dtype=torch.float64)
    prior = torch.randn(len(COUNT), MEMBERS, DIM, dtype=torch.float64)
    l2 = torch.rand(len(COUNT), MEMBERS, DIM, dtype=torch.float64) + 0.1
    return tuple(tensor.requires_grad_() for tensor in (movies, target, prior, l2))


@pytest.fixture
def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of the users and of the movies."""
    torch.manual_seed(0)
    users = torch.randn(len(COUNT), MEMBERS, DIM, dtype=torch.float64, requires_grad=True)
    return users, torch.randn(NUM_MOVIES, MEMBERS, DIM, dtype=torch.float64, requires_grad=True)


@BACKENDS
def test_products_with_the_matrix_equal_those_of_the_matrix_written_out(ops, vectors):
    pattern = RatingPattern(ROW, INDICES, len(COUNT), NUM_MOVIES, MEMBERS)
    users, movies = (each.detach() for each in vectors)
    weight = torch.randn(len(ROW), MEMBERS, dtype=torch.float64)
    dots = ops.dots(users, movies, pattern)
    for member in range(MEMBERS):
        matrix = torch.zeros(len(COUNT), NUM_MOVIES, dtype=torch.float64)
        matrix[ROW, INDICES] += weight[:, member]
        torch.testing.assert_close(dots[:, member], (users[:, member] @ movies[:, member].T)[ROW, INDICES])
        torch.testing.assert_close(ops.sum_by_user(movies, weight, pattern)[:, member], matrix @ movies[:, member])
        torch.testing.assert_close(ops.sum_by_movie(users, weight, pattern)[:, member], matrix.T @ users[:, member])


@BACKENDS
@pytest.mark.parametrize("num_users", [0, 3])
def test_products_without_ratings_are_empty_or_zero(num_users, ops):
    nothing = torch.zeros(0, dtype=torch.int64)
    pattern = RatingPattern(nothing, nothing, num_users, 5, MEMBERS)
    users, movies, weight = torch.randn(num_users, MEMBERS, DIM), torch.randn(5, MEMBERS, DIM), torch.zeros(0, MEMBERS)
    assert ops.dots(users, movies, pattern).shape == (0, MEMBERS)
    assert torch.equal(ops.sum_by_user(movies, weight, pattern), torch.zeros(num_users, MEMBERS, DIM))
    assert torch.equal(ops.sum_by_movie(users, weight, pattern), torch.zeros(5, MEMBERS, DIM))


@pytest.mark.parametrize(("num_ratings", "num_users", "expected"), [
    (2000, 5, numba_kernels), (backend.FEW_RATINGS, 5, array_ops), (2000, 1, array_ops)])
def test_loops_are_chosen_for_many_ratings_of_many_users(num_ratings, num_users, expected):
    row = torch.arange(num_ratings) * num_users // num_ratings
    pattern = RatingPattern(row, row % 3, num_users, 3)
    assert backend.of_pattern(pattern) is backend.of_ratings(row, num_users) is expected
    with backend.forced(numba_kernels):
        assert backend.of_pattern(pattern) is backend.of_device(row.device) is numba_kernels
    assert backend.of_device(row.device) is array_ops


def test_a_gpu_whose_kernels_do_not_run_is_served_by_array_operations_after_a_warning(monkeypatch):
    monkeypatch.setattr(models.ops, "triton_kernels", None, raising=False)
    backend._gpu_backend.cache_clear()
    try:
        with pytest.warns(UserWarning, match="several times slower on this GPU without Triton's kernels: "):
            assert backend._gpu_backend(torch.device("cpu")) is array_ops
    finally:
        backend._gpu_backend.cache_clear()


@pytest.mark.parametrize("num_users", [0, 3])
def test_normal_equations_without_ratings_are_zero(num_users):
    nothing = torch.zeros(0, dtype=torch.int64)
    pattern = RatingPattern(nothing, nothing, num_users, 5, MEMBERS)
    products = normal_equations(torch.randn(5, MEMBERS, DIM), torch.zeros(0), pattern)
    assert torch.equal(products[0], torch.zeros(num_users, MEMBERS, DIM - 1, DIM - 1))
    assert torch.equal(products[1], torch.zeros(num_users, MEMBERS, DIM - 1))


@pytest.mark.parametrize("num_movies", [6, 2**16, 2**40])
def test_the_order_of_movies_ascends_and_keeps_equal_ones_as_they_come(num_movies):
    indices = torch.tensor([5, 0, num_movies - 1, 5, 0])
    pattern = RatingPattern(torch.arange(5), indices, 5, num_movies)
    assert pattern.by_movie.tolist() == sorted(range(5), key=lambda position: int(indices[position]))


def test_ridge_solve_equals_the_normal_equations_written_out(inputs, pattern):
    movies, target, prior, l2 = inputs
    solution, residual = ridge_solve(*inputs, pattern)
    for user in range(len(COUNT)):
        of_user = user == ROW
        for member in range(MEMBERS):
            v, r = movies[INDICES[of_user], member, :-1], target[of_user] - movies[INDICES[of_user], member, -1]
            above_prior = r - v @ prior[user, member]
            system = v.T @ v + torch.diag(l2[user, member])
            expected = prior[user, member] + torch.linalg.solve(system, v.T @ above_prior)
            torch.testing.assert_close(solution[user, member], expected)
            torch.testing.assert_close(residual[of_user, member], r - v @ expected)
    torch.testing.assert_close(solution[1], prior[1])  # no ratings, nothing learned


def test_ridge_solve_gradients_equal_finite_differences(inputs, pattern):
    assert torch.autograd.gradcheck(lambda *args: ridge_solve(*args, pattern)[0], inputs)


def test_ridge_solve_gradients_equal_plain_autograd(inputs, pattern):
    def plain(movies, target, prior, l2):
        solutions = []
        for user in range(len(COUNT)):
            of_user = user == ROW
            v = movies[INDICES[of_user], :, :-1].transpose(0, 1)
            r = (target[of_user].unsqueeze(1) - movies[INDICES[of_user], :, -1]).T.unsqueeze(-1)
            unexplained = r - v @ prior[user].unsqueeze(-1)
            system = v.transpose(1, 2) @ v + torch.diag_embed(l2[user])
            solutions.append(prior[user] + torch.linalg.solve(system, v.transpose(1, 2) @ unexplained).squeeze(-1))
        return torch.stack(solutions)

    weight = torch.randn(len(COUNT), MEMBERS, DIM, dtype=torch.float64)
    ours = torch.autograd.grad((ridge_solve(*inputs, pattern)[0] * weight).sum(), inputs)
    theirs = torch.autograd.grad((plain(*inputs) * weight).sum(), inputs)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("counts", [[4, 0, 1, 6], [300, 128, 1, 0, 129], [1], [1] * 30, [2000, 1, 0]])
def test_normal_equations_are_those_of_each_user_written_out(counts):
    """Of users with fewer ratings than a piece, and with several pieces."""
    torch.manual_seed(0)
    count = torch.tensor(counts)
    row = torch.arange(len(count)).repeat_interleave(count)
    movies, indices = torch.randn(9, MEMBERS, DIM, dtype=torch.float64), torch.randint(9, (len(row),))
    target = torch.randn(len(row), dtype=torch.float64)
    expected = [[], []]
    for user in range(len(count)):
        vectors, bias = movies[indices[row == user]].split([DIM - 1, 1], -1)
        expected[0].append(torch.einsum("rvd,rve->vde", vectors, vectors))
        expected[1].append(torch.einsum("rvd,rv->vd", vectors, target[row == user].unsqueeze(1) - bias.squeeze(-1)))
    pattern = RatingPattern(row, indices, len(count), 9, MEMBERS)
    torch.testing.assert_close(normal_equations(movies, target, pattern), tuple(map(torch.stack, expected)))


def test_paired_dot_has_the_gradients_of_plain_indexing(pattern, vectors):
    users, movies = vectors
    torch.testing.assert_close(paired_dot(users, movies, pattern), (users[ROW] * movies[INDICES]).sum(-1))
    assert torch.autograd.gradcheck(lambda u, f: paired_dot(u, f, pattern), vectors)


@BACKENDS
def test_pool_is_the_sum_written_out_with_its_gradients(ops):
    torch.manual_seed(0)
    table = torch.randn(NUM_MOVIES, 2 * DIM, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(ROW), dtype=torch.float64)
    rows = table[INDICES]
    rows = weight.unsqueeze(1) * rows[:, :DIM] + rows[:, DIM:]
    expected = torch.stack([rows[user == ROW].sum(0) for user in range(len(COUNT))])
    with backend.forced(ops):
        torch.testing.assert_close(pool(table, weight, ROW, INDICES, len(COUNT)), expected)
        assert torch.autograd.gradcheck(lambda table: pool(table, weight, ROW, INDICES, len(COUNT)), (table,))


def test_gather_distinct_has_the_gradients_of_plain_indexing(vectors):
    movies, index = vectors[1], torch.tensor([0, 4, 6])
    assert torch.equal(gather_distinct(movies, index), movies[index])
    weight = torch.randn(3, *movies.shape[1:], dtype=movies.dtype)
    (gradient,), (expected,) = (torch.autograd.grad((rows * weight).sum(), movies)
                                for rows in (gather_distinct(movies, index), movies[index]))
    assert gradient.is_sparse and gradient.coalesce().indices()[0].tolist() == [0, 4, 6]
    assert torch.equal(gradient.to_dense(), expected)


def test_with_one_meets_a_bias(vectors):
    users, movies = vectors
    torch.testing.assert_close((with_one(users)[0] * torch.cat([movies[1], torch.full((MEMBERS, 1), 0.3)], -1)).sum(-1),
                               (users[0] * movies[1]).sum(-1) + 0.3)


SHAPES = [(40, 500, 2), (5, 70_000, 3), (900, 9, 1), (60, 90, 70)]  # users, movies, members


@pytest.mark.parametrize(("num_users", "num_movies", "members"), SHAPES)
def test_many_ratings_in_single_precision_agree_with_plain_indexing(num_users, num_movies, members):
    """The sums that training meets; more movies than numbers of two bytes are sorted another way."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.randperm(num_users * num_movies, generator=generator)[:5000].sort().values
    row, indices = cells // num_movies, cells % num_movies
    users, movies = (torch.randn(size, members, 34, generator=generator) for size in (num_users, num_movies))
    weight = torch.randn(len(row), members, generator=generator)
    pattern = RatingPattern(row, indices, num_users, num_movies, members)
    ops = backend.of_pattern(pattern)
    assert ops is numba_kernels
    for found, expected in (
            (ops.dots(users, movies, pattern), (users[row] * movies[indices]).sum(-1)),
            (ops.sum_by_user(movies, weight, pattern),
             torch.zeros_like(users).index_add_(0, row, movies[indices] * weight.unsqueeze(-1))),
            (ops.sum_by_movie(users, weight, pattern),
             torch.zeros_like(movies).index_add_(0, indices, users[row] * weight.unsqueeze(-1)))):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("num_users", "num_movies", "members", "dim"),
                         [*((*shape, 33) for shape in SHAPES), *((40, 500, 2, dim) for dim in (1, 2, 4, 7))])
def test_compiled_ridge_regressions_agree_with_those_of_array_operations(num_users, num_movies, members, dim):
    """Packs that are full and not, of one user and of many; users without ratings, and with as many as movies; vectors
    that fill rows of four and that do not."""
    generator = torch.Generator().manual_seed(0)
    density = torch.rand(num_users, 1, generator=generator) ** 2
    density[:2] = torch.tensor([[1.0], [0.0]])
    row, indices = (torch.rand(num_users, num_movies, generator=generator) < density).nonzero().unbind(1)
    row, indices = row[:20_000], indices[:20_000]
    movies = torch.randn(num_movies, members, dim + 1, generator=generator)
    inputs = [movies, torch.randn(len(row), generator=generator),
              torch.randn(num_users, members, dim, generator=generator),
              torch.rand(num_users, members, dim, generator=generator) + 1]
    grad, results = torch.randn(num_users, members, dim, generator=generator), []
    for ops in (numba_kernels, array_ops):
        with backend.forced(ops):
            leaves = [tensor.clone().requires_grad_() for tensor in inputs]
            pattern = RatingPattern(row, indices, num_users, num_movies, members)
            solution, residual = ridge_solve(*leaves, pattern)
            results.append([solution.detach(), residual, *torch.autograd.grad(solution, leaves, grad)])
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=2e-3)


def test_compiled_loops_give_the_same_bits_on_any_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    row = torch.arange(700).repeat_interleave(40)
    movies, target = torch.randn(60, 2, 34, generator=generator), torch.randn(len(row), generator=generator)
    indices = torch.randint(60, (len(row),), generator=generator)
    prior, l2 = torch.zeros(700, 2, 33, requires_grad=True), torch.ones(700, 2, 33)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with shared_out():
                solution, residual = ridge_solve(movies, target, prior, l2, RatingPattern(row, indices, 700, 60, 2))
                results.append([solution, residual, *torch.autograd.grad(solution.square().sum(), prior)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for result in results[1:] for one, other in zip(results[0], result, strict=True))


def test_a_regression_of_what_is_not_finite_is_not_finite():
    """So that training sees it; a compiler that took every number for finite might lose it."""
    row = torch.arange(100).repeat_interleave(20)
    movies = torch.ones(5, 2, 4)
    movies[3, 1, 0] = torch.nan
    solution, residual = ridge_solve(movies, torch.ones(len(row)), torch.zeros(100, 2, 3), torch.ones(100, 2, 3),
                                 RatingPattern(row, torch.arange(len(row)) % 5, 100, 5, 2))
    assert solution[:, 0].isfinite().all() and not solution[:, 1].isfinite().any()
    assert residual[:, 0].isfinite().all() and not residual[:, 1].isfinite().any()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_compiler_runs_waits_until_it_is_through(number):
    done, before = [], {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}

    def stop(*_: object) -> None:
        raise InterruptedError(str(done))

    try:
        signal.signal(number, stop)
        with pytest.raises(InterruptedError, match=r"\['compiled'\]"), numba_kernels._uninterrupted():
            signal.raise_signal(number)
            done.append("compiled")
        assert signal.getsignal(number) is stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_fold_in_of_rows_that_do_not_lie_in_one_piece_is_that_of_array_operations():
    chance, num_users, count = torch.Generator().manual_seed(0), 90, 20
    pattern = RatingPattern(torch.arange(num_users).repeat_interleave(count),
                            torch.randint(50, (num_users * count,), generator=chance), num_users, 50, 2)
    movies, l2 = torch.randn(50, 6, 2, generator=chance).mT, torch.rand(num_users, 5, 2, generator=chance).mT + 0.5
    target, prior = torch.randn(num_users * count, generator=chance), torch.randn(2, num_users, 5, generator=chance)
    args = movies, target, prior.transpose(0, 1), l2, pattern
    for ours, reference in zip(numba_kernels.ridge(*args)[:2], array_ops.ridge(*args)[:2], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
