"""What a model is measured by: predictions of a split, and scores of all movies for lists.

Each user's vector is made from what is known of them.
"""

from collections.abc import Callable
from functools import partial

import torch

from models.blend import Blend, Predictions
from models.ops.ranks import ALONE, Ranks
from models.ops.threads import in_threads
from models.two_tower import TwoTower
from training.batches import DataSet, RatingTensors, batch_of, blocks_of, by_movie
from training.metrics import RatingErrors


def fold_in_movies(model: Blend, known: DataSet, ranks: Ranks = ALONE) -> None:
    """Fold in the movies of the item-based towers anew, from the training ratings of all ranks, which may be all that
    is known before the test."""
    assert model.item_based is not None
    ratings = by_movie(known, ranks).to(model.device)
    model.folded_in = fold_in(model.item_based, ratings, known.meta["stars_step"])
    ranks.sum_(model.folded_in)


@torch.no_grad()
def fold_in(model: TwoTower, ratings: RatingTensors, stars_step: float) -> torch.Tensor:
    """Return the vectors of all users, float (U, K), those of a rank's from all of their ratings, zero for others."""
    movies = model.eval().movie_table()
    vectors = model.offset.new_zeros(model.config.num_users,
                                     model.config.ensemble_size * (model.config.member_dim + 2))

    def fold(block: torch.Tensor) -> None:
        context = batch_of(ratings, block, stars_step).context()
        vectors[block] = model.user_vectors(movies, model.embedding_of(block), context, 0)

    in_threads([partial(fold, block) for block in blocks_of(ratings.users(), ratings)])
    return vectors


@torch.no_grad()
def predict_scores(model: Blend, known: RatingTensors, asked: RatingTensors, stars_step: float,
                   users: torch.Tensor | None = None) -> tuple[Predictions, torch.Tensor]:
    """Predict ratings, each user's vector made from all that is known of them; return with that the stars that were
    given, float (T,).

    Args:
        known, asked: what vectors are made of and what is to be predicted.
        users: user_idx int64 of those to predict; None for all of whom ratings are asked.
    """
    movies = model.eval().movie_table()
    if users is None:
        users = asked.rated_users()

    def predict(block: torch.Tensor) -> tuple[torch.Tensor, ...]:
        context, target = batch_of(known, block, stars_step), batch_of(asked, block, stars_step)
        return *model.predict(movies, block, context.context(), target.target()), target.stars

    nothing = movies.rows.new_zeros(0)
    found = [(nothing, nothing, nothing, nothing, users[:0], nothing),
             *in_threads([partial(predict, block) for block in blocks_of(users, known)])]
    *predictions, stars = (torch.cat(values) for values in zip(*found, strict=True))
    return Predictions(*predictions), stars


def predict_errors(model: Blend, known: RatingTensors, asked: RatingTensors, stars_step: float,
                   ranks: Ranks = ALONE) -> RatingErrors:
    """Predict the ratings asked of this rank's users, see `predict_scores`; sum the errors of all ranks."""
    predictions, stars = predict_scores(model, known, asked, stars_step)
    return sum_errors(model.stars(model.mix(predictions)), stars, ranks)


@torch.no_grad()
def sum_errors(predicted: torch.Tensor, stars: torch.Tensor, ranks: Ranks = ALONE) -> RatingErrors:
    """Sum the errors of predicted against given stars, float (T,) each, of all ranks."""
    errors = RatingErrors()
    errors.add(predicted, stars)
    sums = torch.tensor([errors.squared, errors.absolute, errors.count], dtype=torch.float64).to(stars.device)
    ranks.sum_(sums)
    return RatingErrors(*sums.tolist())


@torch.no_grad()
def scorer(model: Blend, known: RatingTensors, stars_step: float,
           day: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from user_idx int64 (B,) to scores of all movies (B, M) on a day, as lists order them, for
    `evaluate_ranking`."""
    movies = model.eval().movie_table()
    movie_vectors = model.list_vectors(day, movies)

    @torch.no_grad()
    def score(users: torch.Tensor) -> torch.Tensor:
        context = batch_of(known, users, stars_step).context()
        return model.user_vectors(movies, users, context, day) @ movie_vectors.T

    return score
