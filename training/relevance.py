"""Train the order by relevance (models/relevance.py), and score by it.

Beyond SAMPLE movies, a step's loss is computed on a sample of about so many, drawn by their numbers of ratings. It is
hashed from the step, so that all ranks and all pieces of a batch have the same one.
"""

import math
from collections.abc import Callable

import torch

from models.blend import Blend
from models.ops.ranks import ALONE, Ranks
from models.ops.rating_pattern import counts, positions
from models.relevance import UNFITTED, Candidates, Relevance, sampling_probabilities
from training.batches import Batch, RatingTensors, batch_of, in_context_of, uniform
from training.halves import Part
from training.link import NEW_SEED
from training.metrics import relevant_stars
from training.optimizer import relevance_optimizers

SAMPLE = 4096  # movies
CELLS_PER_RATING = 32  # of an epoch: users of the loss times candidates
USER_SALT, SUBSET_SALT = 1 << 44, 1 << 43  # make these draws others than that of what is users' context
ANY_SIZE = 0.3  # of users keep a subset of their context, of any size
EARLIEST_CUT = 0.5  # of a user's ratings, in time, are context at least
STACKING_CELLS, STACKING_CELLS_PER_RATING = 2**21, 8  # users times movies that the weights of an epoch are fitted to
STACKING_STEPS = 8  # of Newton's method
STACKING_PRIOR = 1.0  # precision of the weights' Gaussian prior, whose mean is how they begin
BLOCK_CELLS = 2**20  # users times movies whose scores are in memory at once


