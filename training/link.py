"""Fit to validation ratings what makes stars of the towers' scores: the link (models/stars_link.py), by the greatest
likelihood, and the share of the user-based towers, by least squares.

Letters: T ratings, K stars of the scale above the lowest, Z bins of scores.
"""

import torch

from models.blend import SHARE, Blend, Predictions
from models.ops.ranks import ALONE, Ranks
from models.stars_link import SPREAD_WEIGHTS, StarsLink
from training.batches import RatingTensors, batch_of, blocks_of, in_context_of

BINS, LARGEST = 512, 8.0  # of scores, from -LARGEST to LARGEST
PSEUDO_RATINGS = 100.0  # that are rated as the link says before it is fitted
MOST_STEPS, ENOUGH = 50, 1e-9  # of Fisher scoring; until a step gains less log-likelihood a rating
RIDGE = 1e-3  # added to the information: where all scores are alike, nothing tells the slope, and it stays
SPREAD_STEPS, SPREAD_PRECISION = 8, 10.0  # of Fisher scoring; of the weights' Gaussian prior, from which they begin
DERIVATIVE_STEP = 1e-3
SHARE_STEPS, SHARE_PRECISION = 4, 12.0  # of Gauss and Newton; of the share's prior: about .25 to either side
NEW_SEED = 7  # of which ratings users have given who are served as new


def count_scores(link: StarsLink, score: torch.Tensor, stars: torch.Tensor) -> torch.Tensor:
    """Count ratings, float (T,) each, by their score and stars: float64 (Z, K + 1), for `fit_link`."""
    score_bin = ((score + LARGEST) * (BINS / (2 * LARGEST))).long().clamp(0, BINS - 1)
    cell = score_bin * (link.num_above + 1) + link.position_of(stars)
    return torch.bincount(cell, minlength=BINS * (link.num_above + 1)).double().view(BINS, -1)


@torch.no_grad()
def fit_link(link: StarsLink, counts: torch.Tensor) -> None:
    """Fit slope and thresholds to ratings, by Fisher scoring.

    PSEUDO_RATINGS with these scores, rated as the link says unfitted, count too: they keep the thresholds of stars
    apart that nobody gave.

    Args:
        counts: float64 (Z, K + 1), from `count_scores`. Without any rating nothing changes.
    """
    counts = counts.cpu()
    if not counts.sum():
        return
    scores = ((torch.arange(BINS).double() + 0.5) * (2 * LARGEST / BINS) - LARGEST).unsqueeze(1)  # the bins' middles
    unfitted, by_score = StarsLink(link.low, link.low + link.step * link.num_above, link.step), counts.sum(1, True)
    values = torch.cat([unfitted.slope.view(1), unfitted.thresholds]).double()
    counts = counts + PSEUDO_RATINGS * by_score / by_score.sum() * _of_stars(values, scores)[0]
    reached = _log_likelihood(values, scores, counts)
    for _ in range(MOST_STEPS):
        step, before = _scoring_step(values, scores, counts), reached
        for _ in range(MOST_STEPS):
            if (reached := _log_likelihood(values + step, scores, counts)) >= before:
                break
            step = step / 2
        if reached < before + ENOUGH * counts.sum():
            break
        values = values + step
    link.slope.copy_(values[0])
    link.thresholds.copy_(values[1:])


@torch.no_grad()
def fit_share(model: Blend, predictions: Predictions, stars: torch.Tensor, ranks: Ranks = ALONE) -> None:
    """Fit the share of the user-based towers to ratings of this rank and the others, by Gauss and Newton's method;
    nothing where there are no item-based ones.

    Scores count as in the loss of training, so that the share does not depend on the link, nor on what stars can be
    given.

    Args:
        predictions, stars: of T ratings.
    """
    if model.item_based is None:
        return
    scale, difference = 1 / model.config.unit, predictions.user_based - predictions.item_based
    model.share.fill_(SHARE)
    for _ in range(SHARE_STEPS):
        score = model.of_towers(predictions)
        probability = torch.sigmoid(score)
        by_share = 4 * probability * (1 - probability) * difference
        sums = torch.stack([by_share @ (scale * (stars - model.user_based.stars(score))), by_share @ by_share]).double()
        ranks.sum_(sums)
        gradient = sums[0] + SHARE_PRECISION * (SHARE - model.share)
        model.share.add_(gradient / (sums[1] + SHARE_PRECISION)).clamp_(0, 1)


