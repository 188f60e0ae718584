"""What a user will like to watch next: the second output of the towers, beside the stars.

    relevance(u, m) = w_0 t_u . f_m + w_1 b_m + w_2 score(u, m)
                    = [w_0 t_u, w_1, w_2 p_u] . [f_m, b_m, q_m]

The taste t_u is pooled from a user's context ratings with tables of its own, (|C| + 1)^-1/2 sum over j in C of
(residual_j g_j + c_j) (Koren 2008, equation 15). What a rating says among few is not what it adds to many, so g_j and
c_j have a component that fades with their number, g_j = g'_j + FEW / (|C| + FEW) g''_j. f_m is a movie's vector and b_m
its popularity. They are trained by the multinomial likelihood of the movies that a user likes among all that they have
not seen (Liang et al. 2018, "Variational autoencoders for collaborative filtering", section 2.1), see
`multinomial_loss`. No gradient of it reaches the towers of the rating. The three weights w, stacking (Wolpert 1992),
are fitted to validation ratings: what is left unseen after all training ratings is another choice than what is left
after some of them. So people whom the data set does not know, who have told a few of their ratings, have weights of
their own.

Letters: B users, R context ratings, T targets, M movies, N movies of a sample, L coordinates of a taste, P of a vector
of the rating.
"""

from typing import NamedTuple

import torch
from torch import nn

from models.config import ModelConfig
from models.movie_tower import MEAN_SHRINK
from models.ops.ragged import gather_distinct, pool
from models.ops.rating_pattern import counts, distinct, positions
from models.user_tower import Context

UNFITTED = (1.0, 1.0, 0.0)  # weights before they are fitted
FEW = 10.0  # ratings of a user at which the component for few has half of its weight
INDIFFERENT = 0.25  # how far up the scale a rating begins to count as liking: at 2 of 5 stars


class Relevance(nn.Module):
    """Tastes of users and vectors of movies, whose product, with a movie's popularity and its rating, is relevance."""

    history: torch.Tensor  # float (M, 4 L): by residual, for any number and for few; then by presence
    movie_mean: torch.Tensor  # float (M,), as MovieTower.mean
    weights: torch.Tensor  # (2, 3), of taste, popularity, rating: of users of the data set, and of people new to it

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        num_movies, dim = config.num_movies, config.relevance_dim
        of_any_number = torch.randn(num_movies, 2, 1, dim) * 0.05
        self.history = nn.Parameter(torch.cat([of_any_number, torch.zeros_like(of_any_number)], 2).flatten(1))
        self.vectors = nn.Parameter(torch.randn(num_movies, dim) * 0.05)
        self.popularity = nn.Parameter(torch.zeros(num_movies))
        self.register_buffer("movie_mean", torch.zeros(num_movies))
        self.register_buffer("weights", torch.tensor(UNFITTED).repeat(2, 1))

    @torch.no_grad()
    def set_statistics(self, movie_mean: torch.Tensor, num_ratings: torch.Tensor) -> None:
        """Take over what is known of the movies (M): the shrunk mean of their stars less the global mean, and their
        training ratings, at whose fractions of all the popularity begins."""
        self.movie_mean.copy_(movie_mean)
        self.popularity.copy_(((num_ratings + 0.5) / (num_ratings + 0.5).sum()).log())

    def liking(self, stars: torch.Tensor) -> torch.Tensor:
        """Return how much given stars (R,) say that a movie is liked, from 0 for 2 of 5 stars to 0.75 for 5."""
        low, high = self.config.stars_low, self.config.stars_high
        return ((stars - low) / (high - low) - INDIFFERENT).clamp(min=0)

    def weight(self, row: torch.Tensor, stars: torch.Tensor, num_users: int) -> torch.Tensor:
        """Return the weights of targets in the loss, float (T,): by how much they were liked, and a user's by the root
        of their number; row int64 (T,), stars float (T,)."""
        return self.liking(stars) * counts(row, num_users)[row].rsqrt()

    def tastes(self, context: Context, num_users: int, in_training: bool = False) -> torch.Tensor:
        """Return t_u, float (B, L), from the users' context ratings.

        Args:
            in_training: take the gradient of the movies of the context alone.
        """
        row, movie_idx, count = context.row, context.movie_idx, counts(context.row, num_users)
        weight = self._surprise(context, count)
        if in_training:
            found = distinct(movie_idx, len(self.history))
            position = positions(found, len(self.history)).index_select(0, movie_idx)
            pooled = pool(gather_distinct(self.history, found), weight, row, position, num_users)
        else:
            pooled = pool(self.history, weight, row, movie_idx, num_users)
        return _scaled(pooled, count)

    def contributions(self, context: Context, movie_idx: torch.Tensor, is_new: bool) -> torch.Tensor:
        """Return what each rating of one person adds to the relevance of movies, int64 (T,), through their taste, float
        (T, R): the taste is a sum over the ratings; `is_new` as for `user_vectors`."""
        count = counts(context.row, 1)
        by_residual, by_presence = self.history[context.movie_idx].chunk(2, 1)
        parts = self._surprise(context, count).unsqueeze(1) * by_residual + by_presence
        return self.weights[int(is_new), 0] * (self.vectors[movie_idx] @ _scaled(parts, count).T)

    def _surprise(self, context: Context, count: torch.Tensor) -> torch.Tensor:
        """Return how far ratings lie above the means of their movies and of their users, in units, float (R,)."""
        surprise = context.stars - self.config.stars_mean - self.movie_mean.index_select(0, context.movie_idx)
        surprise = surprise / self.config.unit
        mean = surprise.new_zeros(len(count)).index_add_(0, context.row, surprise) / (count + MEAN_SHRINK)
        return surprise - mean.index_select(0, context.row)

    def user_vectors(self, context: Context, rating_vectors: torch.Tensor, are_new: bool = False) -> torch.Tensor:
        """Return users' vectors, float (B, L + 1 + P), whose product with `movie_vectors` is relevance.

        Args:
            context: what is known of the users.
            rating_vectors: float (B, P), their vectors of the rating, p_u.
            are_new: the data set does not know them.
        """
        tastes, one = self.tastes(context, len(rating_vectors)), rating_vectors.new_ones(len(rating_vectors), 1)
        of_taste, of_popularity, of_rating = self.weights[int(are_new)]
        return torch.cat([of_taste * tastes, of_popularity * one, of_rating * rating_vectors], 1)

    def movie_vectors(self, rating_vectors: torch.Tensor) -> torch.Tensor:
        """Return all movies' vectors, float (M, L + 1 + P), from their vectors of the rating, q_m, float (M, P)."""
        return torch.cat([self.vectors, self.popularity.unsqueeze(1), rating_vectors], 1)

    def loss(self, context: Context, row: torch.Tensor, movie_idx: torch.Tensor, weight: torch.Tensor,
             num_users: int, candidates: "Candidates") -> torch.Tensor:
        """Return `multinomial_loss` of target ratings; a scalar, the sum over users.

        Args:
            context: what is known of the users, not to be recommended to them.
            row, movie_idx, weight: int64, int64 and float (T,), the targets.
            num_users: B.
            candidates: the movies of which the targets are to be the likeliest.
        """
        tastes, seen_row, seen_movie = self.tastes(context, num_users, in_training=True), context.row, context.movie_idx
        movies, position, probability = candidates
        vectors, bias = gather_distinct(self.vectors, movies), gather_distinct(self.popularity, movies)
        if probability is not None:
            is_candidate = torch.zeros_like(position, dtype=torch.bool)
            is_candidate[movies] = True
            known, asked = (is_candidate[idx].nonzero().squeeze(1) for idx in (seen_movie, movie_idx))
            seen_row, seen_movie, row, movie_idx = seen_row[known], seen_movie[known], row[asked], movie_idx[asked]
            bias, weight = bias - probability[movies].log(), weight[asked] / probability[movie_idx]
        return multinomial_loss(tastes, vectors, bias, seen_row, position[seen_movie], row, position[movie_idx], weight)


