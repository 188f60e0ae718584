"""Steps on a planted data set: a user with one rating, one who has rated nearly everything, a movie without ratings."""

import copy
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from models.config import ModelConfig
from models.ops import backend
from models.ops.ranks import ALONE
from models.two_tower import TwoTower
from preprocessing.dataset import DataError
from training import batches
from training import engine as engine_module
from training.batches import Batch, RatingTensors, batch_of
from training.engine import Engine, Settings
from training.halves import halves, pieces
from training.optimizer import SHARED_LR, TABLE_LR, RowAdam, lr_factor

NUM_MOVIES, MOST = 17_770, 17_653  # of Netflix, and of its keenest user
COUNTS = [1, MOST, 0, 40, 7, 300, 2]  # ratings of each user
LIGHT, HEAVY = 0, 1
UNRATED = NUM_MOVIES - 1  # a movie


def planted_ratings(counts: list[int] = COUNTS) -> RatingTensors:
    """Return ratings of users with so many each, of all movies but one."""
    chance = torch.Generator().manual_seed(0)
    movie_idx = torch.cat([torch.randperm(UNRATED, generator=chance)[:count].sort().values for count in counts])
    days = torch.cat([torch.randint(2000, (count,), generator=chance).sort().values for count in counts])
    stars = torch.randint(1, 6, movie_idx.shape, generator=chance)
    return RatingTensors(torch.tensor([0, *itertools.accumulate(counts)]), movie_idx.short(), stars.byte(),
                         days.short())


def engine_of(ratings: RatingTensors, batch_size: int = 128, ensemble_size: int = 2, without: tuple[str, ...] = (),
              **changes: object) -> Engine:
    """Return an engine of a small model for these ratings."""
    torch.manual_seed(0)
    num_users = len(ratings.offset) - 1
    stars, movie_idx = ratings.stars.double(), ratings.movie_idx.long()
    config = ModelConfig(num_users, NUM_MOVIES, 2000, 1, 5, float(stars.mean()), 8, ensemble_size, 8, user_dim=4,
                         pooled_dim=4, without=without)
    model = TwoTower(config)
    model.movie_tower.set_statistics(torch.full((NUM_MOVIES,), 2000), torch.bincount(movie_idx, minlength=NUM_MOVIES),
                                     torch.bincount(movie_idx, stars - config.stars_mean, NUM_MOVIES))
    return Engine(model, ratings, Settings(**changes), 0.01, batch_size, 0, 1, ALONE)


class Steps(tqdm):
    """A bar that is not shown and remembers the ratings of each step."""

    def __init__(self) -> None:
        super().__init__(disable=True)
        self.sizes: list[int] = []

    def update(self, n: float = 1) -> None:
        self.sizes.append(int(n))


@pytest.mark.parametrize("batch_size", [1, 3, len(COUNTS), 480_189])
def test_any_batch_size_takes_every_rating_once_an_epoch(batch_size):
    engine, steps = engine_of(planted_ratings(), batch_size), Steps()
    loss, squared, count = engine.run_epoch(1, 2, steps).tolist()
    assert len(steps.sizes) == math.ceil(len(COUNTS) / batch_size)
    assert sorted(steps.sizes) == sorted(COUNTS) if batch_size == 1 else sum(steps.sizes) == sum(COUNTS)
    # What is context and what is target depends on who rated what, and not on who shares their step.
    assert count == engine_of(planted_ratings()).run_epoch(1, 2, Steps())[2]
    assert 0 < squared < loss < math.inf
    assert all(torch.isfinite(value).all() for value in engine.model.state_dict().values())


def test_a_user_who_is_left_out_of_a_step_in_one_group_has_no_row_there():
    """Users of one rating: in one group it is known and nothing is asked, in the other nothing is known."""
    batch = batch_of(planted_ratings([1, 1, 0, 3]), torch.arange(4))
    in_context = torch.tensor([True, False, True, False, False])
    context, target, user_of_row, first_rows = halves(batch, in_context, True, torch.ones(len(batch.users)).bool())
    assert (user_of_row.tolist(), first_rows) == ([1, 3, 0, 3], 2)
    assert target.row.tolist() == [0, 1, 1] + [2, 3]
    assert context.row.tolist() == [1] + [3, 3]