@torch.no_grad()
def fit_spread(link: StarsLink, score: torch.Tensor, stars: torch.Tensor, features: torch.Tensor,
               ranks: Ranks = ALONE) -> None:
    """Fit the spread of ratings around predictions, by Fisher scoring, to ratings of this rank and the others.

    Args:
        score, stars, features: float (T,), (T,) and (T, 4), as for `StarsLink.probabilities`.
    """
    position, features, score = link.position_of(stars).unsqueeze(1), features.double(), score.double()
    prior, device = torch.tensor(SPREAD_WEIGHTS).double().to(score.device), score.device
    weights = prior.clone()
    for _ in range(SPREAD_STEPS):
        spread = (features @ weights).exp()
        now, more, less = (link.with_spread(score, spread * factor).clamp(min=1e-12)
                           for factor in (1.0, 1 + DERIVATIVE_STEP, 1 - DERIVATIVE_STEP))
        by_spread = (more - less) / (2 * DERIVATIVE_STEP)  # by the logarithm of the spread
        gradient = features.T @ (by_spread / now).gather(1, position)
        information = features.T @ ((by_spread.square() / now).sum(1, keepdim=True) * features)
        ranks.sum_(gradient, information)
        gradient -= SPREAD_PRECISION * (weights - prior).unsqueeze(1)
        information += SPREAD_PRECISION * torch.eye(len(prior), dtype=torch.float64, device=device)
        move = torch.linalg.solve(information, gradient).squeeze(1)
        weights = weights + move / move.norm().clamp(min=1)
        if move.norm() < 1e-3:
            break
    link.spread_weights.copy_(weights)


@torch.no_grad()
def scores_and_features(model: Blend, known: RatingTensors, asked: RatingTensors, users: torch.Tensor,
                        stars_step: float, are_new: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scores, stars and `Blend.spread_features` of ratings of some users, float (T,), (T,) and (T, 4).

    Args:
        known, asked: what vectors are made of and what is to be predicted.
        users: user_idx int64.
        are_new: serve them as people whom the data set does not know, and who have given any number of their ratings,
            as `in_context_of` draws it.
    """
    movies = model.eval().movie_table()
    nothing = movies.rows.new_zeros(0)
    found = [(nothing, nothing, nothing, nothing, users[:0], nothing, movies.rows.new_zeros(0, len(SPREAD_WEIGHTS)))]
    for block in blocks_of(users, known):
        context, target = batch_of(known, block, stars_step), batch_of(asked, block, stars_step)
        if are_new:
            context = context.subset(in_context_of(context, NEW_SEED, any_size=1.0))
        questions = movies, block, context.context(), target.target(), are_new
        found.append((*model.predict(*questions), target.stars, model.spread_features(*questions)))
    *predictions, stars, features = (torch.cat(values) for values in zip(*found, strict=True))
    return model.mix(Predictions(*predictions)), stars, features


def _of_stars(values: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the probabilities of stars, (Z, K + 1), and of as many or more, (Z, K), for a slope and thresholds,
    (1 + K,). The first are no differences, which rounding would spoil where both are near 1."""
    eta = values[0] * scores - values[1:]
    at_least, below = torch.sigmoid(eta), torch.sigmoid(-eta)
    between = at_least[:, :-1] * below[:, 1:] * -torch.expm1(-values[1:].diff())
    return torch.cat([below[:, :1], between, at_least[:, -1:]], 1).clamp(min=1e-300), at_least


def _log_likelihood(values: torch.Tensor, scores: torch.Tensor, counts: torch.Tensor) -> float:
    """Return the log-likelihood of counts, (Z, K + 1); -inf where the thresholds do not ascend."""
    if values[0] <= 0 or not (values[1:].diff() > 0).all():
        return -torch.inf
    return float((counts * _of_stars(values, scores)[0].log()).sum())


def _scoring_step(values: torch.Tensor, scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the step of Fisher scoring from a slope and thresholds, (1 + K,)."""
    of_stars, at_least = _of_stars(values, scores)
    density, ratio, inverse = at_least * (1 - at_least), counts / of_stars, counts.sum(1, True) / of_stars
    by_eta = (ratio[:, 1:] - ratio[:, :-1]) * density  # (Z, K)
    gradient = torch.cat([(by_eta * scores).sum().view(1), -by_eta.sum(0)])
    same = density.square() * (inverse[:, 1:] + inverse[:, :-1])  # information of eta_k, and of it and the next
    following = -density[:, :-1] * density[:, 1:] * inverse[:, 1:-1]
    along = same.clone()
    along[:, :-1] += following
    along[:, 1:] += following
    information = torch.diag(RIDGE + torch.cat([(along * scores.square()).sum().view(1), same.sum(0)]))
    information[0, 1:] = information[1:, 0] = -(along * scores).sum(0)
    k = torch.arange(1, len(values) - 1)
    information[k, k + 1] = information[k + 1, k] = following.sum(0)
    return torch.linalg.solve(information, gradient)
