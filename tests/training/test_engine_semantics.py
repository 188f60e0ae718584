"""What a training step is: its loss, gradients, chance and moves, against formulas that are written out here anew."""

import copy
import io
import itertools
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import pad
from tqdm import tqdm

import main
import rec
from models.checkpoint import load_model, save_checkpoint
from models.config import ModelConfig
from models.ops import backend
from models.ops.ranks import ALONE
from models.ops.threads import num_threads
from models.two_tower import TwoTower
from preprocessing import dataset
from preprocessing.dataset import writer
from training import build
from training import engine as engine_module
from training.baselines import fit_biases
from training.batches import RatingTensors, batch_of, in_context_of, load_dataset
from training.engine import Engine, Settings
from training.metrics import evaluate_ranking
from training.optimizer import RowAdam
from training.trainer import Trainer

NUM_MOVIES, NUM_DAYS = 30, 1000
COUNTS = [5, 0, 9, 1, 14, 29, 7, 2]  # ratings of each user
PENALTY, FILM_PRIOR, EMBEDDING_PRIOR = 0.02, 7.0, 11.0


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def engine_of(counts: list[int] = COUNTS, num_movies: int = NUM_MOVIES, ensemble_size: int = 2, batch_size: int = 3,
              seed: int = 0, **changes: object) -> Engine:
    """Return an engine for users with so many ratings each; no parameter of its model is zero."""
    chance = torch.Generator().manual_seed(0)
    movie_idx = torch.cat([torch.randperm(num_movies - 1, generator=chance)[:count] for count in counts])
    first = torch.randint(NUM_DAYS - 100, (len(counts),), generator=chance)  # of each user's hundred days
    day = torch.cat([(begin + torch.randint(100, (count,), generator=chance)).sort().values
                     for begin, count in zip(first, counts)])
    stars = torch.randint(1, 6, movie_idx.shape, generator=chance)
    ratings = RatingTensors(torch.tensor([0, *itertools.accumulate(counts)]), movie_idx.short(), stars.byte(),
                            day.short())
    torch.manual_seed(1)
    mean = float(stars.double().mean())
    model = TwoTower(ModelConfig(len(counts), num_movies, NUM_DAYS, 1, 5, mean, 4 * ensemble_size, ensemble_size, 24,
                                 user_dim=3, pooled_dim=2, raters_dim=3, without=()))
    year = torch.arange(num_movies) % 4 * 20 + 1930 * (torch.arange(num_movies) % 4 > 0)
    count, total = (torch.bincount(movie_idx, weight, num_movies).double() for weight in (None, stars - mean))
    model.movie_tower.set_statistics(year, count, total)
    model.movie_tower.raters.copy_(torch.randn(num_movies, 3))
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    engine = Engine(model, ratings, Settings(movie_l2=FILM_PRIOR, embedding_l2=EMBEDDING_PRIOR, **changes), PENALTY,
                    batch_size, seed, 1, ALONE)
    engine.known = year, count, total  # of the movies
    return engine


def recorded(engine: Engine, *epochs: int, num_epochs: int = 3) -> list[SimpleNamespace]:
    """Run epochs; return of every step what it found and was given, what its towers saw, and what it left."""
    steps, take = [], engine.step

    def step(batch, seed, factor, number, parts, meanwhile):
        batch.stars = batch.stars.to(torch.get_default_dtype())
        one = SimpleNamespace(batch=batch, factor=factor, before=copy.deepcopy(engine.model.state_dict()))
        steps.append(one)
        (part,) = engine._parts(batch, seed)
        assert all(torch.equal(own, other) for own, other in zip(part.context.context(), parts[0].context.context()))
        one.in_context = in_context_of(batch, seed)
        one.user_of_row, one.first_rows = part.user_of_row, part.first_rows
        one.sums = take(batch, seed, factor, number, meanwhile=meanwhile)
        one.gradients = {name: parameter.grad.to_dense() for name, parameter in engine.model.named_parameters()}
        engine.tables.catch_up()
        one.after = copy.deepcopy(engine.model.state_dict())
        return one.sums

    def look(_, inputs):
        one = steps[-1]
        one.embedding, one.context, one.target, _ = inputs
        one.keep = torch.zeros(len(one.batch.users), dtype=torch.bool)
        one.keep[one.user_of_row[(one.embedding != 0).any(1)]] = True

    engine.step = step
    handle = engine.model.register_forward_pre_hook(look)
    try:
        for epoch in epochs:
            first = len(steps)
            sums = engine.run_epoch(epoch, num_epochs, tqdm(disable=True))
            torch.testing.assert_close(sums, sum(one.sums for one in steps[first:]))
    finally:
        engine.step = take
        handle.remove()
    return steps


