"""From scores to stars: how likely a score makes each rating that can be given, and so which to expect.

    P(rating >= k-th star of the scale) = sigmoid(a score - c_k)
    stars(score) = low + step * sum over k of P(rating >= k-th star)

the ordered logit (McCullagh 1980, "Regression models for ordinal data"; OrdRec, Koren and Sill 2011). The slope a and
the thresholds c are fitted to validation ratings (training/link.py). They are the same for everybody, so that the
higher score always has the more stars. The spread of ratings around the stars to expect is each user's own, and the
larger the less is known of them: see `spread_features`.

Letters: T ratings, K stars of the scale above the lowest.
"""

import torch
from torch import nn

SLOPE, NARROWER = 2.0, 0.8  # of the link before it is fitted, which is much like a sigmoid
SPREAD_WEIGHTS = (0.0, 1.0, 0.1, 0.0)  # before they are fitted, of the `spread_features`
SHRINK = 10.0  # ratings with a squared residual of 1, added to a user's own
ADDED_VARIANCE = 0.02  # to that of every score, so that there is a logarithm of it where it is 0
AT_ONCE = 2**20  # probabilities that are in memory at once
SEARCH_STEPS, FARTHEST = 30, 64.0  # of a search between scores that are no farther from 0
CLOSE = 1e-5  # steps of a search that are no longer change nothing


class StarsLink(nn.Module):
    """Turns scores into stars and into probabilities of all stars."""

    slope: torch.Tensor  # (), a
    thresholds: torch.Tensor  # float (K,), c, ascending
    spread_weights: torch.Tensor  # float (4,)

    def __init__(self, low: float, high: float, step: float) -> None:
        """Make the link of a scale as it is before it is fitted."""
        super().__init__()
        self.low, self.step, self.num_above = low, step, max(round((high - low) / step), 1)
        middle = (torch.arange(self.num_above) + 0.5) / self.num_above
        self.register_buffer("slope", torch.tensor(SLOPE))
        self.register_buffer("thresholds", SLOPE * NARROWER * (middle / (1 - middle)).log())
        self.register_buffer("spread_weights", torch.tensor(SPREAD_WEIGHTS))

    def forward(self, score: torch.Tensor) -> torch.Tensor:
        """Return the stars to expect of scores, of the same shape."""
        if score.numel() * self.num_above <= AT_ONCE:
            return self.low + self.step * torch.sigmoid((self.slope * score).unsqueeze(-1) - self.thresholds).sum(-1)
        expected = torch.zeros_like(score)
        for threshold in self.thresholds:
            expected += torch.sigmoid(self.slope * score - threshold)
        return self.low + self.step * expected

    def score_of(self, stars: torch.Tensor) -> torch.Tensor:
        """Return the scores of which some stars are the expectation, of the same shape; none is farther than FARTHEST
        from 0."""
        return self._search(stars, torch.ones_like(stars), torch.zeros_like(stars))[0]

    def probabilities(self, score: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Return the probability of each of the stars, float (T, K + 1), the lowest first; their mean is `forward`.

        Args:
            score: float (T,).
            features: float (T, 4), see `spread_features`.
        """
        return self.with_spread(score, (features @ self.spread_weights).exp())

    def position_of(self, stars: torch.Tensor) -> torch.Tensor:
        """Return stars (T,) as positions on the scale, int64, 0 for the lowest."""
        return ((stars - self.low) / self.step).round().long().clamp(0, self.num_above)

    def with_spread(self, score: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        """Return `probabilities` where the spread of the logistic curve is `spread` times its own, float (T,): it is
        moved along so that the mean stays."""
        _, at_least = self._search(self(score), spread, score.clamp(-FARTHEST, FARTHEST))
        bounds = torch.cat([torch.ones_like(at_least[:, :1]), at_least, torch.zeros_like(at_least[:, :1])], 1)
        return bounds[:, :-1] - bounds[:, 1:]

    def _search(self, stars: torch.Tensor, spread: torch.Tensor,
                begin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores of which some stars are the expectation with a `spread`, and the probabilities of as many
        stars or more there, float (T,) and (T, K).

        By Newton's method from where to begin, float (T,), and by bisection where it would leave what is left to
        search.
        """
        thresholds, slope = self.thresholds.to(stars.dtype) / spread.unsqueeze(1), self.slope / spread
        found, low, high = begin, torch.full_like(stars, -FARTHEST), torch.full_like(stars, FARTHEST)
        for _ in range(SEARCH_STEPS):
            at_least = torch.sigmoid((slope * found).unsqueeze(1) - thresholds)
            above = self.low + self.step * at_least.sum(1) - stars
            low, high = torch.where(above > 0, low, found), torch.where(above > 0, found, high)
            derivative = self.step * slope * (at_least * (1 - at_least)).sum(1)
            nearer = found - above / derivative.clamp(min=1e-12)
            nearer = torch.where((nearer >= low) & (nearer <= high), nearer, (low + high) / 2)
            is_found = bool(((nearer - found).abs() <= CLOSE).all())
            found = nearer
            if is_found:
                break
        return found, torch.sigmoid((slope * found).unsqueeze(1) - thresholds)


def spread_features(squared: torch.Tensor, count: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Return what the spread of ratings around predictions depends on, float (T, 4).

    Args:
        squared, count: float (T,), the sum of the squared residuals that a user's vector leaves of the ratings that it
            was folded in from, and their number.
        variance: float (T,), of the scores, see `Blend.spread_features`.
    """
    log_residual = ((squared + SHRINK) / (count + SHRINK)).log() / 2
    return torch.stack([torch.ones_like(log_residual), log_residual, (variance + ADDED_VARIANCE).log() + 2,
                        1 / (count + 1)], 1)


def interval(probabilities: torch.Tensor, low: float, step: float,
             fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ends, in stars, (T,) each, between which a fraction of a rating's probability lies, and as much of the
    rest on either side.

    A star stands for what rounds to it, so its probability is spread evenly over a step of the scale around it. The
    ends do not leave the scale.

    Args:
        probabilities: float (T, K + 1).
        low, step: of the scale.
    """
    up_to = torch.cat([torch.zeros_like(probabilities[:, :1]), probabilities.cumsum(1)], 1)  # at the cells' ends
    ends = []
    for quantile in ((1 - fraction) / 2, (1 + fraction) / 2):
        cell = (up_to[:, 1:-1] < quantile).sum(1, keepdim=True)
        inside = (quantile - up_to.gather(1, cell)) / probabilities.gather(1, cell).clamp(min=1e-12)
        position = (cell + inside.clamp(0, 1)).squeeze(1) - 0.5
        ends.append(low + step * position.clamp(0, probabilities.shape[1] - 1))
    return ends[0], ends[1]


def fraction_below(probabilities: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the probability of fewer stars than the given ones, and of no more, (T,) each: what lies between them is
    what a rating says of an interval (Czado, Gneiting and Held 2009, "Predictive model assessment for count data").

    Args:
        position: int64 (T,), of the given stars, see `StarsLink.position_of`.
    """
    up_to = probabilities.cumsum(1).gather(1, position.unsqueeze(1)).squeeze(1)
    return up_to - probabilities.gather(1, position.unsqueeze(1)).squeeze(1), up_to


def coverage(probabilities: torch.Tensor, position: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return how much of the cell of each given star lies inside its `interval`, float (T,); position as for
    `fraction_below`."""
    below, up_to = fraction_below(probabilities, position)
    inside = up_to.clamp(max=(1 + fraction) / 2) - below.clamp(min=(1 - fraction) / 2)
    return inside.clamp(min=0) / (up_to - below).clamp(min=1e-12)
