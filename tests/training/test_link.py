"""The fits of the link, by planted values and by SciPy's optimum of the likelihood, and of the towers' shares."""

import numpy as np
import pytest
import torch
from scipy import optimize
from scipy.special import expit

from models.blend import Blend, Predictions
from models.checkpoint import load_model
from models.config import ModelConfig
from models.stars_link import SPREAD_WEIGHTS, StarsLink
from training.batches import load_dataset
from training.link import PSEUDO_RATINGS, count_scores, fit_link, fit_share, fit_spread, scores_and_features

THRESHOLDS = np.array([-2.9, -1.1, 0.9, 3.3])


def rate(score: np.ndarray, slope: float, thresholds: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Draw stars from 1 up by the ordered logit."""
    noise = rng.logistic(size=len(score))
    return torch.tensor(1 + (slope * score + noise > thresholds[:, None]).sum(0)).float()


def test_planted_thresholds_are_found():
    rng = np.random.default_rng(0)
    score = rng.normal(0.2, 0.8, 400_000)
    link, stars = StarsLink(1, 5, 1), rate(score, 2.2, THRESHOLDS, rng)
    fit_link(link, count_scores(link, torch.tensor(score).float(), stars))
    assert link.slope.item() == pytest.approx(2.2, abs=0.02)
    assert link.thresholds.tolist() == pytest.approx(THRESHOLDS, abs=0.03)


def test_the_fit_is_the_optimum_of_the_likelihood_that_scipy_finds():
    """With the pseudo ratings, which matter most where ratings are few; nobody gave 2 stars."""
    rng = np.random.default_rng(1)
    score = (rng.integers(-60, 60, 80) + 0.5) / 32  # in the middle of bins
    link, stars = StarsLink(1, 5, 1), rate(score, 2.0, THRESHOLDS, rng)
    stars[stars == 2] = 3
    begin = np.concatenate([[link.slope.item()], link.thresholds.numpy()]).astype(float)

    def chances(values: np.ndarray) -> np.ndarray:
        above = expit(values[0] * score[:, None] - values[1:])
        return -np.diff(np.hstack([np.ones((len(score), 1)), above, np.zeros((len(score), 1))]), axis=1)

    pseudo, own = PSEUDO_RATINGS / len(score) * chances(begin), stars.numpy().astype(int) - 1

    def loss(values: np.ndarray) -> float:
        log = np.log(np.maximum(chances(values), 1e-300))
        return -log[np.arange(len(own)), own].sum() - (pseudo * log).sum()

    fit_link(link, count_scores(link, torch.tensor(score).float(), stars))
    found = optimize.minimize(loss, begin, method="BFGS", options={"gtol": 1e-6})
    assert [link.slope.item(), *link.thresholds.tolist()] == pytest.approx(found.x, abs=2e-3)
    assert loss(np.array([link.slope.item(), *link.thresholds.tolist()])) < loss(begin) - 1


def test_without_ratings_nothing_changes_and_few_change_little():
    link, before = StarsLink(1, 5, 1), StarsLink(1, 5, 1)
    fit_link(link, count_scores(link, torch.zeros(0), torch.zeros(0)))
    assert link.thresholds.equal(before.thresholds) and link.slope.equal(before.slope)
    fit_link(link, count_scores(link, torch.tensor([0.0, 0.9, -1.0]), torch.tensor([3.0, 5.0, 2.0])))
    assert (link.thresholds - before.thresholds).abs().max() < 0.5 and (link.thresholds.diff() > 0).all()


def test_a_scale_of_many_steps_of_which_most_are_never_given():
    rng = np.random.default_rng(2)
    score = rng.normal(0, 0.8, 3000)
    link, tens = StarsLink(0, 100, 0.5), rate(score, 2.0, np.linspace(-4, 4, 10), rng) - 1
    fit_link(link, count_scores(link, torch.tensor(score).float(), 10 * tens))
    assert link.thresholds.isfinite().all() and (link.thresholds.diff() > 0).all()
    errors = [((expected - 10 * tens) ** 2).mean() for expected in (link(torch.tensor(score).float()), 50.0)]
    assert errors[0] < 0.65 * errors[1]


def make_blend(with_item_based: bool, high: float = 5.0) -> Blend:
    mean = 1 + 0.6 * (high - 1)
    return Blend(ModelConfig(4, 3, 20, 1.0, high, mean, embedding_dim=8, hidden_dim=4), with_item_based)


@pytest.mark.parametrize("high", [5.0, 101.0])
@pytest.mark.parametrize(("planted", "number"), [(0.7, 20_000), (0.2, 20_000), (1.4, 5000), (-0.3, 5000), (0.9, 40)])
def test_the_share_of_the_user_based_towers_has_the_least_squares(planted, number, high):
    """Of the errors in quarters of the scale and of the prior, which holds a share that few ratings speak for."""
    rng = np.random.default_rng(5)
    model, user_based, item_based = make_blend(True, high), *rng.normal(0, 0.8, (2, number))

    def quarters(share: float) -> np.ndarray:
        return 4 * expit(share * user_based + (1 - share) * item_based)

    rated = quarters(planted) + rng.normal(0, 0.9, number)
    scores, stars = torch.tensor(np.stack([user_based, item_based])).float(), 1 + (high - 1) / 4 * rated
    predictions = Predictions(*scores, *torch.zeros(2, number), torch.zeros(number, dtype=torch.int64))
    for _ in range(2):  # whatever it was before
        fit_share(model, predictions, torch.tensor(stars).float())
        best = optimize.minimize_scalar(lambda share: ((rated - quarters(share))**2).sum() + 12 * (share - 0.5)**2,
                                        bounds=(0, 1), method="bounded", options={"xatol": 1e-6}).x
        assert model.share.item() == pytest.approx(best, abs=1e-3)
        model.share.fill_(0.1)
    assert abs(best - min(max(planted, 0), 1)) < (0.04 if number > 100 else 0.4)


def test_of_one_kind_of_towers_there_is_no_share():
    model, columns = make_blend(False), torch.zeros(4, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit_share(model, Predictions(*columns, torch.zeros(3, dtype=torch.int64)), torch.ones(3))
    assert "share" not in before and all(map(torch.equal, before.values(), model.state_dict().values()))


def test_a_planted_spread_is_found():
    torch.manual_seed(0)
    link, count, planted = StarsLink(1, 5, 1), 40_000, torch.tensor([-0.2, 1.3, 0.2, 0.4])
    score = torch.randn(count) * 0.8
    features = torch.stack([torch.ones(count), torch.randn(count) * 0.3, torch.randn(count), torch.rand(count)], 1)
    position = torch.multinomial(link.with_spread(score, (features @ planted).exp()), 1).squeeze(1)
    fit_spread(link, score, 1 + position.float(), features)
    assert link.spread_weights.tolist() == pytest.approx(planted.tolist(), abs=0.06)


def test_the_spread_stays_as_it_was_without_ratings():
    link = StarsLink(1, 5, 1)
    fit_spread(link, torch.zeros(0), torch.zeros(0), torch.zeros(0, 4))
    assert link.spread_weights.tolist() == pytest.approx(SPREAD_WEIGHTS)


def test_scores_that_are_all_alike_tell_no_slope():
    link = StarsLink(1, 5, 1)
    fit_link(link, count_scores(link, torch.full((50,), 0.3), torch.tensor([3.0, 4, 4, 5, 4] * 10)))
    assert link.slope.item() == pytest.approx(2, abs=0.5) and (link.thresholds.diff() > 0).all()
    assert 3.4 < link(torch.tensor([0.3])).item() < 4.1


def test_users_served_as_new_have_no_embedding_no_item_based_part_and_some_of_their_ratings(run_dir, data_dir):
    """What is said of them is what a new model says that knows no more."""
    data = load_dataset(data_dir)
    model, _ = load_model(run_dir / "best.pt", data.meta["fingerprint"])
    users = data.validation.offset.diff().nonzero().squeeze(1)[:40]
    asked = data.train, data.validation, users, 1.0
    before, _, features = scores_and_features(model, *asked, are_new=True)
    whole, _, all_known = scores_and_features(model, *asked)
    number = (1 / features[:, 3] - 1).round()
    part = number / (1 / all_known[:, 3] - 1).round()
    assert 0 <= part.min() < 0.15 and 0.85 < part.max() <= 1
    assert (before != whole).any()
    with torch.no_grad():
        model.user_based.user_embedding.fill_(torch.nan)
        if model.item_based is not None:
            model.folded_in.fill_(torch.nan)
    torch.testing.assert_close(scores_and_features(model, *asked, are_new=True)[0], before)