# --- the formulas of models/two_tower.py, user by user -----------------------------------------------------------


def plain_films(state: dict, year: torch.Tensor, count: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return vectors (M, H, D) and biases (M, H) of all movies."""
    weight, constant, out, of_out = (state[f"movie_tower.{layer}.{name}"] for layer in ("hidden", "out")
                                     for name in ("weight", "bias"))
    own, age = state["movie_tower.embedding"], (year - 1985) / 15 * (year > 0)
    features = torch.stack([age, age**2 - 1, (year > 0).double(), (count + 1).log() / 3 - 2, (count + 1)**-0.5], 1)
    raters = state["movie_tower.raters"]
    hidden = torch.relu(torch.cat([own.mean(1), features, raters], 1) @ weight.T + constant)
    learned = (torch.cat([hidden, raters], 1) @ out.T + of_out).view(*own.shape[:2], -1)
    return own + learned[..., :-1], state["movie_tower.bias"] + learned[..., -1]


def plain_user(state: dict, engine: Engine, one: SimpleNamespace, place: int, members: slice, known: torch.Tensor,
               movies: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what a user adds to squared error and to the sum of |p|^2, and the numbers of the targets by movie (M,),
    as some members see them; `known` tells which of the batch's ratings are the context of these."""
    batch, config, (vectors, bias), (_, count, total) = one.batch, engine.model.config, movies, engine.known
    c, t = ((batch.row == place) & which for which in (known, ~known))
    movie, day, size, above = batch.movie_idx, batch.day, c.sum(), batch.stars - config.stars_mean
    surprise = above - (total / (count + 5))[movie]
    mean, spread = surprise[c].sum() / (size + 5), (surprise[c].square().sum() / (size + 1)).sqrt()
    pool = state["user_tower.pooled"][movie[c]]
    pooled = ((surprise[c] - mean).unsqueeze(1) * pool[:, :2] + pool[:, 2:]).sum(0) / (size + 1).sqrt()
    features = torch.stack([(size + 1).log() / 2 - 2, 2 * mean, spread - 1])
    x = torch.cat([one.rows[place] * one.keep[place], pooled, features])
    hidden = torch.relu(state["user_tower.hidden.weight"] @ x + state["user_tower.hidden.bias"])
    prior = state["user_tower.out.weight"] @ torch.cat([hidden, pooled]) + state["user_tower.out.bias"]
    prior = prior.view(config.ensemble_size, -1)[members]
    shrink = (state["user_tower.log_base"].exp() + state["user_tower.log_per_rating"].exp() * size)[members]
    drift = state["movie_bias_over_time.table"][movie, day // 32]  # 1000 days in 32 periods
    rows = pad(vectors, (0, 1), value=0.5)[:, members].transpose(0, 1)  # (H, M, D + 1)
    value = state["user_tower.star_values"][batch.stars.long() - 1]
    residual = above / config.slope + value - drift - bias[movie, members].T  # (H, R)
    v = rows[:, movie[c]]  # (H, R, D + 1)
    right = (v.mT @ residual[:, c].unsqueeze(-1)).squeeze(-1) + shrink * prior
    w = torch.linalg.solve(v.mT @ v + torch.diag_embed(shrink), right).unsqueeze(-1)
    left = (residual[:, c] - (v @ w).squeeze(-1)).mean(0).detach()
    score = (rows[:, movie[t]] @ w).squeeze(-1) + bias[movie[t], members].T + drift[t]
    for number, window in enumerate((1, 4, 16, 64)):
        near = ((day[t][:, None] - day[c]).abs() < window).double()
        recent = near @ left / (near.sum(1) + state["recent_user_bias.log_shrinkage"][number].exp())
        score = score + state["recent_user_bias.weight"][number] * recent
    share = (config.stars_mean - 1) / 4
    stars = 1 + 4 * torch.sigmoid(score + math.log(share / (1 - share)))
    return (stars - batch.stars[t]).square().sum(), w.square().sum() * t.sum(), movie[t].bincount(minlength=len(count))


def plain_step(engine: Engine, one: SimpleNamespace) -> tuple[torch.Tensor, dict, torch.Tensor]:
    """Return the sums of a step, and the gradients of its loss: by name, and of the users' rows (B, E)."""
    state = {name: value.clone().requires_grad_(value.is_floating_point()) for name, value in one.before.items()}
    (year, count, _), members = engine.known, engine.model.config.ensemble_size
    movies = plain_films(state, year, count)
    one.rows = state["user_embedding"][one.batch.users]
    both_ways = [(slice(0, members // 2), one.in_context), (slice(members // 2, members), ~one.in_context)]
    squared = size = number = 0
    for of_group, known in [(slice(0, members), one.in_context)] if members % 2 else both_ways:
        for place in range(len(one.rows)):
            error, square, asked = plain_user(state, engine, one, place, of_group, known, movies)
            vector, embedding = (rows[:, of_group].square().sum((1, 2))
                                 for rows in (movies[0], state["movie_tower.embedding"]))
            prior = (FILM_PRIOR * vector + EMBEDDING_PRIOR * embedding) / count.clamp(min=1)
            of_films = asked.double() @ (PENALTY * vector + prior)
            squared, size = squared + error, size + PENALTY * square + of_films
            number += int(asked.sum()) * len(range(members)[of_group])
    leaves = [*(state[name] for name in one.gradients), one.rows]
    *gradients, of_rows = torch.autograd.grad(0.5 * squared + 0.5 * size, leaves)
    sums = torch.stack([squared + size, squared, torch.tensor(float(number))])
    return sums, dict(zip(one.gradients, gradients, strict=True)), of_rows


@pytest.mark.parametrize("few", [1024, -1], ids=["array operations", "compiled loops"])
@pytest.mark.parametrize("ensemble_size", [1, 2, 3, 4])
def test_every_step_has_the_loss_and_the_gradients_of_the_formulas(ensemble_size, few, float64, monkeypatch):
    monkeypatch.setattr(backend, "FEW_RATINGS", few)
    engine = engine_of(ensemble_size=ensemble_size, user_dropout=0.5)
    steps, kept = recorded(engine, 1), 0
    assert len(steps) == 3
    for one in steps:
        sums, gradients, of_rows = plain_step(engine, one)
        torch.testing.assert_close(one.sums, sums, rtol=1e-12, atol=0)
        for name, gradient in gradients.items():
            assert gradient.abs().sum() > 0, name
            torch.testing.assert_close(one.gradients[name], gradient, rtol=1e-9, atol=1e-12, msg=name)
        torch.testing.assert_close(engine.user_rows.state["mean"][one.batch.users], 0.1 * of_rows)  # its first step
        kept += int(one.keep.sum())
    assert 0 < kept < len(COUNTS)


# --- chance ------------------------------------------------------------------------------------------------------


def division(steps: list[SimpleNamespace]) -> np.ndarray:
    """Return which ratings of an epoch were context of the first members, bool (U, M); users rated all movies."""
    matrix = np.zeros((100, 40), bool)
    for one in steps:
        matrix[one.batch.users[one.batch.row], one.batch.movie_idx] = one.in_context
    return matrix


@pytest.fixture(scope="module")
def many() -> list[SimpleNamespace]:
    """Two epochs of four steps of 100 users who have rated the same 40 movies."""
    return recorded(engine_of([40] * 100, 41, batch_size=25), 1, 2)


def test_half_of_the_ratings_are_context_and_every_epoch_and_seed_divides_them_anew(many):
    one, two = division(many[:4]), division(many[4:])
    other = division(recorded(engine_of([40] * 100, 41, batch_size=25, seed=1), 1))
    assert (one == division(recorded(engine_of([40] * 100, 41, batch_size=100), 1))).all()  # whoever shares the step
    for share in (one.mean(), two.mean(), other.mean(), (one == two).mean(), (one == other).mean()):
        assert abs(share - 0.5) < 5 * 0.5 / 4000**0.5
    for axis, number in ((0, 100), (1, 40)):  # neither of a user's nor of a movie's ratings are all on one side
        assert abs(one.mean(axis) - 0.5).max() < 5 * 0.5 / number**0.5


@pytest.mark.parametrize("ensemble_size", [2, 3])
def test_heads_predict_what_they_do_not_see_and_two_groups_predict_every_rating_once(ensemble_size):
    for one in recorded(engine_of(ensemble_size=ensemble_size), 1):
        rated = set(zip(one.batch.row.tolist(), one.batch.movie_idx.tolist(), strict=True))
        user_of_row = one.user_of_row.tolist()
        context, target = ([{(user_of_row[row], movie) for row, movie in zip(*map(torch.Tensor.tolist, part[:2]))
                             if (row >= one.first_rows) == group} for group in (0, 1)]
                           for part in (one.context, one.target))
        known = {pair for pair, known in zip(zip(one.batch.row.tolist(), one.batch.movie_idx.tolist()),
                                             one.in_context.tolist(), strict=True) if known}
        asked = [rated - known, known if ensemble_size == 2 else set()]
        assert target == asked
        for group in (0, 1):  # a user of whom nothing is asked has no row
            users = {user for user, _ in asked[group]}
            rows = one.user_of_row[:one.first_rows] if group == 0 else one.user_of_row[one.first_rows:]
            assert set(rows.tolist()) == users and len(rows) == len(users)
            assert context[group] == {pair for pair in rated - asked[group] if pair[0] in users}
        assert int(one.sums[2]) == (len(rated) if ensemble_size == 2 else 3 * len(target[0]))


def test_every_epoch_has_steps_of_other_users_and_each_user_once(many):
    users = [frozenset(one.batch.users.tolist()) for one in many]
    for epoch in (users[:4], users[4:]):
        assert [len(step) for step in epoch] == [25] * 4 and set().union(*epoch) == set(range(100))
    assert len(set(users)) == 8


def test_the_embedding_is_left_out_for_97_percent_of_users_and_only_other_rows_move():
    engine, kept = engine_of([2] * 3000, batch_size=1000), []
    for number, one in enumerate(recorded(engine, 1, 2, num_epochs=2)):
        before, after = (state["user_embedding"] for state in (one.before, one.after))
        keep = one.keep
        rows = before[one.batch.users] * keep.unsqueeze(1)
        assert torch.equal(one.embedding, rows[one.user_of_row])
        kept.append({*one.batch.users[keep].tolist()})
        if number < 3:  # later, a row that has moved once moves on by its momentum
            moved = (before != after).any(1).nonzero().squeeze(1)
            assert {*moved.tolist()} == kept[-1]
            first_step = torch.full((len(moved), 3), 0.001 * 20 * one.factor)  # of Adam: the rate itself
            torch.testing.assert_close((after - before)[moved].abs(), first_step, rtol=1e-3, atol=0)
    first, second = set().union(*kept[:3]), set().union(*kept[3:])
    for number in (len(first), len(second)):
        assert abs(number / 3000 - 0.03) < 5 * (0.03 * 0.97 / 3000)**0.5
    assert len(first & second) < 15  # 2.7 are to be expected
    assert (engine.user_rows.state["steps"] == 2).all()


# --- moves -------------------------------------------------------------------------------------------------------


def test_parameters_move_as_torch_s_optimizers_move_them():
    """Film tables by SGD with Nesterov momentum, drifts too and with decay, all others by Adam, at rates that warm up
    for 2 % of all steps and then fall along half a cosine."""
    steps = recorded(engine_of(lr=0.004, time_l2=60.0), 1, 2, num_epochs=2)  # 3 an epoch
    leaves = {name: torch.nn.Parameter(steps[0].before[name].clone()) for name in steps[0].gradients}
    tables = "movie_tower.embedding", "movie_tower.bias", "user_tower.pooled", "movie_bias_over_time.table"
    groups = [{"params": [leaves[name]], "weight_decay": 60 / 3 * (name == tables[-1])} for name in tables]
    sgd = torch.optim.SGD(groups, 1, momentum=0.9, nesterov=True)
    adam = torch.optim.Adam([leaf for name, leaf in leaves.items() if name not in tables], 1, (0.9, 0.99), 1e-8)
    for number, one in enumerate(steps):
        factor = min(1, (number + 1) / (0.02 * 6 + 1)) * (1 + math.cos(math.pi * number / 6)) / 2
        assert one.factor == pytest.approx(factor)
        for name, leaf in leaves.items():
            leaf.grad = one.gradients[name]
        for optimizer, rate in ((sgd, 0.004 * 1.5), (adam, 0.004 * 10)):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
        for name, leaf in leaves.items():
            torch.testing.assert_close(one.after[name], leaf.detach(), rtol=1e-5, atol=1e-6, msg=name)


def test_a_row_has_the_bias_correction_of_its_own_age():
    table = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    leaves = [torch.nn.Parameter(row.clone()) for row in table]
    adams, rows = [torch.optim.Adam([leaf], 1, (0.9, 0.99), 1e-8) for leaf in leaves], RowAdam(table, lr=0.06)
    for number, touched in enumerate([[0, 1], [1], [3, 0], [1, 3], [1], [0, 2]]):
        grad = torch.randn(len(touched), 3, generator=torch.Generator().manual_seed(number))
        rows.step(torch.tensor(touched), grad, factor=1 / (number + 1))
        for row, gradient in zip(touched, grad, strict=True):
            leaves[row].grad, adams[row].param_groups[0]["lr"] = gradient, 0.06 / (number + 1)
            adams[row].step()
        torch.testing.assert_close(table, torch.stack([leaf.detach() for leaf in leaves]))


def test_the_bar_shows_the_mean_loss_so_far(monkeypatch):
    engine, shown = engine_of(batch_size=3), []
    monkeypatch.setattr(engine_module, "SHOW_S", 0.0)
    sums, step = [], engine.step
    monkeypatch.setattr(engine, "step", lambda *args: sums.append(step(*args)) or sums[-1])
    with tqdm(total=len(engine.ratings), file=io.StringIO(), mininterval=0) as bar:
        monkeypatch.setattr(bar, "set_postfix", lambda refresh, **values: shown.append(values))
        engine.run_epoch(1, 2, bar)
        assert bar.n == len(engine.ratings)
    totals = torch.stack(sums).cumsum(0)
    assert shown == [{"loss": f"{loss / count:.4f}"} for loss, _, count in totals.tolist()]


# --- a run -------------------------------------------------------------------------------------------------------


SMALL = ("--embedding_dim", "8", "--ensemble_size", "2", "--hidden_dim", "8", "--num_threads", "1", "--blend", "both")


def trainer_of(data_dir: Path, *flags: str) -> Trainer:
    return build.build_trainer(main.parse_args([*SMALL, *flags]), load_dataset(data_dir), torch.device("cpu"), ALONE)


@pytest.mark.parametrize("flags", [(), ("--l2", "0.25", "--batch_size", "33")])
def test_sides_have_their_penalties_steps_and_chance(data_dir, flags):
    ratings = pq.read_table(data_dir / "ratings.parquet", columns=["user_idx", "movie_idx", "split"]).to_pandas()
    train = ratings[ratings["split"] == "train"]
    engines, (movies, users) = trainer_of(data_dir, *flags).engines, (train["movie_idx"].nunique(), 400)
    expected = [0.25, 0.25] if flags else [movies / len(train), users / len(train)]
    assert [engine.l2 for engine in engines] == pytest.approx(expected)
    assert [engine.batch_size for engine in engines] == ([33, 17] if flags else [128, 64])
    assert engines[0].seed != engines[1].seed


@pytest.mark.parametrize("flags", [(), ("--blend", "user", "--relevance_weight", "0")])
def test_hidden_units_are_left_out_in_steps_and_never_in_evaluation(data_dir, tmp_path, flags):
    trainer, shares, inside = trainer_of(data_dir, "--dropout", "0.4", *flags), {True: [], False: []}, [False]

    def look(_, inputs, output):
        alive = inputs[0] != 0
        shares[inside[0]].append(float((output[alive] == 0).double().mean()))
        torch.testing.assert_close(output[output != 0], inputs[0][output != 0] / (0.6 if inside[0] else 1))

    def marked(take):
        def step(*args):
            inside[0] = True
            result = take(*args)
            inside[0] = False
            return result
        return step

    for engine in trainer.engines:
        engine.step = marked(engine.step)
        for tower in (engine.model.user_tower, engine.model.movie_tower):
            tower.dropout.register_forward_hook(look)
    assert [row.epoch for row in itertools.islice(trainer.epochs(), 2)] == [1, 2]
    assert set(shares[False]) == {0.0} and 0.35 < np.mean(shares[True]) < 0.45 and min(shares[True]) > 0.2
    # Whatever came before, a checkpoint's model is loaded for evaluation.
    trainer.model.train()
    save_checkpoint(tmp_path / "best.pt", trainer.checkpoint("0" * 64))
    model, checkpoint = load_model(tmp_path / "best.pt", "0" * 64)
    movies = pq.read_table(data_dir / "movies.parquet").to_pandas().fillna(0)
    state = {name.removeprefix("user_based."): value.double() for name, value in checkpoint["model"].items()}
    movies = plain_films(state, *(torch.tensor(movies[name].to_numpy(float)) for name in ("year", "num_train_ratings")))
    table = model.movie_table().rows
    for part, expected in zip((table[..., :-2], table[..., -1]), movies, strict=True):
        torch.testing.assert_close(part.double(), expected, rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in model.modules())


def test_hidden_units_are_those_of_seed_and_epoch_whatever_was_drawn_before(data_dir):
    weights = []
    for draws in (0, 3):
        trainer = trainer_of(data_dir, "--dropout", "0.4", "--relevance_weight", "0")
        for epoch in (1, 2):
            torch.rand(draws)
            trainer.engines[0].run_epoch(epoch, 2, tqdm(disable=True))
        weights.append(trainer.model.user_based.user_tower.hidden.weight)
    assert torch.equal(*weights)


@pytest.mark.parametrize(("dropout", "threads"), [("0", 2), ("0.1", 1)])
def test_hidden_units_are_drawn_in_one_thread(data_dir, monkeypatch, dropout, threads):
    """Two would take chance from each other, now the one first and now the other."""
    trainer = trainer_of(data_dir, "--dropout", dropout)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(trainer, "_run_epoch", lambda _: in_use.append(num_threads()) or {}["enough"])
    in_use: list[int] = []
    with pytest.raises(KeyError):
        next(trainer.epochs())
    assert in_use == [threads]


# --- half stars --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_scales(data_dir, tmp_path_factory) -> list[list[str]]:
    """The flags of two runs: of the data set, and of the same with twice as many stars that count for half a one."""
    folder = tmp_path_factory.mktemp("halves")
    shutil.copytree(data_dir, folder / "data")
    file = dataset.RatingsFile(data_dir)
    with writer.ratings_writer(folder / "data", file.schema) as parquet:
        for _, ratings in file.read_groups():
            writer.write_ratings(parquet, ratings._replace(stars=ratings.stars * np.uint8(2)))
    writer.write_meta(folder / "data", dataset.read_meta(data_dir) | {"stars_step": 0.5})
    runs = [["--data_dir", str(data), "--run_dir", str(folder / name)]
            for name, data in (("whole", data_dir), ("half", folder / "data"))]
    assert [main.main([*SMALL, *flags, "--epochs", "1"]) for flags in runs] == [0, 0]
    return runs


def test_a_run_on_half_stars_is_that_on_the_same_stars_written_out(two_scales):
    one, two = (torch.load(Path(flags[-1]) / "best.pt", weights_only=True)["model"] for flags in two_scales)
    of_link = {name for name in one if name.startswith("link.")}  # which knows what stars can be given
    assert all(torch.equal(one[name], two[name]) for name in one.keys() - of_link - {"relevance.weights"})
    one, two = ((Path(flags[-1]) / "metrics.csv").read_text().splitlines()[1].split(",") for flags in two_scales)
    assert one[:3] == two[:3] and list(map(float, one[3:5])) == pytest.approx(list(map(float, two[3:5])), abs=0.02)


@pytest.mark.parametrize("flags", [("--include_seen", "--top_n", "90"), ("--explain",), ("--fallback", "popular"),
                                   ("--rate", "1:5,2:1", "--explain"), ("--rank_by", "relevance")])
def test_lists_on_half_stars_are_those_on_the_same_stars_written_out(two_scales, flags, capsys):
    data_dir = Path(two_scales[0][1])
    user_id = pq.read_table(data_dir / "users.parquet")["user_id"][7].as_py() + 10**9 * ("--fallback" in flags)
    lists = []
    for of_run in two_scales:
        assert rec.main([*of_run, "--user_id", str(user_id), "--json", *flags]) == 0
        lists.append(json.loads(capsys.readouterr().out))
    one, two = (of_run["recommendations"] for of_run in lists)
    assert [row["movie_id"] for row in one] == [row["movie_id"] for row in two]
    assert [row["stars"] for row in one] == pytest.approx([row["stars"] for row in two], abs=0.1)
    if "--include_seen" in flags:
        ratings = pq.read_table(data_dir / "ratings.parquet", columns=["user_idx", "stars"]).to_pandas()
        given = [row["rated"] for row in lists[1]["recommendations"] if row["rated"]]
        assert sorted(given) == sorted(ratings["stars"][ratings["user_idx"] == 7])


def test_everybody_s_lists_on_half_stars_are_those_on_the_same_stars_written_out(two_scales, tmp_path):
    for number, of_run in enumerate(two_scales):
        assert rec.main([*of_run, "--all_users", "--out", str(tmp_path / str(number))]) == 0
    one, two = (pq.read_table(tmp_path / name).to_pandas() for name in "01")
    assert one[["user_id", "rank"]].equals(two[["user_id", "rank"]])
    assert (one.movie_id != two.movie_id).sum() <= 4  # the links differ a little, and so may neighbours
    both = one.merge(two, on=["user_id", "movie_id"])
    assert len(both) >= len(one) - 2 and (both.stars_x - both.stars_y).abs().max() < 0.1


def test_odd_halves_are_read_with_their_step():
    halves = engine_of().ratings
    halves.stars = torch.arange(len(halves)).remainder(10).add(1).byte()  # half a star to five
    written = copy.copy(halves)
    written.stars = torch.tensor([(1 + place % 10) / 2 for place in range(len(halves))])
    users = torch.tensor([5, 1, 0])
    assert torch.equal(batch_of(halves, users, 0.5).stars, batch_of(written, users).stars)
    biases = fit_biases(halves, NUM_MOVIES, 0.5), fit_biases(written, NUM_MOVIES)
    for name in ("mean", "user", "movie"):
        assert torch.equal(*(torch.as_tensor(getattr(one, name)) for one in biases))
    scores = torch.randn(len(COUNTS), NUM_MOVIES, generator=torch.Generator().manual_seed(0))
    one, two = (evaluate_ranking(lambda users: scores[users].clone(), [], part, torch.ones(NUM_MOVIES, dtype=bool),
                                 stars_step=step) for part, step in ((halves, 0.5), (written, 1)))
    assert one == two and 0 < one["ndcg@10"] < 1
