import pytest
import torch

from models.blend import Blend
from models.config import ModelConfig
from models.ops.rating_pattern import positions
from models.relevance import Candidates, Relevance, multinomial_loss, sampling_probabilities
from models.user_tower import Context

CONFIG = ModelConfig(num_users=5, num_movies=7, num_days=10, stars_low=1, stars_high=5, stars_mean=3.4,
                     embedding_dim=6, ensemble_size=2, hidden_dim=8, user_dim=4, pooled_dim=4, relevance_dim=3)
CONTEXT = Context(torch.tensor([0, 0, 1]), torch.tensor([1, 4, 6]), torch.tensor([5.0, 3.0, 1.0]),
                  torch.tensor([3, 9, 5]))
TARGETS = (torch.tensor([0, 1, 1]), torch.tensor([2, 0, 5]), torch.tensor([5.0, 4.0, 1.0]))


@pytest.fixture
def model() -> Blend:
    torch.manual_seed(0)
    model = Blend(CONFIG, with_item_based=True).eval()
    torch.nn.init.normal_(model.folded_in)
    model.relevance.set_statistics(torch.linspace(-1, 1, 7), torch.arange(7.0))
    return model


EVERY = Candidates(torch.arange(7), torch.arange(7))


def weighted(relevance: Relevance) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return row, movie and weight of the targets."""
    row, movie_idx, stars = TARGETS
    return row, movie_idx, relevance.weight(row, stars, 2)


def test_loss_and_gradients_equal_plain_autograd():
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(size, dtype=torch.float64, generator=generator, requires_grad=True)
              for size in ((4, 3), (6, 3), (6,))]
    seen_row, seen_column = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 0, 5])
    row, column = torch.tensor([0, 0, 1, 3]), torch.tensor([0, 5, 4, 1])  # user 2 has no target
    weight = torch.tensor([0.5, 2.0, 1.0, 0.0], dtype=torch.float64)
    loss = multinomial_loss(*leaves, seen_row, seen_column, row, column, weight)
    gradients = torch.autograd.grad(3 * loss, leaves)
    score = leaves[0] @ leaves[1].T + leaves[2]
    log_share = score.index_put((seen_row, seen_column), score.new_tensor(-torch.inf)).log_softmax(1)
    plain = -(weight * log_share[row, column]).sum()
    torch.testing.assert_close(loss, plain)
    for own, other in zip(gradients, torch.autograd.grad(3 * plain, leaves), strict=True):
        torch.testing.assert_close(own, other)


def test_loss_of_a_tiny_case_worked_out_by_hand():
    """Two unseen movies of scores log 2 and 0: a share of 2/3 for the one that was liked, with weight 1/2."""
    movie, bias = torch.tensor([[1.0], [0.0], [5.0]]), torch.zeros(3)
    zero = torch.tensor([0])
    loss = multinomial_loss(torch.tensor([[2.0]]).log(), movie, bias, zero, torch.tensor([2]), zero, zero,
                            torch.tensor([0.5]))
    torch.testing.assert_close(loss, 0.5 * torch.tensor(1.5).log())


def test_users_who_have_seen_every_movie_have_no_gradient():
    tastes = torch.ones(1, 2, requires_grad=True)
    loss = multinomial_loss(tastes, torch.ones(2, 2), torch.zeros(2), torch.zeros(2, dtype=torch.int64),
                            torch.arange(2), *(torch.zeros(0, dtype=torch.int64),) * 2, torch.zeros(0))
    loss.backward()
    assert loss == 0 and (tastes.grad == 0).all()


@torch.no_grad()
def test_relevance_is_one_inner_product_of_taste_popularity_and_rating(model):
    model.relevance.weights.copy_(torch.tensor([[0.7, 1.2, 0.3], [0.9, 0.8, 0.5]]))
    movies, users = model.movie_table(), torch.tensor([3, 1])
    ratings, movies = model.user_vectors(movies, users, CONTEXT, 9), model.movie_vectors(9)
    products = model.relevance.user_vectors(CONTEXT, ratings) @ model.relevance.movie_vectors(movies).T
    taste = model.relevance.tastes(CONTEXT, 2) @ model.relevance.vectors.T
    torch.testing.assert_close(products, 0.7 * taste + 1.2 * model.relevance.popularity + 0.3 * ratings @ movies.T)
    products = model.relevance.user_vectors(CONTEXT, ratings, are_new=True) @ model.relevance.movie_vectors(movies).T
    torch.testing.assert_close(products, 0.9 * taste + 0.8 * model.relevance.popularity + 0.5 * ratings @ movies.T)


@torch.no_grad()
def test_a_taste_equals_its_formula_written_out(model):
    relevance = model.relevance
    surprise = CONTEXT.stars - 3.4 - torch.linspace(-1, 1, 7)[CONTEXT.movie_idx]
    centred = surprise[:2] - surprise[:2].sum() / (2 + 5)
    relevance.history.copy_(torch.randn(7, 12))
    (by_residual, by_residual_of_few), (by_presence, by_presence_of_few) = (
        half.split(3, 1) for half in relevance.history.split(6, 1))
    few = 10 / (2 + 10)
    expected = sum(residual * (by_residual + few * by_residual_of_few)[movie]
                   + (by_presence + few * by_presence_of_few)[movie]
                   for residual, movie in zip(centred, (1, 4), strict=True)) / 3**0.5
    torch.testing.assert_close(relevance.tastes(CONTEXT, 2)[0], expected)
    own = Context(*(column[:2] for column in CONTEXT))
    effects = relevance.contributions(own, torch.tensor([2, 6]), is_new=False).sum(1)
    torch.testing.assert_close(effects, relevance.weights[0, 0] * relevance.vectors[[2, 6]] @ expected)


def test_disliked_targets_do_not_count_and_users_count_by_the_root_of_their_targets(model):
    relevance = model.relevance
    loss = relevance.loss(CONTEXT, *weighted(relevance), 2, EVERY)
    score = relevance.tastes(CONTEXT, 2) @ relevance.vectors.T + relevance.popularity
    log_share = score.index_put((CONTEXT.row, CONTEXT.movie_idx), torch.tensor(-torch.inf)).log_softmax(1)
    torch.testing.assert_close(loss, -(0.75 * log_share[0, 2] + 0.5 * log_share[1, 0] / 2**0.5))


def test_a_sample_of_all_movies_has_the_loss_and_gradients_of_no_sample(model):
    relevance = model.relevance
    whole = relevance.loss(CONTEXT, *weighted(relevance), 2, EVERY)
    sampled = relevance.loss(CONTEXT, *weighted(relevance), 2, EVERY._replace(probability=torch.ones(7)))
    torch.testing.assert_close(sampled, whole)
    parameters = list(relevance.parameters())
    for own, other in zip(torch.autograd.grad(sampled, parameters), torch.autograd.grad(whole, parameters),
                          strict=True):
        torch.testing.assert_close(own.to_dense(), other.to_dense())


def test_movies_that_are_no_candidates_are_not_reached(model):
    """Of movies 0, 2, 4 and 5, in another order, the loss is that of a softmax over these; others get no gradient."""
    relevance, movies = model.relevance, torch.tensor([5, 0, 2, 4])
    row, movie, weight = weighted(relevance)
    known = Context(*(column[CONTEXT.movie_idx == 4] for column in CONTEXT))
    loss = relevance.loss(known, row, movie, weight, 2, Candidates(movies, positions(movies, 7)))
    score = (relevance.tastes(known, 2) @ relevance.vectors.T + relevance.popularity)[:, movies]
    score = score.index_put((known.row, torch.full_like(known.row, 3)), torch.tensor(-torch.inf))
    place = {movie: number for number, movie in enumerate(movies.tolist())}
    column = torch.tensor([place[int(idx)] for idx in movie])
    torch.testing.assert_close(loss, -(weight * score.log_softmax(1)[row, column]).sum())
    loss.backward()
    for table, reached in ((relevance.vectors, movies), (relevance.popularity, movies), (relevance.history, [4])):
        assert table.grad.coalesce().indices()[0].tolist() == sorted(int(movie) for movie in reached)


@torch.no_grad()
def test_movies_of_a_sample_count_for_as_many_as_they_stand_for(model):
    """Without tastes a movie's weight is that of its popularity over its probability: 2, 2 and 4. One of 4 is known, so
    the movie that is liked has half of what is left, and counts twice. The other target is not in the sample."""
    relevance, zero = model.relevance, torch.zeros(1, dtype=torch.int64)
    relevance.history.zero_()
    relevance.popularity.copy_(torch.tensor([1.0, 2, 2, 9, 9, 9, 9]).log())
    probability = torch.tensor([0.5, 1, 0.5, 0.1, 0.1, 0.1, 0.1])
    known = Context(zero, torch.tensor([2]), torch.tensor([3.0]), zero)
    weight = relevance.weight(zero.repeat(2), torch.tensor([5.0, 5.0]), 1)
    loss = relevance.loss(known, zero.repeat(2), torch.tensor([0, 6]), weight, 1,
                          Candidates(torch.arange(3), positions(torch.arange(3), 7), probability))
    torch.testing.assert_close(loss, 2 * 0.75 / 2**0.5 * torch.tensor(2.0).log())


@torch.no_grad()
def test_sampled_movies_stand_for_those_left_out():
    """The normaliser of one user over samples has the mean of the full one: chances are taken back out."""
    torch.manual_seed(0)
    relevance = Relevance(CONFIG)
    number = torch.tensor([50.0, 20, 9, 8, 7, 4, 2])
    relevance.set_statistics(torch.zeros(7), number)
    chance = sampling_probabilities(number, 4)
    total = torch.zeros(())
    for _ in range(4000):
        chosen = torch.rand(7) < chance
        total += ((relevance.popularity - chance.log()).exp() * chosen).sum() / 4000
    assert float(total) == pytest.approx(float(relevance.popularity.exp().sum()), rel=0.03)


def test_chances_are_in_proportion_and_sum_to_the_size():
    chance = sampling_probabilities(torch.tensor([100.0, 30, 4, 2, 0]), 3)
    assert chance.tolist() == pytest.approx([1, 1, 4 / 6, 2 / 6, 0])
