"""What a model is measured by: predictions of a part of the data, and scores of all movies for lists.

Each user's vector is made from what is known of them.
"""

from collections.abc import Callable

import torch

from models.sides import TwoSided
from models.two_tower import TwoTower
from training.batches import DataSet, RatingTensors, batch_of, by_movie
from training.distributed import ALONE, Ranks
from training.metrics import RatingErrors

EVALUATION_USERS = 512  # users whose vectors are made at once


def solve_movies(model: TwoSided, known: DataSet) -> None:
    """Solve the movies of the movie side anew, from a data set's training ratings, which may be all known before the
    test: as users are."""
    ratings, owned = by_movie(known)
    model.solved = solve(model.movie_side, ratings.to(model.device), known.meta["stars_step"], owned)


@torch.no_grad()
def solve(model: TwoTower, ratings: RatingTensors, stars_step: float, owned: tuple[int, int]) -> torch.Tensor:
    """Return the vectors of a side's users, float (U, K), from all of their ratings; zero for those not owned."""
    films = model.eval().films()
    vectors = model.offset.new_zeros(model.config.num_users, model.config.num_heads * (model.config.head_dim + 2))
    for block in torch.arange(*owned, device=vectors.device).split(EVALUATION_USERS):
        context = batch_of(ratings, block, stars_step).context()
        vectors[block] = model.user_vectors(films, model.user_embedding[block], context, 0)
    return vectors


@torch.no_grad()
def predict_errors(model: TwoSided, context: RatingTensors, part: RatingTensors, stars_step: float,
                   ranks: Ranks = ALONE, users: torch.Tensor | None = None) -> RatingErrors:
    """Predict a part's ratings, each user's vector made from all of his context ratings; sum the errors.

    Args:
        context, part: what is known and what is to be predicted, of this rank's users.
        users: user_idx int64 of those to measure; None for all that have ratings in the part.
    """
    errors = RatingErrors()
    films = model.eval().films()
    if users is None:
        users = part.offset.diff().nonzero().squeeze(1)
    for block in users.split(EVALUATION_USERS):
        known, asked = batch_of(context, block, stars_step), batch_of(part, block, stars_step)
        score = model.predict(films, block, known.context(), asked.target())
        errors.add(model.stars(score), asked.stars)
    sums = torch.tensor([errors.squared, errors.absolute, errors.count], dtype=torch.float64).to(model.device)
    ranks.sum_(sums)
    return RatingErrors(*sums.tolist())


@torch.no_grad()
def scorer(model: TwoSided, context: RatingTensors, stars_step: float,
           day: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from user_idx int64 (B,) to scores of all movies (B, M) on a day, as lists order them, for
    `evaluate_ranking`."""
    films = model.eval().films()
    movie_vectors = model.list_vectors(day, films)

    @torch.no_grad()
    def score(users: torch.Tensor) -> torch.Tensor:
        known = batch_of(context, users, stars_step).context()
        return model.user_vectors(films, users, known, day) @ movie_vectors.T

    return score