def _scaled(pooled: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Return the taste, float (B, L), of the sums over a number of ratings, (B,) or (1,), of the components for any
    number and for few, float (B, 2 L)."""
    of_any_number, of_few = pooled.chunk(2, 1)
    return torch.addcmul(of_any_number, of_few, (FEW / (count + FEW)).unsqueeze(1)) * (count + 1).rsqrt().unsqueeze(1)


class Candidates(NamedTuple):
    """Movies that a step chooses between: all that have training ratings, or a sample of them.

    A movie of a sample counts for the 1 / probability movies that it stands for, as a candidate (the logQ correction
    of Yi et al. 2019) and as a target.
    """

    movies: torch.Tensor  # int64 (N,)
    position: torch.Tensor  # int64 (M,), where a movie is among them
    probability: torch.Tensor | None = None  # float (M,), of each movie to be in the sample; None where it is certain


def sampling_probabilities(num_ratings: torch.Tensor, size: int) -> torch.Tensor:
    """Return min(1, c n_m), float (M,), c such that they sum to `size`: the probability that a movie is in a sample.

    Args:
        num_ratings: n, float (M,), of which more than `size` are above 0.
    """
    certain = torch.zeros_like(num_ratings, dtype=torch.bool)
    while True:
        probability = num_ratings * ((size - certain.sum()) / num_ratings[~certain].sum())
        if torch.equal(certain | (probability >= 1), certain):
            return probability.masked_fill(certain, 1.0)
        certain |= probability >= 1


def multinomial_loss(tastes: torch.Tensor, movies: torch.Tensor, bias: torch.Tensor, seen_row: torch.Tensor,
                     seen_movie: torch.Tensor, row: torch.Tensor, movie: torch.Tensor,
                     weight: torch.Tensor) -> torch.Tensor:
    """Return sum over targets t of weight_t (log sum over the unseen movies m of exp z_um - z_ut), z = t_u . f_m + b_m.

    Args:
        tastes: float (B, L).
        movies, bias: float (N, L) and (N,).
        seen_row, seen_movie: int64 (R,), users and movies that are no candidates.
        row, movie: int64 (T,), users and movies of the targets.
        weight: float (T,), of which no gradient is taken.
    """
    return _MultinomialLoss.apply(tastes, movies, bias, seen_row, seen_movie, row, movie, weight)


class _MultinomialLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tastes, movies, bias, seen_row, seen_movie, row, movie, weight):
        score = torch.addmm(bias, tastes, movies.T)  # (B, N), the only tensor of this size: it becomes the gradient
        score[seen_row, seen_movie] = torch.finfo(score.dtype).min
        per_user = weight.new_zeros(len(tastes)).index_add_(0, row, weight)
        found = score[row, movie]
        highest = score.amax(1, keepdim=True)
        grad_score = score.sub_(highest).exp_()
        total = grad_score.sum(1, keepdim=True)
        grad_score *= per_user.unsqueeze(1) / total
        grad_score[row, movie] -= weight
        ctx.save_for_backward(tastes, movies, grad_score)
        return per_user @ (total.log() + highest).squeeze(1) - weight @ found

    @staticmethod
    def backward(ctx, grad):
        tastes, movies, grad_score = ctx.saved_tensors
        grad_score = grad_score * grad
        return grad_score @ movies, grad_score.T @ tastes, grad_score.sum(0), None, None, None, None, None
