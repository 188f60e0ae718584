import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from main import parse_args
from models.checkpoint import load_model
from models.config import ModelConfig
from models.ops.ranks import ALONE
from models.relevance import Relevance
from training import engine as training_engine
from training import relevance as training_relevance
from training.batches import Batch, batch_of, in_context_of, load_dataset
from training.build import build_trainer
from training.evaluation import scorer
from training.link import NEW_SEED
from training.metrics import evaluate_ranking
from training.relevance import RelevanceTrainer, before_a_moment, fit_weights, relevance_scorer


def weights_of(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "last.pt", weights_only=True)["model"]


def test_the_rating_part_is_the_same_with_relevance_and_without(train, data_dir, tmp_path):
    for weight in ("0", "1"):
        assert train(data_dir, tmp_path / weight, "--epochs", "2", "--blend", "both", "--relevance_weight", weight) == 0
    without, with_it = weights_of(tmp_path / "0"), weights_of(tmp_path / "1")
    assert {name for name in with_it if name not in without} == {
        f"relevance.{name}" for name in ("history", "vectors", "popularity", "movie_mean", "weights")}
    assert all(torch.equal(tensor, with_it[name]) for name, tensor in without.items())
    known, new = torch.load(tmp_path / "1" / "best.pt", weights_only=True)["model"]["relevance.weights"]
    assert (known != torch.tensor([1.0, 1.0, 0.0])).all() and (new != torch.tensor([1.0, 1.0, 0.0])).all()
    assert (known != new).all()


def test_of_very_many_users_only_some_steps_train_relevance(data_dir, monkeypatch):
    data = load_dataset(data_dir)
    args = parse_args(["--batch_size", "100"])  # of 400
    assert build_trainer(args, data, torch.device("cpu"), ALONE).engines[0].relevance_every == 1
    monkeypatch.setattr(training_engine, "RELEVANCE_USERS", 200)
    engine = build_trainer(args, data, torch.device("cpu"), ALONE).engines[0]
    assert engine.relevance_every == 2
    batch, relevance = batch_of(engine.ratings, torch.arange(100)), engine.relevance.relevance
    for number, moves in ((0, True), (1, False), (2, True), (3, False)):
        before, rating = copy.deepcopy(relevance.state_dict()), engine.model.movie_tower.embedding.detach().clone()
        engine.step(batch, 1, 1.0, number)
        assert all(torch.equal(before[name], value) != moves for name, value in relevance.named_parameters())
        assert not torch.equal(rating, engine.model.movie_tower.embedding)


def test_a_run_without_relevance_has_no_scores_of_it_and_is_not_resumed_with_it(train, data_dir, tmp_path, capsys):
    assert train(data_dir, tmp_path / "run", "--epochs", "1", "--relevance_weight", "0") == 0
    data = load_dataset(data_dir)
    model, _ = load_model(tmp_path / "run" / "best.pt", data.meta["fingerprint"])
    assert relevance_scorer(model, data.train, 1, data.last_day) is None
    assert train(data_dir, tmp_path / "run", "--epochs", "2", "--resume", "--relevance_weight", "1") == 1
    assert "was trained with --relevance_weight 0.0, not 1.0; leave the flag out" in capsys.readouterr().err


def test_relevance_orders_better_than_popularity_and_than_stars(data_dir, run_dir):
    data = load_dataset(data_dir, with_validation=True)
    model, _ = load_model(run_dir / "best.pt", data.meta["fingerprint"])
    number = torch.tensor(data.movies.num_train_ratings)
    ndcg = [evaluate_ranking(score, [data.train], data.test, number > 0)["ndcg@10"] for score in (
        relevance_scorer(model, data.train, 1, data.last_day), scorer(model, data.train, 1, data.last_day),
        lambda users: number.float().repeat(len(users), 1))]
    assert ndcg[0] > max(ndcg[1:])


