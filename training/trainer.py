"""Train the towers: epochs, validation after each, early stopping.

    python main.py --epochs 100 --batch_size 128 --lr 0.001
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from models.blend import Blend
from models.checkpoint import model_entries
from models.ops.ranks import ALONE, Ranks
from models.ops.threads import in_threads, shared_out
from preprocessing.dataset import DataError
from preprocessing.dataset.machine import keep_freed_memory, peak_rss_mib
from training.batches import DataSet, by_movie, uniform
from training.engine import Engine, Settings
from training.evaluation import fold_in, predict_scores, sum_errors
from training.link import count_scores, fit_link, fit_share, fit_spread, scores_and_features
from training.metrics import RatingErrors
from training.optimizer import USERS_A_STEP, default_batch_size, planned_epochs
from training.relevance import RelevanceTrainer, fit_weights

VALIDATION_USERS = 50_000  # after each epoch about so many are measured, the same every time
SPREAD_USERS = 512  # with validation ratings are enough for the spread of ratings; half of them as new people
ANY_SIZE = 0.15  # of users have a context of any size in an epoch, so that a few ratings of somebody new serve them
ITEM_BASED_SEED = 500_000  # added, so that the item-based towers draw other random numbers


@dataclass
class EpochMetrics:
    """A row of metrics.csv."""

    epoch: int
    train_loss: float  # mean squared error of the ensemble's members in units of the scale, plus weighted squared norms
    train_rmse: float  # of the targets, as the step saw them
    val_rmse: float  # with the link that was fitted to the same ratings
    val_mae: float
    lr: float
    seconds: float  # training, without validation
    ratings_per_s: float
    peak_rss_mib: float


class Trainer:
    """The state of a run: model, engines, epochs done. `epochs` does the work, one epoch per iteration."""

    def __init__(self, model: Blend, data: DataSet, settings: Settings, ranks: Ranks = ALONE) -> None:
        keep_freed_memory()
        device = model.device
        self.model, self.settings, self.ranks = model, settings, ranks
        self.num_ratings = data.meta["split"]["num_train"]
        self.stars_step = data.meta["stars_step"]
        self.last_day = data.last_day
        self.train, self.validation = data.train.to(device), data.validation.to(device)
        with_validation = self.validation.rated_users()
        num_with = torch.tensor(float(len(with_validation)), device=device)
        ranks.sum_(num_with)
        self.has_validation = bool(num_with > 0)
        measured = VALIDATION_USERS / max(float(num_with), 1.0)  # fraction of these users
        chance = uniform(0, with_validation)
        self.val_users = with_validation[chance < measured]
        spread_users = with_validation[chance < SPREAD_USERS / max(float(num_with), 1.0)]
        before = sum(ranks.numbers(len(spread_users))[:ranks.rank]) % 2  # of other ranks: every second of all is new
        self.spread_users = spread_users[before::2], spread_users[1 - before::2]
        relevance = None
        if model.relevance is not None:
            of_users = (data.train.offset.diff() > 1).sum().to(device)
            ranks.sum_(of_users)
            relevance = RelevanceTrainer(model.relevance, model.user_based.movie_tower.num_ratings, int(of_users),
                                         self.num_ratings, data.meta["split"]["method"] in ("latest", "probe"),
                                         settings.lr)
        num_rated = int((data.movies.num_train_ratings > 0).sum())
        batch_size, enlarged = self._batch_size(data.num_users, USERS_A_STEP)
        self.engines = [Engine(model.user_based, self.train, settings, self._l2(num_rated), batch_size, settings.seed,
                               self.stars_step, ranks, relevance, enlarged, ANY_SIZE)]
        if model.item_based is not None:
            batch_size, enlarged = self._batch_size(data.num_movies, USERS_A_STEP // 2)
            self.engines.append(Engine(model.item_based, by_movie(data, ranks).to(device), settings,
                                       self._l2(data.num_users), batch_size, settings.seed + ITEM_BASED_SEED,
                                       self.stars_step, ranks, enlarged=enlarged))
        self.num_epochs = planned_epochs(data.num_users, self.engines[0].num_steps, settings.epochs)
        self.folds_in = True  # after every epoch
        self.metrics: list[EpochMetrics] = []
        self.best_epoch, self.best_rmse = 0, math.inf

    @property
    def is_finished(self) -> bool:
        """Whether the epochs or the patience are used up."""
        done = len(self.metrics)
        return done >= self.num_epochs or bool(self.best_epoch and done - self.best_epoch >= self.settings.patience)

    def epochs(self) -> Iterator[EpochMetrics]:
        """Train and validate an epoch, yield its metrics, and so on until the last epoch or patience runs out.

        After each, `best_epoch` tells whether this one is the best so far. Without validation ratings it always is.

        Raises:
            DataError: the loss is no longer finite; names epoch, step and rate.
        """
        while not self.is_finished:
            epoch = len(self.metrics) + 1
            try:
                # Dropout draws from chance that threads share.
                with contextlib.nullcontext() if self.model.config.dropout else shared_out():
                    metrics = self._run_epoch(epoch)
            except torch.linalg.LinAlgError:  # in evaluation, where the last step has spoilt the vectors
                raise DataError(f"the loss is no longer finite after epoch {epoch}; the last checkpoint is kept; try "
                                f"again with a smaller --lr than {self.settings.lr:g}") from None
            self.metrics.append(metrics)
            if not metrics.val_rmse >= self.best_rmse:
                self.best_epoch = epoch
                self.best_rmse = metrics.val_rmse if math.isfinite(metrics.val_rmse) else math.inf
            yield metrics

    def calibrate(self, chosen: dict[str, torch.Tensor]) -> None:
        """Take over the model of the best epoch, a state dict with the rows of all users, and fit to validation ratings
        what it alone needs: how ratings spread around predictions, and the weights of relevance."""
        model, ratings, ranks = self.model, (self.train, self.validation), self.ranks
        model.load_rows(chosen)
        tasks: list[Callable[[], Any]] = [
            partial(scores_and_features, model, *ratings, users, self.stars_step, are_new)
            for users, are_new in zip(self.spread_users, (False, True), strict=True)]
        if model.relevance is not None:
            tasks += [partial(fit_weights, model, *ratings, self.val_users, self.stars_step, self.last_day, ranks,
                              are_new) for are_new in (False, True)]
        with shared_out():
            known, new, *_ = self._side_by_side(tasks)
        score, stars, features = map(torch.cat, zip(known, new, strict=True))
        fit_spread(model.link, score, stars, features, ranks)

    @torch.no_grad()
    def checkpoint(self, fingerprint: str, flags: dict | None = None) -> dict:
        """Return the model as it is now, with what is needed to use it (see models/checkpoint.py); `flags` are those of
        the run, where it has any. Of many ranks, within `gathering.rows_of_all`: else with this rank's users alone."""
        return {"fingerprint": fingerprint, **model_entries(self.model.eval()), "settings": vars(self.settings),
                "flags": flags or {}, "epoch": len(self.metrics), "train_s": sum(row.seconds for row in self.metrics),
                "calibrated": False, "refit": False}

    def fold_in_movies(self) -> None:
        """Fold in the movies of the item-based towers, if there are any, from the training ratings of all ranks."""
        if self.model.item_based is not None:
            item_based = self.engines[1]
            self.model.folded_in = fold_in(item_based.model, item_based.ratings, self.stars_step)
            self.ranks.sum_(self.model.folded_in)

    def state_dict(self) -> dict:
        """Return what `load_state_dict` needs to go on, beside the model; of many ranks, see `checkpoint`."""
        return {"engines": [engine.state_dict() for engine in self.engines],
                "metrics": [vars(row) for row in self.metrics],
                "best_epoch": self.best_epoch, "best_rmse": self.best_rmse}

    def load_state_dict(self, state: dict) -> None:
        """Take over the state of an interrupted run, of any number of ranks."""
        for engine, saved in zip(self.engines, state["engines"], strict=True):
            engine.load_state_dict(saved)
        self.metrics = [EpochMetrics(**row) for row in state["metrics"]]
        self.best_epoch, self.best_rmse = state["best_epoch"], state["best_rmse"]

    def _l2(self, num_rows: int) -> float:
        """Return the weight of the vectors' squared norms: the rows of the table of movies to be learned per rating."""
        return num_rows / self.num_ratings if self.settings.l2 is None else self.settings.l2

    def _batch_size(self, num_users: int, fewest: int) -> tuple[int, int]:
        """Return how many users a step has, and how many times as many as it would with more ratings.

        Args:
            num_users: of the towers; of item-based ones, movies.
            fewest: where no flag says how many; the flag is about USERS_A_STEP, and of fewer by as much less.
        """
        if self.settings.batch_size:
            return -(-self.settings.batch_size * fewest // USERS_A_STEP), 1
        return default_batch_size(num_users, self.num_ratings, fewest)

    def _validate(self) -> RatingErrors:
        """Predict the validation ratings, fit the towers' shares and the link from scores to stars to them, and measure
        what these make of the scores."""
        model, ranks = self.model, self.ranks
        predictions, stars = predict_scores(model, self.train, self.validation, self.stars_step, self.val_users)
        if self.has_validation:
            fit_share(model, predictions, stars, ranks)
            counts = count_scores(model.link, model.of_towers(predictions), stars)
            ranks.sum_(counts)
            fit_link(model.link, counts)
        return sum_errors(model.stars(model.mix(predictions)), stars, ranks)

    def _side_by_side(self, tasks: Sequence[Callable[[], Any]]) -> list[Any]:
        """Return the results of functions that are called in threads; one after the other where ranks meet in them,
        which has to be in the same order."""
        return in_threads(tasks) if self.ranks.size == 1 else [task() for task in tasks]

    def _run_epoch(self, epoch: int) -> EpochMetrics:
        start = time.perf_counter()
        total = sum(len(engine.ratings) for engine in self.engines)
        with tqdm(total=total, desc=f"epoch {epoch}/{self.num_epochs}", unit=" ratings", unit_scale=True, leave=False,
                  mininterval=0.5, disable=None if self.ranks.is_main else True) as bar:
            runs = [partial(engine.run_epoch, epoch, self.num_epochs, bar) for engine in self.engines]
            sums = torch.stack(self._side_by_side(runs)).sum(0)
        if self.folds_in:
            self.fold_in_movies()
        loss, squared, count = sums.tolist()  # a GPU is done then
        elapsed_s = time.perf_counter() - start
        errors = self._validate()
        lr = self.settings.lr * self.engines[0].factor
        return EpochMetrics(epoch, loss / max(count, 1), (squared / max(count, 1)) ** 0.5, errors.rmse, errors.mae,
                            lr, elapsed_s, self.num_ratings / elapsed_s, peak_rss_mib())
