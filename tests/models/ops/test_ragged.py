import signal

import pytest
import torch

from models.ops import numba_kernels as kernels
from models.ops import ragged as layers
from models.ops.ragged import (
    Pairs,
    gather_distinct,
    normal_equations,
    paired_dot,
    pool,
    ridge_solve,
    stable_order,
    with_one,
)

HEADS, DIM, NUM_FILMS = 2, 3, 7
COUNT = torch.tensor([4, 0, 1, 6])  # a user without ratings among them
ROW = torch.arange(len(COUNT)).repeat_interleave(COUNT)
COLUMN = torch.tensor([5, 0, 2, 6, 2, 1, 2, 0, 6, 3, 5])  # of film 4 there are none


@pytest.fixture(params=[True, False], ids=["cpu", "elsewhere"])
def pairs(request, monkeypatch) -> Pairs:
    """The ratings, taken the way of many ratings on a CPU and that of other devices."""
    monkeypatch.setattr(layers, "FEW_RATINGS", -1)
    pairs = Pairs(ROW, COLUMN, len(COUNT), NUM_FILMS, HEADS)
    pairs.on_cpu = request.param
    return pairs


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    films = torch.randn(NUM_FILMS, HEADS, DIM + 1, dtype=torch.float64)
    wanted = torch.randn(len(ROW), dtype=torch.float64)
    prior = torch.randn(len(COUNT), HEADS, DIM, dtype=torch.float64)
    penalty = torch.rand(len(COUNT), HEADS, DIM, dtype=torch.float64) + 0.1
    return tuple(tensor.requires_grad_() for tensor in (films, wanted, prior, penalty))


