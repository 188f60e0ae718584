"""Train the towers: epochs of steps, a step being a batch of users with all of their training ratings.

    python main.py --epochs 100 --batch_size 128 --lr 0.001

In a step each user's ratings are divided at random into context, which the user tower sees, and targets, which enter
the loss: no rating is ever predicted from itself. Everything random is a function of (seed, epoch), so that a resumed
run continues as if it had never stopped.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from models.checkpoint import model_entries
from models.two_tower import TwoTower
from preprocessing.dataset import DataError
from training.batches import Batch, DataSet, RatingTensors, batch_of, uniform
from training.distributed import ALONE, Ranks
from training.metrics import RatingErrors
from training.optimizer import RowAdam, build_optimizers, default_penalty, planned_epochs, schedule, set_rate

EVALUATION_USERS = 512  # users whose vectors are made at once
VALIDATION_USERS = 50_000  # after each epoch about so many are measured, the same every time
NOISE_SHIFTS = 4096  # rows of noise beyond one per movie


@dataclass
class Settings:
    """How to train; every field is a flag of main.py."""

    epochs: int = 100
    batch_size: int = 128
    lr: float = 0.001
    patience: int = 10
    penalty: float | None = None  # on |p_u|^2 + |q_m|^2 per target; None: see `default_penalty`
    film_prior: float = 4.5  # on |q_m|^2 per film, the precision of a Gaussian prior
    film_noise: float = 0.4  # standard deviation of the random factors on film coordinates
    user_dropout: float = 0.5  # share of users whose embedding is left out in a step
    context_share: float = 0.5  # of a user's ratings in a step
    seed: int = 0


@dataclass
class EpochMetrics:
    """A row of metrics.csv."""

    epoch: int
    train_loss: float  # mean squared error of the heads in stars, plus penalty
    train_rmse: float  # of the targets, with noise, as the step saw them
    val_rmse: float
    val_mae: float
    lr: float
    seconds: float  # training, without evaluation
    ratings_per_s: float
    peak_rss_mib: float


class Trainer:
    """The state of a run: model, optimizers, epochs done. `epochs` does the work, one epoch per iteration."""

    def __init__(self, model: TwoTower, data: DataSet, settings: Settings, ranks: Ranks = ALONE) -> None:
        device = model.offset.device
        self.model, self.settings, self.ranks = model, settings, ranks
        self.num_ratings = data.meta["split"]["num_train"]
        self.first_user, self.last_user = ranks.user_range(data.users.offset)
        self.stars_step = data.meta["stars_step"]
        self.train, self.validation = data.train.to(device), data.validation.to(device)
        with_validation = self.validation.offset.diff().nonzero().squeeze(1)
        num_with = torch.tensor(float(len(with_validation)), device=device)
        ranks.sum_(num_with)
        share = VALIDATION_USERS / max(float(num_with), 1.0)
        self.val_users = with_validation[uniform(0, with_validation) < share]
        self.penalty = settings.penalty
        if self.penalty is None:
            num_rated = int((data.movies.num_train_ratings > 0).sum())
            self.penalty = default_penalty(data.num_users, num_rated, self.num_ratings)
        self.num_epochs = planned_epochs(model.config.num_users, settings.epochs)
        self.optimizers = build_optimizers(model, settings.lr)
        self.user_rows = RowAdam(model.user_embedding, settings.lr)
        self.metrics: list[EpochMetrics] = []
        self.best_epoch, self.best_rmse = 0, math.inf

    def epochs(self) -> Iterator[EpochMetrics]:
        """Train and validate an epoch, yield its metrics, and so on until the last epoch or patience runs out.

        After each, `best_epoch` tells whether this one is the best so far. Without validation ratings it always is.

        Raises:
            DataError: the loss is no longer finite; names epoch, step and rate.
        """
        for epoch in range(len(self.metrics) + 1, self.num_epochs + 1):
            if epoch - 1 - self.best_epoch >= self.settings.patience and self.best_epoch:
                return
            metrics = self._run_epoch(epoch)
            self.metrics.append(metrics)
            if not metrics.val_rmse >= self.best_rmse:
                self.best_epoch = epoch
                self.best_rmse = metrics.val_rmse if math.isfinite(metrics.val_rmse) else math.inf
            yield metrics

    def checkpoint(self, fingerprint: str) -> dict:
        """Return the model as it is now, with what is needed to use it (see models/checkpoint.py)."""
        return {"fingerprint": fingerprint, "settings": vars(self.settings),
                "epoch": len(self.metrics), "train_s": sum(row.seconds for row in self.metrics), "refit": False,
                **model_entries(self.model)}

    def state_dict(self) -> dict:
        """Return what `load_state_dict` needs to go on, beside the model."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "user_rows": self.user_rows.state, "metrics": [vars(row) for row in self.metrics],
                "best_epoch": self.best_epoch, "best_rmse": self.best_rmse}

    def load_state_dict(self, state: dict) -> None:
        """Take over the state of an interrupted run."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for name, value in state["user_rows"].items():
            self.user_rows.state[name].copy_(value)
        self.metrics = [EpochMetrics(**row) for row in state["metrics"]]
        self.best_epoch, self.best_rmse = state["best_epoch"], state["best_rmse"]

    def _run_epoch(self, epoch: int) -> EpochMetrics:
        settings, model, start = self.settings, self.model, time.perf_counter()
        config, device = model.config, model.offset.device
        steps = math.ceil(config.num_users / settings.batch_size)
        seed = settings.seed * 1_000_003 + epoch
        torch.manual_seed(seed)
        order = torch.randperm(config.num_users)
        shifts = torch.randint(NOISE_SHIFTS, (steps, 2)).tolist()
        # In every step a film meets another row of this table: as good as fresh noise, and far cheaper.
        noise = 1 + settings.film_noise * torch.randn(config.num_movies + NOISE_SHIFTS, config.embedding_dim)
        noise = noise.to(device)
        model.train()
        sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, squared error, predictions
        with tqdm(total=len(self.train), desc=f"epoch {epoch}/{self.num_epochs}", unit=" ratings", unit_scale=True,
                  leave=False, mininterval=0.5, disable=None if self.ranks.is_main else True) as bar:
            for step in range(steps):
                users = order[step * settings.batch_size:(step + 1) * settings.batch_size].sort().values
                users = users[(users >= self.first_user) & (users < self.last_user)].to(device)
                factor = schedule((epoch - 1) * steps + step, self.num_epochs * steps)
                batch = batch_of(self.train, users, self.stars_step)
                factors = tuple(noise[shift:shift + config.num_movies] for shift in shifts[step])
                step_sums = self._step(batch, seed, factors if settings.film_noise else None, factor)
                if not model.offset.is_cuda or step == steps - 1:  # a look at the loss makes the host wait
                    self._check_finite(step_sums, epoch, step + 1, settings.lr * factor)
                sums += step_sums
                bar.update(len(batch.row))
                if step % 8 == 0 and not bar.disable:
                    bar.set_postfix(loss=f"{float(sums[0] / sums[2].clamp(min=1)):.4f}", refresh=False)
        self._share_rows()
        self.ranks.sum_(sums)
        elapsed_s = time.perf_counter() - start
        loss, squared, count = sums.tolist()
        errors = predict_errors(model, self.train, self.validation, self.stars_step, self.ranks, self.val_users)
        return EpochMetrics(epoch, loss / max(count, 1), (squared / max(count, 1)) ** 0.5, errors.rmse, errors.mae,
                            settings.lr * factor, elapsed_s, self.num_ratings / elapsed_s, peak_rss_mib())

    def _step(self, batch: Batch, seed: int, noise: tuple[torch.Tensor, torch.Tensor] | None,
              factor: float) -> torch.Tensor:
        """Take one step; return its sums of loss and squared error and the number of predictions, float64 (3,)."""
        model, settings = self.model, self.settings
        in_context = uniform(seed, batch.users[batch.row], batch.movie_idx) < settings.context_share
        context, target = batch.part(in_context), batch.part(~in_context)
        rows = model.user_embedding[batch.users].requires_grad_()
        keep = uniform(seed, batch.users).unsqueeze(1) >= settings.user_dropout
        score, size = model(rows * keep, (context.row, context.movie_idx, context.stars),
                            (target.row, target.movie_idx), noise, self.penalty, settings.film_prior)
        squared = (model.stars(score) - target.stars.unsqueeze(1)).square().sum()
        loss = 0.5 * squared + 0.5 * size
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.ranks.sum_(*(parameter.grad for parameter in model.parameters()))
        set_rate(self.optimizers, factor)
        for optimizer in self.optimizers:
            optimizer.step()
        self.user_rows.step(batch.users, rows.grad, factor)
        return torch.stack([2 * loss.detach().double(), squared.detach().double(),
                            torch.tensor(float(score.numel()), dtype=torch.float64, device=score.device)])

    def _share_rows(self) -> None:
        """Bring every rank's rows of the user table to all ranks, for evaluation and checkpoints."""
        if self.ranks.size == 1:
            return
        tables = [self.model.user_embedding, *self.user_rows.state.values()]
        for table in tables:
            table[:self.first_user] = 0
            table[self.last_user:] = 0
        self.ranks.sum_(*tables)

    def _check_finite(self, sums: torch.Tensor, epoch: int, step: int, lr: float) -> None:
        if not torch.isfinite(sums).all():
            raise DataError(f"the loss is no longer finite in epoch {epoch}, step {step}, at rate {lr:.3g}; the last "
                            f"checkpoint is kept; try again with a smaller --lr than {self.settings.lr:g}")


