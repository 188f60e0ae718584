"""Cut a step's batch into pieces, and each piece into context and targets."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from models.ops.rating_pattern import row_starts
from training.batches import Batch

PIECE_RATINGS = 2**18  # a step of more ratings is computed in pieces, so that its memory stays bounded
GPU_PIECE_RATINGS = 2**20  # the same on a GPU


class Part(NamedTuple):
    """A piece of a batch, divided by `halves`."""

    batch: Batch
    in_context: torch.Tensor  # bool (R,), which of the batch's ratings; for the second group of members their opposite
    has_embedding: torch.Tensor  # bool (B,), which users' embeddings are not left out
    context: Batch
    target: Batch
    user_of_row: torch.Tensor  # int64 (rows,)
    first_rows: int


def halves(batch: Batch, in_context: torch.Tensor, both_ways: bool,
           has_embedding: torch.Tensor) -> tuple[Batch, Batch, torch.Tensor, int]:
    """Divide a batch into context and targets; for two groups of members both ways round.

    Which ratings are context is what two runs differ by most. So two groups that see the halves swapped err more unlike
    each other than if they saw the same, and their mean errs less, in the time of one model.

    Args:
        in_context: bool (R,).
        both_ways: for two groups.
        has_embedding: bool (B,), users whose embedding is not left out.

    Returns:
        The context and the targets; both have the same rows (see `MovieTable`), on a CPU only `_rows_of_use`. Each
        row's user, as a position in the batch, int64 (rows,), and how many of the rows are of the first group.
    """
    num_users, device = len(batch.users), in_context.device
    users = torch.arange(num_users, device=device)
    if not both_ways:
        context, target = batch.subset(in_context), batch.subset(~in_context)
        return _rows_of_use(context, target, users, num_users, has_embedding)
    if device.type != "cpu":  # where the host need not learn how many are context
        orders = (~in_context).argsort(stable=True), in_context.argsort(stable=True)
    else:
        known, asked = (which.nonzero().squeeze(1) for which in (in_context, ~in_context))
        orders = torch.cat([known, asked]), torch.cat([asked, known])
    twice = batch.users.repeat(2)

    def one_after_another(order: torch.Tensor, in_second: torch.Tensor) -> Batch:
        both = batch.subset(order)
        both.row += num_users * in_second.index_select(0, order)
        both.users = twice
        return both

    context, target = one_after_another(orders[0], ~in_context), one_after_another(orders[1], in_context)
    return _rows_of_use(context, target, users.repeat(2), num_users, has_embedding)


def _rows_of_use(context: Batch, target: Batch, user_of_row: torch.Tensor, first_rows: int,
                 has_embedding: torch.Tensor) -> tuple[Batch, Batch, torch.Tensor, int]:
    """Leave out rows without targets, of which nothing is learned, and let users of whom nothing is known, neither
    ratings nor an embedding, share a row in each group, as their vectors are the same. On a GPU all rows stay: the host
    would wait."""
    if user_of_row.device.type != "cpu":
        return context, target, user_of_row, first_rows
    chosen = torch.zeros(len(user_of_row), dtype=torch.bool)
    chosen[target.row] = True
    unknown = chosen & ~has_embedding[user_of_row]
    unknown[context.row] = False
    by_group = [rows[unknown[rows]] for rows in torch.arange(len(chosen)).split(first_rows)]
    for rows in by_group:
        chosen[rows[1:]] = False
    if chosen.all():
        return context, target, user_of_row, first_rows
    new_row = chosen.cumsum(0) - 1
    for rows in by_group:
        new_row[rows] = new_row[rows[:1]]
    row, users = new_row.index_select(0, target.row), target.users[chosen]
    target = Batch(users, row, target.movie_idx, target.stars, target.day)
    if any(len(rows) > 1 for rows in by_group):  # of a shared row too, days ascend
        in_order = (row * (int(target.day.max()) + 1) + target.day).numpy().argsort(kind="stable")
        target = target.subset(torch.from_numpy(in_order))
    return context.of_rows(chosen), target, user_of_row[chosen], int(chosen[:first_rows].sum())


def pieces(batch: Batch, most: int | None = None) -> Iterator[Batch]:
    """Cut a batch between users into pieces about as large as each other, none with more ratings than `most`, unless it
    is a single user.

    Gradients add up over users, so that of the pieces is that of the batch.

    Args:
        most: None for GPU_PIECE_RATINGS or PIECE_RATINGS.
    """
    if most is None:
        most = GPU_PIECE_RATINGS if batch.row.is_cuda else PIECE_RATINGS
    if len(batch.row) <= most:
        yield batch
        return
    end = row_starts(batch.row, len(batch.users))[1:]  # of each user's ratings
    first = start = 0
    while first < len(batch.users):
        rest = len(batch.row) - start
        even = start + rest / max(math.ceil(rest / most), 1)  # where a piece ends if all that follow are as large
        last = min(int(torch.searchsorted(end, even)), len(end) - 1)
        last -= last > first and int(end[last]) - start > most
        last = last + 1 if rest else len(end)
        rows = slice(start, int(end[last - 1]))
        yield Batch(batch.users[first:last], batch.row[rows] - first, batch.movie_idx[rows], batch.stars[rows],
                    batch.day[rows])
        first, start = last, rows.stop
