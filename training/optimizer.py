"""How parameters move: each kind by a rule of its own, all on one schedule of the learning rate.

    movie tables     SGD with Nesterov momentum: a movie moves in proportion to its ratings, where Adam would move a
                     rare movie's row as far as a popular one's
    shared layers    Adam
    relevance        Adam by rows: of the movies that are candidates or context in the step
    user table       Adam by rows: a user is in one step per epoch

A step reads and writes only the rows that it meets.
"""

import math

import numpy as np
import torch
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from models.ops import backend
from models.relevance import Relevance
from models.two_tower import TwoTower

TABLE_LR, SHARED_LR, USER_LR = 1.5, 10.0, 20.0  # multiples of the base learning rate
MOMENTUM = 0.9
BETAS, EPSILON = (0.9, 0.99), 1e-8
WARM_UP = 0.02  # of all steps
USERS_A_STEP = 128  # at least; of item-based towers, movies, half as many
STEPS_OF_AN_EPOCH = 400  # at least, where a step has more than USERS_A_STEP
STEPS_OF_A_RUN = 320  # at least, where 20 epochs have so many
MOST_ENLARGED = 16  # times, for which steps of layers are longer
STEP_RATINGS, SMALLEST_EPOCH = 32_000, 12  # in a step, at least, on average, unless an epoch has no more steps
BLOCK_ROWS = 2048  # of a table, that are made up for at a time, in the cache of a core
LARGEST_STEP, FEWEST_STEPS = 4096, 100  # users; of an epoch, at least, with steps of that size


def build_optimizers(model: TwoTower, lr: float, time_decay: float = 0.0) -> tuple["TableSGD", "LayerAdam"]:
    """Return the optimizers of the movie tables and of the shared layers.

    Args:
        lr: the base learning rate.
        time_decay: weight of the squares of the movies' biases over time in the loss of every step.
    """
    tables = {model.movie_tower.embedding: 0.0, model.movie_tower.bias: 0.0, model.user_tower.pooled: 0.0}
    if model.movie_bias_over_time is not None:
        tables[model.movie_bias_over_time.table] = time_decay
    layers = [parameter for parameter in model.parameters() if parameter not in tables]
    return TableSGD(tables, lr), LayerAdam(layers)


def relevance_optimizers(relevance: Relevance, lr: float) -> list["RowAdam"]:
    """Return the optimizers of relevance, one for each of its tables; `lr` is the base learning rate."""
    return [RowAdam(parameter.data.view(len(parameter), -1), lr * SHARED_LR) for parameter in relevance.parameters()]


