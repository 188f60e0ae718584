"""The link from scores to stars, by hand-computed values and by what has to hold for every score."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.stars_link import StarsLink, coverage, interval, spread_features


def link_of(slope: float, thresholds: list[float], weights: tuple[float, ...] = (0.0,) * 4, low: float = 1.0,
            step: float = 1.0) -> StarsLink:
    link = StarsLink(low, low + step * len(thresholds), step)
    link.load_state_dict({"slope": torch.tensor(slope), "thresholds": torch.tensor(thresholds),
                          "spread_weights": torch.tensor(weights)})
    return link


def test_stars_and_probabilities_by_hand():
    link, logit = link_of(2.0, [0.0, 2.0]), torch.tensor([0.5])
    half, low = 1 / (1 + 2.718281828459045 ** -1), 1 / (1 + 2.718281828459045)
    assert link(logit).item() == pytest.approx(1 + half + low)
    chances = link.probabilities(logit, torch.zeros(1, 4))[0]
    assert chances.tolist() == pytest.approx([1 - half, half - low, low], abs=1e-5)


@pytest.mark.parametrize("high, step", [(5.0, 1.0), (5.0, 0.5), (100.0, 1.0)])
def test_the_link_before_it_is_fitted_is_much_like_the_sigmoid_of_training(high, step):
    link, score = StarsLink(1.0, high, step), torch.linspace(-4, 4, 81)
    away = (link(score) - 1) / (high - 1) - torch.sigmoid(score)
    assert away.abs().max() < 0.04


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=9, unique=True), st.floats(-4, 4, width=32),
       st.floats(0.25, 3, width=32), st.floats(0.5, 4, width=32))
def test_whatever_the_spread_the_mean_of_the_probabilities_is_the_stars_to_expect(thresholds, score, spread, slope):
    link = link_of(slope, sorted(thresholds))
    scores = torch.tensor([score])
    chances = link.with_spread(scores, torch.tensor([spread]))[0]
    assert chances.min() >= 0 and chances.sum().item() == pytest.approx(1, abs=1e-5)
    stars = chances @ torch.arange(1, len(thresholds) + 2).float()
    assert stars.item() == pytest.approx(link(scores).item(), abs=0.01 * len(thresholds))


def test_a_larger_spread_moves_probability_from_the_middle_to_the_ends():
    link, score = link_of(2.0, [-3.0, -1.0, 1.0, 3.0]), torch.zeros(3)
    chances = link.with_spread(score, torch.tensor([0.5, 1.0, 2.0]))
    assert (chances[:, 2].diff() < 0).all() and (chances[:, 0].diff() > 0).all() and (chances[:, 4].diff() > 0).all()


def test_features_by_hand():
    features = spread_features(torch.tensor([0.0, 90.0]), torch.tensor([0.0, 30.0]), torch.tensor([0.98, 0.0]))
    assert features[0].tolist() == pytest.approx([1, 0, 2, 1])
    assert features[1].tolist() == pytest.approx([1, 0.4581454, -1.9120230, 1 / 31])


def test_an_interval_by_hand():
    """Of .1, .2, .4, .2, .1 for 1 to 5 stars a tenth lies below 1.5 and above 4.5; a quarter below 2.25."""
    chances = torch.tensor([[0.1, 0.2, 0.4, 0.2, 0.1], [0.0, 0.0, 0.0, 0.0, 1.0]])
    for fraction, low, high in ((0.8, 1.5, 4.5), (0.5, 2.25, 3.75), (0.98, 1.0, 5.0)):
        ends = interval(chances, 1.0, 1.0, fraction)
        assert [end[0].item() for end in ends] == pytest.approx([low, high], abs=1e-5)
    assert [end[1].item() for end in interval(chances, 1.0, 1.0, 0.5)] == pytest.approx([4.75, 5.0], abs=1e-5)


def test_coverage_is_how_much_of_a_stars_cell_lies_inside():
    chances = torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1]).expand(5, 5)
    inside = coverage(chances, torch.arange(5), 0.5)
    assert inside.tolist() == pytest.approx([0, 0.25, 1, 0.25, 0], abs=1e-5)
    assert (chances[0] @ inside).item() == pytest.approx(0.5)