@pytest.fixture
def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of the users and of the films."""
    torch.manual_seed(0)
    users = torch.randn(len(COUNT), HEADS, DIM, dtype=torch.float64, requires_grad=True)
    return users, torch.randn(NUM_FILMS, HEADS, DIM, dtype=torch.float64, requires_grad=True)


def test_products_with_the_matrix_equal_those_of_the_matrix_written_out(pairs, vectors):
    users, films = (each.detach() for each in vectors)
    weight = torch.randn(len(ROW), HEADS, dtype=torch.float64)
    dots = pairs.dots(users, films)
    for head in range(HEADS):
        matrix = torch.zeros(len(COUNT), NUM_FILMS, dtype=torch.float64)
        matrix[ROW, COLUMN] += weight[:, head]
        torch.testing.assert_close(dots[:, head], (users[:, head] @ films[:, head].T)[ROW, COLUMN])
        torch.testing.assert_close(pairs.sum_films(films, weight)[:, head], matrix @ films[:, head])
        torch.testing.assert_close(pairs.sum_users(users, weight)[:, head], matrix.T @ users[:, head])


@pytest.mark.parametrize("num_users", [0, 3])
def test_products_without_ratings_are_empty_or_zero(num_users, monkeypatch):
    monkeypatch.setattr(layers, "FEW_RATINGS", -1)
    nothing = torch.zeros(0, dtype=torch.int64)
    pairs = Pairs(nothing, nothing, num_users, 5, HEADS)
    users, films = torch.randn(num_users, HEADS, DIM), torch.randn(5, HEADS, DIM)
    assert pairs.dots(users, films).shape == (0, HEADS)
    assert torch.equal(pairs.sum_films(films, torch.zeros(0, HEADS)), torch.zeros(num_users, HEADS, DIM))
    assert torch.equal(pairs.sum_users(users, torch.zeros(0, HEADS)), torch.zeros(5, HEADS, DIM))


@pytest.mark.parametrize("num_users", [0, 3])
def test_normal_equations_without_ratings_are_zero(num_users):
    nothing = torch.zeros(0, dtype=torch.int64)
    pairs = Pairs(nothing, nothing, num_users, 5, HEADS)
    products = normal_equations(torch.randn(5, HEADS, DIM), torch.zeros(0), pairs)
    assert torch.equal(products[0], torch.zeros(num_users, HEADS, DIM - 1, DIM - 1))
    assert torch.equal(products[1], torch.zeros(num_users, HEADS, DIM - 1))


@pytest.mark.parametrize("num_keys", [6, 2**16, 2**40])
def test_stable_order_is_ascending_and_keeps_equal_keys_as_they_come(num_keys):
    keys = torch.tensor([5, 0, num_keys - 1, 5, 0])
    assert stable_order(keys, num_keys).tolist() == sorted(range(5), key=lambda place: int(keys[place]))


def test_ridge_solve_equals_the_normal_equations_written_out(inputs, pairs):
    films, wanted, prior, penalty = inputs
    solution, left = ridge_solve(*inputs, pairs)
    for user in range(len(COUNT)):
        own = user == ROW
        for head in range(HEADS):
            v, r = films[COLUMN[own], head, :-1], wanted[own] - films[COLUMN[own], head, -1]
            above_prior = r - v @ prior[user, head]
            system = v.T @ v + torch.diag(penalty[user, head])
            expected = prior[user, head] + torch.linalg.solve(system, v.T @ above_prior)
            torch.testing.assert_close(solution[user, head], expected)
            torch.testing.assert_close(left[own, head], r - v @ expected)
    torch.testing.assert_close(solution[1], prior[1])  # no ratings, nothing learned


def test_ridge_solve_gradients_equal_finite_differences(inputs, pairs):
    assert torch.autograd.gradcheck(lambda *args: ridge_solve(*args, pairs)[0], inputs)


def test_ridge_solve_gradients_equal_plain_autograd(inputs, pairs):
    def plain(films, wanted, prior, penalty):
        solutions = []
        for user in range(len(COUNT)):
            own = user == ROW
            v = films[COLUMN[own], :, :-1].transpose(0, 1)
            r = (wanted[own].unsqueeze(1) - films[COLUMN[own], :, -1]).T.unsqueeze(-1)
            unexplained = r - v @ prior[user].unsqueeze(-1)
            system = v.transpose(1, 2) @ v + torch.diag_embed(penalty[user])
            solutions.append(prior[user] + torch.linalg.solve(system, v.transpose(1, 2) @ unexplained).squeeze(-1))
        return torch.stack(solutions)

    weight = torch.randn(len(COUNT), HEADS, DIM, dtype=torch.float64)
    ours = torch.autograd.grad((ridge_solve(*inputs, pairs)[0] * weight).sum(), inputs)
    theirs = torch.autograd.grad((plain(*inputs) * weight).sum(), inputs)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("sizes", [[4, 0, 1, 6], [300, 128, 1, 0, 129], [1], [1] * 30])
def test_normal_equations_are_the_same_on_both_ways(sizes):
    """User by user, and in pieces of one size, the way of a GPU."""
    torch.manual_seed(0)
    count = torch.tensor(sizes)
    row = torch.arange(len(count)).repeat_interleave(count)
    films, column = torch.randn(9, HEADS, DIM, dtype=torch.float64), torch.randint(9, (len(row),))
    wanted = torch.randn(len(row), dtype=torch.float64)
    expected = [[], []]
    for user in range(len(count)):
        vectors, bias = films[column[row == user]].split([DIM - 1, 1], -1)
        expected[0].append(torch.einsum("rhd,rhe->hde", vectors, vectors))
        expected[1].append(torch.einsum("rhd,rh->hd", vectors, wanted[row == user].unsqueeze(1) - bias.squeeze(-1)))
    for on_cpu in (True, False):
        pairs = Pairs(row, column, len(count), 9, HEADS)
        pairs.on_cpu = on_cpu
        torch.testing.assert_close(normal_equations(films, wanted, pairs), tuple(map(torch.stack, expected)))


def test_paired_dot_has_the_gradients_of_plain_indexing(pairs, vectors):
    users, films = vectors
    torch.testing.assert_close(paired_dot(users, films, pairs), (users[ROW] * films[COLUMN]).sum(-1))
    assert torch.autograd.gradcheck(lambda u, f: paired_dot(u, f, pairs), vectors)


def test_pool_is_the_sum_written_out_with_its_gradients(pairs):
    torch.manual_seed(0)
    table = torch.randn(NUM_FILMS, 2 * DIM, dtype=torch.float64, requires_grad=True)
    weight, pairs.heads = torch.randn(len(ROW), dtype=torch.float64), 1
    rows = table[COLUMN]
    rows = weight.unsqueeze(1) * rows[:, :DIM] + rows[:, DIM:]
    expected = torch.stack([rows[user == ROW].sum(0) for user in range(len(COUNT))])
    torch.testing.assert_close(pool(table, weight, pairs), expected)
    assert torch.autograd.gradcheck(lambda table: pool(table, weight, pairs), (table,))


def test_gather_distinct_has_the_gradients_of_plain_indexing(vectors):
    films, index = vectors[1], torch.tensor([4, 0, 6])
    assert torch.equal(gather_distinct(films, index), films[index])
    assert torch.autograd.gradcheck(lambda f: gather_distinct(f, index), (films,))


def test_with_one_meets_a_bias(vectors):
    users, films = vectors
    torch.testing.assert_close((with_one(users)[0] * torch.cat([films[1], torch.full((HEADS, 1), 0.3)], -1)).sum(-1),
                               (users[0] * films[1]).sum(-1) + 0.3)


SHAPES = [(40, 500, 2), (5, 70_000, 3), (900, 9, 1), (60, 90, 70)]  # users, films, heads


@pytest.mark.parametrize(("num_users", "num_films", "heads"), SHAPES)
def test_many_ratings_in_single_precision_agree_with_plain_indexing(num_users, num_films, heads):
    """The kernels that training meets; more films than numbers of two bytes are sorted another way."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.randperm(num_users * num_films, generator=generator)[:5000].sort().values
    row, column = cells // num_films, cells % num_films
    assert len(row) > layers.FEW_RATINGS
    users, films = (torch.randn(size, heads, 34, generator=generator) for size in (num_users, num_films))
    weight, ours = torch.randn(len(row), heads, generator=generator), Pairs(row, column, num_users, num_films, heads)
    plain = Pairs(row, column, num_users, num_films, heads)
    plain.on_cpu = False
    for mine, reference in ((ours.dots(users, films), plain.dots(users, films)),
                            (ours.sum_films(films, weight), plain.sum_films(films, weight)),
                            (ours.sum_users(users, weight), plain.sum_users(users, weight))):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("num_users", "num_films", "heads", "size"),
                         [*((*shape, 33) for shape in SHAPES), *((40, 500, 2, size) for size in (1, 2, 4, 7))])