def planned_epochs(num_users: int, num_steps: int, most: int) -> int:
    """Return over how many epochs, of `num_steps` each, the learning rate falls to zero: 20, but down to 8 where many
    users teach the movies more."""
    return min(most, 20, max(8, 120_000 // num_users, STEPS_OF_A_RUN // num_steps))


def default_batch_size(num_users: int, num_ratings: int, fewest: int = USERS_A_STEP) -> tuple[int, int]:
    """Return how many users a step has: `fewest`, but up to 512 where an epoch still has 400 steps, and 4096 where it
    has 100 of them; and more where they have few ratings, so that a step has STEP_RATINGS or an epoch few steps. And
    how many times as many as without that: see `layers_lr`.

    A movie moves in an epoch by the sum over its ratings, however many steps they come in, and much of a step's time is
    the same for all sizes, nearly all of it on a GPU.

    Args:
        num_users, num_ratings: of the data set, in training.
        fewest: users.
    """
    size = fewest
    if num_users >= FEWEST_STEPS * LARGEST_STEP:
        size = LARGEST_STEP
    else:
        while num_users >= STEPS_OF_AN_EPOCH * 2 * size:
            size *= 2
    enlarged = 1
    while size * SMALLEST_EPOCH < num_users and size * num_ratings < STEP_RATINGS * num_users:
        size, enlarged = 2 * size, 2 * enlarged
    return size, enlarged


def layers_lr(enlarged: int) -> float:
    """Return the learning rate of the shared layers, a multiple of the base rate, where steps have been enlarged so
    many times: Adam moves in an epoch by its number of steps, and less by chance the larger they are."""
    return SHARED_LR * min(enlarged, MOST_ENLARGED) ** 0.5


def lr_factor(step: int, num_steps: int) -> float:
    """Return the factor of the learning rate at a step: linear warm-up, then half a cosine down to zero."""
    return min(1.0, (step + 1) / (WARM_UP * num_steps + 1)) * 0.5 * (1 + math.cos(math.pi * step / num_steps))


class TableSGD:
    """SGD with Nesterov momentum and weight decay on tables of movies, in steps that meet some of the movies.

    What a movie's momentum and decay do to it in a step that does not meet it, it gets made up for when it is met
    again: without a gradient g a step is linear in a row p and its momentum b,

        b' = mu b + decay p        p' = p - lr (decay p + mu b')

    and many steps are the product of their 2 x 2 matrices. So a step costs what its movies do.
    """

    def __init__(self, decays: dict[torch.nn.Parameter, float], lr: float) -> None:
        """Take over tables of M rows each with the weight of its decay."""
        self.tables, self.decays, self.lr = list(decays), list(decays.values()), lr * TABLE_LR
        self.momentum = [torch.zeros_like(table) for table in self.tables]
        num_movies, self.num_steps = len(self.tables[0]), 0  # steps since nobody was late
        self.met = self.done = torch.zeros(num_movies, dtype=torch.int64)  # of the step; steps that have moved a movie
        self.products = [np.eye(2)[None]] * len(self.tables)  # of the steps after each step, (num_steps + 1, 2, 2)

    @torch.no_grad()
    def catch_up(self, movies: torch.Tensor | None = None) -> None:
        """Bring movies, ascending int64 (N,), to where the steps so far would have moved them; None for all.

        Where they are most of the movies, the others come along: to pick them out would take longer.
        """
        device, num_movies = self.tables[0].device, len(self.tables[0])
        if movies is None or 2 * len(movies) >= num_movies:
            movies = torch.arange(num_movies, device=device)
        self.met = movies
        if self.num_steps:
            done = self.done[self.met]
            late = (done < self.num_steps).nonzero().squeeze(1)
            rows, done = self.met[late], done[late]
            for table, momentum, products in zip(self.tables, self.momentum, self.products, strict=True):
                product = torch.from_numpy(products).to(table.dtype).view(-1, 2, 2, *(1,) * (table.dim() - 1))
                for some, of_some in zip(rows.split(BLOCK_ROWS), done.split(BLOCK_ROWS), strict=True):
                    (a, b), (c, d) = (of_row.unbind(1) for of_row in product[of_some].unbind(1))
                    values, moments = table.index_select(0, some), momentum.index_select(0, some)
                    table.index_copy_(0, some, (a * values).addcmul_(b, moments))
                    momentum.index_copy_(0, some, moments.mul_(d).addcmul_(c, values))
            self.done[rows] = self.num_steps
        if len(self.met) == num_movies:  # nobody is late
            self.num_steps, self.products = 0, [np.eye(2)[None]] * len(self.tables)
            self.done = torch.zeros(num_movies, dtype=torch.int64)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Move the movies that `catch_up` was last called for by their gradients, with the learning rate scaled by
        `factor`; a table without a gradient has one of zero."""
        lr, is_all = self.lr * factor, len(self.met) == len(self.tables[0])
        for decay in dict.fromkeys(self.decays):
            tables, moments = ([column[k] for k, own in enumerate(self.decays) if own == decay]
                               for column in (self.tables, self.momentum))
            grads = [_gradient_of(table, self.met) for table in tables]
            rows, momentum = ([tensor.data if is_all else tensor.index_select(0, self.met) for tensor in column]
                              for column in (tables, moments))
            sgd(rows, grads, [*momentum], weight_decay=decay, momentum=MOMENTUM, lr=lr, dampening=0.0, nesterov=True,
                maximize=False, fused=True)
            if not is_all:
                for tensor, values in zip([*tables, *moments], [*rows, *momentum], strict=True):
                    tensor.index_copy_(0, self.met, values)
        if is_all:
            return
        for k, decay in enumerate(self.decays):
            move = np.array([[1 - lr * decay * (1 + MOMENTUM), -lr * MOMENTUM**2], [decay, MOMENTUM]])
            self.products[k] = np.concatenate([move @ self.products[k], np.eye(2)[None]])
        self.num_steps += 1
        self.done[self.met] = self.num_steps


class LayerAdam:
    """PyTorch's fused Adam (Kingma and Ba 2015) on whole parameters.

    Its function alone: the first object of PyTorch's class would import a compiler, for which a run would wait a
    second.
    """

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.parameters, self.lr = parameters, 0.0  # of the last step
        self.state: dict[str, list[torch.Tensor]] = {
            "mean": [torch.zeros_like(parameter.data) for parameter in parameters],
            "square": [torch.zeros_like(parameter.data) for parameter in parameters],
            "steps": [torch.zeros((), device=parameter.device) for parameter in parameters]}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update the parameters that have gradients by them."""
        self.lr = lr
        grads = {k: parameter.grad for k, parameter in enumerate(self.parameters) if parameter.grad is not None}
        lists: list[list[torch.Tensor]] = [[*self.parameters], *self.state.values()]
        parameters, mean, square, steps = ([values[k] for k in grads] for values in lists)
        adam(parameters, [*grads.values()], mean, square, [], steps, fused=True, lr=lr, beta1=BETAS[0], beta2=BETAS[1],
             eps=EPSILON, weight_decay=0.0, amsgrad=False, maximize=False)


class RowAdam:
    """Adam (Kingma and Ba 2015) on the rows of a table that a step touched; other rows cost nothing.

    A row counts its own steps, so that one that is met once an epoch has the bias correction of its own age.
    """

    def __init__(self, table: torch.Tensor, lr: float) -> None:
        self.table, self.lr = table, lr
        self.state = {"mean": torch.zeros_like(table), "square": torch.zeros_like(table),
                      "steps": torch.zeros(len(table), 1, device=table.device)}

    @torch.no_grad()
    def step(self, rows: torch.Tensor, grad: torch.Tensor, factor: float) -> None:
        """Update rows, int64 (B,), by their gradients (B, D), with the learning rate scaled by `factor`."""
        backend.of_rows(rows).row_adam(self.table, self.state["mean"], self.state["square"], self.state["steps"], rows,
                                       grad, self.lr * factor, BETAS, EPSILON)

    @torch.no_grad()
    def step_of(self, gradient: torch.Tensor, factor: float) -> None:
        """Update the rows that a gradient of the table, sparse or not, reaches, where it is not zero; on a GPU, where
        the host would wait to learn which these are, all."""
        rows, grad = torch.arange(len(self.table), device=self.table.device), gradient
        if gradient.is_sparse:
            rows, grad = gradient._indices()[0], gradient._values()
        grad = grad.view(len(rows), self.table.shape[1])
        if grad.device.type == "cpu" and not (reached := torch.linalg.vector_norm(grad, 1, 1) != 0).all():
            rows, grad = rows[reached], grad[reached]
        self.step(rows, grad, factor)


def _gradient_of(table: torch.Tensor, movies: torch.Tensor) -> torch.Tensor:
    """Return a table's gradient of movies, int64 (N,): all, or those of its sparse gradient; zero if it has none."""
    if table.grad is None:
        return table.new_zeros(len(movies), *table.shape[1:])
    if len(movies) == len(table):
        return table.grad.to_dense() if table.grad.is_sparse else table.grad
    return table.grad._values()  # of `gather_distinct`, once in a step