def test_users_of_whom_nothing_is_known_share_a_row_in_each_group():
    batch = batch_of(planted_ratings([1, 1, 1, 1, 2]), torch.arange(5))
    batch.day = torch.tensor([7, 3, 5, 1, 2, 4])
    in_context = torch.tensor([False, False, False, True, True, False])
    has_embedding = torch.tensor([False, True, False, False, False])
    context, target, user_of_row, first_rows = halves(batch, in_context, True, has_embedding)
    # Of group 0, users 0 and 2 share a row; user 1 has an embedding, user 4 a rating. In group 1 user 3 is alone.
    assert (user_of_row.tolist(), first_rows) == ([0, 1, 4, 3, 4], 3)
    assert target.row.tolist() == [0, 0, 1, 2] + [3, 4] and context.row.tolist() == [2] + [4]
    assert target.day.tolist() == [5, 7, 3, 4] + [1, 2]
    assert torch.equal(target.movie_idx, batch.movie_idx[[2, 0, 1, 5, 3, 4]])
    assert torch.equal(target.users, batch.users[user_of_row]) and torch.equal(context.users, target.users)


@pytest.mark.parametrize("ensemble_size", [1, 2])
def test_a_step_in_which_users_share_a_row_is_that_in_which_each_has_their_own(ensemble_size, float64, monkeypatch):
    ratings = planted_ratings([1] * 40 + [2, 9, 1, 1])
    shared, apart = (engine_of(ratings, ensemble_size=ensemble_size, user_dropout=0.7) for _ in range(2))
    rows: list[int] = []
    for engine, share in ((shared, True), (apart, False)):
        def divided(batch: Batch, in_context: torch.Tensor, both: bool, has_embedding: torch.Tensor,
                    share: bool = share) -> tuple:
            made = halves(batch, in_context, both, has_embedding if share else torch.ones_like(has_embedding))
            rows.append(len(made[2]))
            return made
        monkeypatch.setattr(engine_module, "halves", divided)
        for layer in (engine.model.user_tower.out, engine.model.movie_tower.out):
            layer.weight.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
        if (bias := engine.model.recent_user_bias) is not None:
            bias.weight.data.fill_(0.5)
        batch = batch_of(ratings, torch.arange(44))
        batch.stars = batch.stars.double()
        engine.step(batch, 1, 1.0)
    assert rows[0] < rows[1] - 10
    for name, value in shared.model.state_dict().items():
        torch.testing.assert_close(value, apart.model.state_dict()[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("without", "left_out"), [((), True), (("fold_in",), True), (("pooled_history",), True),
                                                   (("pooled_history", "fold_in"), False)])
def test_embeddings_are_left_out_only_where_a_history_speaks_for_the_users(without, left_out):
    engine = engine_of(planted_ratings([3] * 200), batch_size=200, without=without)
    for epoch in (1, 2):  # in the first step the second layer is zero yet
        engine.run_epoch(epoch, 2, Steps())
    moved = engine.user_rows.state["square"].any(1).float().mean()
    assert 0 < moved < 0.1 if left_out else moved == 1


def test_movies_and_users_without_a_training_rating_are_not_moved_and_have_vectors():
    engine = engine_of(planted_ratings(), batch_size=2, user_dropout=0.0)
    model, before = engine.model, engine.model.user_embedding.clone()
    for epoch in (1, 2):
        engine.run_epoch(epoch, 2, Steps())
    rated = model.movie_tower.num_ratings > 0
    assert torch.equal((model.movie_tower.embedding != 0).any(2).any(1), rated)
    assert torch.equal((model.movie_bias_over_time.table != 0).any(1), rated)
    moved = (model.user_embedding != before).any(1)
    assert moved[HEAVY] and not moved[COUNTS.index(0)]
    vectors = model.eval().movie_vectors(0, (~rated).nonzero().squeeze(1))
    assert UNRATED in (~rated).nonzero() and torch.isfinite(vectors).all() and (vectors != 0).any(1).all()


def test_the_vectors_of_the_lightest_and_the_heaviest_user_are_made_of_their_ratings():
    ratings = planted_ratings()
    engine = engine_of(ratings)
    engine.run_epoch(1, 2, Steps())
    model = engine.model.eval()
    users = torch.tensor([LIGHT, HEAVY, COUNTS.index(0)])
    known = batch_of(ratings, users).context()
    with torch.no_grad():
        movies, nobody = model.movie_table(), torch.zeros(3, 4)
        vectors = model.user_vectors(movies, nobody, known, 1999)
        changed = model.user_vectors(movies, nobody, known._replace(stars=6 - known.stars), 1999)
    assert torch.isfinite(vectors).all()
    assert ((vectors != changed).any(1) | (known.stars[0] == 3)).tolist() == [True, True, bool(known.stars[0] == 3)]


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("most", [1, 60, 400])
def test_a_step_in_pieces_has_the_gradient_of_the_whole(most, monkeypatch, float64):
    ratings = planted_ratings([1, 90, 0, 40, 7, 30, 300, 2, 0])
    batch = batch_of(ratings, torch.arange(9))
    batch.stars = batch.stars.double()
    whole, split = (engine_of(ratings) for _ in range(2))
    for engine in (whole, split):  # so that every parameter has a gradient
        engine.model.user_tower.out.weight.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        engine.model.movie_tower.out.weight.data.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
        engine.model.recent_user_bias.weight.data.fill_(0.1)
    sums = whole.step(batch, 5, 1.0)
    assert len(list(pieces(batch, most))) > 1
    monkeypatch.setattr(engine_module, "pieces", functools.partial(pieces, most=most))
    torch.testing.assert_close(split.step(batch, 5, 1.0), sums, rtol=1e-12, atol=0)
    gradients = {name: parameter.grad.to_dense() for name, parameter in whole.model.named_parameters()}
    assert all(gradients[name].abs().sum() > 0 for name in gradients)
    for name, parameter in split.model.named_parameters():
        torch.testing.assert_close(parameter.grad.to_dense(), gradients[name], rtol=1e-9, atol=1e-12, msg=name)
    torch.testing.assert_close(split.model.user_embedding, whole.model.user_embedding, rtol=1e-9, atol=1e-12)


def test_groups_of_heads_see_the_halves_both_ways_round():
    batch = batch_of(planted_ratings([2, 0, 3]), torch.arange(3))
    in_context = torch.tensor([True, False, False, False, True])
    context, target, user_of_row, first_rows = halves(batch, in_context, True, torch.ones(len(batch.users)).bool())
    first, second = [0, 4], [1, 2, 3]  # ratings, in the order of the batch
    assert (user_of_row.tolist(), first_rows) == ([0, 2, 0, 2], 2)  # user 1 has no ratings
    assert context.row.tolist() == [0, 1] + [2, 3, 3] and target.row.tolist() == [0, 1, 1] + [2, 3]
    for name in ("movie_idx", "stars", "day"):
        column = getattr(batch, name)
        assert torch.equal(getattr(context, name), column[first + second])
        assert torch.equal(getattr(target, name), column[second + first])
    one, other, user_of_row, first_rows = halves(batch, in_context, False, torch.ones(3).bool())
    assert [part.row.tolist() for part in (one, other)] == [[0, 1], [0, 1, 1]]
    assert (user_of_row.tolist(), first_rows) == ([0, 2], 2)


def test_a_group_of_heads_is_a_model_of_its_own(float64, monkeypatch):
    """The members of a group score as they do where all members see what this group sees."""
    monkeypatch.setattr(backend, "FEW_RATINGS", -1)  # as if they were many
    ratings = planted_ratings([5, 40, 9])
    engine, batch = engine_of(ratings, ensemble_size=4), batch_of(ratings, torch.arange(3))
    batch.stars = batch.stars.double()
    model = engine.model
    model.recent_user_bias = None  # it takes the mean over the members that see the same
    for layer in (model.user_tower.out, model.movie_tower.out):
        layer.weight.data.normal_(std=0.3)
    in_context = torch.rand(len(batch.row), generator=torch.Generator().manual_seed(0)) < 0.5
    embedding = torch.randn(3, 4)
    with torch.no_grad():
        context, target, *_ = halves(batch, in_context, True, torch.ones(len(batch.users)).bool())
        distinct = model.distinct_movies(batch.movie_idx)
        scores, *_ = model(embedding.repeat(2, 1), context.context(), target.target(),
                          model.step_movies(distinct, groups=2).table)
        one, other, movies = batch.subset(in_context), batch.subset(~in_context), model.step_movies(distinct).table
        first, *_ = model(embedding, one.context(), other.target(), movies)
        second, *_ = model(embedding, other.context(), one.target(), movies)
    torch.testing.assert_close(scores, torch.cat([first[:, :2], second[:, 2:]]))


@pytest.mark.parametrize("most", [1, 40, 97, 300, 470, 10_000])
def test_pieces_are_whole_users_and_no_larger_than_allowed(most):
    counts = [1, 90, 0, 40, 7, 30, 300, 2, 0]
    batch = batch_of(planted_ratings(counts), torch.arange(9))
    parts = list(pieces(batch, most))
    assert torch.equal(torch.cat([part.users for part in parts]), batch.users)
    for name in ("movie_idx", "stars", "day"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    for part in parts:
        assert torch.bincount(part.row, minlength=len(part.users)).tolist() == [counts[user] for user in part.users]
        assert len(part.row) <= most or sum(counts[user] > 0 for user in part.users) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_spoilt_row_stops_the_step_that_meets_it(value):
    """The sentence names the step, which is not the first, and its rate."""
    ratings, steps = planted_ratings(), Steps()
    engine_of(ratings, batch_size=1).run_epoch(3, 9, steps)
    step_of = {size: step for step, size in enumerate(steps.sizes)}
    late = max(40, 300, key=step_of.get)  # of the users with so many ratings, the one that comes later
    engine, steps = engine_of(ratings, batch_size=1, lr=0.004), Steps()
    engine.model.user_embedding[COUNTS.index(late)] = value
    with pytest.raises(DataError) as error:
        engine.run_epoch(3, 9, steps)
    epoch, number, rate, base = re.search(r"in epoch (\d+), step (\d+), at rate (\S+); .*--lr than (\S+)$",
                                        str(error.value)).groups()
    assert len(steps.sizes) == step_of[late] > 0
    assert (int(epoch), int(number), float(base)) == (3, step_of[late] + 1, 0.004)
    assert float(rate) == pytest.approx(0.004 * lr_factor(2 * 7 + step_of[late], 9 * 7), rel=1e-2)


def test_where_nobody_can_be_folded_in_the_sentence_is_the_same(monkeypatch):
    def step(*_: object) -> torch.Tensor:
        raise torch.linalg.LinAlgError("singular")

    engine, steps = engine_of(planted_ratings(), batch_size=1, lr=0.004), Steps()
    monkeypatch.setattr(engine, "step", step)
    with pytest.raises(DataError, match=r"no longer finite in epoch 1, step 1, at rate 0\.00313; .*than 0\.004$"):
        engine.run_epoch(1, 2, steps)
    assert not steps.sizes


def test_ranks_send_one_gradient_for_every_shared_parameter_and_no_user_rows():
    """Of the tables of movies the rows that the step met: here those of one user, of whose movies none is the last."""
    engine, ratings = engine_of(planted_ratings(), batch_size=1), planted_ratings()
    engine.step(batch_of(ratings, torch.tensor([1])), 1, 1.0)
    met = len(ratings.movie_idx[ratings.offset[1]:ratings.offset[2]].unique())
    assert len(engine.distinct) == met < NUM_MOVIES
    sizes = sorted(gradient.numel() for gradient in engine.shared_gradients(None))
    tables = {id(table) for table in engine.tables.tables}
    assert sizes == sorted(parameter.numel() * (met / NUM_MOVIES if id(parameter) in tables else 1)
                           for parameter in engine.model.parameters())
    assert engine.model.user_embedding.shape not in [gradient.shape for gradient in engine.shared_gradients(None)]


def test_a_resumed_engine_keeps_its_moments_and_takes_the_rates_of_the_flags():
    ratings = planted_ratings([3, 5, 2])
    before, after = engine_of(ratings), engine_of(ratings, lr=0.0005, time_l2=7.0)
    before.step(batch_of(ratings, torch.arange(3)), 1, 1.0)
    before.tables.catch_up()
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    assert (after.tables.lr, after.tables.decays[-1]) == pytest.approx((0.0005 * TABLE_LR, 7.0))
    assert all(torch.equal(old, new) for old, new in zip(before.tables.momentum, after.tables.momentum, strict=True))
    for name, values in before.layers.state.items():
        assert all(torch.equal(old, new) for old, new in zip(values, after.layers.state[name], strict=True))
    after.step(batch_of(ratings, torch.arange(3)), 2, 0.5)
    assert after.layers.lr == pytest.approx(0.0005 * SHARED_LR * 0.5)


def test_a_step_and_vectors_are_made_on_the_device_of_their_model_alone(monkeypatch):
    """On the device `meta`, which stands for a GPU: what lies there has a shape alone."""
    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Callable, types: object, args: tuple = (),
                               kwargs: dict | None = None) -> object:
            made = function(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, tuple) else (made,):
                if isinstance(tensor, torch.Tensor) and tensor.dim():
                    on.setdefault(tensor.device.type, []).append(function)
            return made

    on: dict[str, list] = {}
    for module in (engine_module, batches):
        monkeypatch.setattr(module, "uniform", lambda seed, first, *_: torch.zeros_like(first).float())  # hashes
    engine, meta = engine_of(planted_ratings([3, 0, 40])), torch.device("meta")
    engine.model.to(meta)
    engine.ratings = engine.ratings.to(meta)
    engine.tables = engine.layers = SimpleNamespace(step=lambda *_: None, catch_up=lambda _: None,
                                                    parameters=engine.layers.parameters)  # PyTorch's own
    engine.user_rows = RowAdam(engine.model.user_embedding, 0.001)
    model, users = engine.model, torch.arange(3, device=meta)
    with Watch():
        batch = batch_of(engine.ratings, users, total=43)
        sums = engine.step(batch, 1, 1.0)
        vectors = model.user_vectors(model.movie_table(), model.user_embedding, batch.context(), 9)
        scores = vectors @ model.movie_vectors(9).T
    assert set(on) == {"meta"}, on
    assert (sums.shape, scores.shape) == ((3,), (3, NUM_MOVIES))


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def on_gpu(engine: Engine) -> Engine:
    """Return an engine whose model and ratings are on the GPU."""
    return Engine(engine.model.cuda(), engine.ratings.to(torch.device("cuda")), engine.settings, engine.l2,
                  engine.batch_size, engine.seed, engine.stars_step, engine.ranks)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("ensemble_size", [1, 2])
def test_epochs_on_a_gpu_move_the_parameters_as_on_a_cpu(ensemble_size):
    ours, reference = (engine_of(planted_ratings([1, 3000, 0, 40, 7, 300, 2, 500]), 3, ensemble_size, user_dropout=0.0)
                       for _ in range(2))
    ours = on_gpu(ours)
    for epoch in (1, 2):
        sums, expected = (engine.run_epoch(epoch, 2, Steps()) for engine in (ours, reference))
        torch.testing.assert_close(sums.cpu(), expected, rtol=1e-4, atol=0)
    moved = ours.model.state_dict()
    for name, value in reference.model.state_dict().items():
        torch.testing.assert_close(moved[name].cpu(), value, rtol=2e-3, atol=2e-4)


@pytest.mark.gpu
@needs_gpu
def test_between_the_first_step_and_the_last_the_host_does_not_wait_for_a_gpu():
    class Watch(Steps):
        def update(self, n: float = 1) -> None:
            super().update(n)
            torch.cuda.set_sync_debug_mode("error" if 2 <= len(self.sizes) < 9 else "default")

    engine = on_gpu(engine_of(planted_ratings([50] * 60), 6))
    try:
        engine.run_epoch(1, 2, Watch())
    finally:
        torch.cuda.set_sync_debug_mode("default")