def test_compiled_ridge_regressions_agree_with_those_of_array_operations(num_users, num_films, heads, size):
    """Packs that are full and not, of one user and of many; users without ratings, and with as many as films; vectors
    that fill rows of four and that do not."""
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(num_users, 1, generator=generator) ** 2
    share[:2] = torch.tensor([[1.0], [0.0]])
    row, column = (torch.rand(num_users, num_films, generator=generator) < share).nonzero().unbind(1)
    row, column = row[:20_000], column[:20_000]
    films = torch.randn(num_films, heads, size + 1, generator=generator)
    inputs = [films, torch.randn(len(row), generator=generator),
              torch.randn(num_users, heads, size, generator=generator),
              torch.rand(num_users, heads, size, generator=generator) + 1]
    grad, results = torch.randn(num_users, heads, size, generator=generator), []
    for on_cpu in (True, False):
        pairs = Pairs(row, column, num_users, num_films, heads)
        pairs.on_cpu = on_cpu
        assert bool(pairs.kernels) == on_cpu
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        solution, left = ridge_solve(*leaves, pairs)
        results.append([solution.detach(), left, *torch.autograd.grad(solution, leaves, grad)])
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=2e-3)


def test_compiled_loops_give_the_same_bits_on_any_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    row = torch.arange(700).repeat_interleave(40)
    films, wanted = torch.randn(60, 2, 34, generator=generator), torch.randn(len(row), generator=generator)
    column = torch.randint(60, (len(row),), generator=generator)
    prior, penalty = torch.zeros(700, 2, 33, requires_grad=True), torch.ones(700, 2, 33)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            solution, left = ridge_solve(films, wanted, prior, penalty, Pairs(row, column, 700, 60, 2))
            results.append([solution, left, *torch.autograd.grad(solution.square().sum(), prior)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for result in results[1:] for one, other in zip(results[0], result, strict=True))


def test_a_regression_of_what_is_not_finite_is_not_finite():
    """So that training sees it; a compiler that took every number for finite might lose it."""
    row = torch.arange(100).repeat_interleave(20)
    films = torch.ones(5, 2, 4)
    films[3, 1, 0] = torch.nan
    solution, left = ridge_solve(films, torch.ones(len(row)), torch.zeros(100, 2, 3), torch.ones(100, 2, 3),
                                 Pairs(row, torch.arange(len(row)) % 5, 100, 5, 2))
    assert solution[:, 0].isfinite().all() and not solution[:, 1].isfinite().any()
    assert left[:, 0].isfinite().all() and not left[:, 1].isfinite().any()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_compiler_runs_waits_until_it_is_through(number):
    done, before = [], {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}

    def stop(*_: object) -> None:
        raise InterruptedError(str(done))

    try:
        signal.signal(number, stop)
        with pytest.raises(InterruptedError, match=r"\['compiled'\]"), kernels._uninterrupted():
            signal.raise_signal(number)
            done.append("compiled")
        assert signal.getsignal(number) is stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