@pytest.mark.parametrize("are_new", [False, True])
def test_weights_maximise_the_likelihood_of_what_validation_users_liked(data_dir, run_dir, are_new):
    """New people have told of some of their ratings, and nothing else is known of them."""
    data = load_dataset(data_dir)
    model, _ = load_model(run_dir / "best.pt", data.meta["fingerprint"])
    relevance, users = model.relevance, data.validation.offset.diff().nonzero().squeeze(1)
    others = relevance.weights[int(not are_new)].tolist()
    if are_new:
        with torch.no_grad():
            model.user_based.user_embedding.fill_(torch.nan)
            if model.item_based is not None:
                model.item_based.movie_tower.embedding.fill_(torch.nan)
    for _ in range(5):
        fit_weights(model, data.train, data.validation, users, 1, data.last_day, are_new=are_new)
    assert relevance.weights[int(not are_new)].tolist() == others
    known, asked = batch_of(data.train, users), batch_of(data.validation, users)
    if are_new:
        known = known.subset(in_context_of(known, NEW_SEED, any_size=1.0))
    asked = asked.subset(asked.stars >= 4)
    movies, context = model.movie_table(), known.context()
    ratings = model.user_vectors(movies, users, context, data.last_day, are_new)
    movie_vectors = relevance.movie_vectors(model.movie_vectors(data.last_day, movies))

    @torch.no_grad()
    def objective(weights: list[float]) -> float:
        relevance.weights[int(are_new)] = torch.tensor(weights)
        score = (relevance.user_vectors(context, ratings, are_new) @ movie_vectors.T).double()
        score[known.row, known.movie_idx] = -torch.inf
        score[:, torch.tensor(data.movies.num_train_ratings) == 0] = -torch.inf
        prior = sum((weight - start)**2 for weight, start in zip(weights, (1, 1, 0), strict=True)) / 2
        return float(score.log_softmax(1)[asked.row, asked.movie_idx].sum()) - prior

    fitted = relevance.weights[int(are_new)].tolist()
    best = objective(fitted)
    for place in range(3):
        for change in (-0.03, 0.03):
            other = list(fitted)
            other[place] += change
            assert objective(other) < best


def test_context_lies_before_the_targets_in_time():
    day = torch.tensor([1, 1, 4, 4, 4, 9, 2, 2, 2, 2, 7])
    row = torch.tensor([0] * 6 + [1] * 4 + [3])  # user 2 of the batch has no ratings
    batch = Batch(torch.tensor([5, 6, 7, 8]), row, torch.arange(11), torch.full((11,), 3.0), day)
    both = 0
    for seed in range(50):
        before = before_a_moment(batch, seed)
        for user in (0, 1, 3):
            known, asked = day[(row == user) & before], day[(row == user) & ~before]
            if len(known) and len(asked):
                assert known.max() <= asked.min()
                both += 1
        assert not before[row == 0][5] or before[row == 0].all()
    assert both > 50


def test_pieces_of_a_batch_have_its_gradient_with_a_sample_of_movies(data_dir, monkeypatch):
    """More movies than a sample holds, as on all of Netflix."""
    monkeypatch.setattr(training_relevance, "SAMPLE", 40)
    args = parse_args(["--data_dir", str(data_dir), "--embedding_dim", "8", "--ensemble_size", "2"])
    data = load_dataset(data_dir)
    engine = build_trainer(args, data, torch.device("cpu"), ALONE).engines[0]
    trainer = engine.relevance
    parameters, users = list(trainer.relevance.parameters()), torch.arange(30)
    whole, *parts = (part for chosen in (users, users[:11], users[11:])
                     for part in engine._parts(batch_of(data.train, chosen), 3))
    gradients = [[gradient.to_dense() for gradient in torch.autograd.grad(trainer.loss(part, 3, 5), parameters)]
                 for part in (whole, *parts)]
    for own, *others in zip(*gradients, strict=True):
        torch.testing.assert_close(own, sum(others), rtol=1e-4, atol=1e-6)
    another = [gradient.to_dense() for gradient in torch.autograd.grad(trainer.loss(whole, 3, 6), parameters)]
    assert not torch.equal(another[1] == 0, gradients[0][1] == 0)