@torch.no_grad()
def predict_errors(model: TwoTower, context: RatingTensors, part: RatingTensors, stars_step: float,
                   ranks: Ranks = ALONE, users: torch.Tensor | None = None) -> RatingErrors:
    """Predict a part's ratings, each user's vector made from all of his context ratings; sum the errors.

    Args:
        context, part: what is known and what is to be predicted, of this rank's users.
        users: user_idx int64 of those to measure; None for all that have ratings in the part.
    """
    errors = RatingErrors()
    model.eval()
    movie_vectors = model.movie_vectors()
    if users is None:
        users = part.offset.diff().nonzero().squeeze(1)
    for block, vectors in user_vectors(model, context, stars_step, users):
        batch = batch_of(part, block, stars_step)
        score = (vectors[batch.row] * movie_vectors[batch.movie_idx]).sum(1)
        errors.add(model.stars(score), batch.stars)
    sums = torch.tensor([errors.squared, errors.absolute, errors.count], dtype=torch.float64).to(movie_vectors.device)
    ranks.sum_(sums)
    return RatingErrors(*sums.tolist())


@torch.no_grad()
def user_vectors(model: TwoTower, context: RatingTensors, stars_step: float,
                 users: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (user_idx int64 (B,), vectors float (B, P)) for some users in blocks."""
    model.eval()
    films = model.films()
    for block in users.split(EVALUATION_USERS):
        batch = batch_of(context, block, stars_step)
        yield block, model.user_vectors(films, model.user_embedding[block], batch.row, batch.movie_idx, batch.stars)


def scorer(model: TwoTower, context: RatingTensors, stars_step: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from user_idx int64 (B,) to scores of all movies (B, M), for `evaluate_ranking`."""
    with torch.no_grad():
        movie_vectors = model.eval().movie_vectors()
    return lambda users: torch.cat([vectors @ movie_vectors.T
                                    for _, vectors in user_vectors(model, context, stars_step, users)])


def peak_rss_mib() -> float:
    """Return the largest memory that this process has held so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform == "linux" else 2**20)
