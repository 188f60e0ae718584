"""The steps of an epoch: a step is a batch of users with all of their training ratings.

In a step each user's ratings are divided at random into context, which the user tower sees, and targets, which enter
the loss: no rating is ever predicted from itself. Half of the ensemble sees them one way round and half the other (with
an odd number of members, all the same way). The movie tower runs once a step, the user tower in pieces where the users
have many ratings. All random numbers are functions of (seed, epoch), so that a resumed run continues as if it had never
stopped, and many processes do what one would.

An engine trains one pair of towers. For the item-based ones, "users" are the movies and "movies" the users.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from tqdm import tqdm

from models.config import flag
from models.movie_tower import MovieTable
from models.ops.ranks import Ranks
from models.ops.threads import in_threads
from models.two_tower import TwoTower
from preprocessing.dataset import DataError
from training.batches import Batch, RatingTensors, batch_of, in_context_of, uniform
from training.halves import Part, halves, pieces
from training.optimizer import USER_LR, RowAdam, build_optimizers, layers_lr, lr_factor
from training.relevance import RelevanceTrainer

Gradients = Sequence[torch.Tensor | None]

SHOW_S = 1.0  # seconds after which the bar shows another loss; for that the host waits for a GPU
RELEVANCE_USERS = 128_000  # where an epoch has more, steps of so many to twice as many also train relevance


@dataclass
class Settings:
    """How to train; the fields with a help text are flags of main.py."""

    epochs: int = flag(100, "most epochs to train; the learning rate falls to zero within 20, or 8 with many users")
    batch_size: int | None = flag(None, "USERS a step, each with all of their training ratings (default: 128, up to "
                                  "4096 where there are many users)")
    lr: float = flag(0.001, "base learning rate")
    patience: int = flag(10, "epochs without a better validation RMSE before training stops")
    l2: float | None = flag(None, "weight of the vectors' squared norms in the loss, per rating (default: movies per "
                            "rating; item-based: users per rating)", old_name="penalty")
    movie_l2: float = flag(6.0, "weight of the movie vectors' squared norms, per movie", old_name="film_prior")
    embedding_l2: float = flag(60.0, "weight of the movie embeddings' squared norms, per movie: of how far a vector is "
                               "from what the movie's features say")
    time_l2: float = flag(200.0, "weight of the squares of movies' biases over time, per movie and period",
                          old_name="drift_prior")
    relevance_weight: float = flag(1.0, "weight of the loss of the order by relevance, which has parameters of its "
                                   "own; 0: leave that order out")
    seed: int = flag(0, "random seed")
    user_dropout: float = 0.97  # fraction of users whose embedding is left out in a step where a history speaks for
    # them; no flag


class Engine:
    """What trains one pair of towers: the model, its training ratings, its optimizers."""

    def __init__(self, model: TwoTower, ratings: RatingTensors, settings: Settings, l2: float, batch_size: int,
                 seed: int, stars_step: float, ranks: Ranks, relevance: RelevanceTrainer | None = None,
                 enlarged: int = 1, any_size: float = 0.0) -> None:
        """Make an engine.

        Args:
            ratings: training ratings of this rank's users, whose rows the model has, on its device.
            l2: per target, on the vectors' squared norms.
            batch_size: users a step, over all ranks.
            seed: of these towers.
            stars_step: stars of one unit of `ratings.stars`.
            relevance: is trained in every `relevance_every`-th step, without an effect on the model.
            enlarged: how many times as many users steps have as they would with more ratings, see `layers_lr`.
            any_size: of users, see `in_context_of`.
        """
        self.model, self.ratings, self.ranks = model, ratings, ranks
        self.settings, self.l2, self.batch_size, self.seed = settings, l2, batch_size, seed
        self.stars_step, self.any_size = stars_step, any_size
        self.num_ratings = ratings.offset.diff().cpu()  # of each own user; on a GPU, known without waiting for it
        self.num_steps = math.ceil(model.config.num_users / batch_size)  # of an epoch
        self.tables, self.layers = build_optimizers(model, settings.lr, settings.time_l2 / self.num_steps)
        self.user_rows = RowAdam(model.user_embedding, settings.lr * USER_LR)
        self.relevance = relevance
        has_history = model.config.has("pooled_history") or model.config.has("fold_in")
        self.user_dropout = settings.user_dropout if has_history else 0.0
        self.groups = 2 if model.config.ensemble_size % 2 == 0 else 1  # two see the halves both ways round
        self.layers_lr, self.factor = layers_lr(enlarged), 0.0  # of the learning rate in the last step
        self.distinct = torch.zeros(0, dtype=torch.int64)  # the movies of the step, of all ranks
        self.relevance_every = max(model.config.num_users // RELEVANCE_USERS, 1)

    def run_epoch(self, epoch: int, num_epochs: int, bar: tqdm) -> torch.Tensor:
        """Run the steps of an epoch, 1 to num_epochs; return the sums over all ranks of loss and squared error, and
        the number of predictions, float64 (3,).

        Raises:
            DataError: the loss is no longer finite; names epoch, step and learning rate.
        """
        sums, shown = torch.zeros(3, dtype=torch.float64, device=self.model.offset.device), -math.inf
        batches = self._batches(epoch)
        ahead = [next(batches)]

        def put_together() -> None:
            ahead.extend(itertools.islice(batches, 1))

        for step in range(self.num_steps):
            batch, parts = ahead.pop()
            factor = lr_factor((epoch - 1) * self.num_steps + step, num_epochs * self.num_steps)
            try:
                step_sums = self.step(batch, self._epoch_seed(epoch), factor, step, parts, put_together)
            except torch.linalg.LinAlgError:  # nobody can be folded in where movie vectors are not finite
                raise self._not_finite(epoch, step + 1, factor) from None
            sums += step_sums
            to_check = not sums.is_cuda or step == self.num_steps - 1  # a look at the loss makes the host wait
            if to_check and not torch.isfinite(sums).all():
                raise self._not_finite(epoch, step + 1, factor)
            bar.update(len(batch.row))
            if not bar.disable and time.monotonic() - shown >= SHOW_S:
                shown = time.monotonic()
                bar.set_postfix(loss=f"{float(sums[0] / sums[2].clamp(min=1)):.4f}", refresh=False)
        self.tables.catch_up()
        self.ranks.sum_(sums)
        return sums

    def step(self, batch: Batch, seed: int, factor: float, number: int = 0, parts: list[Part] | None = None,
             meanwhile: Callable[[], None] = lambda: None) -> torch.Tensor:
        """Run one optimizer step, the `number`-th of its epoch, with learning rates scaled by `factor`; return this
        rank's sums of loss, squared error and count.

        Args:
            parts: of the batch, where they are at hand.
            meanwhile: is called beside what keeps one thread alone busy.
        """
        parts = self._parts(batch, seed) if parts is None else parts
        tasks: list[Callable[[], torch.Tensor]] = [partial(self._train_rating, batch, parts, factor, meanwhile)]
        relevance = self.relevance if number % self.relevance_every == 0 else None
        if relevance is not None:
            tasks.append(partial(relevance.differentiate, parts, seed, number, self.settings.relevance_weight,
                                 factor if self.ranks.size == 1 else None))
        for parameter in self._parameters(relevance):
            parameter.grad = None
        step_sums, *losses = in_threads(tasks)
        if self.ranks.size > 1:
            self.ranks.sum_(*self.shared_gradients(relevance))
            self._move(factor)
            if relevance is not None:
                relevance.move(factor)
        for loss in losses:
            step_sums[0] += 0 * loss  # is not finite where that is not
        return step_sums

    def _train_rating(self, batch: Batch, parts: list[Part], factor: float,
                      meanwhile: Callable[[], None]) -> torch.Tensor:
        """Differentiate a step's loss, move the users' rows by it and, where no other rank has a share in it, the
        shared parameters; return the step's sums."""
        distinct = self.distinct = self._of_all_ranks(self.model.distinct_movies(batch.movie_idx))
        self.tables.catch_up(distinct)
        movies = self.model.step_movies(distinct, self.groups)
        results = in_threads([partial(self._gradients, part, movies.detached()) for part in parts])
        sums, num_targets, row_grads, grads = zip(*results, strict=True)
        step_sums = torch.stack(sums).sum(0)

        def finish() -> None:
            movie_grads = _sums([of_movies for of_movies, _ in grads])
            assert movie_grads[0] is not None  # all scores are made of the rows
            norms, by_embedding = movies.add_squared_norms(movie_grads[0], torch.stack(num_targets).sum(0), self.l2,
                                                           self.settings.movie_l2, self.settings.embedding_l2)
            layer_grads = _sums([of_layers for _, of_layers in grads])
            for parameter, grad in zip(self.layers.parameters, layer_grads, strict=True):
                parameter.grad = grad
            known = zip([*movies.table.tensors(), movies.embedding], [*movie_grads, by_embedding], strict=True)
            torch.stack([_Known.apply(tensor, grad) for tensor, grad in known if grad is not None]).sum().backward()
            self.user_rows.step(self.model.positions(batch.users), torch.cat(row_grads), factor)
            if self.ranks.size == 1:
                self._move(factor)
            step_sums[0] += norms

        in_threads([finish, meanwhile])
        return step_sums

    def _move(self, factor: float) -> None:
        """Move the movie tables and the shared layers by their gradients."""
        self.tables.step(factor)
        self.layers.step(self.settings.lr * self.layers_lr * factor)
        self.factor = factor

    def shared_gradients(self, relevance: RelevanceTrainer | None) -> list[torch.Tensor]:
        """Return the last step's gradients of the parameters that all ranks share: what travels, once a step.

        Of the movie tables these are the rows of the movies that any rank met, of other parameters all. Their bytes are
        what a rank contributes; a ring of n ranks passes on 2 (n - 1) / n times as many.
        """
        shared = []
        for parameter in self._parameters(relevance):
            of_movies = any(parameter is table for table in self.tables.tables)
            if parameter.grad is None:  # this rank's users did not touch it
                parameter.grad = _no_gradient(parameter, self.distinct if of_movies else None)
            elif parameter.grad.is_sparse and not of_movies:
                parameter.grad = parameter.grad.to_dense()
            shared.append(parameter.grad._values() if parameter.grad.is_sparse else parameter.grad)
        return shared

    def state_dict(self) -> dict:
        """Return the state of the optimizers between epochs."""
        return {"tables": self.tables.momentum, "layers": self.layers.state, "user_rows": self.user_rows.state,
                "relevance": [table.state for table in self.relevance.tables] if self.relevance is not None else []}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Take over a saved state, of all users, but not its rates: these are of the flags."""
        of_layers = [(self.layers.state[name], saved) for name, saved in state["layers"].items()]
        for values, all_saved in [(self.tables.momentum, state["tables"]), *of_layers]:
            for value, saved in zip(values, all_saved, strict=True):
                value.copy_(saved)
        of_relevance = [] if self.relevance is None else self.relevance.tables
        of_users = {name: self.model.own_rows(saved) for name, saved in state["user_rows"].items()}
        for optimizer, saved in zip([self.user_rows, *of_relevance], [of_users, *state["relevance"]], strict=True):
            for name, value in optimizer.state.items():
                value.copy_(saved[name])

    def _of_all_ranks(self, movies: torch.Tensor) -> torch.Tensor:
        """Return the movies, ascending int64 (N,), that any rank has among its own."""
        if self.ranks.size == 1 or movies.is_cuda:  # where they are all, see `distinct_movies`
            return movies
        met = torch.zeros(self.model.config.num_movies, dtype=torch.int32, device=movies.device)
        met[movies] = 1
        self.ranks.sum_(met)
        return met.nonzero().squeeze(1)

    def _parameters(self, relevance: RelevanceTrainer | None) -> list[nn.Parameter]:
        """Return what a step moves, with relevance or without."""
        return [*self.model.parameters(), *([] if relevance is None else relevance.relevance.parameters())]

    def _batches(self, epoch: int) -> Iterator[tuple[Batch, list[Part]]]:
        """Yield the users of every step that are this rank's, with their ratings, and the batch's parts."""
        config, device = self.model.config, self.model.offset.device
        chance = torch.Generator().manual_seed(self._epoch_seed(epoch))
        if config.dropout:  # which draws from PyTorch's own
            torch.manual_seed(self._epoch_seed(epoch))
        order = torch.randperm(config.num_users, generator=chance, dtype=torch.int32)  # of the users of all ranks
        self.model.train()
        first, last = self.ratings.owned
        own = ((order >= first) & (order < last)).nonzero().squeeze(1)
        steps, order = own // self.batch_size, order[own].long()
        num_users, num_ratings = (torch.bincount(steps, weights, self.num_steps).long().tolist()
                                  for weights in (None, self.num_ratings[order - first].double()))
        order = (steps * config.num_users + order).to(device).sort().values % config.num_users  # ascending in a step
        for users, total in zip(order.split(num_users), num_ratings, strict=True):
            batch = batch_of(self.ratings, users, self.stars_step, total)
            yield batch, self._parts(batch, self._epoch_seed(epoch))

    def _parts(self, batch: Batch, seed: int) -> list[Part]:
        """Cut a batch into pieces, and these into context and targets."""
        parts = []
        for piece in pieces(batch):
            in_context = in_context_of(piece, seed, self.any_size)
            has_embedding = uniform(seed, piece.users) >= self.user_dropout
            parts.append(Part(piece, in_context, has_embedding,
                              *halves(piece, in_context, self.groups == 2, has_embedding)))
        return parts

    def _gradients(self, part: Part,
                   movies: MovieTable) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[Gradients, Gradients]]:
        """Differentiate the loss of a piece of a batch.

        Args:
            movies: of the step, detached for this piece.

        Returns:
            Its sums, float64 (3,); the number of its targets by movie and group, float (N G,); the gradients of the
            users' rows, (B, D); those of the movies and of the shared layers.
        """
        model = self.model
        batch, _, has_embedding, context, target, user_of_row, first_rows = part
        rows = model.embedding_of(batch.users).requires_grad_()
        embedding = (rows * has_embedding.unsqueeze(1)).index_select(0, user_of_row)
        score, squared_norms, num_targets = model(embedding, context.context(), target.target(),
                                                  movies._replace(first_rows=first_rows))
        squared = (model.stars(score) - target.stars.unsqueeze(1)).square().sum()
        loss = 0.5 * squared / model.config.unit**2 + 0.5 * self.l2 * squared_norms
        leaves, layers = movies.tensors(), self.layers.parameters
        of_rows, *grads = torch.autograd.grad(loss, [rows, *leaves, *layers], allow_unused=True)
        count = torch.full((), score.numel(), dtype=torch.float64, device=score.device)
        sums = torch.stack([2 * loss.detach().double(), squared.detach().double(), count])
        return (sums, num_targets, torch.zeros_like(rows) if of_rows is None else of_rows,
                (grads[:len(leaves)], grads[len(leaves):]))

    def _epoch_seed(self, epoch: int) -> int:
        return self.seed * 1_000_003 + epoch

    def _not_finite(self, epoch: int, step: int, factor: float) -> DataError:
        """Return the error of a loss that is not finite."""
        lr = self.settings.lr
        return DataError(f"the loss is no longer finite in epoch {epoch}, step {step}, at rate {lr * factor:.3g}; "
                         f"the last checkpoint is kept; try again with a smaller --lr than {lr:g}")


def _no_gradient(parameter: nn.Parameter, rows: torch.Tensor | None) -> torch.Tensor:
    """Return zero in the form of a parameter's gradient: dense, or that of `gather_distinct` of rows, int64 (N,)."""
    if rows is None or len(rows) == len(parameter):
        return torch.zeros_like(parameter)
    return torch.sparse_coo_tensor(rows.unsqueeze(0), parameter.new_zeros(len(rows), *parameter.shape[1:]),
                                   parameter.shape, is_coalesced=True, check_invariants=False)


class _Known(torch.autograd.Function):
    """A term of a loss whose gradient by a tensor is known; 0 itself.

    PyTorch's `backward` takes gradients too, but imports sympy for them, which takes half a second.
    """

    @staticmethod
    def forward(ctx, tensor, grad):
        ctx.save_for_backward(grad)
        return tensor.new_zeros(())

    @staticmethod
    def backward(ctx, _):
        return ctx.saved_tensors[0], None


def _sums(by_piece: list[Gradients]) -> Gradients:
    """Add the gradients of pieces to those of the first, in order."""
    sums = []
    for grads in zip(*by_piece, strict=True):
        reached = [grad for grad in grads if grad is not None]
        for grad in reached[1:]:
            reached[0] += grad
        sums.append(reached[0] if reached else None)
    return sums
