import pytest
import torch

from models.layers import gather_rows, gram, gram_padded, paired_dot, ridge_solve, ridge_solve_rows, unexplained_rows

HEADS, DIM = 2, 3
COUNT = torch.tensor([4, 0, 1, 6])  # a user without ratings among them
ROW = torch.arange(len(COUNT)).repeat_interleave(COUNT)


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    films = torch.randn(len(ROW), HEADS, DIM, dtype=torch.float64)
    residual = torch.randn(len(ROW), HEADS, dtype=torch.float64)
    prior = torch.randn(len(COUNT), HEADS, DIM, dtype=torch.float64)
    penalty = torch.rand(len(COUNT), HEADS, DIM, dtype=torch.float64) + 0.1
    return tuple(tensor.requires_grad_() for tensor in (films, residual, prior, penalty))


def solve(films, *others):
    """Solve with a table of a row per rating."""
    return ridge_solve(films, torch.arange(len(ROW)), *others, ROW, COUNT)


def test_ridge_solve_equals_the_normal_equations_written_out(inputs):
    films, residual, prior, penalty = inputs
    solution, unexplained = solve(*inputs)
    for user in range(len(COUNT)):
        for head in range(HEADS):
            v, r = films[user == ROW, head], residual[user == ROW, head]
            above_prior = r - v @ prior[user, head]
            system = v.T @ v + torch.diag(penalty[user, head])
            expected = prior[user, head] + torch.linalg.solve(system, v.T @ above_prior)
            torch.testing.assert_close(solution[user, head], expected)
            torch.testing.assert_close(unexplained[user == ROW, head], r - v @ expected)
    torch.testing.assert_close(solution[1], prior[1])  # no ratings, nothing learned


@torch.no_grad()
def test_solving_from_rows_of_a_table_equals_solving_from_their_copies():
    torch.manual_seed(0)
    count = torch.tensor([4, 0, 1, 6, 30, 2, 2, 2, 5, 1, 9])  # more users than are gathered at once
    row = torch.arange(len(count)).repeat_interleave(count)
    table, index = torch.randn(7, HEADS, DIM, dtype=torch.float64), torch.randint(7, (len(row),))
    residual = torch.randn(len(row), HEADS, dtype=torch.float64)
    prior, penalty = torch.randn(2, len(count), HEADS, DIM, dtype=torch.float64).abs().unbind()
    with_room = torch.nn.functional.pad(table, (0, 1))
    solution = ridge_solve_rows(with_room, index, residual, prior, penalty, count)
    expected, left = ridge_solve(table, index, residual, prior, penalty, row, count)
    torch.testing.assert_close(solution, expected)
    torch.testing.assert_close(unexplained_rows(with_room, index, residual, solution, row), left)


def test_ridge_solve_gradients_equal_finite_differences(inputs):
    assert torch.autograd.gradcheck(lambda *args: solve(*args)[0], inputs)
    # Of the table's rows some have many ratings, and one has none.
    index = torch.randint(len(ROW) - 1, (len(ROW),), generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda table, *args: ridge_solve(table, index, *args, ROW, COUNT)[0], inputs)


def test_ridge_solve_gradients_equal_plain_autograd(inputs):
    def plain(films, residual, prior, penalty):
        solutions = []
        for user in range(len(COUNT)):
            v, r = films[user == ROW].transpose(0, 1), residual[user == ROW].T.unsqueeze(-1)
            unexplained = r - v @ prior[user].unsqueeze(-1)
            system = v.transpose(1, 2) @ v + torch.diag_embed(penalty[user])
            solutions.append(prior[user] + torch.linalg.solve(system, v.transpose(1, 2) @ unexplained).squeeze(-1))
        return torch.stack(solutions)

    weight = torch.randn(len(COUNT), HEADS, DIM, dtype=torch.float64)
    ours = torch.autograd.grad((solve(*inputs)[0] * weight).sum(), inputs)
    theirs = torch.autograd.grad((plain(*inputs) * weight).sum(), inputs)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("sizes", [[4, 0, 1, 6], [300, 128, 1, 0, 129], [1]])
def test_padded_gram_equals_gram_by_user(sizes):
    count = torch.tensor(sizes)
    row = torch.arange(len(count)).repeat_interleave(count)
    films = torch.randn(len(row), HEADS, DIM, dtype=torch.float64)
    torch.testing.assert_close(gram_padded(films, row, count), gram(films, row, count))


def test_paired_dot_and_gather_rows_have_the_gradients_of_plain_indexing():
    torch.manual_seed(0)
    users = torch.randn(3, HEADS, DIM, dtype=torch.float64, requires_grad=True)
    films = torch.randn(5, HEADS, DIM, dtype=torch.float64, requires_grad=True)
    row, column = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([4, 1, 1, 0, 4])
    torch.testing.assert_close(paired_dot(users, films, row, column), (users[row] * films[column]).sum(-1))
    assert torch.autograd.gradcheck(lambda u, f: paired_dot(u, f, row, column), (users, films))
    assert torch.autograd.gradcheck(lambda f: gather_rows(f, column), (films,))
