"""How parameters move: each kind by a rule of its own, all on one schedule of the learning rate.

    movie tables     SGD with Nesterov momentum: a movie moves in proportion to its ratings, where Adam would move a
                     rare movie's row as far as a popular one's
    shared layers    Adam
    relevance        Adam, its movie tables too
    user table       Adam by rows: a user is in one step per epoch, so only that step's rows are read and written
"""

import math

import torch

from models.ops import backend
from models.relevance import Relevance
from models.two_tower import TwoTower

TABLE_LR, SHARED_LR, USER_LR = 1.5, 10.0, 20.0  # multiples of the base learning rate
BETAS, EPSILON = (0.9, 0.99), 1e-8
WARM_UP = 0.02  # of all steps
STEPS_OF_AN_EPOCH = 400  # at least, where a step has more than 128 users
LARGEST_STEP, FEWEST_STEPS = 4096, 100  # users; of an epoch, at least, with steps of that size


def build_optimizers(model: TwoTower, lr: float, time_decay: float = 0.0) -> list[torch.optim.Optimizer]:
    """Return the optimizers of the shared parameters.

    Args:
        lr: the base learning rate, which `set_lr` scales.
        time_decay: weight of the squares of the movies' biases over time in the loss of every step.
    """
    tables = [model.movie_tower.embedding, model.movie_tower.bias, model.user_tower.pooled]
    over_time = [model.movie_bias_over_time.table] if model.movie_bias_over_time else []
    table_ids = {id(table) for table in tables + over_time}
    layers = [parameter for parameter in model.parameters() if id(parameter) not in table_ids]
    groups: list[dict] = [{"params": tables}]
    groups += [{"params": [table], "weight_decay": time_decay} for table in over_time]
    optimizers = [torch.optim.SGD(groups, lr * TABLE_LR, momentum=0.9, nesterov=True, fused=True),
                  torch.optim.Adam(layers, lr * SHARED_LR, BETAS, EPSILON, fused=True)]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


def relevance_optimizer(relevance: Relevance, lr: float) -> torch.optim.Optimizer:
    """Return the optimizer of relevance; `lr` is the base learning rate, which `set_lr` scales."""
    optimizer = torch.optim.Adam(relevance.parameters(), lr * SHARED_LR, BETAS, EPSILON, fused=True)
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer


def set_lr(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every learning rate to its base times a factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor


def planned_epochs(num_users: int, most: int) -> int:
    """Return over how many epochs the learning rate falls to zero: 20, but down to 8 where many users teach the movies
    more."""
    return min(most, 20, max(8, 120_000 // num_users))


def default_batch_size(num_users: int) -> int:
    """Return how many users a step has: 128, but up to 512 where an epoch still has 400 steps, and 4096 where it has
    100 of them.

    A movie moves in an epoch by the sum over its ratings, however many steps they come in, and much of a step's time is
    the same for all sizes, nearly all of it on a GPU.
    """
    if num_users >= FEWEST_STEPS * LARGEST_STEP:
        return LARGEST_STEP
    size = 128
    while num_users >= STEPS_OF_AN_EPOCH * 2 * size:
        size *= 2
    return size


def lr_factor(step: int, num_steps: int) -> float:
    """Return the factor of the learning rate at a step: linear warm-up, then half a cosine down to zero."""
    return min(1.0, (step + 1) / (WARM_UP * num_steps + 1)) * 0.5 * (1 + math.cos(math.pi * step / num_steps))


class RowAdam:
    """Adam (Kingma and Ba 2015) on the rows of a table that a step touched; other rows cost nothing.

    A row counts its own steps, so that one that is met once an epoch has the bias correction of its own age.
    """

    def __init__(self, table: torch.Tensor, lr: float) -> None:
        self.table, self.lr = table, lr * USER_LR
        self.state = {"mean": torch.zeros_like(table), "square": torch.zeros_like(table),
                      "steps": torch.zeros(len(table), 1, device=table.device)}

    @torch.no_grad()
    def step(self, rows: torch.Tensor, grad: torch.Tensor, factor: float) -> None:
        """Update rows, int64 (B,), by their gradients (B, D), with the learning rate scaled by `factor`."""
        backend.of_device(self.table.device).row_adam(self.table, self.state["mean"], self.state["square"],
                                                      self.state["steps"], rows, grad, self.lr * factor, BETAS, EPSILON)
