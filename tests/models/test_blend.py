
import pytest
import torch

from models.blend import Blend, item_based_helps
from models.config import ModelConfig
from models.two_tower import Target
from models.user_tower import Context

CONFIG = ModelConfig(num_users=5, num_movies=7, num_days=10, stars_low=1, stars_high=5, stars_mean=3.4,
                     embedding_dim=6, ensemble_size=2, hidden_dim=8, user_dim=4, pooled_dim=4)
CONTEXT = Context(torch.tensor([0, 0, 1]), torch.tensor([1, 4, 6]), torch.tensor([5.0, 3.0, 1.0]),
                  torch.tensor([3, 9, 5]))
MEANS = torch.tensor([0.5, -1.0, 0.0, 0.25, 1.0, -0.5, 0.75])  # of the movies, above the mean of all ratings


@pytest.fixture
def model() -> Blend:
    torch.manual_seed(0)
    model = Blend(CONFIG, with_item_based=True).eval()
    torch.nn.init.normal_(model.folded_in)
    model.user_based.movie_tower.mean.copy_(MEANS)
    return model


@pytest.mark.parametrize("share", [0.5, 0.7, 0.0, 1.0])
@torch.no_grad()
def test_the_score_is_both_by_their_shares_and_one_dot_product(model, share):
    model.share.fill_(share)
    user_idx = torch.tensor([3, 1])
    movies = model.movie_table()
    products = model.user_vectors(movies, user_idx, CONTEXT, 9) @ model.movie_vectors(9).T  # (2, 7)
    one = model.user_based.user_vectors(movies, model.user_based.user_embedding[user_idx], CONTEXT, 9)
    first = one @ model.user_based.movie_vectors(9).T
    second = model.item_based.movie_vectors(0)[user_idx] @ model.folded_in.T
    torch.testing.assert_close(products, of_few_ratings(model, share * first + (1 - share) * second, CONTEXT))
    target = Target(torch.arange(2).repeat_interleave(7), torch.arange(7).repeat(2), torch.full((14,), 9))
    torch.testing.assert_close(model.mix(model.predict(movies, user_idx, CONTEXT, target)), products.flatten())


def of_few_ratings(model: Blend, scores: torch.Tensor, context: Context) -> torch.Tensor:
    """Return what becomes of the towers' scores, (B, M): of one rating a third, of two a half; the rest are means."""
    rows = []
    for user, of_towers in enumerate(scores):
        known = context.row == user
        above = (context.stars - 3.4 - MEANS[context.movie_idx])[known].sum() / CONFIG.slope / (known.sum() + 5)
        trust = known.sum() / (known.sum() + 2)
        rows.append(trust * of_towers + (1 - trust) * (model.mean_scores() + above))
    return torch.stack(rows)


@torch.no_grad()
def test_without_a_rating_the_stars_to_expect_are_the_movies_mean(model):
    nothing = Context(*(column[:0] for column in CONTEXT))
    vector = model.user_vectors(model.movie_table(), None, nothing, 9)
    torch.testing.assert_close(model.stars(vector @ model.movie_vectors(9).T)[0], 3.4 + MEANS)


@torch.no_grad()
def test_somebody_new_is_scored_by_the_user_based_towers_alone(model):
    context = Context(*(column[:2] for column in CONTEXT))
    vector = model.user_vectors(model.movie_table(), None, context, 9)
    alone = model.user_based.user_vectors(model.movie_table(), torch.zeros(1, 4), context, 9)
    scores = alone @ model.user_based.movie_vectors(9).T
    torch.testing.assert_close(vector @ model.movie_vectors(9).T, of_few_ratings(model, scores, context))


def test_item_based_towers_only_where_movies_are_not_few():
    assert item_based_helps(6040, 3883) and item_based_helps(943, 1682)
    assert not item_based_helps(480_189, 17_770)


@pytest.mark.parametrize("with_item_based", [False, True])
@torch.no_grad()
def test_in_a_list_a_score_is_lower_by_two_standard_errors_of_its_movie(with_item_based):
    model = Blend(CONFIG, with_item_based).eval()
    num_ratings = torch.tensor([0, 1, 3, 8, 15, 99, 9999.0])
    model.user_based.movie_tower.num_ratings.copy_(num_ratings)
    lower = 2 * torch.tensor([1, 0.5**0.5, 0.5, 1 / 3, 0.25, 0.1, 0.01])
    known = model.user_vectors(model.movie_table(), torch.tensor([3, 1]), CONTEXT, 9)
    new = model.user_vectors(model.movie_table(), None, Context(*(column[:2] for column in CONTEXT)), 9)
    for users in (known, new):
        difference = users @ model.movie_vectors(9).T - users @ model.list_vectors(9).T
        torch.testing.assert_close(difference, lower.expand_as(difference))
