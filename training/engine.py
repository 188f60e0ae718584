"""The steps of an epoch: a step is a batch of users with all of their training ratings.

In a step each user's ratings are divided at random into context, which the user tower sees, and targets, which enter
the loss: no rating is ever predicted from itself. Half of the ensemble sees them one way round and half the other (with
an odd number of members, all the same way). The movie tower runs once a step, the user tower in pieces where the users
have many ratings. All random numbers are functions of (seed, epoch), so that a resumed run continues as if it had never
stopped, and many processes do what one would.

An engine trains one pair of towers. For the item-based ones, "users" are the movies and "movies" the users.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from models.config import flag
from models.movie_tower import StepMovies
from models.ops.rating_pattern import row_starts
from models.two_tower import TwoTower
from preprocessing.dataset import DataError
from training.batches import Batch, RatingTensors, batch_of, uniform
from training.distributed import Ranks
from training.optimizer import RowAdam, build_optimizers, lr_factor, relevance_optimizer, set_lr
from training.relevance import RelevanceLoss

NOISE_SHIFTS = 4096  # rows of noise beyond one per movie
SHOW_S = 1.0  # seconds after which the bar shows another loss; for that the host waits for a GPU
CONTEXT_FRACTION = 0.5  # of a user's ratings in a step
RELEVANCE_USERS = 128_000  # where an epoch has more, steps of so many to twice as many also train relevance
PIECE_RATINGS = 2**18  # a step of more ratings is computed in pieces, so that its memory stays bounded
GPU_PIECE_RATINGS = 2**20  # the same on a GPU


@dataclass
class Settings:
    """How to train; the fields with a help text are flags of main.py."""

    epochs: int = flag(100, "most epochs to train; the learning rate falls to zero within 20, or 8 with many users")
    batch_size: int | None = flag(None, "USERS a step, each with all of their training ratings (default: 128, up to "
                                  "4096 where there are many users)")
    lr: float = flag(0.001, "base learning rate")
    patience: int = flag(10, "epochs without a better validation RMSE before training stops")
    movie_noise: float = flag(0.3, "noise on movie vectors in training: standard deviation of a factor around 1",
                              old_name="film_noise")
    l2: float | None = flag(None, "weight of the vectors' squared norms in the loss, per rating (default: movies per "
                            "rating; item-based: users per rating)", old_name="penalty")
    movie_l2: float = flag(9.0, "weight of the movie vectors' squared norms, per movie", old_name="film_prior")
    time_l2: float = flag(200.0, "weight of the squares of movies' biases over time, per movie and period",
                          old_name="drift_prior")
    relevance_weight: float = flag(1.0, "weight of the loss of the order by relevance, which has parameters of its "
                                   "own; 0: leave that order out")
    seed: int = flag(0, "random seed")
    user_dropout: float = 0.97  # fraction of users whose embedding is left out in a step; no flag


class Engine:
    """What trains one pair of towers: the model, its training ratings, its optimizers."""

    def __init__(self, model: TwoTower, ratings: RatingTensors, owned: tuple[int, int], settings: Settings,
                 l2: float, batch_size: int, seed: int, stars_step: float, ranks: Ranks,
                 relevance: RelevanceLoss | None = None) -> None:
        """Make an engine.

        Args:
            ratings: training ratings of this rank's users, on the model's device.
            owned: first and one past the last of this rank's users.
            l2: per target, on the vectors' squared norms.
            batch_size: users a step, over all ranks.
            seed: of these towers.
            stars_step: stars of one unit of `ratings.stars`.
            relevance: is trained in every `relevance_every`-th step, without an effect on the model.
        """
        self.model, self.ratings, self.owned, self.ranks = model, ratings, owned, ranks
        self.settings, self.l2, self.batch_size, self.seed = settings, l2, batch_size, seed
        self.stars_step = stars_step
        self.num_ratings = ratings.offset.diff().cpu()  # of each user; on a GPU, known without waiting for it
        self.num_steps = math.ceil(model.config.num_users / batch_size)  # of an epoch
        self.optimizers = build_optimizers(model, settings.lr, settings.time_l2 / self.num_steps)
        self.user_rows = RowAdam(model.user_embedding, settings.lr)
        self.relevance = relevance
        self.groups = 2 if model.config.ensemble_size % 2 == 0 else 1  # two see the halves both ways round
        self.relevance_every = max(model.config.num_users // RELEVANCE_USERS, 1)
        if relevance is not None:
            self.optimizers.append(relevance_optimizer(relevance.relevance, settings.lr))

    def run_epoch(self, epoch: int, num_epochs: int, bar: tqdm) -> torch.Tensor:
        """Run the steps of an epoch, 1 to num_epochs; return the sums over all ranks of loss and squared error, and
        the number of predictions, float64 (3,).

        Raises:
            DataError: the loss is no longer finite; names epoch, step and learning rate.
        """
        sums, shown = torch.zeros(3, dtype=torch.float64, device=self.model.offset.device), -math.inf
        for step, (batch, noise) in enumerate(self._batches(epoch)):
            factor = lr_factor((epoch - 1) * self.num_steps + step, num_epochs * self.num_steps)
            try:
                step_sums = self.step(batch, self._epoch_seed(epoch), noise, factor, step)
            except torch.linalg.LinAlgError:  # nobody can be folded in where movie vectors are not finite
                step_sums = torch.full_like(sums, math.nan)
            sums += step_sums
            if not sums.is_cuda or step == self.num_steps - 1:  # a look at the loss makes the host wait
                self._check_finite(sums, epoch, step + 1, factor)
            bar.update(len(batch.row))
            if not bar.disable and time.monotonic() - shown >= SHOW_S:
                shown = time.monotonic()
                bar.set_postfix(loss=f"{float(sums[0] / sums[2].clamp(min=1)):.4f}", refresh=False)
        self._share_rows()
        self.ranks.sum_(sums)
        return sums

    def step(self, batch: Batch, seed: int, noise: tuple[torch.Tensor, torch.Tensor] | None,
             factor: float, number: int = 0) -> torch.Tensor:
        """Run one optimizer step, the `number`-th of its epoch, with learning rates scaled by `factor`; return this
        rank's sums of loss, squared error and count."""
        with_relevance = self.relevance is not None and number % self.relevance_every == 0
        optimizers = self.optimizers if with_relevance else self.optimizers[:2]  # that of relevance is the last
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        movies = self.model.step_movies(batch.movie_idx, noise, self.groups)
        detached = movies.detached()
        results = (self._backward(piece, detached, seed, number, with_relevance) for piece in pieces(batch))
        sums, num_targets, row_grads = zip(*results, strict=True)
        norms = movies.squared_norms(torch.stack(num_targets).sum(0), self.l2, self.settings.movie_l2)
        grads = [(table.rows, leaf.rows.grad) for table, leaf in ((movies.context, detached.context),
                                                                  (movies.target, detached.target))]
        reached = [(rows, grad) for rows, grad in grads if grad is not None]
        torch.autograd.backward([0.5 * norms, *(rows for rows, _ in reached)], [None, *(grad for _, grad in reached)])
        self.ranks.sum_(*self.shared_gradients(with_relevance))
        set_lr(optimizers, factor)
        for optimizer in optimizers:
            optimizer.step()
        self.user_rows.step(batch.users, torch.cat(row_grads), factor)
        step_sums = torch.stack(sums).sum(0)
        step_sums[0] += norms.detach()
        return step_sums

    def shared_gradients(self, with_relevance: bool) -> list[torch.Tensor]:
        """Return the last step's gradients of the parameters that all ranks share: what travels, once a step.

        Their bytes are what a rank contributes; a ring of n ranks passes on 2 (n - 1) / n times as many.
        """
        parameters = list(self.model.parameters())
        if with_relevance and self.relevance is not None:
            parameters += self.relevance.relevance.parameters()
        for parameter in parameters:
            if parameter.grad is None:  # this rank's users did not touch it
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    def state_dict(self) -> dict:
        """Return the state of the optimizers."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "user_rows": self.user_rows.state}

    def load_state_dict(self, state: dict) -> None:
        """Take over a saved state, but not its rates: these are of the flags."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            kept = [{name: group[name] for name in ("base_lr", "weight_decay")} for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, values in zip(optimizer.param_groups, kept, strict=True):
                group.update(values)
        for name, value in state["user_rows"].items():
            self.user_rows.state[name].copy_(value)

    def _batches(self, epoch: int) -> Iterator[tuple[Batch, tuple[torch.Tensor, torch.Tensor] | None]]:
        """Yield the users of every step that are this rank's, with their ratings, and the step's noise on the movie
        vectors."""
        config, settings, device = self.model.config, self.settings, self.model.offset.device
        torch.manual_seed(self._epoch_seed(epoch))
        order = torch.randperm(config.num_users)
        shifts = torch.randint(NOISE_SHIFTS, (self.num_steps, 2)).tolist()
        # In every step a movie gets another row of this table: as good as fresh noise, and far cheaper.
        table = 1 + settings.movie_noise * torch.randn(config.num_movies + NOISE_SHIFTS, config.embedding_dim)
        table = table.to(device)
        self.model.train()
        first, last = self.owned
        steps = torch.arange(config.num_users) // self.batch_size
        owned = (order >= first) & (order < last)
        steps, order = steps[owned], order[owned]
        num_users, num_ratings = (torch.bincount(steps, weights, self.num_steps).long().tolist()
                                  for weights in (None, self.num_ratings[order].double()))
        order = (steps * config.num_users + order).to(device).sort().values % config.num_users  # ascending in a step
        for step, (users, total) in enumerate(zip(order.split(num_users), num_ratings, strict=True)):
            context, target = (table[shift:shift + config.num_movies] for shift in shifts[step])
            noise = (context, target) if settings.movie_noise else None
            yield batch_of(self.ratings, users, self.stars_step, total), noise

    def _backward(self, batch: Batch, movies: StepMovies, seed: int, number: int,
                  with_relevance: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Add the gradients of a piece of a batch, down to the detached movies of the step.

        Returns:
            Its sums, float64 (3,); the number of its targets by movie and group, float (N G,); and the gradients of the
            users' rows, (B, D).
        """
        model, settings = self.model, self.settings
        in_context = uniform(seed, batch.users.index_select(0, batch.row), batch.movie_idx) < CONTEXT_FRACTION
        context, target = halves(batch, in_context, both_ways=self.groups == 2)
        rows = model.user_embedding[batch.users].requires_grad_()
        keep = uniform(seed, batch.users).unsqueeze(1) >= settings.user_dropout
        embedding = (rows * keep).repeat(self.groups, 1)
        score, squared_norms, num_targets = model(embedding, context.context(), target.target(), movies)
        squared = (model.stars(score) - target.stars.unsqueeze(1)).square().sum()
        loss = 0.5 * squared / model.config.unit**2 + 0.5 * self.l2 * squared_norms
        loss.backward()
        if with_relevance and self.relevance is not None:
            relevance = settings.relevance_weight * self.relevance(batch, in_context, seed, number)
            relevance.backward()
            loss = loss + 0 * relevance.detach()  # is not finite where that is not
        count = torch.full((), score.numel(), dtype=torch.float64, device=score.device)
        sums = torch.stack([2 * loss.detach().double(), squared.detach().double(), count])
        return sums, num_targets, torch.zeros_like(rows) if rows.grad is None else rows.grad

    def _epoch_seed(self, epoch: int) -> int:
        return self.seed * 1_000_003 + epoch

    def _share_rows(self) -> None:
        """Bring every rank's rows of the user table to all ranks, for evaluation and checkpoints."""
        if self.ranks.size == 1:
            return
        first, last = self.owned
        tables = [self.model.user_embedding, *self.user_rows.state.values()]
        for table in tables:
            table[:first] = 0
            table[last:] = 0
        self.ranks.sum_(*tables)

    def _check_finite(self, sums: torch.Tensor, epoch: int, step: int, factor: float) -> None:
        if not torch.isfinite(sums).all():
            lr = self.settings.lr
            raise DataError(f"the loss is no longer finite in epoch {epoch}, step {step}, at rate {lr * factor:.3g}; "
                            f"the last checkpoint is kept; try again with a smaller --lr than {lr:g}")


def halves(batch: Batch, in_context: torch.Tensor, both_ways: bool) -> tuple[Batch, Batch]:
    """Return the context and the targets of a batch; for two groups of members both ways round, the users of the second
    after those of the first (see `MovieTable`).

    Which ratings are context is what two runs differ by most. So two groups that see the halves swapped err more unlike
    each other than if they saw the same, and their mean errs less, in the time of one model.
    """
    if not both_ways:
        return batch.subset(in_context), batch.subset(~in_context)

    if in_context.device.type != "cpu":  # where the host need not learn how many are context
        orders = (~in_context).argsort(stable=True), in_context.argsort(stable=True)
    else:
        context, target = (which.nonzero().squeeze(1) for which in (in_context, ~in_context))
        orders = torch.cat([context, target]), torch.cat([target, context])

    def one_after_another(order: torch.Tensor, in_second: torch.Tensor) -> Batch:
        both = batch.subset(order)
        both.users = both.users.repeat(2)
        both.row += len(batch.users) * in_second.index_select(0, order)
        return both

    return one_after_another(orders[0], ~in_context), one_after_another(orders[1], in_context)


def pieces(batch: Batch, most: int | None = None) -> Iterator[Batch]:
    """Cut a batch between users, so that no piece has more ratings than `most`, unless it is a single user.

    Gradients add up over users, so that of the pieces is that of the batch.

    Args:
        most: None for GPU_PIECE_RATINGS or PIECE_RATINGS.
    """
    if most is None:
        most = GPU_PIECE_RATINGS if batch.row.is_cuda else PIECE_RATINGS
    if len(batch.row) <= most:
        yield batch
        return
    end = row_starts(batch.row, len(batch.users))[1:].tolist()  # of each user's ratings
    first = start = 0
    for user in range(1, len(end) + 1):
        if user == len(end) or end[user] - start > most:
            rows = slice(start, end[user - 1])
            yield Batch(batch.users[first:user], batch.row[rows] - first, batch.movie_idx[rows], batch.stars[rows],
                        batch.day[rows])
            first, start = user, end[user - 1]