class RelevanceTrainer:
    """The loss of a step's batch, or of a piece of it, and the optimizers that follow its gradient.

    Its targets are chosen as the test split is. Where that is what users rated last, they are what a user rated after a
    random moment, and the context is what they had rated before. Else context and targets are those of the step. Of
    some users a random subset of that context is kept, of any size, as somebody new has told a few of their ratings;
    what is not kept becomes targets.
    """

    def __init__(self, relevance: Relevance, num_ratings: torch.Tensor, num_users: int, total: int, by_time: bool,
                 lr: float) -> None:
        """Make a trainer.

        Args:
            num_ratings: float (M,), training ratings of movies, over all ranks.
            num_users, total: users with two training ratings or more, and all training ratings, over all ranks.
            by_time: whether the test split is what users rated last.
            lr: the base learning rate.
        """
        self.tables = relevance_optimizers(relevance, lr)
        self.relevance, self.by_time = relevance, by_time
        rated = (num_ratings > 0).nonzero().squeeze(1)
        self.candidates, self.num_ratings = Candidates(rated, positions(rated, len(num_ratings))), num_ratings
        if len(rated) > SAMPLE:
            self.candidates = self.candidates._replace(probability=sampling_probabilities(num_ratings, SAMPLE))
        cells = num_users * min(len(rated), SAMPLE)
        self.fraction = CELLS_PER_RATING * total / max(cells, 1)  # of users, in an epoch

    def differentiate(self, parts: list[Part], seed: int, step: int, weight: float,
                      factor: float | None) -> torch.Tensor:
        """Add the gradients of a step's loss, the sum over its pieces times a weight, to the parameters; return it.
        Then `move`, but with None for the factor."""
        losses = []
        for part in parts:
            loss = weight * self.loss(part, seed, step)
            loss.backward()
            losses.append(loss.detach())
        for parameter in self.relevance.parameters():
            if len(parts) > 1 and parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()  # of each piece it has the rows anew
        if factor is not None:
            self.move(factor)
        return torch.stack(losses).sum()

    def move(self, factor: float) -> None:
        """Follow the gradients, with the learning rate scaled by `factor`."""
        for table, parameter in zip(self.tables, self.relevance.parameters(), strict=True):
            if parameter.grad is not None:
                table.step_of(parameter.grad, factor)

    def loss(self, part: Part, seed: int, step: int) -> torch.Tensor:
        """Return the loss of a piece of a batch; a scalar, the sum over users.

        Args:
            seed, step: of the epoch, and the number of the step in it.
        """
        batch = part.batch
        in_context = before_a_moment(batch, seed) if self.by_time else part.in_context
        kept = in_context_of(batch.subset(in_context), seed ^ SUBSET_SALT, any_size=ANY_SIZE, fraction=1.0)
        in_context = in_context.masked_scatter(in_context, kept)
        context, target = batch.subset(in_context), batch.subset(~in_context)
        num_users = len(batch.users)
        weight = self.relevance.weight(target.row, target.stars, num_users)
        if context.row.device.type == "cpu":
            context, target, weight, num_users = self._of_use(context, target, weight, seed)
        return self.relevance.loss(context.context(), target.row, target.movie_idx, weight, num_users,
                                   self._candidates_of(seed, step))

    def _of_use(self, context: Batch, target: Batch, weight: torch.Tensor,
                seed: int) -> tuple[Batch, Batch, torch.Tensor, int]:
        """Leave out users of whom nothing is learned, without context or without a target that they liked, and, where
        users are many beside their ratings, all but a fraction that is drawn; return the number of the others too."""
        is_of_use = counts(context.row, len(context.users)).bool()
        is_of_use &= counts(target.row[weight > 0], len(context.users)).bool()
        if self.fraction < 1:
            is_of_use &= uniform(seed ^ USER_SALT, context.users) < self.fraction
        if is_of_use.all():
            return context, target, weight, len(is_of_use)
        chosen = is_of_use.index_select(0, target.row)
        return context.of_rows(is_of_use), target.of_rows(is_of_use), weight[chosen], int(is_of_use.sum())

    def _candidates_of(self, seed: int, step: int) -> Candidates:
        """Return the candidates of a step."""
        if self.candidates.probability is None:
            return self.candidates
        movies = torch.arange(len(self.num_ratings), device=self.num_ratings.device)
        drawn = uniform(seed, torch.full_like(movies, step), movies) < self.candidates.probability
        movies = drawn.nonzero().squeeze(1)
        return self.candidates._replace(movies=movies, position=positions(movies, len(drawn)))


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
                stars_step: float, day: int, ranks: Ranks = ALONE, are_new: bool = False) -> None:
    """Fit the weights of taste, popularity and rating to the validation ratings of `relevant_stars` of some users.

    They maximise the multinomial likelihood of these movies among those that the users have not told of, by Newton's
    method, no step longer than 1.

    Args:
        known: what is known of the users.
        users: user_idx int64, of this rank, the same fraction on all ranks.
        day: of the scores.
        are_new: fit the weights of new people: take the users for such, who have told any number of their ratings.
    """
    relevance, movies = model.eval().relevance, model.movie_table()
    assert relevance is not None
    num_movies, device = model.config.num_movies, model.device
    num_cells = min(STACKING_CELLS, STACKING_CELLS_PER_RATING * _total(ranks, len(known), device))
    fraction = num_cells / num_movies / max(_total(ranks, len(users), device), 1)
    users = users[uniform(1, users) < fraction]
    movie_vectors = model.movie_vectors(day, movies)
    unrated = model.user_based.movie_tower.num_ratings == 0
    blocks = []
    for block in users.split(max(BLOCK_CELLS // num_movies, 1)):
        context, asked = batch_of(known, block, stars_step), batch_of(validation, block, stars_step)
        if are_new:
            context = context.subset(in_context_of(context, NEW_SEED, any_size=1.0))
        score = model.user_vectors(movies, block, context.context(), day, are_new) @ movie_vectors.T
        taste = relevance.tastes(context.context(), len(block)) @ relevance.vectors.T
        terms = torch.stack([taste, relevance.popularity.expand_as(taste), score])  # (3, B, M)
        hidden = unrated.expand_as(taste).clone()
        hidden[context.row, context.movie_idx] = True
        liked = asked.stars >= relevant_stars(model.config.stars_low, model.config.stars_high)
        blocks.append((terms, hidden, asked.row[liked], asked.movie_idx[liked]))
    prior = torch.tensor(UNFITTED, dtype=torch.float64, device=device)
    weights = prior.clone()
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
    relevance.weights[int(are_new)] = weights


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
