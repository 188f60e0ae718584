"""Train the order by relevance (models/relevance.py), and score by it.

Beyond SAMPLE movies, a step's loss is computed on a sample of about so many, drawn by their numbers of ratings. It is
hashed from the step, so that all ranks and all pieces of a batch have the same one.
"""

import math
from collections.abc import Callable

import torch

from models.blend import Blend
from models.ops.rating_pattern import counts
from models.relevance import Relevance, sampling_probabilities
from training.batches import Batch, RatingTensors, batch_of, uniform
from training.distributed import ALONE, Ranks
from training.metrics import relevant_stars

SAMPLE = 4096  # movies
EARLIEST_CUT = 0.5  # of a user's ratings, in time, are context at least
STACKING_CELLS = 2**21  # users times movies that the weights of an epoch are fitted to
STACKING_STEPS = 2  # of Newton's method in an epoch; the next goes on from where it ends
STACKING_PRIOR = 1.0  # precision of the weights' Gaussian prior, whose mean is how they begin
BLOCK_CELLS = 2**20  # users times movies whose scores are in memory at once


class RelevanceLoss:
    """The loss of a step's batch, or of a piece of it.

    Its targets are chosen as the test split is. Where that is what users rated last, they are what a user rated after a
    random moment, and the context is what they had rated before. Else context and targets are those of the step.
    """

    def __init__(self, relevance: Relevance, num_ratings: torch.Tensor, by_time: bool) -> None:
        """Make the loss; `num_ratings`, float (M,), are the movies' training ratings."""
        self.relevance, self.by_time, self.probability = relevance, by_time, None
        if int((num_ratings > 0).sum()) > SAMPLE:
            self.probability = sampling_probabilities(num_ratings, SAMPLE)
            self.movies = torch.arange(len(num_ratings), device=num_ratings.device)

    def __call__(self, batch: Batch, in_context: torch.Tensor, seed: int, step: int) -> torch.Tensor:
        """Return the loss of a batch; a scalar, the sum over users.

        Args:
            in_context: bool (R,), the context of the rating's step.
            seed, step: of the epoch, and the number of the step in it.
        """
        if self.by_time:
            in_context = before_a_moment(batch, seed)
        context, target = batch.subset(in_context), batch.subset(~in_context)
        sampled = None
        if self.probability is not None:
            sampled = uniform(seed, torch.full_like(self.movies, step), self.movies) < self.probability
        return self.relevance.loss(context.context(), target.row, target.movie_idx, target.stars, len(target.users),
                                   self.probability, sampled)


def before_a_moment(batch: Batch, seed: int) -> torch.Tensor:
    """Return which ratings their users had given before a moment that is random for each, bool (R,).

    It is the time of one of their ratings, in the order of the batch at least EARLIEST_CUT up. Of the ratings of that
    day, whose order is not known, each is drawn to one side or the other.
    """
    count = counts(batch.row, len(batch.users))
    position = ((EARLIEST_CUT + (1 - EARLIEST_CUT) * uniform(seed, batch.users)) * count).long().minimum(count - 1)
    day = batch.day[(count.cumsum(0) - count + position).clamp(min=0)[batch.row]]
    return (batch.day < day) | ((batch.day == day) & (uniform(seed, batch.users[batch.row], batch.movie_idx) < 0.5))


@torch.no_grad()
def fit_weights(model: Blend, known: RatingTensors, validation: RatingTensors, users: torch.Tensor,
                stars_step: float, day: int, ranks: Ranks = ALONE) -> None:
    """Fit the weights of taste, popularity and rating to the validation ratings of `relevant_stars` of some users.

    They maximise the multinomial likelihood of these movies among those that the users have not seen, by Newton's
    method, no step longer than 1, and begin at what they are.

    Args:
        known: what is known of the users.
        users: user_idx int64, of this rank, the same fraction on all ranks.
        day: of the scores.
    """
    relevance, movies = model.eval().relevance, model.movie_table()
    assert relevance is not None
    num_movies, device = model.config.num_movies, model.device
    fraction = STACKING_CELLS / num_movies / max(_total(ranks, len(users), device), 1)
    users = users[uniform(1, users) < fraction]
    movie_vectors = model.movie_vectors(day, movies)
    unrated = model.user_based.movie_tower.num_ratings == 0
    blocks = []
    for block in users.split(max(BLOCK_CELLS // num_movies, 1)):
        context, asked = batch_of(known, block, stars_step), batch_of(validation, block, stars_step)
        score = model.user_vectors(movies, block, context.context(), day) @ movie_vectors.T
        taste = relevance.tastes(context.context(), len(block)) @ relevance.vectors.T
        terms = torch.stack([taste, relevance.popularity.expand_as(taste), score])  # (3, B, M)
        hidden = unrated.expand_as(taste).clone()
        hidden[context.row, context.movie_idx] = True
        liked = asked.stars >= relevant_stars(model.config.stars_low, model.config.stars_high)
        blocks.append((terms, hidden, asked.row[liked], asked.movie_idx[liked]))
    prior = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64, device=device)
    weights = relevance.weights.double()
    for _ in range(STACKING_STEPS):
        gradient, curvature = STACKING_PRIOR * (prior - weights), STACKING_PRIOR * torch.eye(3, device=device).double()
        sums = torch.zeros(3, 4, dtype=torch.float64, device=device)
        for terms, hidden, row, movie_idx in blocks:
            probability = torch.einsum("i,ibm->bm", weights.float(), terms).masked_fill_(hidden, -math.inf).softmax(1)
            count = torch.bincount(row, minlength=len(probability)).float()
            mean = torch.einsum("bm,ibm->bi", probability, terms)
            sums[:, 0] += terms[:, row, movie_idx].sum(1) - count @ mean
            for i in range(3):
                second = torch.einsum("bm,jbm->bj", terms[i] * probability, terms)
                sums[:, 1 + i] += count @ (second - mean[:, i:i + 1] * mean)
        ranks.sum_(sums)
        change = torch.linalg.solve(curvature + sums[:, 1:], gradient + sums[:, 0])
        weights = weights + change / change.norm().clamp(min=1)
    relevance.weights.copy_(weights)


@torch.no_grad()
def relevance_scorer(model: Blend, known: RatingTensors, stars_step: float,
                     day: int) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return what `evaluation.scorer` does, by relevance; None where the model has no such order."""
    relevance = model.relevance
    if relevance is None:
        return None
    movies = model.eval().movie_table()
    movie_vectors = relevance.movie_vectors(model.movie_vectors(day, movies))

    @torch.no_grad()
    def score(users: torch.Tensor) -> torch.Tensor:
        context = batch_of(known, users, stars_step).context()
        return relevance.user_vectors(context, model.user_vectors(movies, users, context, day)) @ movie_vectors.T

    return score


def _total(ranks: Ranks, number: int, device: torch.device) -> float:
    """Return the sum of a number over the ranks."""
    total = torch.tensor(float(number), device=device)
    ranks.sum_(total)
    return float(total)