@pytest.mark.parametrize("by_time", [False, True])
def test_some_users_have_told_of_any_number_of_their_context_and_the_rest_are_targets(by_time, monkeypatch):
    """Of 2,000 users with 64 ratings, in as many days; the context of all is the 40 that come first, or those before
    a moment."""
    config = ModelConfig(2000, 64, 64, 1, 5, 3.0, 4, 1, 4, relevance_dim=2)
    relevance, row, number = Relevance(config), torch.arange(2000).repeat_interleave(64), torch.arange(64).repeat(2000)
    batch = Batch(torch.arange(2000), row, number, torch.full((128_000,), 5.0), number)
    seen: dict[str, torch.Tensor] = {}

    def loss(context, row, movie_idx, weight, num_users, candidates):
        seen.update(context=context.row * 64 + context.movie_idx, target=row * 64 + movie_idx)
        return torch.zeros((), requires_grad=True)

    monkeypatch.setattr(relevance, "loss", loss)
    trainer = RelevanceTrainer(relevance, torch.ones(64), 2000, 128_000, by_time, 0.001)
    monkeypatch.setattr(trainer, "_of_use", lambda context, target, weight, seed: (context, target, weight, 2000))
    part = SimpleNamespace(batch=batch, in_context=number < 40)
    trainer.loss(part, 3, 0)
    first = {name: tensor.clone() for name, tensor in seen.items()}
    assert torch.equal(torch.cat([first["context"], first["target"]]).sort().values, torch.arange(128_000))
    most = before_a_moment(batch, 3) if by_time else part.in_context
    assert most[first["context"]].all()
    of_all, told = (torch.bincount(rows, minlength=2000) for rows in (row[most], first["context"] // 64))
    fewer = told < of_all
    assert abs(fewer.double().mean() - 0.3) < 0.04  # a few of those with any number told of all
    # the logarithm of their number is about uniform
    share = (told[fewer] + 1).log() / (of_all[fewer] + 1).log()
    assert abs(share.mean() - 0.48) < 0.04 and 0.2 < (share < 0.25).double().mean() < 0.35
    trainer.loss(part, 4, 0)
    assert not torch.equal(first["context"], seen["context"][:len(first["context"])])


def test_of_many_users_with_few_ratings_a_fraction_is_drawn_whatever_their_moment():
    """2,000 users of 8 ratings and 1,024 movies: 32 cells a rating are 16,000 * 32 / (2,000 * 1,024) of the users."""
    config = ModelConfig(2000, 1024, 8, 1, 5, 3.0, 4, 1, 4, relevance_dim=2)
    relevance, users = Relevance(config), torch.arange(2000)
    trainer = RelevanceTrainer(relevance, torch.ones(1024), 2000, 16_000, True, 0.001)
    assert trainer.fraction == 0.25
    row, number = users.repeat_interleave(8), torch.arange(16_000)
    batch = Batch(users, row, number % 1024, (1 + number % 5).float(), number % 8)
    before = before_a_moment(batch, 7)
    context, target = batch.subset(before), batch.subset(~before)
    liked = target.row[target.stars > 2].unique()  # and with context, of which all have some
    known, asked, weight, kept = trainer._of_use(context, target, relevance.weight(target.row, target.stars, 2000), 7)
    assert abs(kept / len(liked) - 0.25) < 5 * (0.25 * 0.75 / len(liked))**0.5
    torch.testing.assert_close(weight, relevance.weight(asked.row, asked.stars, kept))
    sizes, own = torch.bincount(context.row, minlength=2000)[liked].double(), torch.bincount(known.row).double()
    assert len(own) == kept and own.min() >= 4
    assert abs(own.mean() - sizes.mean()) < 5 * sizes.std() / kept**0.5
